"""A checkpoint folder: config.json, model.safetensors, tokenizer.json. Never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmkit.errors import CheckpointError, ConfigError
from llmkit.files import StrPath, cannot_read, write_text, written_beside
from llmkit.model.config import GPTConfig, validated
from llmkit.model.gpt import GPT, gpt_without_weights
from llmkit.model.grid import Grid, matrix_types, rounded
from llmkit.model.lora import (
    LoRAConfig,
    add_lora,
    load_adapter,
    lora_config_of,
    merged_delta,
    peft_name,
)
from llmkit.model.packed import build_packed
from llmkit.model.storage import quantization
from llmkit.modelfiles.prompt_format import PromptFormat, prompt_format_from
from llmkit.quant import dequantize
from llmkit.quant.rounding import Repacked, rounding_of
from llmkit.quant.types import PackedRows, QuantType
from llmkit.tokenizer import Tokenizer, load_tokenizer

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_model.safetensors"  # PEFT's names, so that PEFT loads the folder
ADAPTER_CONFIG_FILE = "adapter_config.json"
TOKENIZER_FILE = "tokenizer.json"
BLOCKS_FILE = "blocks.safetensors"  # what training for blocks made of the matrices
CHECKPOINT_FILES = (
    CONFIG_FILE,
    MODEL_FILE,
    BLOCKS_FILE,
    ADAPTER_FILE,
    ADAPTER_CONFIG_FILE,
    TOKENIZER_FILE,
)
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
MAX_WEIGHT = 1e15  # the square of what it computes, in LayerNorm, would be beyond float32
HEAD = "lm_head.weight"  # of a model whose head is not its token embedding
TRAINING_FOLDER = "training"
HELD_OUT_FILE = "held_out.jsonl"  # records that fine-tuning held out
TRAINED_FILE = "trained.jsonl"  # records that fine-tuning trained on


class TensorReader(Protocol):
    """Reads single tensors of an open file."""

    @property
    def path(self) -> Path: ...  # noqa: D102
    def keys(self) -> list[str]: ...  # noqa: D102
    def get_tensor(self, name: str) -> Tensor: ...  # noqa: D102
    def metadata(self) -> dict[str, str] | None: ...  # noqa: D102


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; tensors are read when asked for."""

    folder: Path
    config: GPTConfig
    prompt_format: PromptFormat
    tokenizer: Tokenizer
    labels: tuple[str, ...] = ()  # of a classifier
    lora: LoRAConfig | None = None
    base_quant: str | None = None  # the blocks that a QLoRA adapter was trained on
    qat: str | None = None  # the blocks that the weights were trained for

    @property
    def model_file(self) -> Path:
        """Path of the weights, without an adapter."""
        return self.folder / MODEL_FILE

    @property
    def adapter_file(self) -> Path:
        """Path of the LoRA matrices; absent without `lora`."""
        return self.folder / ADAPTER_FILE

    @property
    def blocks_file(self) -> Path:
        """Path of the blocks that the weights were trained as; absent without `qat`."""
        return self.folder / BLOCKS_FILE

    @property
    def end_id(self) -> int:
        """Id of the token that ends an answer."""
        return self.tokenizer.special_id(self.prompt_format.end)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        return stop_ids(self.prompt_format, self.tokenizer)

    @property
    def label_ids(self) -> list[int]:
        """Ids of the tokens that a classifier answers with."""
        return label_ids(self.tokenizer, self.labels)

    @property
    def validation_tokens_file(self) -> Path:
        """Path of the ids that training held out; absent where llmkit did not train the model."""
        return self.folder / TRAINING_FOLDER / "validation.tokens"

    @property
    def train_tokens_file(self) -> Path:
        """Path of the ids that training read; absent where llmkit did not train the model."""
        return self.folder / TRAINING_FOLDER / "train.tokens"

    @property
    def held_out_file(self) -> Path:
        """Path of the records that fine-tuning held out; absent where there was none."""
        return self.folder / TRAINING_FOLDER / HELD_OUT_FILE

    @property
    def trained_file(self) -> Path:
        """Path of the records that fine-tuning trained on; absent where there was none."""
        return self.folder / TRAINING_FOLDER / TRAINED_FILE

    def load_model(self, device: torch.device | None = None, *, for_training: bool = False) -> GPT:
        """The model with its adapter, in evaluation mode.

        What was trained on blocks or for them has the numbers of the blocks. With `for_training`
        the base of a QLoRA adapter is the blocks themselves, and weights trained for blocks are
        the floats before rounding. Raises CheckpointError for missing or foreign tensors.
        """
        with open_tensors(self.model_file) if for_training else self.open_base() as file:
            if for_training and self.base_quant is not None:
                types = matrix_types(self.config, quantization(self.base_quant))
                model = build_packed(self.config, file.get_tensor, types)
            else:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                model = build_model(self.config, weights, str(self.model_file))
        if self.lora is not None:
            self.add_adapter(model)
        return model.to(device or "cpu").eval()

    def add_adapter(self, model: GPT) -> None:
        """Put this checkpoint's LoRA matrices around a model's own."""
        if self.lora is None:
            raise CheckpointError(f"{self.folder} has no adapter")
        add_lora(model, self.lora)
        with open_tensors(self.adapter_file) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        load_adapter(model, tensors, str(self.adapter_file))

    @contextmanager
    def open_base(self) -> Iterator[TensorReader]:
        """The weights without the adapter, as the blocks have them where there are some."""
        with open_tensors(self.model_file) as file:
            if self.base_quant is not None:
                yield _Rounded(file, matrix_types(self.config, quantization(self.base_quant)))
            elif self.qat is not None:
                unpacked = _Unpacked(file, self.trained_blocks(), self._trained_types())
                yield _Checked(unpacked, self.blocks_file)
            else:
                yield file

    @contextmanager
    def open_merged(self) -> Iterator[TensorReader]:
        """The weights with the adapter merged into them."""
        with self.open_base() as base:
            if self.lora is None:
                yield base
                return
            with open_tensors(self.adapter_file) as adapter:
                yield _Merged(base, adapter, self.lora)

    def trained_blocks(self) -> dict[str, PackedRows]:
        """The blocks that the weights were trained as, by tensor; none without `qat`.

        Raises CheckpointError where they are not those of this model.
        """
        types = self._trained_types()
        if not types:
            return {}
        with open_tensors(self.blocks_file) as file:
            if set(file.keys()) != set(types):
                raise CheckpointError(
                    f"{self.blocks_file} does not match the model: the names of its matrices differ"
                )
            return {name: file.get_tensor(name).numpy() for name in types}

    def grid(self, device: torch.device) -> Grid:
        """What training goes on rounding to; empty without `qat`."""
        types = self._trained_types()
        grid = {
            name: rounding_of(blocks, types[name], name, device)
            for name, blocks in self.trained_blocks().items()
        }
        if self.labels and grid:
            # In training the head has the labels' rows alone, and those of this file none to keep.
            grid[HEAD] = Repacked(types[HEAD], HEAD)
        return grid

    def _trained_types(self) -> dict[str, QuantType]:
        return matrix_types(self.config, quantization(self.qat)) if self.qat else {}

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights file, and of the adapter and the blocks where there are some."""
        hashes = []
        adapter = [self.adapter_file] if self.lora is not None else []
        blocks = [self.blocks_file] if self.qat is not None else []
        for path in (self.model_file, *adapter, *blocks):
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        return "+".join(hashes)


@dataclass(frozen=True)
class _Checked:
    """Reads tensors of a file, and raises CheckpointError for weights that nothing can use."""

    file: TensorReader
    path: Path

    def keys(self) -> list[str]:
        return self.file.keys()

    def metadata(self) -> dict[str, str] | None:
        return self.file.metadata()

    def get_tensor(self, name: str) -> Tensor:
        try:
            tensor = self.file.get_tensor(name)
        except SafetensorError as error:
            raise missing_tensor(self.path, name) from error
        if fault := fault_of(tensor):
            raise CheckpointError(
                f"{self.path}: tensor {name} {fault}; train again or use an earlier checkpoint"
            )
        return tensor


@dataclass(frozen=True)
class _Rounded:
    """Reads tensors as the blocks have them that they are packed into."""

    file: TensorReader
    types: Mapping[str, QuantType]

    @property
    def path(self) -> Path:
        return self.file.path

    def keys(self) -> list[str]:
        return self.file.keys()

    def metadata(self) -> dict[str, str] | None:
        return self.file.metadata()

    def get_tensor(self, name: str) -> Tensor:
        weights = self.file.get_tensor(name)
        return rounded(weights, self.types[name], name) if name in self.types else weights


@dataclass(frozen=True)
class _Unpacked:
    """Reads matrices from blocks, and all other tensors from a file."""

    file: TensorReader
    blocks: Mapping[str, PackedRows]
    types: Mapping[str, QuantType]

    @property
    def path(self) -> Path:
        return self.file.path

    def keys(self) -> list[str]:
        return self.file.keys()

    def metadata(self) -> dict[str, str] | None:
        return self.file.metadata()

    def get_tensor(self, name: str) -> Tensor:
        weights = self.file.get_tensor(name)
        if name not in self.blocks:
            return weights
        shape = tuple(weights.shape)
        return torch.from_numpy(dequantize(self.blocks[name], self.types[name], shape))


@dataclass(frozen=True)
class _Merged:
    """Reads tensors of a base with the LoRA matrices of an adapter added."""

    base: TensorReader
    adapter: TensorReader
    lora: LoRAConfig

    @property
    def path(self) -> Path:
        return self.base.path

    def keys(self) -> list[str]:
        return self.base.keys()

    def metadata(self) -> dict[str, str] | None:
        return self.base.metadata()

    def get_tensor(self, name: str) -> Tensor:
        weights = self.base.get_tensor(name)
        a, b = (peft_name(name.removesuffix(".weight"), half) for half in ("lora_A", "lora_B"))
        if a not in self.adapter.keys():  # noqa: SIM118
            return weights
        A, B = self.adapter.get_tensor(a), self.adapter.get_tensor(b)  # (rank, in), (out, rank)
        return weights.float() + merged_delta(A, B, self.lora.scale)


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


def build_model(config: GPTConfig, weights: Mapping[str, Tensor], source: str) -> GPT:
    """A GPT around existing tensors, without initialising it first.

    Raises CheckpointError naming `source` and the first tensor that is missing, left over or of
    another shape.
    """
    model = gpt_without_weights(config)
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


def load_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder. Raises CheckpointError saying what is missing or damaged."""
    if not folder.is_dir():
        raise CheckpointError(_not_a_folder(folder))
    for name in (CONFIG_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}; give a checkpoint folder written by llmkit"
            )
    content = _read_config(folder / CONFIG_FILE)
    config = content.model
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: {TOKENIZER_FILE} has {tokenizer.vocab_size} tokens, but {CONFIG_FILE} says "
            f"vocab_size {config.vocab_size}; copy both files from the same training run"
        )
    checkpoint = Checkpoint(
        folder,
        config,
        content.prompt_format,
        tokenizer,
        content.labels,
        _read_lora(folder),
        content.base_quant,
        content.qat,
    )
    try:
        checkpoint.end_id  # noqa: B018  raises where the tokenizer lacks it
    except ConfigError as error:
        raise CheckpointError(
            f"{folder}: {error}; the prompt format ends answers with it"
        ) from error
    try:
        checkpoint.label_ids  # noqa: B018  likewise
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error} in {CONFIG_FILE}") from error
    return checkpoint


