"""Small random GGUF files of architectures that llmkit does not train, as llama.cpp wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf_surgery import Key, Kind, write_file

from llmkit.tokenizer_training import train_bpe

F32 = gguf.GGMLQuantizationType.F32
WORDS = "some words to merge, some more words"
N_HEAD = 4
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """What an architecture has that another has not."""

    n_head_kv: int = 2
    n_embd: int = 64
    n_ff: int = 128
    head_length: int = 16
    n_layer: int = 2
    context: int = 96
    has_qkv_bias: bool = False
    has_head: bool = True
    has_experts: int = 0


SHAPES: dict[str, Shape] = {
    "llama": Shape(),
    "qwen2": Shape(has_qkv_bias=True),
    "gemma": Shape(n_head_kv=1, head_length=32, has_head=False),
    "qwen3moe": Shape(has_experts=4),
}


def write_model(
    path: Path,
    architecture: str = "llama",
    shape: Shape | None = None,
    chat_template: str | None = None,
    more: Mapping[str, Key] | None = None,
) -> Path:
    """A model that llama.cpp runs, all weights f32; `more` metadata comes last."""
    shape = shape or SHAPES[architecture]
    keys = _metadata(architecture, shape)
    if chat_template is not None:
        keys["tokenizer.chat_template"] = (chat_template, Kind.STRING, None)
    generator = np.random.default_rng(0)
    n_tokens = len(keys["tokenizer.ggml.tokens"][0])
    tensors = {}
    for name, size in _shapes(architecture, shape, n_tokens).items():
        weights = generator.normal(0, 1 / np.sqrt(size[-1]), size)
        tensors[name] = ((weights + ("norm" in name)).astype(np.float32), F32)
    write_file(path, {**keys, **(more or {})}, tensors)
    return path


def _metadata(architecture: str, shape: Shape) -> dict[str, Key]:
    tokenizer = train_bpe([WORDS], 280)
    special = tokenizer.special_ids
    types = [3 if token_id in special else 1 for token_id in range(tokenizer.vocab_size)]

    def number(value: int) -> Key:
        return value, Kind.UINT32, None

    sizes = {
        "context_length": number(shape.context),
        "embedding_length": number(shape.n_embd),
        "block_count": number(shape.n_layer),
        "feed_forward_length": number(shape.n_ff),
        "attention.head_count": number(N_HEAD),
        "attention.head_count_kv": number(shape.n_head_kv),
        "attention.key_length": number(shape.head_length),
        "attention.value_length": number(shape.head_length),
        "attention.layer_norm_rms_epsilon": (1e-6, Kind.FLOAT32, None),
        "rope.dimension_count": number(shape.head_length),
    }
    if shape.has_experts:
        sizes |= {
            "expert_count": number(shape.has_experts),
            "expert_used_count": number(2),
            "expert_feed_forward_length": number(shape.n_ff),
        }
    merges = [f"{left} {right}" for left, right in tokenizer.merges]
    return {
        "general.architecture": (architecture, Kind.STRING, None),
        "general.name": ("tiny", Kind.STRING, None),
        "general.file_type": number(0),
        **{f"{architecture}.{name}": key for name, key in sizes.items()},
        "tokenizer.ggml.model": ("gpt2", Kind.STRING, None),
        "tokenizer.ggml.pre": ("gpt-2", Kind.STRING, None),
        "tokenizer.ggml.tokens": (tokenizer.tokens, Kind.ARRAY, Kind.STRING),
        "tokenizer.ggml.token_type": (types, Kind.ARRAY, Kind.INT32),
        "tokenizer.ggml.merges": (merges, Kind.ARRAY, Kind.STRING),
        "tokenizer.ggml.bos_token_id": number(tokenizer.end_of_text_id),
        "tokenizer.ggml.eos_token_id": number(tokenizer.end_of_text_id),
    }


def _shapes(architecture: str, shape: Shape, n_tokens: int) -> dict[str, tuple[int, ...]]:
    C, D = shape.n_embd, shape.head_length
    widths = {"q": N_HEAD * D, "k": shape.n_head_kv * D, "v": shape.n_head_kv * D}
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_tokens, C)}
    for i in range(shape.n_layer):
        b = f"blk.{i}"
        found[f"{b}.attn_norm.weight"] = (C,)
        for part, width in widths.items():
            found[f"{b}.attn_{part}.weight"] = (width, C)
            if shape.has_qkv_bias:
                found[f"{b}.attn_{part}.bias"] = (width,)
        found[f"{b}.attn_output.weight"] = (C, N_HEAD * D)
        found[f"{b}.ffn_norm.weight"] = (C,)
        if architecture == "qwen3moe":
            found |= {f"{b}.attn_{part}_norm.weight": (D,) for part in "qk"}
            found[f"{b}.ffn_gate_inp.weight"] = (shape.has_experts, C)
        experts = (shape.has_experts,) if shape.has_experts else ()
        suffix = "_exps" if experts else ""
        found[f"{b}.ffn_gate{suffix}.weight"] = (*experts, shape.n_ff, C)
        found[f"{b}.ffn_up{suffix}.weight"] = (*experts, shape.n_ff, C)
        found[f"{b}.ffn_down{suffix}.weight"] = (*experts, C, shape.n_ff)
    found["output_norm.weight"] = (C,)
    if shape.has_head:
        found["output.weight"] = (n_tokens, C)
    return found
