"""What a GGUF file says of itself, read from its first bytes: no tensor is mapped, no torch loaded.

Long arrays, such as the vocabulary, are passed over, so a list of files is read in milliseconds.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf

from llmkit.errors import GGUFError
from llmkit.export.gguf.keys import QUANTIZATION_KEY
from llmkit.files import cannot_read

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_FORMATS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata without arrays, and the shape of each tensor, (out, in)."""

    metadata: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def quant(self) -> str:
        """The file's quantization by name, such as q4_0."""
        return quant_of(self.metadata)


def quant_of(metadata: Mapping[str, Any]) -> str:
    """The quantization by name, such as q4_0."""
    if QUANTIZATION_KEY in metadata:
        return str(metadata[QUANTIZATION_KEY])
    number: Any = metadata.get(gguf.Keys.General.FILE_TYPE)
    try:
        return gguf.LlamaFileType(number).name.removeprefix("ALL_").removeprefix("MOSTLY_").lower()
    except ValueError:
        return f"unknown ({number})"


def read_header(path: Path) -> GGUFHeader:
    """Read the header of a GGUF file. Raises GGUFError where it is cut short or something else."""
    try:
        with path.open("rb") as file:
            return _Header(file, path.stat().st_size).read()
    except OSError as error:
        raise GGUFError(cannot_read(path, error)) from error
    except (ValueError, struct.error) as error:
        raise GGUFError(f"{path} is not a complete GGUF file; copy or export it again") from error


@dataclass
class _Header:
    """Reads from the start of a file. Raises ValueError for what cannot be."""

    file: BinaryIO
    size: int

    def read(self) -> GGUFHeader:
        if self.file.read(4) != _MAGIC or self._number("I") not in _VERSIONS:
            raise ValueError
        n_tensors, n_keys = self._number("Q"), self._number("Q")
        metadata = {}
        for _ in range(self._possible(n_keys)):
            key, value = self._string(), self._value(self._number("I"))
            if value is not None:
                metadata[key] = value
        shapes = {}
        for _ in range(self._possible(n_tensors)):
            name = self._string()
            sizes = [self._number("Q") for _ in range(self._possible(self._number("I")))]
            self._number("I"), self._number("Q")  # type and offset
            shapes[name] = tuple(reversed(sizes))
        return GGUFHeader(metadata, shapes)

    def _value(self, kind: int) -> Any:
        """A value; None for an array, which is passed over."""
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(_FORMATS.get(kind, ""))
        of, count = self._number("I"), self._possible(self._number("Q"))
        if of in (_STRING, _ARRAY):
            for _ in range(count):
                self._skip(self._number("Q")) if of == _STRING else self._value(_ARRAY)
        else:
            self._skip(count * struct.calcsize(_FORMATS[of]) if of in _FORMATS else self.size)
        return None

    def _string(self) -> str:
        n_bytes = self._possible(self._number("Q"))
        return self.file.read(n_bytes).decode(errors="replace")

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack(f"<{form}", self.file.read(struct.calcsize(f"<{form}")))
        return value

    def _skip(self, n_bytes: int) -> None:
        self.file.seek(self._possible(n_bytes), 1)

    def _possible(self, count: int) -> int:
        """A number of bytes or items. Raises ValueError for more than the rest of the file."""
        if count > self.size - self.file.tell():
            raise ValueError
        return int(count)
