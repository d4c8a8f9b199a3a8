"""GPTs of torch.nn.TransformerEncoder, whose layers are post-norm and have ReLU by default."""

from llmkit.importing.projects.project import Project

_LAYER = r"(.*\.)?0\."

TORCH_LAYERS = (
    Project(
        "a GPT of torch.nn.TransformerDecoderLayer",
        (rf"{_LAYER}self_attn\.in_proj_weight", rf"{_LAYER}multihead_attn\.in_proj_weight"),
        refused="cross-attention",
    ),
    Project(
        "a GPT of torch.nn.TransformerEncoderLayer",
        (rf"{_LAYER}self_attn\.in_proj_weight", rf"{_LAYER}linear1\.weight"),
        asks=frozenset(("norm",)),
    ),
)
