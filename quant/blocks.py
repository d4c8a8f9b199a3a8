"""What the block formats with an f16 scale share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llmkit.quant.types import FloatRows

F16_OVERFLOW = 65520.0  # the smallest magnitude that rounds to infinity; f16 ends at 65504


def block_columns(rows: FloatRows, block_size: int) -> NDArray[np.float32]:
    """Copy rows to (block_size, n_blocks), a column per block.

    NumPy then does each step of all blocks in long vector loops, not one short loop per block.
    """
    return rows.reshape(-1, block_size).T.copy()


def reciprocal(scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / scale; 0 where that is infinite, which includes scales that are not 0 but < 2**-128."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse: NDArray[np.float32] = np.float32(1) / scale
    inverse[np.isinf(inverse)] = 0
    return inverse
