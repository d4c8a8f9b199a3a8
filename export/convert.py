"""A checkpoint into GGUF files and a Modelfile."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from llmkit.checkpoint import CONFIG_FILE, Checkpoint, TensorReader, load_checkpoint, open_tensors
from llmkit.console import progress
from llmkit.errors import CheckpointError, ConfigError
from llmkit.export.gguf_file import Writer
from llmkit.export.metadata import ARCHITECTURE, metadata_of
from llmkit.export.names import TensorEntry, tensor_table
from llmkit.files import write_text, written_beside
from llmkit.modelfiles.modelfile import Modelfile, render
from llmkit.modelfiles.prompt_format import PromptFormat, prompt_format
from llmkit.quant import quant_names, quantize
from llmkit.quant.types import QuantType, quant_type
from llmkit.tokenizer import END_OF_TEXT

PROOF_FILE = "parity.json"
DEFAULT_QUANTS = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True)
class ExportedFile:
    """A GGUF file and what is in it."""

    path: Path
    quant: str
    n_bytes: int
    bits_per_weight: float
    kept_f16: tuple[str, ...]  # tensors whose rows the type cannot hold
    kept_f16_bytes: int  # what they take beyond the type's own size


@dataclass(frozen=True)
class Export:
    """An export folder."""

    folder: Path
    files: list[ExportedFile]
    modelfile: Path


def export(
    checkpoint: Path, out: Path, *, quants: Sequence[str] = DEFAULT_QUANTS, name: str | None = None
) -> Export:
    """Write `out`/NAME-QUANT.gguf for each quantization and a Modelfile for the smallest.

    NAME is the checkpoint folder's unless given. Matrices take the type; where their rows do
    not fit it they stay f16; biases, norms and positions stay f32.

    Raises LlmkitError: unknown type, damaged checkpoint, numbers a type cannot hold, full disk.
    """
    source = load_checkpoint(checkpoint)
    form = prompt_format(source.prompt_format)
    qtypes = list(dict.fromkeys(quant_type(quant) for quant in quants))
    name = name or checkpoint.resolve().name
    _check_target(out, name, qtypes)
    files = [write_gguf(source, out / f"{name}-{qtype.name}.gguf", qtype, name) for qtype in qtypes]
    (out / PROOF_FILE).unlink(missing_ok=True)  # it proved the files that were there before
    modelfile = out / "Modelfile"
    write_text(modelfile, _modelfile(source, form, files, name))
    return Export(out, files, modelfile)


def write_gguf(checkpoint: Checkpoint, path: Path, qtype: QuantType, name: str) -> ExportedFile:
    """Write one GGUF file, a tensor at a time, so that memory stays at one tensor."""
    table = tensor_table(checkpoint.config)
    types = [stored_type(entry, qtype) for entry in table]
    writer = Writer(None, ARCHITECTURE)
    for item in metadata_of(checkpoint, qtype, name)[1:]:  # the writer adds the architecture
        writer.add_key_value(item.key, item.value, item.kind)
    for entry, stored in zip(table, types, strict=True):
        writer.add_tensor_info(
            entry.gguf_name,
            (*entry.shape[:-1], stored.row_bytes(entry.shape[-1])),
            np.dtype(np.uint8),
            n_tensor_bytes(entry, stored),
            raw_dtype=stored.ggml_type,
        )
    with (
        open_tensors(checkpoint.model_file) as tensors,
        written_beside(path) as beside,
        closing(writer),
    ):
        _check_names(tensors, table)
        writer.write_header_to_file(beside)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress(f"write {path.name}", len(table), "tensors") as bar:
            for number, (entry, stored) in enumerate(zip(table, types, strict=True), start=1):
                writer.write_tensor_data(pack_tensor(tensors, entry, stored))
                bar.update(number)
    return _summary(path, qtype, table, types)


def stored_type(entry: TensorEntry, qtype: QuantType) -> QuantType:
    """The type a tensor is stored in when a file of type `qtype` is asked for."""
    if not entry.is_matrix:
        return quant_type("f32")
    return qtype if qtype.fits(entry.shape[-1]) else quant_type("f16")


def pack_tensor(tensors: TensorReader, entry: TensorEntry, stored: QuantType) -> NDArray[np.uint8]:
    """A checkpoint's tensor as blocks (rows, bytes). Raises CheckpointError, QuantizationError."""
    rows = (-1, entry.shape[-1])
    if entry.is_absent:
        return quantize(np.zeros(entry.shape, np.float32).reshape(rows), stored, entry.gguf_name)
    try:
        weights = tensors.get_tensor(entry.checkpoint_name)
    except SafetensorError as error:
        raise CheckpointError(
            f"the checkpoint has no tensor {entry.checkpoint_name}; it is not this model's"
        ) from error
    if tuple(weights.shape) != entry.shape:
        raise CheckpointError(
            f"{entry.checkpoint_name} has shape {tuple(weights.shape)}, {CONFIG_FILE} needs "
            f"{entry.shape}"
        )
    array = weights.to(torch.float32).numpy().reshape(rows)
    return quantize(array, stored, entry.checkpoint_name)


