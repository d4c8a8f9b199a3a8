"""The kinds of operations that can be proved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from llmkit.architectures.graph import Attention, Embed, Gelu, Norm, Operation, Product
from llmkit.export.verify.operations.attention import ATTENTION
from llmkit.export.verify.operations.embedding import EMBEDDING
from llmkit.export.verify.operations.gelu import GELU
from llmkit.export.verify.operations.kind import Bounded, Computation, Kind
from llmkit.export.verify.operations.norm import NORM
from llmkit.export.verify.operations.product import PRODUCT

KINDS: dict[type[Operation], Kind[Any]] = {
    Embed: EMBEDDING,
    Norm: NORM,
    Product: PRODUCT,
    Attention: ATTENTION,
    Gelu: GELU,
}


def kind_of(operation: Operation) -> Kind[Any]:
    """How an operation is computed and bounded."""
    return KINDS[type(operation)]


def bounded(operation: Operation, inputs: Sequence[Tensor], computation: Computation) -> Bounded:
    """What an operation makes of llama.cpp's own inputs (T, n), and how far float32 may miss it."""
    kind = kind_of(operation)
    exact = kind.exact(operation, [x.double() for x in inputs], computation)
    return Bounded(exact, kind.bound(operation, inputs, exact, computation))
