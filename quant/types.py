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
class QuantType:
    """A GGUF block format: how `block_size` weights become `block_bytes` bytes, and back.

    `pack` raises RowRefusedError for the first row with a NaN, an infinity or a value out of range.
    Both functions trust the shape they are given; `quantize` and `dequantize` check it.
    """

    name: str
    ggml_type: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType
    block_size: int
    block_bytes: int
    pack: Callable[[FloatRows], PackedRows]
    unpack: Callable[[PackedRows], FloatRows]

    @property
    def bits_per_weight(self) -> float:
        """Bits of file for one weight, the block's scale included."""
        return 8 * self.block_bytes / self.block_size

    def fits(self, row_length: int) -> bool:
        """Whether a row of this many weights divides into whole blocks."""
        return row_length > 0 and row_length % self.block_size == 0

    def row_bytes(self, row_length: int) -> int:
        """Bytes of one packed row. Raises QuantizationError if it is not whole blocks."""
        if not self.fits(row_length):
            raise QuantizationError(
                f"{self.name} packs blocks of {self.block_size} weights, and a row of"
                f" {row_length} is not a multiple of that; choose f16 or another width"
            )
        return row_length // self.block_size * self.block_bytes


class RowRefusedError(QuantizationError):
    """Row `row` of the array that `pack` was given cannot be held."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds NaN, infinity or a value out of range")
        self.row = row


def refuse_unless_below(limit: float, magnitudes: NDArray[np.float32]) -> None:
    """Raise RowRefusedError for the first row of (n_rows, any) not wholly below `limit`."""
    held = magnitudes < limit  # False for NaN too
    if not held.all():
        raise RowRefusedError(int(held.all(axis=1).argmin()))


_TABLE: dict[str, QuantType] = {}
_ALIASES = {"int8": "q8_0", "int4": "q4_0"}


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
    qtype = _TABLE.get(_ALIASES.get(key, key))
    if qtype is None:
        raise QuantizationError(unknown_name("quantization", name, [*quant_names(), *_ALIASES]))
    return qtype


def quant_type_of(ggml_type: gguf.GGMLQuantizationType) -> QuantType:
    """Return the format of a tensor read from a file. Raises QuantizationError if none reads it."""
    for qtype in _TABLE.values():
        if qtype.ggml_type == ggml_type:
            return qtype
    raise QuantizationError(
        f"tensor type {ggml_type.name} cannot be read; known are {', '.join(quant_names())}"
    )
