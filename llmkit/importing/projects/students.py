"""Repositories that follow a course or a book with names of their own."""

from llmkit.importing.projects.project import Project

# Name, activation, tokenizer, and patterns of names that show it.
_TABLE = (
    ("DanielePioGenovese/GPT-from-scratch", "gelu", "gpt2",
     (r"tok_emb\.token_embedding\.embedding\.weight", r"trf_blocks\.0\.att\.W_query\.weight")),
    ("FareedKhan-dev/train-llm-from-scratch", "relu", "gpt2",
     (r"token_embed\.weight", r"attn_blocks\.0\.attn\.heads\.0\.key\.weight")),
    ("2745189173/miniGPT-from-scratch", "gelu", None,
     (r"token_embedding\.weight", r"blocks\.0\.attention\.heads\.0\.query\.weight")),
    ("QibinHuang/mini-gpt-from-scratch", "gelu", None,
     (r"token_embed\.weight", r"blocks\.0\.attn\.q_proj\.weight",
      r"blocks\.0\.ff\.net\.0\.weight")),
    ("ayushsyntax/GPT-from-Scratch-in-PyTorch", "gelu", None,
     (r"embed\.tok_emb\.weight", r"blocks\.0\.attn\.qkv\.weight")),
    ("elith-co-jp/book-llm-from-scratch", "gelu", None,
     (r"blocks\.0\.attn\.attention\.heads\.0\.linear_q\.weight",)),
    ("MatinKhajavi/GPT-from-scratch", "gelu_tanh", "gpt2",
     (r"gpt\.t_embedding\.weight", r"gpt\.transformers\.0\.mha\.qkv\.weight")),
    ("AmitojOberoi/GPT-From-Scratch", "relu", None,
     (r"transformer_blocks\.0\.attention\.heads\.0\.query\.weight",)),
    ("atandra2000/GPT-From-Scratch", "relu", None,
     (r"embeddings\.token_emb\.weight", r"blocks\.0\.attn\.q_linear\.weight")),
    ("Hawar-Dzaee/Foundation-LLM-from-scratch", "gelu", "gpt2",
     (r"embeddings\.token_embedding\.weight", r"transformer_blocks\.0\.mha\.W_q\.weight")),
    ("tohio/llms-from-scratch", "gelu", None,
     (r"token_embedding\.weight", r"blocks\.0\.attention\.q_proj\.weight")),
)  # fmt: skip

STUDENTS = tuple(
    Project(name, marks, facts={"activation": activation}, tokenizer=tokenizer)
    for name, activation, tokenizer, marks in _TABLE
)
