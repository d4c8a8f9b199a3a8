"""Andrej Karpathy's programs. The first four share GPT-2's names with matrices (out, in)."""

from llmkit.importing.projects.project import Project

_NAMES = (
    r"transformer\.h\.0\.attn\.c_attn\.weight",
    r"transformer\.wpe\.weight",
    r"transformer\.h\.0\.mlp\.c_fc\.weight",
)
_MASK = r"transformer\.h\.0\.attn\.bias"
_LECTURE = (
    r"token_embedding_table\.weight",
    r"position_embedding_table\.weight",
    r"blocks\.0\.sa\.heads\.0\.key\.weight",
    r"blocks\.0\.ffwd\.net\.0\.weight",
)

KARPATHY = (
    Project(
        "llm.c",
        _NAMES,
        boxes=frozenset(("llm.c",)),
        facts={"activation": "gelu_tanh"},
        tokenizer="gpt2",
    ),
    Project(
        "nanoGPT",
        _NAMES,
        boxes=frozenset(("model", "model_args")),
        is_transposed=False,
        facts={"activation": "gelu", "norm_type": "layer"},  # torch.nn.GELU(), the exact one
        tokenizer="gpt2",
    ),
    Project(
        "build-nanogpt",
        _NAMES,
        boxes=frozenset(("model", "config")),
        classes=r".*\.GPTConfig",
        is_transposed=False,
        facts={"activation": "gelu_tanh"},
        tokenizer="gpt2",
    ),
    Project(
        "minGPT or makemore",
        (*_NAMES, _MASK),
        is_transposed=False,
        facts={"activation": "gelu_tanh"},  # its own class NewGELU
    ),
    Project(
        "nanoGPT without biases",
        _NAMES,
        absent=(r"transformer\.h\.0\.attn\.c_attn\.bias",),
        is_transposed=False,
        facts={"activation": "gelu", "norm_type": "layer"},
        tokenizer="gpt2",
    ),
    # Nothing tells nanoGPT (gelu) from build-nanogpt (gelu_tanh) in a bare state dict.
    Project("nanoGPT or build-nanogpt", _NAMES, is_transposed=False, tokenizer="gpt2"),
    Project(
        "freeCodeCamp's course on LLMs",
        _LECTURE,
        classes=r".*\.GPTLanguageModel",
        container=r"pickle file",
        facts={"activation": "relu", "norm": "post"},
    ),
    Project("ng-video-lecture (Let's build GPT)", _LECTURE, facts={"activation": "relu"}),
)
