"""How ggml rounds what an operation reads, to the dot type of a matrix for example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
import torch
from torch import Tensor

from llmkit.export.verify.arithmetic import Type
from llmkit.quant import dequantize, quant_type, quantize

_FLOATS = {Type.F32: torch.float32, Type.F16: torch.float16, Type.BF16: torch.bfloat16}
CODE_MAX = 127
# In units of the largest of the values that are rounded together. A sum of some hundred products
# in float32 is off by about the root of their number times 2**-24 (Higham and Mary 2019, "A New
# Approach to Probabilistic Rounding Error Analysis"), and layers add up.
NEAR_TIE = 32 * 2.0**-24


@dataclass(frozen=True)
class Activations:
    """What a matrix reads of x (T, in), rounded to its dot type."""

    values: Tensor  # (T, in), float32
    # Quantized types only: x in units of the step, before it was rounded to whole ones, and the
    # step, (T, n_blocks, block) and (T, n_blocks, 1).
    scaled: Tensor | None = None
    step: Tensor | None = None
    # (T, n_sums), where each block's sum is stored too, as f16: this much is it off.
    sum_error: Tensor | None = None
    # What CUDA stores in f16 may be the neighbour: steps (T, n_blocks, 1), sums (T, n_sums).
    step_flip: Tensor | None = None
    sum_flip: Tensor | None = None


def nearest(x: Tensor, rounding: Callable[[Tensor], Tensor], largest: Tensor | float) -> Tensor:
    """Round x, each value by itself."""
    return rounding(x)


def other_of_near_ties(
    x: Tensor, rounding: Callable[[Tensor], Tensor], largest: Tensor | float
) -> Tensor:
    """Round x, but to the neighbour where x is a near-tie; `largest` of what x belongs to."""
    usual = rounding(x)
    above, below = rounding(x + NEAR_TIE * largest), rounding(x - NEAR_TIE * largest)
    return torch.where(above != usual, above, below)


Ties = Callable[[Tensor, Callable[[Tensor], Tensor], Tensor | float], Tensor]


def rounded(x: Tensor, dot_type: Type, ties: Ties = nearest) -> Activations:
    """Round activations (T, in) as ggml does; it computes in f32 here, so float64 becomes that."""
    x = x.float()
    if dot_type in _FLOATS:
        largest = x.abs().amax(-1, keepdim=True)
        return Activations(ties(x, lambda v: v.to(_FLOATS[dot_type]).float(), largest))
    block_size = gguf.GGML_QUANT_SIZES[dot_type][0]
    blocks = x.reshape(len(x), -1, block_size)  # (T, n_blocks, block)
    if dot_type == Type.Q8_K:
        extreme = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
        inverse = finite_or_zero(divided(-CODE_MAX, extreme))
        step = exact_step = finite_or_zero(1 / inverse)
    else:
        largest = blocks.abs().amax(-1, keepdim=True)
        inverse = finite_or_zero(divided(CODE_MAX, largest))
        exact_step = largest / CODE_MAX
        step = ties(exact_step, lambda v: v.half().float(), exact_step)
    scaled = blocks * inverse
    # Ties to even, as on x86; other CPUs round them away from zero.
    codes = ties(scaled, torch.round, CODE_MAX)
    sum_error = None
    if dot_type == Type.Q8_1:
        sums = codes.sum(-1, keepdim=True)
        sum_error = ((exact_step * sums).half().float() - step * sums).squeeze(-1)
    return Activations((codes * step).flatten(1), scaled, step, sum_error)


def divided(number: float, by: Tensor) -> Tensor:
    """Divide, rounded once, as in C: `number / by` in PyTorch is `by.reciprocal() * number`."""
    return torch.full_like(by, number) / by


def finite_or_zero(inverse: Tensor) -> Tensor:
    """0 where a number is not finite."""
    return inverse.where(inverse.isfinite(), 0.0)


def rounded_to(x: Tensor, kind: Type) -> Tensor:
    """Numbers (..., n) as they are kept in a type, in their own precision."""
    if kind == Type.F32:
        return x
    if kind == Type.Q4_0:
        q4_0, rows = quant_type("q4_0"), x.flatten(0, -2).float().numpy()
        blocks = quantize(np.ascontiguousarray(rows), q4_0, "keys and values")
        return torch.from_numpy(dequantize(blocks, q4_0)).view(x.shape).to(x.dtype)
    return rounded(x.flatten(0, -2), kind).values.reshape(x.shape).to(x.dtype)
