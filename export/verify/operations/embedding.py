"""Rows of the token and position embeddings, added."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmkit.architectures.graph import Embed
from llmkit.export.verify.operations.kind import UNIT, Computation, Kind


def _exact(operation: Embed, _inputs: Sequence[Tensor], computation: Computation) -> Tensor:
    rows = _token_rows(operation, computation).to(computation.dtype)
    if operation.positions is None:
        return rows
    positions = computation.tensors.tensor(operation.positions).to(computation.dtype)
    return rows + torch.cat([positions[: len(text)] for text in computation.texts])


def _bound(
    operation: Embed, _inputs: Sequence[Tensor], exact: Tensor, computation: Computation
) -> Tensor:
    """One rounding of the sum, two of unpacking a row."""
    return UNIT * (2 * _token_rows(operation, computation).abs() + exact.abs())


def _token_rows(operation: Embed, computation: Computation) -> Tensor:
    return computation.tensors.tensor(operation.tokens)[torch.cat(list(computation.texts))]


EMBEDDING = Kind(_exact, _bound, by_token=False)
