"""Rounding weights again and again, as training for blocks does: what may change, and what may not.

Blocks come from somewhere, and the weights that are rounded later are not far from those. The
scales stay then as they are and each weight goes to its nearest level: chosen anew, a scale would
change with the one weight that is the largest of its block, and take all the others along.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llmkit.errors import QuantizationError
from llmkit.quant.blocks import offsets, steps
from llmkit.quant.grids import Grid
from llmkit.quant.rows import dequantize, quantize
from llmkit.quant.types import BlockFields, PackedRows, QuantType


class Rounding(Protocol):
    """How the weights (out, in) of one matrix become blocks."""

    def rounded(self, weights: Tensor) -> Tensor:
        """What the blocks of these weights hold, in float32, where the weights lie."""
        ...

    def packed(self, weights: Tensor) -> PackedRows:
        """The blocks. Raises QuantizationError where a weight is NaN or infinite."""
        ...


def rounding_of(
    blocks: PackedRows, qtype: QuantType, tensor_name: str, device: torch.device
) -> Rounding:
    """The rounding that keeps the scales of `blocks`, where they can be taken apart."""
    if qtype.layout is None:
        return Repacked(qtype, tensor_name)
    fields = qtype.layout.unpack(np.ascontiguousarray(blocks))
    offset = offsets(fields)
    return KeptScales(
        Grid(qtype.layout, qtype.block_size),
        fields,
        tensor_name,
        torch.from_numpy(steps(fields)).to(device).flatten(1)[..., None],
        None if offset is None else torch.from_numpy(offset).to(device).flatten(1)[..., None],
    )


@dataclass(frozen=True)
class Repacked:
    """Rounding that packs the weights anew, scales and all. It is the CPU's work."""

    qtype: QuantType
    tensor_name: str

    def rounded(self, weights: Tensor) -> Tensor:
        """The packed weights, unpacked. Raises QuantizationError as `packed` does."""
        floats = dequantize(self.packed(weights), self.qtype, tuple(weights.shape))
        return torch.from_numpy(floats).to(weights.device)

    def packed(self, weights: Tensor) -> PackedRows:
        """As ggml rounds."""
        return quantize(weights.detach().float().cpu().numpy(), self.qtype, self.tensor_name)


@dataclass(frozen=True)
class KeptScales:
    """Rounding to the levels of blocks whose scales are given."""

    grid: Grid
    fields: BlockFields
    tensor_name: str
    step: Tensor  # (rows, sub-blocks of a row, 1), between two levels
    offset: Tensor | None  # likewise, of level 0; None where that is 0

    def rounded(self, weights: Tensor) -> Tensor:
        """The nearest numbers that the blocks can hold."""
        # Each operation as `dequantize` rounds it, so that these are the blocks' own numbers.
        floats = self._levels(weights) * self.step
        if self.offset is not None:
            floats += self.offset
        return floats.view(weights.shape)

    def packed(self, weights: Tensor) -> PackedRows:
        """The blocks with other quants."""
        if not weights.isfinite().all():
            raise QuantizationError(
                f"{self.tensor_name}: contains NaN or infinity; check the training run"
            )
        levels = self._levels(weights).cpu().numpy().astype(np.int8)
        quants = levels.reshape(self.fields.quants.shape)
        return self.grid.layout.pack(replace(self.fields, quants=quants))

    def _levels(self, weights: Tensor) -> Tensor:
        subs = weights.detach().float().view(len(weights), -1, self.grid.sub_block_size)
        offset = torch.zeros_like(self.step) if self.offset is None else self.offset
        return self.grid.nearest(subs, self.step, offset)
