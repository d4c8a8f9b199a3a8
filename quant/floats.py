"""F32, F16 and BF16: one number per weight, no block."""

from __future__ import annotations

import gguf
import numpy as np

from llmkit.quant.blocks import F16_OVERFLOW
from llmkit.quant.types import (
    FloatRows,
    PackedRows,
    QuantType,
    refuse_unless_below,
    register,
)

# Halfway from the largest bf16, 0x7F7F, to where infinity would be: this rounds up.
_BF16_OVERFLOW = float(np.uint32(0x7F7F8000).view(np.float32))


def _refuse_from(limit: float, rows: FloatRows) -> None:
    extremes = np.stack([rows.max(axis=1), rows.min(axis=1)], axis=1)  # NaN if one is
    refuse_unless_below(limit, np.abs(extremes))


def _pack_f32(rows: FloatRows) -> PackedRows:
    _refuse_from(np.inf, rows)
    return rows.astype("<f4").view(np.uint8)


def _unpack_f32(packed: PackedRows) -> FloatRows:
    return packed.view("<f4").astype(np.float32)


def _pack_f16(rows: FloatRows) -> PackedRows:
    _refuse_from(F16_OVERFLOW, rows)
    with np.errstate(under="ignore"):
        return rows.astype("<f2").view(np.uint8)


def _unpack_f16(packed: PackedRows) -> FloatRows:
    return packed.view("<f2").astype(np.float32)


def _pack_bf16(rows: FloatRows) -> PackedRows:
    """Keep the upper 16 bits, rounded to nearest, ties to even."""
    _refuse_from(_BF16_OVERFLOW, rows)
    bits = rows.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)  # 1 where the half to keep is odd: a tie then goes up
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    return rounded.astype("<u2").view(np.uint8)


def _unpack_bf16(packed: PackedRows) -> FloatRows:
    bits = packed.view("<u2").astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


F32 = register(
    QuantType(
        name="f32",
        ggml_type=gguf.GGMLQuantizationType.F32,
        file_type=gguf.LlamaFileType.ALL_F32,
        block_size=1,
        block_bytes=4,
        pack=_pack_f32,
        unpack=_unpack_f32,
    )
)

F16 = register(
    QuantType(
        name="f16",
        ggml_type=gguf.GGMLQuantizationType.F16,
        file_type=gguf.LlamaFileType.MOSTLY_F16,
        block_size=1,
        block_bytes=2,
        pack=_pack_f16,
        unpack=_unpack_f16,
    )
)

BF16 = register(
    QuantType(
        name="bf16",
        ggml_type=gguf.GGMLQuantizationType.BF16,
        file_type=gguf.LlamaFileType.MOSTLY_BF16,
        block_size=1,
        block_bytes=2,
        pack=_pack_bf16,
        unpack=_unpack_bf16,
    )
)
