"""Operations of a graph by themselves, with tensors that are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from llmkit.architectures.graph import Attention, Gelu, Norm, Operation, Product
from llmkit.export.verify.arithmetic import CPU, Arithmetic
from llmkit.export.verify.operations.kind import Bounded, Computation
from llmkit.export.verify.operations.table import bounded

NORM = Norm(("x",), "y", "norm", "weight", "bias", 1e-5)
PRODUCT = Product(("x",), "y", "product", "weight")
GELU = Gelu(("x",), "y", "gelu")


def attention(n_head: int) -> Attention:
    return Attention(("x",), "y", "attention", n_head)


def bounded_alone(
    operation: Operation, x: Tensor, arithmetic: Arithmetic = CPU, **tensors: Any
) -> Bounded:
    """Of one input (T, n), with tensors and matrices by their names in the operation."""
    held: Any = SimpleNamespace(
        tensor=tensors.__getitem__, matrix=tensors.__getitem__, optional=tensors.get
    )
    text = torch.zeros(len(x), dtype=torch.long)
    return bounded(operation, [x], Computation([text], held, arithmetic=arithmetic))
