"""Which numbers a block may hold: candidates for its scales, and a weight's nearest level.

In every format a sub-block's weights are step * level + offset; in those without sub-blocks the
block is the only one. The step is unit * scale and the offset -offset_unit * minimum: units are
the block's own f16 numbers where sub-blocks hold small integers, else 1 and -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.quant.types import BlockFields, BlockLayout, PackedRows

Number = TypeVar("Number", np.int8, np.float16)
# The ranges that are tried for a block: its own, and by so many parts smaller or larger, a part
# being a share of a level. A smaller one cuts weights off and makes the steps of all others finer;
# a larger one leaves room for what feedback adds to the weights. The block's own has to be among
# them, or weights that lie on a grid, all the same ones too, would leave it.
PARTS, PART = range(-5, 5), 0.6  # of a symmetric format, for each sign
END_PARTS, END_PART = range(-2, 3), 0.8  # of each end of an asymmetric format's range
F16_LARGEST = 65504.0


@dataclass(frozen=True)
class Units:
    """What the numbers of the sub-blocks of one block are multiples of, (rows,)."""

    step: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Scales:
    """Numbers that a sub-block may hold: (candidates, rows), or (rows,) when one is picked."""

    scale: Tensor
    minimum: Tensor

    def step(self, units: Units) -> Tensor:
        """The distance of two levels that are 1 apart."""
        return units.step * self.scale

    def offset(self, units: Units) -> Tensor:
        """The weight of level 0."""
        return -units.offset * self.minimum


@dataclass(frozen=True)
class Grid:
    """The numbers of one format."""

    layout: BlockLayout
    block_size: int

    @property
    def sub_block_size(self) -> int:
        """Weights that share a step."""
        return self.layout.sub_block_size or self.block_size

    @property
    def has_minimum(self) -> bool:
        """Whether an offset is held: the formats whose levels begin at 0."""
        return self.layout.levels[0] == 0

    @property
    def _is_uniform(self) -> bool:
        levels = self.layout.levels
        return levels[-1] - levels[0] == len(levels) - 1

    def nearest(self, weights: Tensor, step: Tensor, offset: Tensor) -> Tensor:
        """The levels nearest to weights; a step of 0 has the level 0 only, or the lowest."""
        levels = self.layout.levels
        scaled = torch.where(step == 0, 0.0, (weights - offset) / step)
        if self._is_uniform:
            return scaled.round_().clamp_(levels[0], levels[-1])
        table = torch.tensor(levels, dtype=scaled.dtype, device=scaled.device)
        return table[torch.bucketize(scaled.contiguous(), (table[1:] + table[:-1]) / 2)]

    def units(self, weights: Tensor, importance: Tensor) -> Units:
        """Units of a block of weights (rows, sub-blocks, size), importance (sub-blocks, size).

        Each sub-block asks for the step and offset of the least weighted error; the largest of
        them is to be the largest integer.
        """
        ones = weights.new_ones(len(weights))
        if self.layout.sub_scale_range is None:
            return Units(ones, -ones)
        flat = weights.flatten(0, 1)  # (rows * sub-blocks, size)
        weighing = importance.repeat(len(weights), 1)
        best_error = flat.new_full((len(flat),), torch.inf)
        best_step, best_offset = torch.zeros_like(best_error), torch.zeros_like(best_error)
        for step, offset in zip(*self._ranges(flat), strict=True):
            levels = self.nearest(flat, step[:, None], offset[:, None])
            error = levels.mul_(step[:, None]).add_(offset[:, None]).sub_(flat).square_()
            error = (error * weighing).sum(-1)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_step = torch.where(better, step, best_step)
            best_offset = torch.where(better, offset, best_offset)
        largest = self.layout.sub_scale_range[1]
        n_rows = len(weights)
        return Units(
            _as_f16(best_step.abs().view(n_rows, -1).amax(1) / largest),
            _as_f16(-best_offset.view(n_rows, -1).amin(1) / largest),
        )

    def candidates(self, weights: Tensor, units: Units) -> Scales:
        """Numbers to try for a sub-block of weights (rows, size)."""
        step, offset = self._ranges(weights)  # (candidates, rows)
        if self.layout.sub_scale_range is None:
            return Scales(_as_f16(step), _as_f16(offset))
        lowest, largest = self.layout.sub_scale_range

        def multiples(numbers: Tensor, unit: Tensor) -> Tensor:
            whole = torch.where(unit == 0, 0.0, numbers / unit).round_()
            return whole.clamp_(lowest, largest)

        return Scales(multiples(step, units.step), multiples(-offset, units.offset))

    def _ranges(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Steps and offsets (candidates, rows) that cover more or less of weights (rows, size)."""
        levels = self.layout.levels
        n = len(levels)
        if not self.has_minimum:
            shares = 1 + PART / n * torch.tensor(PARTS, device=weights.device)
            span = max(-levels[0], levels[-1])
            steps = weights.abs().amax(1) * shares[:, None] / span
            steps = torch.cat((steps, -steps))  # the level that only one side has
            return steps, torch.zeros_like(steps)
        parts = END_PART / n * torch.tensor(END_PARTS, device=weights.device)
        low, high = weights.amin(1), weights.amax(1)
        half = (high - low) / 2
        lows, highs = low - half * parts[:, None], high + half * parts[:, None]  # (ends, rows)
        if self.layout.sub_scale_range is not None:
            lows.clamp_(max=0)  # sub-minima are not negative
        pairs = (len(parts), len(parts), len(weights))
        offsets = lows[:, None].expand(pairs).flatten(0, 1)
        steps = (highs.expand(pairs).flatten(0, 1) - offsets) / (n - 1)
        return steps, offsets


