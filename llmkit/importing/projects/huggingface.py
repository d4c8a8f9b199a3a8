"""Hugging Face transformers' GPT-2 (modeling_gpt2.py): Conv1D matrices, (in, out)."""

from llmkit.importing.projects.project import Project

_NAMES = (r"(transformer\.)?h\.0\.attn\.c_attn\.weight", r"(transformer\.)?wpe\.weight")

HUGGING_FACE = (
    Project(
        "Hugging Face GPT-2",
        _NAMES,
        is_transposed=True,
        needs=tuple(
            rf"(transformer\.)?{module}\.{part}"
            for module in (
                *(rf"h\.0\.{name}" for name in ("ln_1", r"attn\.c_attn", r"attn\.c_proj", "ln_2")),
                *(r"h\.0\.mlp\.c_fc", r"h\.0\.mlp\.c_proj", "ln_f"),
            )
            for part in ("weight", "bias")
        ),
        facts={"activation": "gelu_new"},  # GPT2Config's default; old files do not state it
        tokenizer="gpt2",
    ),
)
