"""Programs that are no GPT-2: recognised, to be refused by name."""

from llmkit.importing.projects.project import Project

MODERN = (
    Project(
        "nanochat",
        (r"(transformer\.)?resid_lambdas",),
        refused="rotary positions, RMSNorm without weights and value embeddings",
    ),
    Project(
        "nanochat",
        (r"transformer\.h\.0\.attn\.c_q\.weight",),
        absent=(r"transformer\.wpe\.weight",),
        refused="rotary positions and RMSNorm without weights",
    ),
    Project(
        "litgpt",
        (r"transformer\.h\.0\.norm_1\.weight", r"transformer\.h\.0\.attn\.(qkv|attn)\.weight"),
        refused="rotary positions (RoPE), as all of litgpt's models",
    ),
    Project(
        "llama2.c",
        (r"tok_embeddings\.weight", r"layers\.0\.attention\.wq\.weight"),
        refused="rotary positions (RoPE), RMSNorm and SwiGLU",
    ),
    Project(
        "a Llama model",
        (r"(model\.)?embed_tokens\.weight", r"(model\.)?layers\.0\.self_attn\.q_proj\.weight"),
        absent=(r".*position.*",),
        refused="rotary positions (RoPE), RMSNorm and SwiGLU",
    ),
    Project(
        "emadnahed/custom-gpt-from-scratch",
        (r"transformer\.h\.0\.mlp\.w3\.weight", r"transformer\.h\.0\.attn\.q_proj\.weight"),
        absent=(r"transformer\.wpe\.weight",),
        refused="rotary positions (RoPE), RMSNorm and SwiGLU: it is a Llama-shaped model",
    ),
)
