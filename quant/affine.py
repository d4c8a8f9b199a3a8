"""Q4_1 and Q5_1: 32 weights as an f16 scale, an f16 minimum and codes from 0 up.

weight = scale * quant + minimum. The same numbers as `quantize_row_q4_1_ref`,
`quantize_row_q5_1_ref` and their `dequantize_row`s of ggml-quants.c.
"""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.quant.blocks import F16_OVERFLOW, reciprocal
from llmkit.quant.nibbles import BLOCK_SIZE, register_nibbles
from llmkit.quant.types import BlockFields, BlockLayout, FloatRows, PackedRows


def _quantize(layout: BlockLayout, rows: FloatRows) -> PackedRows:
    """Round to the nearest of evenly spaced levels between the block's minimum and maximum."""
    weights = rows.reshape(len(rows), -1, BLOCK_SIZE)  # (n_rows, n_blocks, 32)
    highest = layout.levels[-1]
    minimum = _first_minima(weights)
    with np.errstate(under="ignore"):
        # `+ 0.0`: of zeros of both signs the difference could be -0.0, in ggml it is +0.0.
        scale = (weights.max(axis=-1) - minimum + np.float32(0)) / np.float32(highest)
        inverse = reciprocal(scale)
        scaled = weights - minimum[..., np.newaxis]
        scaled *= inverse[..., np.newaxis]
        scaled += np.float32(0.5)
        stored_scale, stored_minimum = scale.astype(np.float16), minimum.astype(np.float16)
    quants = scaled.astype(np.int8)  # towards zero
    np.minimum(quants, np.int8(highest), out=quants)
    return layout.pack(BlockFields(quants, stored_scale, minimum=stored_minimum))


def _first_minima(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the lowest value of each block; of zeros the first, whose sign is stored."""
    first = weights.argmin(axis=-1, keepdims=True)
    minima: NDArray[np.float32] = np.take_along_axis(weights, first, axis=-1)[..., 0]
    return minima


Q4_1, Q5_1 = (
    register_nibbles(
        name,
        levels,
        _quantize,
        limit=F16_OVERFLOW,
        dot_type=gguf.GGMLQuantizationType.Q8_1,
        has_minimum=True,
    )
    for name, levels in (("Q4_1", range(16)), ("Q5_1", range(32)))
)