def stop_ids(form: PromptFormat, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end a generation: the format's end of an answer, and the end of a document."""
    return frozenset((tokenizer.special_id(form.end), tokenizer.end_of_text_id))


def label_ids(tokenizer: Tokenizer, labels: Sequence[str]) -> list[int]:
    """Ids of the tokens that are the labels. Raises ConfigError for one that is no token."""
    ids = []
    for label in labels:
        token_id = tokenizer.word_id(label)
        if token_id is None:
            raise ConfigError(f"the tokenizer has no single token for the label {label!r}")
        ids.append(token_id)
    return ids


@dataclass(frozen=True)
class CheckpointConfig:
    """The content of config.json."""

    model: GPTConfig
    prompt_format: PromptFormat
    labels: tuple[str, ...] = ()
    base_quant: str | None = None
    qat: str | None = None


def save_config(folder: Path, content: CheckpointConfig) -> None:
    """Write config.json."""
    fields = {
        "model": asdict(content.model),
        "prompt_format": content.prompt_format.to_dict(),
        **({"labels": list(content.labels)} if content.labels else {}),
        **({"base_quant": content.base_quant} if content.base_quant else {}),
        **({"qat": content.qat} if content.qat else {}),
    }
    write_text(folder / CONFIG_FILE, json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


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
        yield _Checked(file, path)


def _read_config(path: Path) -> CheckpointConfig:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return CheckpointConfig(
            validated(GPTConfig, content["model"], str(path)),
            prompt_format_from(content["prompt_format"], str(path)),
            tuple(str(label) for label in content.get("labels", ())),
            content.get("base_quant"),
            content.get("qat"),
        )
    except OSError as error:
        raise CheckpointError(cannot_read(path, error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not an llmkit config: it needs `model` and `prompt_format` ({error})"
        ) from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _read_lora(folder: Path) -> LoRAConfig | None:
    path = folder / ADAPTER_CONFIG_FILE
    if not path.exists():
        return None
    try:
        return lora_config_of(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(cannot_read(path, error)) from error


def _not_a_folder(path: Path) -> str:
    if not path.exists():
        return f"checkpoint {path} does not exist; check the path, or create one with llmkit train"
    if path.suffix in PICKLE_SUFFIXES:
        return (
            f"{path} is a pickle file, which can run code when loaded; give a checkpoint folder "
            f"with {MODEL_FILE} and {CONFIG_FILE}"
        )
    return f"{path} is a file; give a checkpoint folder written by llmkit"
