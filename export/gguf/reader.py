"""A GGUF file read back: metadata, blocks, and the PyTorch model that they describe."""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.architectures.base import GGUF_HEAD, Family, ModelConfig
from llmkit.architectures.registry import FAMILIES, tensor_specs
from llmkit.checkpoint.checkpoint import PICKLE_SUFFIXES, Checkpoint, load_checkpoint
from llmkit.checkpoint.tensors import fault_of
from llmkit.errors import CheckpointError, GGUFError, QuantizationError
from llmkit.export.gguf.header import quant_of
from llmkit.export.gguf.keys import ADAPTER_KEY, QUANTIZATION_KEY
from llmkit.export.gguf.metadata import METHOD_KEY
from llmkit.files import cannot_read
from llmkit.quant import QuantType, dequantize, quant_type_of
from llmkit.quantization.tensor_types import CUSTOM, Quantization, quantization, quantization_of
from llmkit.validation import validated

MAGIC = b"GGUF"


class Writer(gguf.GGUFWriter):
    """gguf-py's writer, which refuses empty arrays: a vocabulary of bytes alone has no merges."""

    def _pack_val(self, val: Any, vtype: Any, add_vtype: bool, sub_type: Any = None) -> bytes:
        if vtype == gguf.GGUFValueType.ARRAY and len(val) == 0:
            string = gguf.GGUFValueType.STRING
            return struct.pack("<IIQ", vtype, string, 0)
        packed: bytes = super()._pack_val(val, vtype, add_vtype, sub_type)
        return packed


