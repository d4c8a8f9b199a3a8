"""What a GGUF block format is, and the one table of those that can be written and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.errors import QuantizationError, unknown_name

FloatRows = NDArray[np.float32]  # (n_rows, row_length), C-contiguous
PackedRows = NDArray[np.uint8]  # (n_rows, row_bytes), C-contiguous


@dataclass(frozen=True)
class BlockFields:
    """The numbers of blocks: weight = scale * sub_scale * quant, and a minimum where one is held.

    Formats without sub-blocks hold `minimum` to be added; those with them subtract
    minimum * sub_minimum.
    """

    quants: NDArray[np.int8]  # (n_rows, n_blocks, block_size)
    scale: NDArray[np.float16]  # (n_rows, n_blocks)
    sub_scales: NDArray[np.int8] | None = None  # (n_rows, n_blocks, sub-blocks)
    minimum: NDArray[np.float16] | None = None  # (n_rows, n_blocks)
    sub_minima: NDArray[np.int8] | None = None  # (n_rows, n_blocks, sub-blocks)


@dataclass(frozen=True)
class BlockLayout:
    """Where the numbers of a block stand in its bytes.

    `levels` are the values a quant may have, ascending. pack(unpack(blocks)) gives the same bytes;
    `pack` trusts that the numbers are in their ranges.
    """

    levels: tuple[int, ...]
    unpack: Callable[[PackedRows], BlockFields]
    pack: Callable[[BlockFields], PackedRows]
    sub_block_size: int | None = None  # weights that share a sub-scale; None: no sub-blocks
    sub_scale_range: tuple[int, int] | None = None  # of sub-scales and, where there are, sub-minima


@dataclass(frozen=True)
class BlockOffset:
    """What blocks add to scale * quant: a multiple of an f16 (block_q4_1 etc., ggml-common.h)."""

    start: int  # the f16's first byte in the block
    largest: int  # multiple


@dataclass(frozen=True)
class QuantType:
    """A GGUF block format: how `block_size` weights become `block_bytes` bytes, and back.

    `round` takes each weight to the nearest level, as ggml's reference code does. The functions
    trust the rows they are given; `quantize` and `dequantize` of the package check them.
    """

    ggml_type: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType
    limit: float  # weights of this magnitude or more are refused: f16 or the format ends there
    dequantize: Callable[[PackedRows], FloatRows]
    dot_type: gguf.GGMLQuantizationType  # of activations: vec_dot_type, type_traits_cpu, ggml-cpu.c
    offset: BlockOffset | None
    # Stored where rows are not whole blocks: `tensor_type_fallback` of llama-quant.cpp.
    fallback: QuantType | None  # None: rows of any length fit
    is_repacked: bool  # copied in the order of the CPU's instructions: ggml-cpu/repack.cpp
    round: Callable[[FloatRows], PackedRows] | None = None  # None: only ggml's own search packs it
    layout: BlockLayout | None = None  # None: no blocks, or such as only ggml takes apart
    needs_importance: bool = False  # without importances of the columns ggml packs none

    @property
    def name(self) -> str:
        """As in q4_k."""
        return self.ggml_type.name.lower()

    @property
    def block_size(self) -> int:
        """Weights of one block."""
        return gguf.GGML_QUANT_SIZES[self.ggml_type][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return gguf.GGML_QUANT_SIZES[self.ggml_type][1]

    @property
    def bits_per_weight(self) -> float:
        """Bits of file for one weight, the block's scale included."""
        return 8 * self.block_bytes / self.block_size

    @property
    def supports_gptq(self) -> bool:
        """Whether error feedback can choose the numbers of its blocks."""
        return self.layout is not None

    def fits(self, row_length: int) -> bool:
        """Whether a row of this many weights divides into whole blocks."""
        return row_length > 0 and row_length % self.block_size == 0

    def fitting(self, row_length: int) -> QuantType:
        """The type that rows of this many weights are stored in: this one or a fallback."""
        if self.fallback is None or self.fits(row_length):
            return self
        return self.fallback.fitting(row_length)

    def row_bytes(self, row_length: int) -> int:
        """Bytes of one packed row. Raises QuantizationError if it is not whole blocks."""
        if not self.fits(row_length):
            raise QuantizationError(
                f"{self.name} needs rows of a multiple of {self.block_size} weights, this row has"
                f" {row_length}; choose f16, or another model width"
            )
        return row_length // self.block_size * self.block_bytes


_TABLE: dict[str, QuantType] = {}
ALIASES = {"int8": "q8_0", "int4": "q4_0"}


def register(qtype: QuantType) -> QuantType:
    """Add a format to the table and return it."""
    _TABLE[qtype.name] = qtype
    return qtype


def quant_names() -> list[str]:
    """Return the name of every registered format, from most to fewest bits per weight."""
    return sorted(_TABLE, key=lambda name: (-_TABLE[name].bits_per_weight, name))


def quant_type(name: str) -> QuantType:
    """Return the format called `name`, in any case, or by the alias int8 or int4.

    Raises QuantizationError with the nearest name if there is none.
    """
    key = name.lower()
    qtype = _TABLE.get(ALIASES.get(key, key))
    if qtype is None:
        raise QuantizationError(unknown_name("quantization type", name, [*quant_names(), *ALIASES]))
    return qtype


def quant_type_of(ggml_type: gguf.GGMLQuantizationType) -> QuantType:
    """Return the format of a tensor read from a file. Raises QuantizationError if none reads it."""
    for qtype in _TABLE.values():
        if qtype.ggml_type == ggml_type:
            return qtype
    raise QuantizationError(
        f"cannot read tensors of type {ggml_type.name}; readable are {', '.join(quant_names())}"
    )
