"""`inspect`: metadata and tensors of a checkpoint folder or GGUF file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.layout import CONFIG_FILE
from llmkit.checkpoint.tensors import open_tensors
from llmkit.errors import CheckpointError, ModelfileError
from llmkit.export.gguf.reader import is_gguf, load_folder, read_gguf
from llmkit.files import StrPath
from llmkit.quantization.qat import matrix_types
from llmkit.quantization.tensor_types import quantization

SHOWN_ITEMS = 8


@dataclass(frozen=True)
class TensorGroup:
    """All tensors of one type."""

    type: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Inspection:
    """A model on disk. Long arrays in the metadata are cut to their first items."""

    path: str
    kind: str
    bytes: int
    parameters: int
    bits_per_weight: float
    groups: list[TensorGroup]
    metadata: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # name -> type, shape (out, in)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


def inspect(path: StrPath) -> Inspection:
    """Read what a model file says of itself. Raises LlmkitError where it is none."""
    path = Path(path)
    if path.is_file() and path.name.lower().endswith("modelfile"):
        raise ModelfileError(f"{path} is a Modelfile; `llmkit modelfile show {path}` explains it")
    if ggufs := sorted(path.glob("*.gguf")) if not (path / CONFIG_FILE).exists() else []:
        raise CheckpointError(
            f"{path} is a folder with GGUF files; inspect one, for example {ggufs[0]}"
        )
    return _inspect_gguf(path) if is_gguf(path) else _inspect_checkpoint(path)


def _inspect_gguf(path: Path) -> Inspection:
    file = read_gguf(path)
    tensors = [
        (tensor.name, tensor.ggml_type.name.lower(), tensor.shape, tensor.blocks.nbytes)
        for tensor in file.tensors.values()
    ]
    metadata = {key: _cut(value) for key, value in file.metadata.items()}
    return _inspection(path, "gguf", path.stat().st_size, metadata, tensors)


def _inspect_checkpoint(folder: Path) -> Inspection:
    checkpoint = load_folder(folder)
    files = [checkpoint.model_file, *([checkpoint.adapter_file] if checkpoint.lora else [])]
    tensors = [tensor for file in files for tensor in _stored_tensors(file)]
    metadata = {
        **asdict(checkpoint.config),
        "prompt_format": checkpoint.prompt_format.name,
        **({"labels": _cut(list(checkpoint.labels))} if checkpoint.labels else {}),
        **({"lora": str(checkpoint.lora)} if checkpoint.lora else {}),
        **({"base_quant": checkpoint.base_quant} if checkpoint.base_quant else {}),
        **({"qat": checkpoint.qat} if checkpoint.qat else {}),
        "tokens": _cut(checkpoint.tokenizer.tokens),
    }
    n_bytes = sum(file.stat().st_size for file in files)
    found = _inspection(folder, "checkpoint", n_bytes, metadata, tensors)
    return _with_blocks(found, checkpoint) if checkpoint.qat else found


def _with_blocks(weights: Inspection, checkpoint: Checkpoint) -> Inspection:
    """Also what the weights were trained as: the same parameters once more, as blocks."""
    types = matrix_types(checkpoint.config, quantization(str(checkpoint.qat)))
    blocks = [
        (f"{name} (blocks)", types[name].name, weights.tensors[name][1], rows.nbytes)
        for name, rows in checkpoint.trained_blocks().items()
    ]
    n_bytes = checkpoint.blocks_file.stat().st_size
    found = _inspection(checkpoint.folder, "checkpoint", n_bytes, {}, blocks)
    return replace(
        weights,
        bytes=weights.bytes + n_bytes,
        groups=[
            *weights.groups,
            *(replace(group, type=f"{group.type} (blocks)") for group in found.groups),
        ],
        tensors={**weights.tensors, **found.tensors},
    )


def _stored_tensors(path: Path) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    with open_tensors(path) as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            kind = str(tensor.dtype).removeprefix("torch.")
            yield name, kind, tuple(tensor.shape), tensor.nbytes


def _inspection(
    path: Path,
    kind: str,
    n_bytes: int,
    metadata: dict[str, Any],
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]],
) -> Inspection:
    groups: dict[str, TensorGroup] = {}
    shapes = {}
    for name, type_name, shape, size in tensors:
        group = groups.get(type_name, TensorGroup(type_name, 0, 0, 0))
        n_weights = math.prod(shape)
        groups[type_name] = TensorGroup(
            type_name, group.tensors + 1, group.parameters + n_weights, group.bytes + size
        )
        shapes[name] = (type_name, shape)
    n_parameters = sum(group.parameters for group in groups.values())
    n_tensor_bytes = sum(group.bytes for group in groups.values())
    return Inspection(
        path=str(path),
        kind=kind,
        bytes=n_bytes,
        parameters=n_parameters,
        bits_per_weight=8 * n_tensor_bytes / max(n_parameters, 1),
        groups=sorted(groups.values(), key=lambda group: -group.bytes),
        metadata=metadata,
        tensors=shapes,
    )


def _cut(value: Any) -> Any:
    if isinstance(value, list) and len(value) > SHOWN_ITEMS:
        return [*value[:SHOWN_ITEMS], f"... {len(value)} in total"]
    return value
