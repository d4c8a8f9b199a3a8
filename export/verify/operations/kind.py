"""What is said of a kind of operation: its exact result, and how far float32 can be from it.

u is half the distance from 1 to the next float32. A sum of n products, in whatever order and with
or without fused multiply-add, is at most gamma(n) * sum |a_i b_i| from the exact one, with
gamma(n) = n u / (1 - n u): Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 3.1. All bounds follow from it, to first order in u. Constants count single roundings;
nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from llmkit.architectures.graph import Operation
from llmkit.export.verify.activations import Ties, nearest
from llmkit.export.verify.arithmetic import CPU, Arithmetic
from llmkit.export.verify.file_tensors import UnpackedTensors

UNIT = 2.0**-24
UNIT_F16 = 2.0**-11
_SMALLEST_NORMAL = 2.0**-126  # below it float32 has no relative precision

SomeOperation = TypeVar("SomeOperation", bound=Operation)


@dataclass(frozen=True)
class Computation:
    """What operations read besides their inputs, and the arithmetic they run in."""

    texts: Sequence[Tensor]  # token ids (T,) of sequences; the inputs have T tokens of all of them
    tensors: UnpackedTensors
    dtype: torch.dtype = torch.float64
    arithmetic: Arithmetic = CPU
    ties: Ties = nearest


@dataclass(frozen=True)
class Kind(Generic[SomeOperation]):
    """A kind of operation. Inputs are (T, n) tensors, one per name in `inputs` of the operation.

    `exact` computes in the precision of its inputs. `bound` is how far float32 may be from the
    exact result, which it is given after llama.cpp's own inputs.
    """

    exact: Callable[[SomeOperation, Sequence[Tensor], Computation], Tensor]
    bound: Callable[[SomeOperation, Sequence[Tensor], Tensor, Computation], Tensor]
    by_token: bool = True  # each token's result depends on that token's inputs alone


@dataclass(frozen=True)
class Bounded:
    """What an operation gives (T, n) in float64, and by how much float32 may miss it."""

    exact: Tensor
    bound: Tensor

    def ratio(self, found: Tensor) -> Tensor:
        """Errors of `found` (T, n) in units of the bound; up to 1 is rounding."""
        error = (found.double() - self.exact).abs()
        return (error / (self.bound + _SMALLEST_NORMAL)).nan_to_num(nan=torch.inf)


def gamma(n: int) -> float:
    """The relative error of a sum of n products."""
    return n * UNIT / (1 - n * UNIT)