class ChosenNumbers:
    """The numbers of all blocks of some rows, filled sub-block by sub-block."""

    def __init__(self, grid: Grid, n_rows: int, row_length: int) -> None:
        self._grid = grid
        n_blocks, n_sub = row_length // grid.block_size, grid.block_size // grid.sub_block_size
        self._levels = torch.zeros(n_rows, row_length)
        self._scale, self._minimum = torch.zeros(2, n_rows, n_blocks * n_sub)
        self._step_unit, self._offset_unit = torch.zeros(2, n_rows, n_blocks)

    def store(self, columns: Tensor, units: Units, picked: Scales, levels: Tensor) -> None:
        """Keep what was picked for the sub-block that has these columns."""
        self._levels[:, columns.cpu()] = levels.cpu()
        sub = int(columns[0]) // self._grid.sub_block_size
        block = int(columns[0]) // self._grid.block_size
        self._scale[:, sub], self._minimum[:, sub] = picked.scale.cpu(), picked.minimum.cpu()
        self._step_unit[:, block] = units.step.cpu()
        self._offset_unit[:, block] = units.offset.cpu()

    def packed(self) -> PackedRows:
        """The blocks as bytes (rows, row_bytes)."""
        layout = self._grid.layout
        n_rows, n_blocks = self._step_unit.shape
        quants = _numpy(self._levels, np.int8).reshape(n_rows, n_blocks, -1)
        minimum = self._grid.has_minimum
        if layout.sub_scale_range is None:
            scale = _numpy(self._scale, np.float16)
            offset = _numpy(self._minimum, np.float16) if minimum else None
            # `offset` is what is added here: see `Grid.units`.
            return layout.pack(BlockFields(quants, scale, minimum=offset))
        subs = (n_rows, n_blocks, -1)
        return layout.pack(
            BlockFields(
                quants,
                _numpy(self._step_unit, np.float16),
                _numpy(self._scale, np.int8).reshape(subs),
                _numpy(self._offset_unit, np.float16) if minimum else None,
                _numpy(self._minimum, np.int8).reshape(subs) if minimum else None,
            )
        )


def _as_f16(numbers: Tensor) -> Tensor:
    return numbers.clamp(-F16_LARGEST, F16_LARGEST).half().to(numbers.dtype)


def _numpy(numbers: Tensor, kind: type[Number]) -> NDArray[Number]:
    return np.ascontiguousarray(numbers.numpy().astype(kind))
