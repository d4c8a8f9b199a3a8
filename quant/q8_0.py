"""Q8_0: 32 weights as an f16 scale and 32 signed bytes, weight = scale * quant.

The same numbers as `quantize_row_q8_0_ref` and `dequantize_row_q8_0` of ggml-quants.c.
"""

from __future__ import annotations

from functools import partial

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.quant.blocks import F16_OVERFLOW, dequantize_blocks, reciprocal
from llmkit.quant.floats import F16
from llmkit.quant.types import (
    BlockFields,
    BlockLayout,
    FloatRows,
    PackedRows,
    QuantType,
    register,
)

BLOCK_SIZE = 32
BLOCK = np.dtype([("scale", "<f2"), ("quants", "i1", BLOCK_SIZE)])
_LARGEST = 127


def _round(rows: FloatRows) -> PackedRows:
    weights = rows.reshape(len(rows), -1, BLOCK_SIZE)  # (n_rows, n_blocks, 32)
    with np.errstate(under="ignore"):
        scale = _largest_magnitude(weights) / np.float32(_LARGEST)  # (n_rows, n_blocks)
        stored_scale = scale.astype(np.float16)
        # A scale whose reciprocal is infinite gets quants of 0, as in ggml on x86-64: there, the
        # conversion of infinity and NaN to an integer has a low byte of 0.
        scaled = weights * reciprocal(scale)[..., np.newaxis]
    return _pack(BlockFields(_round_half_away(scaled), stored_scale))


def _largest_magnitude(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest magnitude of each block.

    Without their sign, floats sort as their bits do; NumPy's integer maximum over short blocks
    is twice as fast as that of floats.
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


def _unpack(packed: PackedRows) -> BlockFields:
    blocks = packed.view(BLOCK)  # (n_rows, n_blocks)
    return BlockFields(blocks["quants"], blocks["scale"])


def _pack(fields: BlockFields) -> PackedRows:
    blocks = np.empty(fields.scale.shape, dtype=BLOCK)
    blocks["scale"], blocks["quants"] = fields.scale, fields.quants
    return blocks.view(np.uint8)


# A quant of -128 can be read, and ggml's rounding never writes it.
_LAYOUT = BlockLayout(tuple(range(-_LARGEST, _LARGEST + 1)), _unpack, _pack)

Q8_0 = register(
    QuantType(
        ggml_type=gguf.GGMLQuantizationType.Q8_0,
        file_type=gguf.LlamaFileType.MOSTLY_Q8_0,
        limit=F16_OVERFLOW * _LARGEST,
        dequantize=partial(dequantize_blocks, _LAYOUT),
        dot_type=gguf.GGMLQuantizationType.Q8_0,
        offset=None,
        fallback=F16,
        is_repacked=False,
        round=_round,
        layout=_LAYOUT,
    )
)
