"""What is proved: a GGUF file, its adapter, and the checkpoint that they have to equal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.reader import GGUFFile, family_of_file, read_gguf
from llmkit.quantization.tensor_types import Quantization, quantization


@dataclass(frozen=True)
class FileTarget:
    """A file of any architecture."""

    file: GGUFFile
    adapter: GGUFFile | None  # LoRA matrices that the file names; None where there are none


@dataclass(frozen=True)
class VerifyTarget(FileTarget):
    """A checkpoint and a file of it."""

    checkpoint: Checkpoint
    quantization: Quantization
    is_foreign: bool = False  # another program wrote the file, with its own choice of types

    @property
    def is_merged(self) -> bool:
        """Whether the file's weights are the checkpoint's with its adapter, if it has one."""
        return self.file.adapter_name is None


def open_target(checkpoint: Checkpoint, gguf: Path, *, is_foreign: bool = False) -> VerifyTarget:
    """Read a GGUF file and its adapter. Raises GGUFError or QuantizationError for no such file."""
    file = read_gguf(gguf)
    family_of_file(file)  # refuses a file that no checkpoint of llmkit's can be compared with
    types = file.types_as_stored(quantization("f16")) if is_foreign else file.quantization()
    return VerifyTarget(file, adapter_of(file), checkpoint, types, is_foreign)
