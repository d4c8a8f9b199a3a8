"""Tensors of safetensors files: open, check, round to blocks, merge, save."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmkit.architectures.base import Family, LanguageModel, ModelConfig
from llmkit.architectures.registry import model_without_weights
from llmkit.checkpoint.layout import CONFIG_FILE
from llmkit.console import progress
from llmkit.errors import CheckpointError
from llmkit.files import StrPath, cannot_read, written_beside
from llmkit.lora import LoRAConfig, merged_delta, peft_name
from llmkit.quant import dequantize
from llmkit.quant.types import PackedRows, QuantType
from llmkit.quantization.qat import rounded

MAX_WEIGHT = 1e15  # the square of what it computes, in LayerNorm, would be beyond float32


class TensorReader(Protocol):
    """Reads single tensors of an open file."""

    @property
    def path(self) -> Path: ...  # noqa: D102
    def keys(self) -> list[str]: ...  # noqa: D102
    def get_tensor(self, name: str) -> Tensor: ...  # noqa: D102
    def metadata(self) -> dict[str, str] | None: ...  # noqa: D102


@contextmanager
def open_tensors(path: Path) -> Iterator[TensorReader]:
    """Open a safetensors file. Raises CheckpointError where it is truncated or something else."""
    try:
        opened = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); copy it again or retrain"
        ) from error
    except OSError as error:
        raise CheckpointError(cannot_read(path, error)) from error
    with opened as file:
        yield checked_tensors(file, path)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], step: int) -> None:
    """Write tensors and the training step they belong to as safetensors, whole or not at all."""
    with written_beside(path) as beside:
        try:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
                beside,
                metadata={"step": str(step)},  # one key: the library stores several in any order
            )
        except SafetensorError as error:
            raise CheckpointError(f"cannot write {path}: {error}") from error


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, Callable[[], Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write float32 tensors as safetensors, each made when it is its turn: one is in memory.

    The format: 8 bytes with the length of the header, JSON with each tensor's place, the numbers.
    They are in the order of their names, as the library that `save_tensors` uses has them.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, shape in sorted(shapes.items()):
        end = start + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with written_beside(path) as beside, beside.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        with progress(f"write {path.name}", start, "bytes") as bar:
            n_written = 0
            for name in sorted(shapes):
                tensor = tensors[name]()
                if fault := fault_of(tensor):
                    raise CheckpointError(f"{path}: tensor {name} {fault}")
                file.write(tensor.numpy().data.cast("B"))
                n_written += 4 * tensor.numel()
                bar.update(n_written)


@dataclass(frozen=True)
class _Reader:
    """Has the names and metadata of a file, but its own way to get a tensor."""

    file: TensorReader
    path: Path
    get: Callable[[str], Tensor]

    def keys(self) -> list[str]:
        return self.file.keys()

    def metadata(self) -> dict[str, str] | None:
        return self.file.metadata()

    def get_tensor(self, name: str) -> Tensor:
        return self.get(name)


def checked_tensors(file: TensorReader, path: Path) -> TensorReader:
    """A reader that raises CheckpointError for weights that no model can compute with."""

    def get(name: str) -> Tensor:
        try:
            tensor = file.get_tensor(name)
        except SafetensorError as error:
            raise missing_tensor(path, name) from error
        if fault := fault_of(tensor):
            raise CheckpointError(
                f"{path}: tensor {name} {fault}; train again or use an earlier checkpoint"
            )
        return tensor

    return _Reader(file, path, get)


def fault_of(weights: Tensor) -> str | None:
    """What is wrong with weights that no model can compute with; None where nothing is."""
    if not weights.is_floating_point() or not weights.numel():
        return None
    low, high = (float(end) for end in torch.aminmax(weights))  # a single pass; NaN is passed on
    if math.isnan(low):
        return f"has NaN in {int(weights.isnan().sum()):,} of {weights.numel():,} weights"
    if math.isinf(low) or math.isinf(high):
        return f"has infinity in {int(weights.isinf().sum()):,} of {weights.numel():,} weights"
    largest = max(-low, high)
    too_large = f"has a weight of magnitude {largest:.3g}, above the limit of {MAX_WEIGHT:.0e}"
    return too_large if largest > MAX_WEIGHT else None


def rounded_tensors(file: TensorReader, types: Mapping[str, QuantType]) -> TensorReader:
    """A reader that rounds matrices to what their quantized blocks hold."""

    def get(name: str) -> Tensor:
        weights = file.get_tensor(name)
        return rounded(weights, types[name], name) if name in types else weights

    return _Reader(file, file.path, get)


def unpacked_tensors(
    file: TensorReader, blocks: Mapping[str, PackedRows], types: Mapping[str, QuantType]
) -> TensorReader:
    """A reader that takes matrices from quantized blocks, all other tensors from the file."""

    def get(name: str) -> Tensor:
        weights = file.get_tensor(name)
        if name not in blocks:
            return weights
        return torch.from_numpy(dequantize(blocks[name], types[name], tuple(weights.shape)))

    return _Reader(file, file.path, get)


def scaled_tensors(file: TensorReader, scales: Mapping[str, float]) -> TensorReader:
    """A reader that multiplies some tensors with a number."""

    def get(name: str) -> Tensor:
        weights = file.get_tensor(name)
        return weights.float() * scales[name] if name in scales else weights

    return _Reader(file, file.path, get) if scales else file


def merged_tensors(
    base: TensorReader, adapter: TensorReader, lora: LoRAConfig, family: Family
) -> TensorReader:
    """A reader that adds an adapter's LoRA matrices to those of the base."""

    def get(name: str) -> Tensor:
        weights = base.get_tensor(name)
        path = name.removesuffix(".weight")
        a, b = (peft_name(family, path, half) for half in ("lora_A", "lora_B"))
        if a not in adapter.keys():  # noqa: SIM118
            return weights
        A, B = adapter.get_tensor(a), adapter.get_tensor(b)  # (rank, in), (out, rank)
        return weights.float() + merged_delta(A, B, lora.scale)

    return _Reader(base, base.path, get)


def build_model(config: ModelConfig, weights: Mapping[str, Tensor], source: str) -> LanguageModel:
    """A GPT around existing tensors, without initialising it first.

    Raises CheckpointError naming `source` and the first tensor that is missing, left over or of
    another shape.
    """
    model = model_without_weights(config)
    wanted = model.state_dict()
    for name in (*wanted, *weights):
        if name not in weights:
            raise missing_tensor(source, name)
        if name not in wanted:
            raise unexpected_tensor(source, name)
        check_tensor(source, name, weights[name], tuple(wanted[name].shape))
    model.load_state_dict(dict(weights), assign=True)
    return model


def missing_tensor(source: StrPath, name: str) -> CheckpointError:
    """The error for a tensor that the sizes in config.json need."""
    return CheckpointError(f"{source}: tensor {name} is missing; {CONFIG_FILE} needs it")


def unexpected_tensor(source: StrPath, name: str) -> CheckpointError:
    """The error for a tensor that the sizes in config.json do not have."""
    return CheckpointError(f"{source}: unexpected tensor {name}; it does not match {CONFIG_FILE}")


def check_tensor(source: StrPath, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError for a tensor of another shape, or of integers."""
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{source}: {name} has shape {tuple(tensor.shape)}, but {CONFIG_FILE} needs {shape}"
        )
    if not tensor.is_floating_point():
        found = str(tensor.dtype).removeprefix("torch.")
        raise CheckpointError(f"{source}: {name} has type {found}; weights must be floats")
