"""Sebastian Raschka's "Build a Large Language Model (From Scratch)" and what follows its names."""

from llmkit.importing.projects.project import Project

_NAMES = (r"tok_emb\.weight", r"pos_emb\.weight", r"final_norm\.(scale|weight)")
_QUERY = r"trf_blocks\.0\.att\.(W_query|qkv)\.(linear\.)?weight"
_OUTPUT = r"trf_blocks\.0\.att\.(out_proj|proj)\.(linear\.)?weight"

BOOK = (
    Project(
        "Build a Large Language Model (From Scratch)",
        (*_NAMES, _QUERY, _OUTPUT),
        facts={"activation": "gelu_tanh"},
        tokenizer="gpt2",
    ),
    Project(
        "kunjcr2/llms-from-scratch",  # builds a mask and never applies it
        (*_NAMES, _QUERY),
        absent=(_OUTPUT,),
        facts={"activation": "gelu_tanh", "mask": "none"},
        tokenizer="gpt2",
    ),
)
