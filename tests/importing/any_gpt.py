"""A tiny GPT with random weights, its forward pass in plain PyTorch, and any scheme of names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

V, C, H, T, L = 40, 32, 4, 16, 2
CHARACTERS = "".join(map(chr, range(33, 33 + V)))
ACTIVATIONS = {
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
Pair = tuple[Tensor, Tensor | None]


class Gpt:
    """Weights (out, in) and biases by part; `biases` names the parts that have one."""

    def __init__(
        self, biases: str = "qkv o mlp norm", ff: int = 4, has_output: bool = True
    ) -> None:
        random = torch.Generator().manual_seed(1)

        def numbers(*shape: int, scale: float) -> Tensor:
            return torch.randn(*shape, generator=random) * scale

        def linear(kind: str, n_out: int, n_in: int) -> Pair:
            bias = numbers(n_out, scale=0.3) if kind in biases.split() else None
            return numbers(n_out, n_in, scale=1.2 / math.sqrt(n_in)), bias

        def norm() -> Pair:
            return 1 + numbers(C, scale=0.2), numbers(C, scale=0.2) if "norm" in biases else None

        self.tok, self.pos = numbers(V, C, scale=1), numbers(T, C, scale=0.5)
        self.layers: list[dict[str, Pair]] = []
        for _ in range(L):
            layer = {"ln1": norm(), **{part: linear("qkv", C, C) for part in "qkv"}}
            if has_output:
                layer["o"] = linear("o", C, C)
            layer |= {
                "ln2": norm(),
                "up": linear("mlp", ff * C, C),
                "down": linear("mlp", C, ff * C),
            }
            self.layers.append(layer)
        self.lnf, self.head = norm(), linear("head", V, C)

    def logits(
        self,
        tokens: Tensor,
        activation: str = "gelu_erf",
        *,
        is_post: bool = False,
        is_causal: bool = True,
        scale: float | None = None,
        n_head: int = H,
    ) -> Tensor:
        """(B, T) -> (B, T, V)."""
        n_texts, n_tokens = tokens.shape
        scale = scale or (C // n_head) ** -0.5

        def norm(x: Tensor, pair: Pair) -> Tensor:
            return F.layer_norm(x, (C,), *pair)

        def attend(x: Tensor, layer: dict[str, Pair]) -> Tensor:
            q, k, v = (
                F.linear(x, *layer[p]).view(n_texts, n_tokens, n_head, -1).transpose(1, 2)
                for p in "qkv"
            )
            scores = q @ k.mT * scale
            if is_causal:
                later = torch.ones(n_tokens, n_tokens).triu(1).bool()
                scores = scores.masked_fill(later, -torch.inf)
            y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n_texts, n_tokens, C)
            return F.linear(y, *layer["o"]) if "o" in layer else y

        def feed_forward(x: Tensor, layer: dict[str, Pair]) -> Tensor:
            return F.linear(ACTIVATIONS[activation](F.linear(x, *layer["up"])), *layer["down"])

        x = self.tok[tokens] + self.pos[:n_tokens]
        for layer in self.layers:
            for part, n in ((attend, "ln1"), (feed_forward, "ln2")):
                x = (
                    norm(x + part(x, layer), layer[n])
                    if is_post
                    else x + part(norm(x, layer[n]), layer)
                )
        return F.linear(norm(x, self.lnf), *self.head)

    def state_dict(
        self, names: dict[str, str], order: str = "qkv", n_head: int = H
    ) -> dict[str, Tensor]:
        """Tensors by a program's names: {i} is the layer, {h} a head, `qkv` a fused matrix.

        A name of `pos` that ends with ! is a parameter (1, T, C) and not a module.
        """
        found: dict[str, Tensor] = {}

        def put(name: str, pair: Pair) -> None:
            for part, tensor in zip(("weight", "bias"), pair, strict=True):
                if tensor is not None:
                    found[f"{name}.{part}"] = tensor.clone()

        put(names["tok"], (self.tok, None))
        if names["pos"].endswith("!"):
            found[names["pos"][:-1]] = self.pos[None].clone()
        else:
            put(names["pos"], (self.pos, None))
        for i, layer in enumerate(self.layers):
            parts: dict[str, Any] = dict(layer)
            if "qkv" in names:
                pairs = [layer[kind] for kind in order]
                weights, biases = zip(*pairs, strict=True)
                has_bias = biases[0] is not None
                parts["qkv"] = (torch.cat(weights), torch.cat(biases) if has_bias else None)
            for kind, pair in parts.items():
                if kind not in names:
                    continue
                name = names["layer"].format(i=i) + names[kind]
                if "{h}" in name:
                    chunks = [[None] * n_head if t is None else t.chunk(n_head) for t in pair]
                    for h in range(n_head):
                        put(name.format(h=h), (chunks[0][h], chunks[1][h]))
                else:
                    put(name, pair)
        put(names["lnf"], self.lnf)
        put(names["head"], self.head)
        return found


def save_reference(path: Path, logits: Any) -> Path:
    """An .npz file of three texts and the logits that a function computes of them."""
    tokens = torch.randint(V, (3, T), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        np.savez(path, tokens=tokens.numpy(), logits=logits(tokens).float().numpy())
    return path


def scheme(outer: str, layer: str, inner: str) -> dict[str, str]:
    """Names of tokens, positions, last norm and head; of a layer; and of its parts."""
    names = dict(zip(("tok", "pos", "lnf", "head"), outer.split(), strict=True))
    kinds = ("ln1", "ln2", "up", "down", "o", "q", "k", "v")
    if len(inner.split()) == 6:
        kinds = ("ln1", "ln2", "up", "down", "o", "qkv")
    return names | {"layer": layer} | dict(zip(kinds, inner.split(), strict=True))


FUSED = scheme(
    "wte wpe ln_f lm_head", "h.{i}.", "ln_1 ln_2 mlp.c_fc mlp.c_proj attn.c_proj attn.qkv"
)