class _Reader(gguf.GGUFReader):
    """gguf-py's reader, which past the file's end goes on reading nothing for as long as told."""

    def _get(
        self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
    ) -> NDArray[Any]:
        found: NDArray[Any] = super()._get(offset, dtype, count, override_order)
        if len(found) != count:
            raise EOFError
        return found


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the file, shape (out, in)."""

    path: Path
    name: str
    shape: tuple[int, ...]
    ggml_type: gguf.GGMLQuantizationType
    offset: int  # of its bytes in the file
    blocks_shape: tuple[int, ...]

    @property
    def blocks(self) -> NDArray[np.uint8]:
        """The blocks as they lie there, mapped anew: what was read of a map stays in memory."""
        return np.asarray(np.memmap(self.path, np.uint8, "r", self.offset, self.blocks_shape))

    @property
    def qtype(self) -> QuantType:
        """The blocks' format. Raises QuantizationError for a type that llmkit does not read."""
        try:
            return quant_type_of(self.ggml_type)
        except QuantizationError as error:
            raise QuantizationError(f"{self.path}, tensor {self.name}: {error}") from error

    @property
    def is_quantized(self) -> bool:
        """Whether blocks hold several weights each, of any type."""
        return gguf.GGML_QUANT_SIZES[self.ggml_type][0] > 1

    @property
    def n_weights(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    def dequantized(self) -> NDArray[np.float32]:
        """The weights that the blocks stand for. Raises QuantizationError for an unknown type."""
        return dequantize(self.blocks, self.qtype, self.shape)


@dataclass(frozen=True)
class GGUFFile:
    """What a GGUF file says of itself; tensors are mapped when they are asked for."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def quant(self) -> str:
        """The file's quantization by name, such as q4_0."""
        return quant_of(self.metadata)

    @property
    def method(self) -> str:
        """How the numbers in the blocks were chosen: by rounding unless the file says otherwise."""
        return str(self.metadata.get(METHOD_KEY, "rtn"))

    def quantization(self) -> Quantization:
        """Which type each matrix is to have; where that was chosen one by one, as they have it.

        Raises GGUFError where the file states none, QuantizationError where it is of another kind.
        """
        number: Any = self.metadata.get(gguf.Keys.General.FILE_TYPE)
        try:
            file_type = gguf.LlamaFileType(number)
        except ValueError as error:
            message = f"{self.path} has an unknown general.file_type or none; export it again"
            raise GGUFError(message) from error
        if QUANTIZATION_KEY not in self.metadata:
            try:
                return quantization_of(file_type)
            except QuantizationError as error:
                raise QuantizationError(f"{self.path}: {error}") from error
        if self.quant != CUSTOM:
            return quantization(self.quant)
        return self.types_as_stored(quantization_of(file_type))

    def types_as_stored(self, like: Quantization) -> Quantization:
        """The type that each matrix has, whatever the file says; of others, that of `like`."""
        table = {entry.gguf_name: entry for entry in tensor_specs(config_of(self))}
        chosen = {
            table[name].checkpoint_name: tensor.qtype
            for name, tensor in self.tensors.items()
            if name in table
        }
        return Quantization(CUSTOM, like.file_type, like.base, chosen=chosen)

    @property
    def adapter_name(self) -> str | None:
        """Name of the file with the LoRA matrices that belong to this one, if it names one."""
        name = self.metadata.get(ADAPTER_KEY)
        return None if name is None else Path(str(name)).name

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data for each weight."""
        n_bits = 8 * sum(tensor.blocks.nbytes for tensor in self.tensors.values())
        return n_bits / sum(tensor.n_weights for tensor in self.tensors.values())

    def sha256(self) -> str:
        """Hash of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_gguf(path: Path) -> GGUFFile:
    """Open a GGUF file. Raises GGUFError where it is missing, truncated or something else."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise GGUFError(cannot_read(path, error)) from error
    if not MAGIC.startswith(magic):  # fewer bytes are a truncated file
        raise GGUFError(f"{path} is not a GGUF file: it does not start with the bytes GGUF")
    try:
        reader = _Reader(path)
        metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
        tensors = {tensor.name: _stored(path, tensor) for tensor in reader.tensors}
    except Exception as error:  # the reader fails in many ways on bytes that are not as announced
        raise GGUFError(
            f"{path} is truncated or damaged: is the download complete? Copy or export it again"
        ) from error
    return GGUFFile(path, metadata, tensors)


def is_gguf(path: Path) -> bool:
    """Whether a path is meant as a GGUF file: by its name or by its first bytes."""
    if path.suffix.lower() == ".gguf":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def load_folder(path: Path) -> Checkpoint:
    """Open what is not a GGUF file where one would do too. Raises CheckpointError."""
    if path.is_file() and path.suffix not in PICKLE_SUFFIXES:
        raise CheckpointError(f"{path} is neither a checkpoint folder nor a GGUF file")
    return load_checkpoint(path)


def family_of_file(file: GGUFFile) -> Family:
    """The model family that a file is of. Raises GGUFError where llmkit has none."""
    architecture = file.metadata.get(gguf.Keys.General.ARCHITECTURE)
    if architecture not in FAMILIES:
        kind = f"is a {architecture} model" if architecture else "does not name its architecture"
        raise GGUFError(
            f"{file.path} {kind}; this needs the PyTorch model, which llmkit has only of "
            f"{', '.join(FAMILIES)}. compare, quantize and deploy take any architecture"
        )
    return FAMILIES[architecture]


def config_of(file: GGUFFile) -> ModelConfig:
    """The model's sizes as the file states them. Raises GGUFError for another architecture."""
    known = family_of_file(file)

    def value(key: str, kind: type) -> Any:
        if key not in file.metadata:
            raise GGUFError(f"{file.path} has no {key}; export it again")
        if not isinstance(file.metadata[key], kind):
            raise GGUFError(f"{file.path}: {key} is not of type {kind.__name__}; export it again")
        return file.metadata[key]

    settable = {field.name for field in fields(known.config)}
    sizes = {
        size.size: value(
            size.key.format(arch=known.name),
            float if size.kind is gguf.GGUFValueType.FLOAT32 else int,
        )
        for size in known.sizes
        if size.size in settable - {"vocab_size"}
    }
    sizes["vocab_size"] = len(value(gguf.Keys.Tokenizer.LIST, list))
    sizes["tie_embeddings"] = GGUF_HEAD not in file.tensors
    if sizes["n_layer"] > len(file.tensors):  # damage: every size derived from it would be huge
        raise GGUFError(
            f"{file.path}: the metadata says {sizes['n_layer']} layers, but the file has only "
            f"{len(file.tensors)} tensors; export or copy it again"
        )
    config: ModelConfig = validated(known.config, sizes, str(file.path))
    return config


def dequantized_weights(file: GGUFFile) -> dict[str, torch.Tensor]:
    """The file's weights under the checkpoint's names, in float32.

    Raises GGUFError naming a tensor that is missing or has another shape.
    """
    weights = {}
    for entry in tensor_specs(config_of(file)):
        stored = file.tensors.get(entry.gguf_name)
        if stored is None:
            raise GGUFError(f"{file.path} has no tensor {entry.gguf_name}; export it again")
        if stored.shape != entry.shape:
            raise GGUFError(
                f"{file.path}: {entry.gguf_name} has shape {stored.shape}, but its metadata "
                f"needs {entry.shape}"
            )
        weights[entry.checkpoint_name] = torch.from_numpy(stored.dequantized())
    return weights


def refuse_faulty_weights(file: GGUFFile) -> None:
    """Raise GGUFError naming the first tensor whose weights are NaN, infinite or far too large.

    Tensors of types that llmkit does not read are left to llama.cpp.
    """
    for tensor in file.tensors.values():
        with suppress(QuantizationError):
            if fault := fault_of(torch.from_numpy(tensor.dequantized())):
                raise GGUFError(f"{file.path}: tensor {tensor.name} {fault}; export it again")


def refuse_not_finite(logits: NDArray[np.float32], path: Path) -> None:
    """Raise GGUFError where llama.cpp computes no numbers, naming the tensor that is to blame."""
    if not np.isfinite(logits).all():
        refuse_faulty_weights(read_gguf(path))
        raise GGUFError(f"{path}: llama.cpp computes logits that are infinite or NaN")


def _stored(path: Path, tensor: gguf.ReaderTensor) -> StoredTensor:
    shape = tuple(int(size) for size in reversed(tensor.shape))  # ggml counts from the row inwards
    *rows, row_length = tensor.data.shape
    blocks_shape = (*map(int, rows), int(row_length) * tensor.data.itemsize)
    return StoredTensor(
        path, tensor.name, shape, tensor.tensor_type, int(tensor.data_offset), blocks_shape
    )
