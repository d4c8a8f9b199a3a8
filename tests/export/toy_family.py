"""A model family of the tests alone: GPT-2 with RMSNorm, without positions and biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import gguf
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from llmkit.architectures.base import (
    GGUF_HEAD,
    HEAD,
    Family,
    LanguageModel,
    Role,
    SizeKey,
    TensorSpec,
)
from llmkit.architectures.cache import KVCache
from llmkit.architectures.graph import Attention, Embed, Gelu, Norm, Operation, Product

EPSILON = 1e-6


@dataclass(frozen=True)
class ToyConfig:
    architecture: ClassVar[str] = "toy"

    vocab_size: int
    context_length: int
    n_layer: int
    n_head: int
    n_embd: int
    tie_embeddings: bool = True


class ToyBlock(nn.Module):
    def __init__(self, config: ToyConfig, layer: int) -> None:
        super().__init__()
        C = config.n_embd
        self.layer, self.n_head = layer, config.n_head
        self.norm_1, self.norm_2 = nn.RMSNorm(C, EPSILON), nn.RMSNorm(C, EPSILON)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 2 * C, bias=False), nn.Linear(2 * C, C, bias=False)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        parts = self.qkv(self.norm_1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in parts)
        mask = None
        if cache is not None:
            mask = cache.mask(T, x.device)
            k, v = cache.extend(self.layer, k, v)
        is_causal = mask is None and T > 1
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
        x = x + self.out(seen.transpose(1, 2).reshape(B, T, C))
        y: Tensor = x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))
        return y


class Toy(LanguageModel):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(ToyBlock(config, layer) for layer in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, EPSILON)
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        )
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.05)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        embedded: Tensor = self.tokens(tokens)
        return embedded

    def transform(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        for block in self.layers:
            x = block(x, cache)
        normalised: Tensor = self.norm(x)
        return normalised

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.tokens

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.layers)

    @property
    def final_norm(self) -> nn.Module:
        return self.norm


def tensors(config: ToyConfig) -> Iterator[TensorSpec]:
    V, C = config.vocab_size, config.n_embd
    yield TensorSpec("tokens.weight", "token_embd.weight", (V, C), Role.TOKEN_EMBEDDING)
    for i in range(config.n_layer):
        for ours, theirs, shape, role in (
            ("norm_1", "attn_norm", (C,), Role.NORM),
            ("qkv", "attn_qkv", (3 * C, C), Role.QKV),
            ("out", "attn_output", (C, C), Role.ATTENTION_OUTPUT),
            ("norm_2", "ffn_norm", (C,), Role.NORM),
            ("up", "ffn_up", (2 * C, C), Role.FEED_FORWARD_UP),
            ("down", "ffn_down", (C, 2 * C), Role.FEED_FORWARD_DOWN),
        ):
            yield TensorSpec(
                f"layers.{i}.{ours}.weight", f"blk.{i}.{theirs}.weight", shape, role, i
            )
    yield TensorSpec("norm.weight", "output_norm.weight", (C,), Role.NORM)
    if not config.tie_embeddings:
        yield TensorSpec(HEAD, GGUF_HEAD, (V, C), Role.HEAD)


def graph(config: ToyConfig) -> Iterator[Operation]:
    def norm(read: str, output: str, name: str) -> Norm:
        return Norm((read,), output, name, f"{name}.weight", None, EPSILON, subtracts_mean=False)

    stream = "inpL"
    yield Embed((), stream, "tokens", "token_embd.weight")
    for i in range(config.n_layer):
        b = f"blk.{i}"
        yield norm(stream, f"attn_norm-{i}", f"{b}.attn_norm")
        yield Product((f"attn_norm-{i}",), f"wqkv-{i}", "qkv", f"{b}.attn_qkv.weight")
        yield Attention((f"wqkv-{i}",), f"kqv_out-{i}", "attention", config.n_head)
        yield Product((f"kqv_out-{i}", stream), f"ffn_inp-{i}", "out", f"{b}.attn_output.weight")
        yield norm(f"ffn_inp-{i}", f"ffn_norm-{i}", f"{b}.ffn_norm")
        yield Product((f"ffn_norm-{i}",), f"ffn_up-{i}", "up", f"{b}.ffn_up.weight")
        yield Gelu((f"ffn_up-{i}",), f"ffn_gelu-{i}", "gelu")
        stream = f"l_out-{i}"
        yield Product((f"ffn_gelu-{i}", f"ffn_inp-{i}"), stream, "down", f"{b}.ffn_down.weight")
    yield norm(stream, "result_norm", "output_norm")
    head = "token_embd.weight" if config.tie_embeddings else GGUF_HEAD
    yield Product(("result_norm",), "result_output", "head", head)


_KEYS = gguf.Keys.LLM
TOY = Family(
    ToyConfig,
    Toy,
    {"toy": {"context_length": 32, "n_layer": 2, "n_head": 2, "n_embd": 64}},
    tensors,
    (
        SizeKey(_KEYS.CONTEXT_LENGTH, "context_length"),
        SizeKey(_KEYS.EMBEDDING_LENGTH, "n_embd"),
        SizeKey(_KEYS.BLOCK_COUNT, "n_layer"),
        SizeKey(gguf.Keys.Attention.HEAD_COUNT, "n_head"),
    ),
    graph,
)
