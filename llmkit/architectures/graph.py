"""The graph of operations that llama.cpp runs for a model, as data.

Tensors between operations have llama.cpp's names, so that its own can be compared with them. Who
computes an operation, and how, is not said here: error feedback does it in PyTorch's float32
(quantization/walk.py), the proof in float64 with ggml's roundings (export/verify/operations/).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Operation:
    """A step from some tensors of the graph to another. Weights go by their GGUF names."""

    inputs: tuple[str, ...]
    output: str
    title: str  # such as "blk.3: attn_norm -> qkv"


@dataclass(frozen=True)
class Embed(Operation):
    """Rows of a table looked up by token id, and rows of another by position added."""

    tokens: str
    positions: str | None = None


@dataclass(frozen=True)
class Norm(Operation):
    """LayerNorm, or RMSNorm where `subtracts_mean` is false; then scaled, and shifted by a bias."""

    weight: str
    bias: str | None
    epsilon: float
    subtracts_mean: bool = True

    def normalize(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(..., C) -> (..., C), in the precision of x."""
        if self.subtracts_mean:
            return F.layer_norm(x, weight.shape, weight, bias, self.epsilon)
        return F.rms_norm(x, weight.shape, weight, self.epsilon)


@dataclass(frozen=True)
class Product(Operation):
    """W x, plus a bias, plus the second input where there is one."""

    weight: str
    bias: str | None = None
    parts: tuple[str, ...] = ()  # what equal parts of the output are called, if it has parts


@dataclass(frozen=True)
class Attention(Operation):
    """Causal attention with queries, keys and values side by side in one input."""

    n_head: int


@dataclass(frozen=True)
class Gelu(Operation):
    """GELU by the tanh formula."""
