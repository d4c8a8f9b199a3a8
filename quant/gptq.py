"""GPTQ onto GGUF blocks: each number is chosen knowing what the rounding of others has done.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers". A matrix W (out, in) reads inputs x with second moment H = E[x x^T]. Rounding a
column leaves an error in every output; the columns not yet rounded are moved to make up for it.
With U the upper Cholesky factor of H's inverse, the error that remains for good when column j is
rounded from w to q is ((w - q) / U[j, j])^2, so that the cost of a whole block can be known when
the block is reached: its scale is the candidate of the lowest cost with feedback inside the block,
not the one that rounds best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llmkit.errors import QuantizationError
from llmkit.quant.grids import ChosenNumbers, Grid, Scales, Units
from llmkit.quant.types import PackedRows, QuantType

# Errors of 20 candidates x 32 columns x 1024 rows are 2.6 MB: inside the caches of most machines.
_ROWS_AT_ONCE = 1024
# Of the mean diagonal of H. Frantar et al. take 0.01; on GPTs of 256 to 768 channels everything
# from 0.003 to 0.1 gives the same KL within its noise, and only much less overfits the text.
DAMPING = 0.03


@dataclass(frozen=True)
class InputMoments:
    """What is known of the inputs that a matrix reads.

    `second_moment` is E[x x^T], (in, in). `drift` is E[(y - x) x^T] where x comes from the already
    quantized layers and y is what the unquantized model would read: with it the matrix makes up
    for errors before it (Li et al. 2025, "GPTAQ").
    """

    second_moment: Tensor
    drift: Tensor | None = None

    @property
    def moments(self) -> list[Tensor]:
        """Those that are known."""
        return [self.second_moment, *([] if self.drift is None else [self.drift])]

    @property
    def importance(self) -> Tensor:
        """Mean square of each input (in,): llama.cpp's importances."""
        return self.second_moment.diagonal()


def gptq(weights: Tensor, qtype: QuantType, inputs: InputMoments, tensor_name: str) -> PackedRows:
    """Pack weights (out, in) with error feedback. Computed where `weights` lie.

    Raises QuantizationError naming the tensor: for a type whose numbers cannot be chosen one by
    one, rows that are not whole blocks, weights or inputs that are not finite.
    """
    if qtype.layout is None:
        raise QuantizationError(
            f"{tensor_name}: GPTQ does not support {qtype.name}; use the method rtn"
        )
    grid = Grid(qtype.layout, qtype.block_size)
    try:
        qtype.row_bytes(weights.shape[1])
    except QuantizationError as error:
        raise QuantizationError(f"{tensor_name}: {error}") from error
    unusable = QuantizationError(
        f"{tensor_name}: weights or inputs are NaN, infinite or too large for {qtype.name}; "
        "check the training run"
    )
    if not all(bool(moment.isfinite().all()) for moment in inputs.moments):
        raise unusable
    damped = _damped(inputs.second_moment)
    weights = _made_up(weights.float(), inputs, damped)
    if not weights.abs().max() < qtype.limit:
        raise unusable
    order = _column_order(damped.diagonal(), grid)
    damped = damped[order][:, order]  # the other is let go: of GPT-2's widest they are 75 MB each
    feedback = _inverse_factor(damped).to(weights.dtype)
    chunks = torch.split(weights[:, order], _ROWS_AT_ONCE)
    return np.concatenate([_packed(rows, grid, feedback, order) for rows in chunks])


def _damped(second_moment: Tensor) -> Tensor:
    """H with DAMPING of its mean diagonal added; the identity where nothing was ever read."""
    damped = second_moment.to(torch.float64, copy=True)
    damped.diagonal().add_(DAMPING * (damped.diagonal().mean().item() or 1.0))
    return damped


def _made_up(weights: Tensor, inputs: InputMoments, damped: Tensor) -> Tensor:
    """The weights whose outputs, on drifted inputs, are nearest to the unquantized model's."""
    if inputs.drift is None:
        return weights
    right = weights.double() @ inputs.drift.double()  # (out, in)
    correction = torch.cholesky_solve(right.T, torch.linalg.cholesky(damped)).T
    return weights + correction.to(weights.dtype)


def _column_order(importance: Tensor, grid: Grid) -> Tensor:
    """Most important first: blocks, sub-blocks in them, columns in those. Indices (in,).

    What comes first is rounded with the most columns left to make up for it.
    """

    def descending(sums: Tensor) -> Tensor:
        return sums.argsort(dim=-1, descending=True)

    n_sub = grid.block_size // grid.sub_block_size
    places = torch.arange(len(importance), device=importance.device)
    places = places.view(-1, n_sub, grid.sub_block_size)
    by_block = importance.view(places.shape)
    blocks = descending(by_block.sum((1, 2)))
    places, by_block = places[blocks], by_block[blocks]
    subs = descending(by_block.sum(2))[..., None].expand_as(places)
    places, by_block = places.gather(1, subs), by_block.gather(1, subs)
    return places.gather(2, descending(by_block)).flatten()


def _inverse_factor(damped: Tensor) -> Tensor:
    """Upper U with U^T U = H^-1."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


@dataclass(frozen=True)
class _Rounded:
    """A sub-block as it was rounded."""

    scales: Scales  # (rows,)
    levels: Tensor  # (rows, size)
    errors: Tensor  # (rows, size), in units of U's diagonal


def _packed(rows: Tensor, grid: Grid, feedback: Tensor, order: Tensor) -> PackedRows:
    """Round rows (out, in), whose columns are in the order of rounding, and pack them.

    The rows are overwritten with what the errors of others leave of them.
    """
    size = grid.sub_block_size
    chosen = ChosenNumbers(grid, *rows.shape)
    importance = feedback.diagonal().square().reciprocal()  # of a column when its turn comes
    for start in range(0, rows.shape[1], grid.block_size):
        block = rows[:, start : start + grid.block_size]
        units = grid.units(
            block.reshape(len(rows), -1, size),
            importance[start : start + grid.block_size].view(-1, size),
        )
        for first in range(start, start + grid.block_size, size):
            columns, after = slice(first, first + size), slice(first + size, None)
            rounded = _rounded(rows[:, columns], grid, units, feedback[columns, columns])
            chosen.store(order[columns], units, rounded.scales, rounded.levels)
            rows[:, after] -= rounded.errors @ feedback[columns, after]
    return chosen.packed()


def _rounded(weights: Tensor, grid: Grid, units: Units, feedback: Tensor) -> _Rounded:
    """Round a sub-block (rows, size) with each candidate of its scales; keep the cheapest."""
    candidates = grid.candidates(weights, units)
    step, offset = candidates.step(units), candidates.offset(units)  # (candidates, rows)
    levels, errors = weights.new_empty(2, weights.shape[1], *step.shape)  # (2, size, ...)
    for column in range(weights.shape[1]):
        fed_back = feedback[:column, column] @ errors[:column].flatten(1)
        weight = weights[:, column] - fed_back.view(step.shape)  # (candidates, rows)
        level = grid.nearest(weight, step, offset)
        levels[column] = level
        errors[column] = (weight - (step * level + offset)) / feedback[column, column]
    best = errors.square().sum(0).argmin(0)  # (rows,)
    rows = torch.arange(len(weights), device=weights.device)
    return _Rounded(
        Scales(candidates.scale[best, rows], candidates.minimum[best, rows]),
        levels[:, best, rows].T,
        errors[:, best, rows].T,
    )
