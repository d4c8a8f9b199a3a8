"""Q4_K, Q5_K and Q6_K: 256 weights in sub-blocks, whose scales are themselves quantized.

The layouts of `block_q4_K`, `block_q5_K` and `block_q6_K` (ggml-common.h) as
`dequantize_row_q4_K` and so on of ggml-quants.c read them. ggml packs them by searching, not by
rounding to nearest, so that is left to its own functions.
"""

from __future__ import annotations

from functools import partial

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.quant.affine import Q5_1
from llmkit.quant.blocks import F16_OVERFLOW, dequantize_blocks, join_planes, split_planes
from llmkit.quant.q8_0 import Q8_0
from llmkit.quant.symmetric import Q5_0
from llmkit.quant.types import (
    BlockFields,
    BlockLayout,
    BlockOffset,
    PackedRows,
    QuantType,
    register,
)

BLOCK_SIZE = 256
Q4_K_BLOCK = np.dtype(
    [("scale", "<f2"), ("minimum", "<f2"), ("sub", "u1", 12), ("nibbles", "u1", (4, 32))]
)
Q5_K_BLOCK = np.dtype(
    [
        ("scale", "<f2"),
        ("minimum", "<f2"),
        ("sub", "u1", 12),
        ("fifth_bits", "u1", 32),
        ("nibbles", "u1", (4, 32)),
    ]
)
Q6_K_BLOCK = np.dtype(
    [("low", "u1", (2, 64)), ("high", "u1", (2, 32)), ("sub", "i1", 16), ("scale", "<f2")]
)
_SIX_BITS, _NIBBLE = np.uint8(63), np.uint8(15)


def _unpack_sub(packed: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return 8 sub-scales and 8 sub-minima from (..., 12) bytes, 6 bits each.

    As `get_scale_min_k4`: bytes 0 to 3 begin with scales 0 to 3, bytes 4 to 7 with minima 0 to 3;
    their upper 2 bits are those of scales and minima 4 to 7, whose lower 4 are in the last bytes.
    """
    first, last = packed[..., :8], packed[..., 8:]  # (..., 8) and (..., 4)
    upper = first >> np.uint8(6) << np.uint8(4)
    scales = np.concatenate([first[..., :4] & _SIX_BITS, last & _NIBBLE | upper[..., :4]], axis=-1)
    minima = np.concatenate(
        [first[..., 4:] & _SIX_BITS, last >> np.uint8(4) | upper[..., 4:]], axis=-1
    )
    return scales.view(np.int8), minima.view(np.int8)


def _pack_sub(fields: BlockFields) -> NDArray[np.uint8]:
    """Return the 12 bytes that `_unpack_sub` takes apart."""
    assert fields.sub_scales is not None
    assert fields.sub_minima is not None
    scales, minima = fields.sub_scales.view(np.uint8), fields.sub_minima.view(np.uint8)
    first = np.concatenate([scales[..., :4], minima[..., :4]], axis=-1)
    later = np.concatenate([scales[..., 4:], minima[..., 4:]], axis=-1)
    first |= later >> np.uint8(4) << np.uint8(6)
    return np.concatenate([first, join_planes(later & _NIBBLE, 4)], axis=-1)


def _unpack(block: np.dtype[np.void], packed: PackedRows) -> BlockFields:
    blocks = packed.view(block)  # (n_rows, n_blocks)
    codes = split_planes(blocks["nibbles"], 4).reshape(*blocks.shape, BLOCK_SIZE)
    if "fifth_bits" in (block.names or ()):
        codes |= split_planes(blocks["fifth_bits"], 1) << np.uint8(4)
    sub_scales, sub_minima = _unpack_sub(blocks["sub"])
    return BlockFields(
        codes.view(np.int8), blocks["scale"], sub_scales, blocks["minimum"], sub_minima
    )


def _pack(block: np.dtype[np.void], fields: BlockFields) -> PackedRows:
    codes = fields.quants.view(np.uint8)
    blocks = np.empty(fields.scale.shape, dtype=block)
    blocks["scale"], blocks["minimum"] = fields.scale, fields.minimum
    blocks["sub"] = _pack_sub(fields)
    if "fifth_bits" in (block.names or ()):
        blocks["fifth_bits"] = join_planes(codes >> np.uint8(4), 1)
        codes = codes & _NIBBLE
    blocks["nibbles"] = join_planes(codes.reshape(*blocks.shape, 4, 64), 4)
    return blocks.view(np.uint8)


def _unpack_q6_k(packed: PackedRows) -> BlockFields:
    blocks = packed.view(Q6_K_BLOCK)
    codes = split_planes(blocks["low"], 4)  # (n_rows, n_blocks, 2, 128)
    codes |= split_planes(blocks["high"], 2) << np.uint8(4)
    quants = codes.reshape(*blocks.shape, BLOCK_SIZE).view(np.int8) - np.int8(32)
    return BlockFields(quants, blocks["scale"], blocks["sub"])


def _pack_q6_k(fields: BlockFields) -> PackedRows:
    blocks = np.empty(fields.scale.shape, dtype=Q6_K_BLOCK)
    codes = (fields.quants + np.int8(32)).view(np.uint8).reshape(*blocks.shape, 2, 128)
    blocks["scale"], blocks["sub"] = fields.scale, fields.sub_scales
    blocks["low"] = join_planes(codes & _NIBBLE, 4)
    blocks["high"] = join_planes(codes >> np.uint8(4), 2)
    return blocks.view(np.uint8)


def _register(
    name: str, file_type: str, layout: BlockLayout, offset: BlockOffset | None, fallback: QuantType
) -> None:
    register(
        QuantType(
            ggml_type=gguf.GGMLQuantizationType[name],
            file_type=gguf.LlamaFileType[f"MOSTLY_{file_type}"],
            limit=F16_OVERFLOW,
            dequantize=partial(dequantize_blocks, layout),
            dot_type=gguf.GGMLQuantizationType.Q8_K,
            offset=offset,
            fallback=fallback,
            is_repacked=True,
            layout=layout,
        )
    )


_Q4_K_LAYOUT = BlockLayout(
    tuple(range(16)), partial(_unpack, Q4_K_BLOCK), partial(_pack, Q4_K_BLOCK), 32, (0, 63)
)
_Q5_K_LAYOUT = BlockLayout(
    tuple(range(32)), partial(_unpack, Q5_K_BLOCK), partial(_pack, Q5_K_BLOCK), 32, (0, 63)
)
_Q6_K_LAYOUT = BlockLayout(tuple(range(-32, 32)), _unpack_q6_k, _pack_q6_k, 16, (-128, 127))
_register("Q4_K", "Q4_K_S", _Q4_K_LAYOUT, BlockOffset(2, 63), fallback=Q5_0)
_register("Q5_K", "Q5_K_S", _Q5_K_LAYOUT, BlockOffset(2, 63), fallback=Q5_1)
_register("Q6_K", "Q6_K", _Q6_K_LAYOUT, offset=None, fallback=Q8_0)
