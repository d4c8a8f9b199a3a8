"""GELU by the tanh formula, which the CPU looks up in ggml's table from f16 to f16."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures.graph import Gelu
from llmkit.export.verify.operations.kind import UNIT, Computation, Kind

# CUDA is built with -use_fast_math: tanh is off by up to 2**-11 of it (tanh.approx in the PTX ISA).
_TANH_ERROR = 2.0**-11


def _exact(_operation: Gelu, inputs: Sequence[Tensor], computation: Computation) -> Tensor:
    x = inputs[0]
    if not computation.arithmetic.gelu_table:
        return F.gelu(x, approximate="tanh")
    largest = x.float().abs().amax(-1, keepdim=True)
    halves = computation.ties(x.float(), lambda v: v.half().float(), largest)
    looked_up = _table(x.dtype)[halves.half().view(torch.int16).int() & 0xFFFF]
    return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, looked_up))  # where the table ends


@cache
def _table(dtype: torch.dtype) -> Tensor:
    """GELU of every f16 by its bits, computed in float32 by the formula of ggml_gelu_f32."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    inner = 0.79788456080286535587989211986876 * x * (1 + 0.044715 * x * x)
    return (0.5 * x * (1 + inner.tanh())).half().to(dtype)


def _bound(
    _operation: Gelu, inputs: Sequence[Tensor], exact: Tensor, computation: Computation
) -> Tensor:
    """One unit in the last place of the f16 from the table.

    The table's makers compute 1 + tanh in float32, which loses what tanh near -1 has rounded.
    Without a table, on GPUs, it is how far tanh is off.
    """
    of_tanh = UNIT * inputs[0].abs()
    if not computation.arithmetic.gelu_table:
        return 2 * of_tanh + _TANH_ERROR * (exact - inputs[0] / 2).abs()  # |x tanh| / 2
    magnitude = exact.abs().clamp(min=2.0**-14)  # below it f16 has steps of 2**-24
    return torch.exp2(magnitude.log2().floor() - 10) + 2 * of_tanh


GELU = Kind(_exact, _bound)
