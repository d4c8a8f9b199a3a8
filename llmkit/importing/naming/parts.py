"""A GPT taken apart, and what is said of tensors that fit nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmkit.errors import CheckpointError


@dataclass
class Linear:
    """A matrix (out, in) with its bias, or a norm's weight (C,) with its bias."""

    name: str
    weight: Tensor
    bias: Tensor | None = None
    bias_name: str | None = None


@dataclass
class Layer:
    """One block. Queries, keys and values are apart or one fused matrix."""

    norms: list[Linear] = field(default_factory=list)
    qkv: Linear | None = None
    q: list[Linear] = field(default_factory=list)  # one, or one per head
    k: list[Linear] = field(default_factory=list)
    v: list[Linear] = field(default_factory=list)
    attention_output: Linear | None = None
    up: Linear | None = None
    down: Linear | None = None

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys or values have biases."""
        fused = [] if self.qkv is None else [self.qkv]
        return any(linear.bias is not None for linear in (*fused, *self.q, *self.k, *self.v))


@dataclass
class Parts:
    """A GPT taken apart."""

    tokens: Linear
    positions: Linear
    layers: list[Layer]
    final_norm: Linear
    head: Linear | None  # None where only the token embedding is in the file
    is_transposed: bool  # matrices are (in, out), as Hugging Face's Conv1D has them
    ignored: list[str]

    @property
    def n_embd(self) -> int:
        """Width of the stream."""
        return int(self.tokens.weight.shape[1])

    @property
    def head_weight(self) -> Tensor:
        """The matrix that makes the logits (V, C)."""
        return (self.head or self.tokens).weight

    @property
    def head_bias(self) -> Tensor | None:
        """The head's bias, if it has one that is not zero."""
        bias = self.head.bias if self.head else None
        return bias if bias is not None and bool(bias.any()) else None

    @property
    def is_tied(self) -> bool:
        """Whether the head is the token embedding."""
        a, b = self.head_weight, self.tokens.weight
        return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a, b))


def wrong_shape(module: Linear, wanted: tuple[object, ...]) -> CheckpointError:
    """The error for a tensor of another shape."""
    shown = ", ".join(map(str, wanted))
    return CheckpointError(
        f"{module.name} has shape {tuple(module.weight.shape)}; a GPT of this width needs ({shown})"
    )


def raise_not_one(kind: str, found: Mapping[str, Linear]) -> None:
    """Raise CheckpointError where there are none or several of a part."""
    names = ", ".join(f"{n} {tuple(m.weight.shape)}" for n, m in found.items()) or "none"
    raise CheckpointError(f"expected one {kind}, found {names}")


def no_place(name: str, tensor: Tensor) -> CheckpointError:
    """The error for a tensor that is no part of a GPT."""
    return CheckpointError(f"{name} {tuple(tensor.shape)} has no place in a GPT-2 model")


def refused(what: str, name: str) -> CheckpointError:
    """The error for a model that llama.cpp's graph cannot compute."""
    found = f" ({name})" if name else ""
    return CheckpointError(
        f"the model has {what}{found}; llama.cpp's gpt2 graph cannot compute that, and llmkit "
        "has no other yet"
    )