def ollama_name(name: str) -> str:
    """The name as Ollama takes one: letters, digits, `-`, `_` and `.`, beginning with no sign."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "model"


def n_tensor_bytes(entry: TensorEntry, stored: QuantType) -> int:
    """Bytes of a tensor's blocks."""
    return int(np.prod(entry.shape[:-1])) * stored.row_bytes(entry.shape[-1])


def _check_names(tensors: TensorReader, table: list[TensorEntry]) -> None:
    known = {entry.checkpoint_name for entry in table if not entry.is_absent}
    foreign = sorted(set(tensors.keys()) - known)
    if foreign:
        raise CheckpointError(
            f"the checkpoint has a tensor {foreign[0]} that {CONFIG_FILE} gives no place; "
            "it would be left out"
        )


def _check_target(out: Path, name: str, qtypes: list[QuantType]) -> None:
    if not qtypes:
        raise ConfigError("no quantization given; name at least one, such as q4_0")
    if not name or not name.isprintable() or any(character in '/\\"' for character in name):
        raise ConfigError(f"name {name!r} cannot be a file's name; use letters, digits and -")
    if (out / CONFIG_FILE).exists():
        raise ConfigError(f"{out} is a checkpoint; export into a folder of its own")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; export into a folder")
    known = {f"{name}-{quant}.gguf" for quant in quant_names()}
    others = sorted(file.name for file in out.glob("*.gguf") if file.name not in known)
    if others:
        raise ConfigError(f"{out} holds another model's {others[0]}; choose another --out")


def _summary(
    path: Path, qtype: QuantType, table: list[TensorEntry], types: list[QuantType]
) -> ExportedFile:
    pairs = list(zip(table, types, strict=True))
    kept = [entry for entry, stored in pairs if entry.is_matrix and stored is not qtype]
    n_weights = sum(int(np.prod(entry.shape)) for entry in table)
    f16 = quant_type("f16")
    extra_bits = sum(
        int(np.prod(entry.shape)) * (f16.bits_per_weight - qtype.bits_per_weight) for entry in kept
    )
    return ExportedFile(
        path=path,
        quant=qtype.name,
        n_bytes=path.stat().st_size,
        bits_per_weight=8
        * sum(n_tensor_bytes(entry, stored) for entry, stored in pairs)
        / n_weights,
        kept_f16=tuple(entry.gguf_name for entry in kept),
        kept_f16_bytes=round(extra_bits / 8),
    )


def _modelfile(
    checkpoint: Checkpoint, form: PromptFormat, files: list[ExportedFile], name: str
) -> str:
    smallest = min(files, key=lambda file: file.n_bytes)
    others = [file.path.name for file in files if file is not smallest]
    comment = [
        f"{name}: made by llmkit. To create the model in Ollama and run it, in this folder:",
        f"  ollama create {ollama_name(name)} -f Modelfile",
        f"  ollama run {ollama_name(name)}",
        *([f"Other files for FROM: {', '.join(others)}"] if others else []),
    ]
    return render(
        Modelfile(
            source=f"./{smallest.path.name}",
            template=form.template,
            stops=(END_OF_TEXT,),
            num_ctx=checkpoint.config.context_length,
            comment=tuple(comment),
        )
    )
