"""Whether blocks that were chosen, not rounded, belong to this checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import GGUFError
from llmkit.export.diagnosis.diagnose import WantedTensor, rounded
from llmkit.export.gguf.metadata import BLOCKS_KEY
from llmkit.export.gguf.reader import GGUFFile
from llmkit.quant import dequantize
from llmkit.quant.types import FloatRows, PackedRows, QuantType

# How far from its weights a row may be that was chosen for them. Error feedback moves weights to
# make up for others: up to 2.6 times as far as rounding does, and 0.18 of the row's length, in the
# trained models of docs/quantization.md (tests/benchmarks/bench_chosen.py). In few bits 8 times
# would be as far as zeros are, so half of the length is the end, but never less than 2 times.
_FARTHEST_OF_ROUNDING, _LEAST_OF_ROUNDING, _FARTHEST_OF_LENGTH = 8.0, 2.0, 0.5


def hashes_of(file: GGUFFile) -> Mapping[str, str]:
    """The hash of each tensor whose blocks were chosen, by its name in the checkpoint.

    Raises GGUFError if the key holds something else.
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


def far_rows(found: PackedRows, wanted: WantedTensor) -> NDArray[np.int64]:
    """Rows of chosen blocks (n_rows, row_bytes) that are too far from the tensor's weights."""
    near = NearRows.of(wanted.weights(), wanted.stored)
    return np.flatnonzero(~near.are_near(dequantize(found, wanted.stored)))


@dataclass(frozen=True)
class NearRows:
    """Rows of weights, and how far blocks that stand for them may be."""

    weights: FloatRows
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
        return cls(weights, farthest)

    def distances(self, values: FloatRows) -> NDArray[np.float32]:
        """Mean square of the difference between each row of values and the row of weights."""
        difference: NDArray[np.float32] = np.square(values - self.weights).mean(axis=1)
        return difference

    def are_near(self, values: FloatRows) -> NDArray[np.bool_]:
        """Whether each row of values may stand for its row of weights; NaN may not."""
        near: NDArray[np.bool_] = self.distances(values) <= self.farthest
        return near
