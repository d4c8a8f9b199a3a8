"""GGUF to GGUF: another quantization of a file, without its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import gguf
import numpy as np
import torch

from llmkit.architectures.registry import FAMILIES
from llmkit.checkpoint.tensors import build_model
from llmkit.console import progress
from llmkit.data.sources import read_documents
from llmkit.data.tokens import windows
from llmkit.errors import ConfigError, DataError
from llmkit.export.evaluation.eval_data import file_tokens
from llmkit.export.gguf.metadata import (
    OF_QUANTIZATION,
    ChosenBlocks,
    quantization_entries,
)
from llmkit.export.gguf.reader import (
    GGUFFile,
    Writer,
    config_of,
    dequantized_weights,
    read_gguf,
    refuse_faulty_weights,
)
from llmkit.export.gguf.sizes import architecture_of, sizes_of, specs_of
from llmkit.export.gguf.writer import add_metadata, write_header
from llmkit.export.llamacpp.library import quantize_file
from llmkit.export.llamacpp.runtime import LlamaCpp
from llmkit.export.quantization.calibration import DEFAULT_TOKENS, Calibration
from llmkit.export.quantization.imatrix import read_importance_file
from llmkit.export.quantization.prequantized import (
    by_error_feedback,
    by_importance,
    check_error_feedback,
    check_inputs,
    stored_types,
)
from llmkit.files import StrPath, optional_path, written_beside
from llmkit.quant import quantize
from llmkit.quant.types import QuantType
from llmkit.quantization.tensor_types import Quantization, quantization, quantization_of

Method = Literal["rtn", "gptq", "llama.cpp"]


def requantize(
    source: StrPath,
    out: StrPath,
    quant: str,
    *,
    method: Method = "rtn",
    imatrix: StrPath | None = None,
    calibration: StrPath | None = None,
    again: bool = False,
) -> GGUFFile:
    """Write `source` in another quantization to `out`; all that is not a matrix stays as it is.

    rtn rounds, with the importances of the file `imatrix` if one is given; gptq chooses each
    number by what the model reads in the text `calibration`; llama.cpp is llama-quantize, with its
    own choice of types. Files may be of any architecture; gptq runs the model in PyTorch and needs
    a family that llmkit has. Raises ConfigError for another, and for a file that is quantized
    already unless `again`.
    """
    source, out = Path(source), Path(out)
    imatrix, calibration = optional_path(imatrix), optional_path(calibration)
    file = read_gguf(source)
    table = specs_of(file)
    _check(file, out, again=again)
    check_inputs(method, calibration, imatrix)
    if method == "gptq" and calibration is None:
        raise ConfigError("--method gptq needs a text; pass one with --calibration")
    if method == "gptq" and architecture_of(file) not in FAMILIES:
        raise ConfigError(
            f"{source} is a {architecture_of(file)} model; --method gptq supports "
            f"{', '.join(FAMILIES)}. Use rtn, with or without --imatrix, or llama.cpp"
        )
    refuse_faulty_weights(file)
    wanted = quantization(quant)
    if method == "llama.cpp":
        _by_llama_cpp(file, out, wanted)
        return read_gguf(out)
    types = stored_types(table, sizes_of(file), wanted)
    chosen = None
    if calibration is not None:
        check_error_feedback([types])
        text = _calibration(file, calibration)
        chosen = by_error_feedback(
            build_model(config_of(file), dequantized_weights(file), str(source)), types, text
        )
    elif imatrix is not None:
        names = {entry.checkpoint_name: entry.gguf_name for entry in table}
        matrices = (
            (name, file.tensors[names[name]].dequantized(), qtype) for name, qtype in types.items()
        )
        chosen = by_importance(matrices, table, read_importance_file(imatrix))
    _write(file, out, wanted, types, chosen)
    return read_gguf(out)


def _check(file: GGUFFile, out: Path, *, again: bool) -> None:
    quantized = [tensor for tensor in file.tensors.values() if tensor.is_quantized]
    if out.exists() and out.samefile(file.path):
        raise ConfigError(f"{out} is the input file; choose another --out")
    if quantized and not again:
        raise ConfigError(
            f"{file.path} is already quantized ({quantized[0].name} is "
            f"{quantized[0].ggml_type.name.lower()}), so errors would add up; use the f32 or f16 "
            "file, or add --again"
        )
    if file.adapter_name and out.resolve().parent != file.path.resolve().parent:
        raise ConfigError(
            f"{file.path} needs the adapter {file.adapter_name} in its folder; "
            "write the new file into the same folder"
        )


def _calibration(file: GGUFFile, data: Path) -> Calibration:
    """Pieces of a text as long as the context, cut by the file's own tokenizer."""
    with LlamaCpp(file.path) as llama:
        ids = file_tokens(llama, read_documents(data))
    length = min(sizes_of(file).context_length, len(ids) - 1)
    if length < 1:
        raise DataError(f"{data} has no text to calibrate with")
    rows = windows(np.asarray(ids), length, DEFAULT_TOKENS)[:, :-1]
    return Calibration(str(data), torch.from_numpy(rows))


def _write(
    file: GGUFFile,
    out: Path,
    wanted: Quantization,
    types: Mapping[str, QuantType],
    chosen: ChosenBlocks | None,
) -> None:
    writer = Writer(None, architecture_of(file))
    for name, field in gguf.GGUFReader(file.path).fields.items():
        kept = not name.startswith("GGUF.") and name != gguf.Keys.General.ARCHITECTURE
        if kept and name not in OF_QUANTIZATION:
            item = field.types[1] if field.types[1:] else None
            writer.add_key_value(name, field.contents(), field.types[0], item)
    add_metadata(writer, quantization_entries(wanted, chosen))
    names = {entry.gguf_name: entry.checkpoint_name for entry in specs_of(file)}
    for tensor in file.tensors.values():
        kind, row_bytes = tensor.ggml_type, tensor.blocks.shape[-1]
        if qtype := types.get(names[tensor.name]):
            kind, row_bytes = qtype.ggml_type, qtype.row_bytes(tensor.shape[-1])
        shape = (*tensor.shape[:-1], row_bytes)
        n_bytes = int(np.prod(shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), n_bytes, raw_dtype=kind)
    with written_beside(out) as beside, closing(writer):
        write_header(writer, beside)
        with progress(f"write {out.name}", len(file.tensors), "tensors") as bar:
            for number, tensor in enumerate(file.tensors.values(), start=1):
                blocks = chosen.blocks.get(names[tensor.name]) if chosen else None
                if blocks is None and (qtype := types.get(names[tensor.name])):
                    blocks = quantize(tensor.dequantized(), qtype, tensor.name)
                writer.write_tensor_data(tensor.blocks if blocks is None else blocks)
                bar.update(number)


def _by_llama_cpp(file: GGUFFile, out: Path, wanted: Quantization) -> None:
    with written_beside(out) as beside:
        if not (OF_QUANTIZATION - {gguf.Keys.General.FILE_TYPE}) & file.metadata.keys():
            quantize_file(file.path, beside, int(wanted.file_type))
            return
        # llama.cpp copies all keys, and these would tell how other blocks came about.
        with TemporaryDirectory(prefix="llmkit-", dir=out.parent) as folder:
            source = Path(folder) / file.path.name
            _write(file, source, quantization_of(wanted.file_type), {}, None)
            quantize_file(source, beside, int(wanted.file_type))
