"""The one table of tensor names: checkpoint (GPT-2's) to GGUF (llama.cpp's `gpt2` graph)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.architectures.config import GPTConfig


@dataclass(frozen=True)
class TensorEntry:
    """One tensor under both names.

    `is_absent`: llama.cpp needs it, a checkpoint without qkv bias lacks it; zeros stand in.
    """

    checkpoint_name: str
    gguf_name: str
    shape: tuple[int, ...]
    is_absent: bool = False


def tensor_table(config: GPTConfig) -> list[TensorEntry]:
    """Every tensor of a model with these sizes, in file order. Shapes are (out, in)."""
    return list(_entries(config))


def _entries(config: GPTConfig) -> Iterator[TensorEntry]:
    C, F, V, T = config.n_embd, config.n_ff, config.vocab_size, config.context_length
    yield TensorEntry("wte.weight", "token_embd.weight", (V, C))
    yield TensorEntry("wpe.weight", "position_embd.weight", (T, C))
    for i in range(config.n_layer):
        ours, theirs = f"h.{i}", f"blk.{i}"
        yield from _norm(f"{ours}.ln_1", f"{theirs}.attn_norm", C)
        yield from _linear(
            f"{ours}.attn.c_attn", f"{theirs}.attn_qkv", 3 * C, C, bias=config.qkv_bias
        )
        yield from _linear(f"{ours}.attn.c_proj", f"{theirs}.attn_output", C, C)
        yield from _norm(f"{ours}.ln_2", f"{theirs}.ffn_norm", C)
        yield from _linear(f"{ours}.mlp.c_fc", f"{theirs}.ffn_up", F, C)
        yield from _linear(f"{ours}.mlp.c_proj", f"{theirs}.ffn_down", C, F)
    yield from _norm("ln_f", "output_norm", C)
    if not config.tie_embeddings:
        yield TensorEntry("lm_head.weight", "output.weight", (V, C))


def _norm(ours: str, theirs: str, width: int) -> Iterator[TensorEntry]:
    yield TensorEntry(f"{ours}.weight", f"{theirs}.weight", (width,))
    yield TensorEntry(f"{ours}.bias", f"{theirs}.bias", (width,))


def _linear(
    ours: str, theirs: str, n_out: int, n_in: int, bias: bool = True
) -> Iterator[TensorEntry]:
    yield TensorEntry(f"{ours}.weight", f"{theirs}.weight", (n_out, n_in))
    yield TensorEntry(f"{ours}.bias", f"{theirs}.bias", (n_out,), is_absent=not bias)
