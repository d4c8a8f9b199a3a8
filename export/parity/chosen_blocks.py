"""Whether blocks that no rounding gives are those that were chosen for this checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import GGUFError
from llmkit.export.gguf_file import GGUFFile
from llmkit.export.metadata import BLOCKS_KEY
from llmkit.export.parity.tensor_diagnosis import Suspect, WantedTensor, rounded
from llmkit.quant import dequantize
from llmkit.quant.types import FloatRows, PackedRows, QuantType

# How far from its weights a row may be that was chosen for them. Error feedback moves weights to
# make up for others: up to 2.6 times as far as rounding does, and 0.18 of the row's length, in the
# trained models of docs/quantization.md (tests/benchmarks/bench_chosen.py). In few bits 8 times
# would be as far as zeros are, so half of the length is the end, but never less than 2 times.
_FARTHEST_OF_ROUNDING, _LEAST_OF_ROUNDING, _FARTHEST_OF_LENGTH = 8.0, 2.0, 0.5

Places = NDArray[np.int64] | slice
_ALL = slice(None)

_PROBED_ROWS = 32  # that are looked for in another matrix before all are
_ROWS_AT_ONCE = 1024  # whose distances from all rows of a matrix are held in memory


def hashes_of(file: GGUFFile) -> Mapping[str, str]:
    """The hash of each tensor whose blocks were chosen, by names in the checkpoint.

    Raises GGUFError where the file's list is none.
    """
    text = file.metadata.get(BLOCKS_KEY)
    if text is None:
        return {}
    try:
        hashes = json.loads(text)
    except (TypeError, ValueError):
        hashes = None
    if not isinstance(hashes, dict):
        raise GGUFError(f"{file.path}: {BLOCKS_KEY} must be a JSON object; export it again")
    return hashes


def as_rounded(suspect: Suspect, others: Sequence[WantedTensor]) -> Suspect:
    """The rows as the rounding of those that they are near to, of this tensor or of another.

    What was done to chosen blocks then shows as it does in rounded ones: the tensor is right where
    this gives the wanted blocks. Rows that are near to nothing stay as they are, and where most are
    such, all do.
    """
    wanted = suspect.wanted
    own = NearRows.of(wanted.weights(), wanted.stored)
    values = dequantize(suspect.found, wanted.stored)
    likely = own.blocks.copy()
    far = np.flatnonzero(~own.are_near(values))
    likely[far] = suspect.found[far]
    if not len(far):
        return Suspect(wanted, likely)
    if turned := _transposed(wanted, values):
        return Suspect(wanted, turned.blocks)
    for other in (wanted, *(other for other in others if _is_alike(other, wanted))):
        weights = other.weights()
        probes = values[far[np.linspace(0, len(far) - 1, _PROBED_ROWS, dtype=np.int64)]]
        nearest = NearRows.of(weights[_nearest(probes, weights)], other.stored)
        if not nearest.are_near(probes).any():
            continue
        rows = NearRows.of(weights, other.stored)
        places = _nearest(values[far], weights)
        known = rows.are_near(values[far], places)
        likely[far[known]] = rows.blocks[places[known]]
        far = far[~known]
        if not len(far):
            break
    return Suspect(wanted, likely) if 2 * len(far) < len(values) else suspect


@dataclass(frozen=True)
class NearRows:
    """Rows of weights, and how far blocks that stand for them may be."""

    weights: FloatRows
    blocks: PackedRows  # the weights rounded
    farthest: NDArray[np.float32]  # (n_rows,), mean square of the difference

    @classmethod
    def of(cls, weights: FloatRows, stored: QuantType) -> NearRows:
        """Rows (n_rows, row_length) that are to be stored in a type."""
        blocks = rounded(weights, stored)
        distance = np.square(dequantize(blocks, stored) - weights).mean(axis=1)
        length = np.square(weights).mean(axis=1)
        # A row that rounding meets exactly may be missed by as much as the others are.
        distance = np.maximum(distance, np.median(distance))
        at_least = _LEAST_OF_ROUNDING**2 * distance
        at_most = _FARTHEST_OF_ROUNDING**2 * distance
        farthest = np.clip(_FARTHEST_OF_LENGTH**2 * length, at_least, at_most)
        return cls(weights, blocks, farthest)

    def distances(self, values: FloatRows, places: Places = _ALL) -> NDArray[np.float32]:
        """Mean square of the difference between each row of values and that at its place."""
        difference: NDArray[np.float32] = np.square(values - self.weights[places]).mean(axis=1)
        return difference

    def are_near(self, values: FloatRows, places: Places = _ALL) -> NDArray[np.bool_]:
        """Whether each row of values may stand for the row of weights at its place."""
        near: NDArray[np.bool_] = self.distances(values, places) <= self.farthest[places]
        return near  # NaN is not


def _nearest(values: FloatRows, weights: FloatRows) -> NDArray[np.int64]:
    """The place of the row of weights that is nearest to each row of values."""
    squares = np.square(weights).sum(axis=1)
    # |v - w|^2 without |v|^2, which is the same for all w
    return np.concatenate(
        [
            (squares - 2 * (values[start : start + _ROWS_AT_ONCE] @ weights.T)).argmin(axis=1)
            for start in range(0, len(values), _ROWS_AT_ONCE)
        ]
    )


def _transposed(wanted: WantedTensor, values: FloatRows) -> NearRows | None:
    """The rows of the matrix that lies there column by column; None where it is not that."""
    weights = wanted.weights()
    rows = NearRows.of(np.ascontiguousarray(weights.T).reshape(weights.shape), wanted.stored)
    return rows if rows.are_near(values).all() else None


def _is_alike(other: WantedTensor, wanted: WantedTensor) -> bool:
    return (
        other.name != wanted.name and other.shape == wanted.shape and other.stored == wanted.stored
    )
