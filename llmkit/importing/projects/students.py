"""Repositories that follow a course or a book with names of their own."""

from llmkit.importing.projects.project import Project

RELU = {"activation": "relu"}
EXACT_GELU = {"activation": "gelu"}

STUDENTS = (
    Project(
        "DanielePioGenovese/GPT-from-scratch",
        (r"tok_emb\.token_embedding\.embedding\.weight", r"trf_blocks\.0\.att\.W_query\.weight"),
        facts=EXACT_GELU,
        tokenizer="gpt2",
    ),
    Project(
        "FareedKhan-dev/train-llm-from-scratch",
        (r"token_embed\.weight", r"attn_blocks\.0\.attn\.heads\.0\.key\.weight"),
        facts=RELU,
        tokenizer="gpt2",
    ),
    Project(
        "2745189173/miniGPT-from-scratch",
        (r"token_embedding\.weight", r"blocks\.0\.attention\.heads\.0\.query\.weight"),
        facts=EXACT_GELU,
    ),
    Project(
        "QibinHuang/mini-gpt-from-scratch",
        (
            r"token_embed\.weight",
            r"blocks\.0\.attn\.q_proj\.weight",
            r"blocks\.0\.ff\.net\.0\.weight",
        ),
        facts=EXACT_GELU,
    ),
    Project(
        "ayushsyntax/GPT-from-Scratch-in-PyTorch",
        (r"embed\.tok_emb\.weight", r"blocks\.0\.attn\.qkv\.weight"),
        facts=EXACT_GELU,
    ),
    Project(
        "elith-co-jp/book-llm-from-scratch",
        (r"blocks\.0\.attn\.attention\.heads\.0\.linear_q\.weight",),
        facts=EXACT_GELU,
    ),
    Project(
        "MatinKhajavi/GPT-from-scratch",
        (r"gpt\.t_embedding\.weight", r"gpt\.transformers\.0\.mha\.qkv\.weight"),
        facts={"activation": "gelu_tanh"},
        tokenizer="gpt2",
    ),
    Project(
        "AmitojOberoi/GPT-From-Scratch",
        (r"transformer_blocks\.0\.attention\.heads\.0\.query\.weight",),
        facts=RELU,
    ),
    Project(
        "atandra2000/GPT-From-Scratch",
        (r"embeddings\.token_emb\.weight", r"blocks\.0\.attn\.q_linear\.weight"),
        facts=RELU,
    ),
    Project(
        "Hawar-Dzaee/Foundation-LLM-from-scratch",
        (r"embeddings\.token_embedding\.weight", r"transformer_blocks\.0\.mha\.W_q\.weight"),
        facts=EXACT_GELU,
        tokenizer="gpt2",
    ),
    Project(
        "tohio/llms-from-scratch",
        (r"token_embedding\.weight", r"blocks\.0\.attention\.q_proj\.weight"),
        facts=EXACT_GELU,
    ),
)
