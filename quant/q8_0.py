"""Q8_0: 32 weights as an f16 scale and 32 signed bytes.

The same numbers as `quantize_row_q8_0_ref` and `dequantize_row_q8_0` of ggml-quants.c.
"""

from __future__ import annotations

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.quant.blocks import F16_OVERFLOW, reciprocal
from llmkit.quant.types import (
    FloatRows,
    PackedRows,
    QuantType,
    refuse_unless_below,
    register,
)

BLOCK_SIZE = 32
BLOCK = np.dtype([("scale", "<f2"), ("codes", "i1", BLOCK_SIZE)])


def _pack(rows: FloatRows) -> PackedRows:
    weights = rows.reshape(len(rows), -1, BLOCK_SIZE)  # (n_rows, n_blocks, 32)
    with np.errstate(under="ignore"):
        scale = _largest_magnitude(weights) / np.float32(127)  # (n_rows, n_blocks)
        refuse_unless_below(F16_OVERFLOW, scale)
        blocks = np.empty(scale.shape, dtype=BLOCK)
        blocks["scale"] = scale
        # A scale whose reciprocal is infinite gets codes of 0, as in ggml on x86-64: there, the
        # conversion of infinity and NaN to an integer has a low byte of 0.
        scaled = weights * reciprocal(scale)[..., np.newaxis]
    blocks["codes"] = _round_half_away(scaled)
    return blocks.view(np.uint8)


def _largest_magnitude(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest magnitude of each block, NaN if it holds one.

    Without their sign, floats sort as their bits do, NaN last; NumPy's integer maximum over
    short blocks is twice as fast as that of floats.
    """
    largest: NDArray[np.int32] = np.abs(weights).view(np.int32).max(axis=-1)
    return largest.view(np.float32)


def _round_half_away(values: NDArray[np.float32]) -> NDArray[np.int8]:
    """Round as C's roundf does; `values` is overwritten.

    Adding 0.5 would carry its predecessor to 1; adding the predecessor of 0.5 does not, and
    still carries every tie, where the sum is itself rounded up to the next integer.
    """
    sign = np.uint32(0x80000000)
    below_half = np.nextafter(np.float32(0.5), np.float32(0)).view(np.uint32)
    half = values.view(np.uint32) & sign
    half |= below_half  # copysign by bits: np.copysign takes three times as long
    values += half.view(np.float32)
    return values.astype(np.int8)  # towards zero


def _unpack(packed: PackedRows) -> FloatRows:
    blocks = packed.view(BLOCK)  # (n_rows, n_blocks_per_row)
    weights = blocks["codes"].astype(np.float32)  # (n_rows, n_blocks_per_row, 32)
    weights *= blocks["scale"].astype(np.float32)[..., np.newaxis]
    return weights.reshape(len(packed), -1)


Q8_0 = register(
    QuantType(
        name="q8_0",
        ggml_type=gguf.GGMLQuantizationType.Q8_0,
        file_type=gguf.LlamaFileType.MOSTLY_Q8_0,
        block_size=BLOCK_SIZE,
        block_bytes=BLOCK.itemsize,
        pack=_pack,
        unpack=_unpack,
    )
)
