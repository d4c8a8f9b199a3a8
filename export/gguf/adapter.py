"""A LoRA adapter as a GGUF file of its own, for ADAPTER in a Modelfile.

Keys and names are those of llama.cpp's convert_lora_to_gguf.py: a pair `NAME.lora_a` (rank, in)
and `NAME.lora_b` (out, rank) for each matrix NAME of the base, in f32.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from llmkit.architectures.registry import family_of, tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.tensors import open_tensors
from llmkit.errors import GGUFError
from llmkit.export.gguf.metadata import adapter_metadata_of
from llmkit.export.gguf.reader import GGUFFile, Writer, read_gguf
from llmkit.export.gguf.writer import ExportedFile, add_metadata
from llmkit.files import written_beside
from llmkit.lora import peft_name
from llmkit.quant.types import quant_type

# GGUF's suffix and PEFT's name of the two halves.
HALVES = {"lora_a": "lora_A", "lora_b": "lora_B"}


def write_adapter(checkpoint: Checkpoint, path: Path, name: str) -> ExportedFile:
    """Write the checkpoint's LoRA matrices."""
    tensors = adapter_arrays(checkpoint)
    writer = Writer(None, checkpoint.config.architecture)
    add_metadata(writer, adapter_metadata_of(checkpoint, name))
    for tensor_name, array in tensors.items():
        writer.add_tensor(tensor_name, array, raw_dtype=gguf.GGMLQuantizationType.F32)
    with written_beside(path) as beside, closing(writer):
        writer.write_header_to_file(beside)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return ExportedFile(path, "f32", path.stat().st_size, quant_type("f32").bits_per_weight)


def adapter_arrays(checkpoint: Checkpoint) -> dict[str, NDArray[np.float32]]:
    """The LoRA matrices under their GGUF names, A (rank, in) and B (out, rank)."""
    with open_tensors(checkpoint.adapter_file) as file:
        stored, family = set(file.keys()), family_of(checkpoint.config)
        return {
            f"{entry.gguf_name}.{suffix}": file.get_tensor(name).float().numpy()
            for entry in tensor_specs(checkpoint.config)
            for suffix, half in HALVES.items()
            if entry.is_matrix and (name := peft_name(family, entry.module, half)) in stored
        }


def is_adapter(file: GGUFFile) -> bool:
    """Whether a file has LoRA matrices instead of a model."""
    return file.metadata.get(gguf.Keys.General.TYPE) == gguf.GGUFType.ADAPTER


def adapter_of(file: GGUFFile) -> GGUFFile | None:
    """The adapter that a base names, which lies beside it. Raises GGUFError where it does not."""
    if file.adapter_name is None:
        return None
    path = file.path.parent / file.adapter_name
    if not path.exists():
        raise GGUFError(f"{file.path} needs its adapter {path.name} in the same folder; copy both")
    return read_gguf(path)
