"""A matrix times its input, plus a bias, plus the stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmkit.architectures.graph import Product
from llmkit.export.verify.arithmetic import CPU, Arithmetic, Type
from llmkit.export.verify.file_tensors import LoRA, Matrix
from llmkit.export.verify.operations.kind import UNIT, UNIT_F16, Computation, Kind, gamma

_ROWS_AT_ONCE = 8192  # of a matrix: a head of 50k rows in float64 would be 300 MB
_SUMMED_BLOCK = 32  # products that ggml sums as integers or in one lane, at least
_FLIP_ROUNDINGS = 2 + 3  # between two CPUs' x in units of the step: see `_bound`
_FLIP_ROUNDINGS_OF_CUDA = 2 + 6  # its division by -use_fast_math is off by two units more
# Standard deviations that the sum of many roundings to f16 stays within: one sum in 10**9 does not.
_DEVIATIONS = 6


def _exact(operation: Product, inputs: Sequence[Tensor], computation: Computation) -> Tensor:
    x = inputs[0]
    matrix = computation.tensors.matrix(operation.weight)
    y = matrix.product(x, computation.ties, computation.arithmetic)
    bias = computation.tensors.optional(operation.bias)
    if bias is not None:
        y.add_(bias.to(x.dtype))
    return inputs[1] + y if len(inputs) > 1 else y


def _bound(
    operation: Product, inputs: Sequence[Tensor], _exact: Tensor, computation: Computation
) -> Tensor:
    """W x, plus b, plus the stream: (T, in) -> (T, out).

    A product of n inputs is off by gamma(n) sum |w x|; quantized blocks of 32 or more multiply and
    add whole numbers, exactly, and only their results are rounded. Where a weight is
    scale * code + offset the two parts are summed apart, so that the offset's magnitude counts as
    well. An input that lies between two codes but for rounding may become either: one CPU
    multiplies by 127 / max, which is 2 roundings, the other by 1 / (max / 127), which is 3, and
    ties go both ways. Such an input adds its whole step.

    Sums in f16 are rounded after each product; errors of both signs cancel as a random walk does.
    """
    matrix = computation.tensors.matrix(operation.weight)
    parts = [
        _of_product(
            inputs[0], matrix.rows(slice(start, start + _ROWS_AT_ONCE)), computation.arithmetic
        )
        for start in range(0, len(matrix.weight), _ROWS_AT_ONCE)
    ]
    bound = torch.cat(parts, dim=1)
    for term in (computation.tensors.optional(operation.bias), *inputs[1:]):
        if term is not None:
            bound += 3 * UNIT * term.abs()  # as a part of the sum, itself rounded at most thrice
    return bound


def _of_product(x: Tensor, matrix: Matrix, arithmetic: Arithmetic) -> Tensor:
    n = x.shape[-1]
    matrix = matrix.for_tokens(len(x), arithmetic)
    read = matrix.read(x, arithmetic)
    relative = gamma(n + 4 if read.scaled is None else n // _SUMMED_BLOCK + 24)
    of_input = relative * read.values.abs()  # (T, in)
    if read.scaled is not None and read.step is not None:
        to_tie = (read.scaled - read.scaled.floor() - 0.5).abs()
        roundings = _FLIP_ROUNDINGS_OF_CUDA if arithmetic.cuda else _FLIP_ROUNDINGS
        flips = (to_tie <= roundings * UNIT * read.scaled.abs()) * read.step.abs()
        of_input += flips.flatten(1)
        if read.step_flip is not None:
            of_input += (read.step_flip * read.scaled.abs()).flatten(1)
    bound = of_input @ matrix.weight.float().abs().T
    if matrix.offsets is not None:
        blocks = read.values.abs().reshape(len(x), matrix.offsets.shape[1], -1).sum(-1)
        of_offset = 2 * relative * blocks
        if matrix.dot_type == Type.Q8_1 and read.scaled is not None:
            # A flip changes the block's sum, which is kept in f16.
            of_offset += flips.any(-1) * blocks * 2.0**-10
        bound += of_offset @ matrix.offsets.float().abs().T
    factors = matrix.sum_factors(arithmetic)
    if factors is not None and read.sum_flip is not None:
        magnitude = read.values.abs().reshape(*read.sum_flip.shape, -1).sum(-1)
        bound += (read.sum_flip + 2 * relative * magnitude) @ factors.abs().T
    if matrix.lora is not None:
        bound += _of_lora(x, matrix.lora, arithmetic)
    if arithmetic.sums == Type.F16:
        bound += _of_half_sums(read.values, matrix.read_weight(arithmetic))
    return bound


def _of_lora(x: Tensor, lora: LoRA, arithmetic: Arithmetic) -> Tensor:
    """How far a correction (T, out) is off: what A x is off may round another way in B (A x).

    GPUs compute few tokens with what an f32 matrix holds, and many with less, also where the
    arithmetic of the base's own weights is the same in both.
    """
    inner = lora.a.product(x.double(), arithmetic=arithmetic)
    off = _of_product(x, lora.a, arithmetic)
    low, read, high = (lora.b.read(y, arithmetic).values for y in (inner - off, inner, inner + off))
    bound = torch.maximum(high - read, read - low).float() @ lora.b.weight.abs().T
    bound += _of_product(inner.float(), lora.b, arithmetic)
    if arithmetic.reads(lora.a.dot_type) != Type.F32:
        exact, less = (lora.product(x.double(), arithmetic=one) for one in (CPU, arithmetic))
        bound += ((exact - less) / lora.scale).abs().float()
    return lora.scale * bound


def _of_half_sums(x: Tensor, weight: Tensor) -> Tensor:
    """How far sums of products (T, out) are off that are rounded to f16 one after the other."""
    columns, sums = weight.T.contiguous(), x.new_zeros(len(x), len(weight))
    squares = torch.zeros_like(sums)
    for k in range(x.shape[1]):
        sums.addcmul_(x[:, k : k + 1], columns[k])
        squares.addcmul_(sums, sums)
    return _DEVIATIONS * UNIT_F16 * squares.sqrt()


PRODUCT = Kind(_exact, _bound)
