"""GGUF files changed on purpose, and models made without training. gguf-py reads and writes here,
llmkit's own reader and writer do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from llmkit.architectures.gpt2 import GPT, GPTConfig
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.tensors import save_tensors
from llmkit.export.gguf.reader import Writer
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.quant import dequantize, quant_type, quantize
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_training import train_bpe

Kind = gguf.GGUFValueType
Key = tuple[Any, gguf.GGUFValueType, gguf.GGUFValueType | None]  # value, type, type of items
TensorOf = Mapping[str, tuple[NDArray[Any], gguf.GGMLQuantizationType]]

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 32}


def make_checkpoint(
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    change: Callable[[dict[str, torch.Tensor]], None] = lambda weights: None,
    **sizes: Any,
) -> Checkpoint:
    """An untrained checkpoint. Norms and biases are random too, so that no tensor is trivial."""
    tokenizer = tokenizer or train_bpe(["some words to merge, some more words"], 280)
    config = GPTConfig(**{**SIZES, "vocab_size": tokenizer.vocab_size, **sizes})
    torch.manual_seed(0)
    weights = {
        name: tensor + 0.05 * torch.randn(tensor.shape)
        for name, tensor in GPT(config).state_dict().items()
    }
    change(weights)
    folder.mkdir(parents=True)
    save_config(folder, CheckpointConfig(config, COMPLETION))
    save_tensors(folder / "model.safetensors", weights, step=0)
    tokenizer.save(folder / "tokenizer.json")
    return load_checkpoint(folder)


def keys_of(path: Path) -> dict[str, Key]:
    reader = gguf.GGUFReader(path)
    return {
        name: (field.contents(), field.types[0], field.types[1] if field.types[1:] else None)
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }


def tensors_of(path: Path) -> dict[str, tuple[NDArray[Any], gguf.GGMLQuantizationType]]:
    return {
        tensor.name: (np.array(tensor.data), tensor.tensor_type)
        for tensor in gguf.GGUFReader(path).tensors
    }


def write_file(path: Path, keys: Mapping[str, Key], tensors: TensorOf) -> Path:
    architecture = keys["general.architecture"][0] if "general.architecture" in keys else "gpt2"
    writer = Writer(path, architecture)  # takes empty arrays
    for name, (value, kind, item_kind) in keys.items():
        if name != "general.architecture":
            writer.add_key_value(name, value, kind, item_kind)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_key(
    source: Path, target: Path, name: str, value: Any, kind: Kind, item: Any = None
) -> Path:
    """A copy in which one key has another value, or is new."""
    return write_file(target, {**keys_of(source), name: (value, kind, item)}, tensors_of(source))


def without_key(source: Path, target: Path, name: str) -> Path:
    keys = keys_of(source)
    del keys[name]
    return write_file(target, keys, tensors_of(source))


def with_tensors(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy whose tensors {name: (data, type)} went through `change`."""
    tensors = tensors_of(source)
    change(tensors)
    return write_file(target, keys_of(source), tensors)


def with_tensor(source: Path, target: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """A copy in which the stored rows of one tensor are changed."""

    def replace(tensors: dict[str, Any]) -> None:
        data, kind = tensors[name]
        tensors[name] = (np.ascontiguousarray(change(data.copy())), kind)

    return with_tensors(source, target, replace)


def with_numbers(source: Path, target: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """A copy in which the numbers of one tensor are changed and rounded again."""

    def replace(tensors: dict[str, Any]) -> None:
        data, kind = tensors[name]
        stored = quant_type(kind.name.lower())
        numbers = dequantize(data.view(np.uint8).reshape(len(data), -1), stored)
        blocks = quantize(np.ascontiguousarray(change(numbers)), stored, name)
        tensors[name] = (blocks.view(data.dtype), kind)

    return with_tensors(source, target, replace)


def with_array(source: Path, target: Path, key: str, change: Callable[[list[Any]], Any]) -> Path:
    """A copy in which an array went through `change`, which returns it or changes it in place."""
    keys = keys_of(source)
    items, *kinds = keys[key]
    items = list(items)
    keys[key] = (change(items) or items, *kinds)
    return write_file(target, keys, tensors_of(source))


def with_flipped_bit(source: Path, target: Path, tensor_name: str, bit: int = 0) -> Path:
    """A copy with one bit of a tensor's first byte changed."""
    content = bytearray(source.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(source).tensors if t.name == tensor_name)
    content[tensor.data_offset] ^= 1 << bit
    target.write_bytes(content)
    return target


def flips(content: bytes, positions: Iterator[int]) -> Iterator[bytes]:
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 0xFF
        yield bytes(changed)
