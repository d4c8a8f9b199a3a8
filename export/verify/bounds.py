"""Single operations in float64, and how far float32 can be from them. Nothing here is measured.

u is half the distance from 1 to the next float32. A sum of n products, in whatever order and with
or without fused multiply-add, is at most gamma(n) * sum |a_i b_i| from the exact one, with
gamma(n) = n u / (1 - n u): Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed.,
section 3.1. All else follows from it, to first order in u. Constants count single roundings.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.export.verify.activations import gelu
from llmkit.export.verify.arithmetic import CPU, Arithmetic, Type
from llmkit.export.verify.attention import attention, read_heads
from llmkit.export.verify.file_tensors import Matrix

UNIT = 2.0**-24
UNIT_F16 = 2.0**-11
_SMALLEST_NORMAL = 2.0**-126  # below it float32 has no relative precision
_ROWS_AT_ONCE = 8192  # of a matrix: a head of 50k rows in float64 would be 300 MB
_SUMMED_BLOCK = 32  # products that ggml sums as integers or in one lane, at least
_FLIP_ROUNDINGS = 2 + 3  # between two CPUs' x in units of the step: see `linear`
# Standard deviations that the sum of many roundings to f16 stays within: one sum in 10**9 does not.
_DEVIATIONS = 6
_GELU_ROUNDINGS = 16  # exp alone is off by 3 + 2 |x| units in Vulkan's specification
_PRODUCTS_AT_ONCE = 1 << 24  # whose running sums are held


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


def embedding_sum(tokens: Tensor, positions: Tensor | None) -> Bounded:
    """Token and position rows (T, C) added: one rounding of the sum, two of unpacking a row."""
    exact = tokens.double()
    if positions is not None:
        exact = exact + positions.double()
    return Bounded(exact, UNIT * (2 * tokens.abs() + exact.abs()))


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, arithmetic: Arithmetic = CPU
) -> Bounded:
    """LayerNorm of (T, C).

    With z = (x - mean) / s: the mean is off by m = gamma(C) mean|x|, so each x - mean by
    m + u |x - mean|, which s divides. s^2 is a sum of C squares of those, so s is off by m and by
    gamma(C) s / 2; add the roundings of the root, the division and the scaling. In one pass s^2 is
    a difference of two means, each off by gamma(C) mean x^2.
    """
    x, weight = x.double(), weight.double()
    shift = torch.zeros_like(weight) if bias is None else bias.double()
    mean = x.mean(-1, keepdim=True)
    s = (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
    z = (x - mean) / s
    n = x.shape[-1]
    of_mean = gamma(n + 1) * x.abs().mean(-1, keepdim=True) / s
    of_z = of_mean + z.abs() * (of_mean + gamma(n // 2 + 6))
    if arithmetic.norm_in_one_pass:
        of_z += z.abs() * gamma(n + 2) * x.square().mean(-1, keepdim=True) / s.square()
    exact = F.layer_norm(x, weight.shape, weight, shift, eps)
    bound = weight.abs() * of_z + 2 * UNIT * ((weight * z).abs() + shift.abs())
    return Bounded(exact, bound)


def rms_norm(
    x: Tensor, weight: Tensor, _bias: Tensor | None, eps: float, _arithmetic: Arithmetic = CPU
) -> Bounded:
    """RMSNorm of (T, C): as LayerNorm without a mean to be off."""
    x, weight = x.double(), weight.double()
    exact = F.rms_norm(x, weight.shape, weight, eps)
    return Bounded(exact, exact.abs() * (gamma(x.shape[-1] // 2 + 6) + 2 * UNIT))


def linear(
    x: Tensor,
    matrix: Matrix,
    bias: Tensor | None,
    residual: Tensor | None,
    arithmetic: Arithmetic = CPU,
) -> Bounded:
    """W x, plus b, plus the stream: (T, in) -> (T, out).

    A product of n inputs is off by gamma(n) sum |w x|; quantized blocks of 32 or more multiply and
    add whole numbers, exactly, and only their results are rounded. Where a weight is
    scale * code + offset the two parts are summed apart, so that the offset's magnitude counts as
    well. An input that lies between two codes but for rounding may become either: one CPU
    multiplies by 127 / max, which is 2 roundings, the other by 1 / (max / 127), which is 3, and
    ties go both ways. Such an input adds its whole step.

    Sums in f16 are rounded after each product; errors of both signs cancel as a random walk does.
    """
    parts = [
        _linear(x, matrix.rows(slice(start, start + _ROWS_AT_ONCE)), arithmetic)
        for start in range(0, len(matrix.weight), _ROWS_AT_ONCE)
    ]
    exact = torch.cat([part.exact for part in parts], dim=1)
    bound = torch.cat([part.bound for part in parts], dim=1)
    for term in (bias, residual):
        if term is not None:
            exact += term
            bound += 3 * UNIT * term.abs()  # as a part of the sum, itself rounded at most thrice
    return Bounded(exact, bound)


def _linear(x: Tensor, matrix: Matrix, arithmetic: Arithmetic) -> Bounded:
    n = x.shape[-1]
    read = matrix.read(x, arithmetic)
    relative = gamma(n + 4 if read.scaled is None else n // _SUMMED_BLOCK + 24)
    of_input = relative * read.values.abs()  # (T, in)
    if read.scaled is not None and read.step is not None:
        to_tie = (read.scaled - read.scaled.floor() - 0.5).abs()
        flips = (to_tie <= _FLIP_ROUNDINGS * UNIT * read.scaled.abs()) * read.step.abs()
        of_input += flips.flatten(1)
    bound = of_input @ matrix.weight.float().abs().T
    if matrix.offsets is not None:
        blocks = read.values.abs().reshape(len(x), matrix.offsets.shape[1], -1).sum(-1)
        of_offset = 2 * relative * blocks
        if matrix.dot_type == Type.Q8_1 and read.scaled is not None:
            # A flip changes the block's sum, which is kept in f16.
            of_offset += flips.any(-1) * blocks * 2.0**-10
        bound += of_offset @ matrix.offsets.float().abs().T
    if matrix.lora is not None:
        a, b = matrix.lora.a.float().abs(), matrix.lora.b.float().abs()
        bound += gamma(n + len(a) + 6) * matrix.lora.scale * (x.abs() @ a.T @ b.T)
    if arithmetic.sums == Type.F16:
        bound += _of_half_sums(read.values, matrix.read_weight(arithmetic))
    return Bounded(matrix.product(x.double(), arithmetic=arithmetic), bound)


def _of_half_sums(x: Tensor, weight: Tensor) -> Tensor:
    """How far sums of products (T, out) are off that are rounded to f16 one after the other."""
    rows = max(1, _PRODUCTS_AT_ONCE // x.numel())
    squares = [
        (x[:, None, :] * part).cumsum(-1).square().sum(-1) for part in torch.split(weight, rows)
    ]
    return _DEVIATIONS * UNIT_F16 * torch.cat(squares, dim=1).sqrt()


def causal_attention(qkv: Tensor, n_head: int, arithmetic: Arithmetic = CPU) -> Bounded:
    """Attention with queries, keys and values side by side: (T, 3C) -> (T, C).

    A score is off by e = gamma(D) scale sum |q k|, and its distance to the row's maximum rounded
    once; exp adds two units in the last place. A weight p is then off by p times its own e and
    the mean e of its row, by which it is divided; sums over keys follow. Where weights are read in
    f16 each may be rounded to a neighbour.
    """
    q, k, v = read_heads(qkv.double(), n_head, arithmetic)
    n_tokens, width = q.shape[1:]
    future = torch.ones(n_tokens, n_tokens, dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-2, -1) / width**0.5).masked_fill(future, -torch.inf)  # (H, T, T)
    p = scores.softmax(-1)
    e = gamma(width + 4) * (q.abs() @ k.abs().transpose(-2, -1)) / width**0.5
    e += UNIT * (scores.amax(-1, keepdim=True) - scores).masked_fill(future, 0) + 4 * UNIT
    e += (p * e).sum(-1, keepdim=True)
    if arithmetic.attention == Type.F16:
        e += 2 * UNIT_F16
    bound = (p * (e + gamma(2 * n_tokens + 8))) @ v.abs()  # (H, T, D)
    return Bounded(attention(qkv.double(), n_head, arithmetic), bound.transpose(0, 1).flatten(1))


def gelu_bound(x: Tensor, arithmetic: Arithmetic = CPU) -> Bounded:
    """GELU through a table of f16: one unit in the last place of the f16.

    The table's makers compute 1 + tanh in float32, which loses what tanh near -1 has rounded.
    Without a table that is all, in the units of exp and tanh of GPUs.
    """
    exact = gelu(x.double(), arithmetic=arithmetic)
    if not arithmetic.gelu_table:
        return Bounded(exact, _GELU_ROUNDINGS * UNIT * x.abs())
    magnitude = exact.abs().clamp(min=2.0**-14)  # below it f16 has steps of 2**-24
    step = torch.exp2(magnitude.log2().floor() - 10)
    return Bounded(exact, step + 2 * UNIT * x.abs())
