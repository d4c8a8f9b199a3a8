"""Blocks of 32 codes of 4 bits, or of 5 of which the fifth bits are apart."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import gguf
import numpy as np

from llmkit.quant.blocks import dequantize_blocks, join_planes, split_planes
from llmkit.quant.floats import F16
from llmkit.quant.types import (
    BlockFields,
    BlockLayout,
    BlockOffset,
    FloatRows,
    PackedRows,
    QuantType,
    register,
)

BLOCK_SIZE = 32


def register_nibbles(
    name: str,
    levels: range,
    rounding: Callable[[BlockLayout, FloatRows], PackedRows],
    *,
    limit: float,
    dot_type: gguf.GGMLQuantizationType,
    has_minimum: bool = False,
    is_repacked: bool = False,
) -> QuantType:
    """Register a format with these levels: 16, or 32 with a fifth bit. A code is its place."""
    block = np.dtype(
        [
            ("scale", "<f2"),
            *([("minimum", "<f2")] if has_minimum else []),
            *([("fifth_bits", "u1", 4)] if len(levels) > 16 else []),
            ("nibbles", "u1", 16),
        ]
    )
    lowest = np.int8(levels[0])
    layout = BlockLayout(
        tuple(levels), partial(_unpack, block, lowest), partial(_pack, block, lowest)
    )
    return register(
        QuantType(
            ggml_type=gguf.GGMLQuantizationType[name],
            file_type=gguf.LlamaFileType[f"MOSTLY_{name}"],
            limit=limit,
            dequantize=partial(dequantize_blocks, layout),
            dot_type=dot_type,
            offset=BlockOffset(2, 1) if has_minimum else None,
            fallback=F16,
            is_repacked=is_repacked,
            round=partial(rounding, layout),
            layout=layout,
        )
    )


def _unpack(block: np.dtype[np.void], lowest: np.int8, packed: PackedRows) -> BlockFields:
    blocks = packed.view(block)  # (n_rows, n_blocks)
    codes = split_planes(blocks["nibbles"], 4)
    if "fifth_bits" in (block.names or ()):
        codes |= np.unpackbits(blocks["fifth_bits"], axis=-1, bitorder="little") << np.uint8(4)
    minimum = blocks["minimum"] if "minimum" in (block.names or ()) else None
    quants = codes.view(np.int8)
    return BlockFields(quants + lowest if lowest else quants, blocks["scale"], minimum=minimum)


def _pack(block: np.dtype[np.void], lowest: np.int8, fields: BlockFields) -> PackedRows:
    codes = (fields.quants - lowest if lowest else fields.quants).view(np.uint8)
    blocks = np.empty(fields.scale.shape, dtype=block)
    blocks["scale"] = fields.scale
    if fields.minimum is not None:
        blocks["minimum"] = fields.minimum
    if "fifth_bits" in (block.names or ()):
        blocks["fifth_bits"] = np.packbits(codes >> np.uint8(4), axis=-1, bitorder="little")
        codes = codes & np.uint8(15)
    blocks["nibbles"] = join_planes(codes, 4)
    return blocks.view(np.uint8)
