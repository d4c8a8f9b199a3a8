"""LayerNorm and RMSNorm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from llmkit.architectures.graph import Norm
from llmkit.export.verify.operations.kind import UNIT, Computation, Kind, gamma


def _exact(operation: Norm, inputs: Sequence[Tensor], computation: Computation) -> Tensor:
    x = inputs[0]
    weight, bias = _weights(operation, computation, x.dtype)
    return replace(operation, epsilon=_epsilon(operation)).normalize(x, weight, bias)


def _bound(
    operation: Norm, inputs: Sequence[Tensor], exact: Tensor, computation: Computation
) -> Tensor:
    """LayerNorm of (T, C); RMSNorm has no mean that could be off.

    With z = (x - mean) / s: the mean is off by m = gamma(C) mean|x|, so each x - mean by
    m + u |x - mean|, which s divides. s^2 is a sum of C squares of those, so s is off by m and by
    gamma(C) s / 2; add the roundings of the root, the division and the scaling. In one pass s^2 is
    a difference of two means, each off by gamma(C) mean x^2.
    """
    x = inputs[0].double()
    n = x.shape[-1]
    if not operation.subtracts_mean:
        return exact.abs() * (gamma(n // 2 + 6) + 2 * UNIT)
    weight, bias = _weights(operation, computation, x.dtype)
    mean = x.mean(-1, keepdim=True)
    s = (x.var(-1, correction=0, keepdim=True) + _epsilon(operation)).sqrt()
    z = (x - mean) / s
    of_mean = gamma(n + 1) * x.abs().mean(-1, keepdim=True) / s
    of_z = of_mean + z.abs() * (of_mean + gamma(n // 2 + 6))
    if computation.arithmetic.norm_in_one_pass:
        of_z += z.abs() * gamma(n + 2) * x.square().mean(-1, keepdim=True) / s.square()
    shift = 0.0 if bias is None else bias.abs()
    return weight.abs() * of_z + 2 * UNIT * ((weight * z).abs() + shift)


def _weights(
    operation: Norm, computation: Computation, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    bias = computation.tensors.optional(operation.bias)
    weight = computation.tensors.tensor(operation.weight)
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _epsilon(operation: Norm) -> float:
    return float(np.float32(operation.epsilon))  # the file has an f32


NORM = Kind(_exact, _bound)
