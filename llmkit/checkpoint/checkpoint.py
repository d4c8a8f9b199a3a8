"""A checkpoint on disk: its model, adapter, blocks and hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from llmkit.architectures.base import HEAD, LanguageModel, ModelConfig
from llmkit.architectures.registry import family_of
from llmkit.checkpoint.config import read_config
from llmkit.checkpoint.layout import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    BLOCKS_FILE,
    CONFIG_FILE,
    HELD_OUT_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    TRAINED_FILE,
    TRAINING_FOLDER,
)
from llmkit.checkpoint.tensors import (
    TensorReader,
    build_model,
    checked_tensors,
    merged_tensors,
    open_tensors,
    rounded_tensors,
    unpacked_tensors,
)
from llmkit.errors import CheckpointError, ConfigError
from llmkit.files import cannot_read
from llmkit.lora import LoRAConfig, add_lora, load_adapter, lora_config_of
from llmkit.modelfiles.prompt_format import PromptFormat
from llmkit.quant.rounding import Repacked, rounding_of
from llmkit.quant.types import PackedRows, QuantType
from llmkit.quantization.packed import build_packed
from llmkit.quantization.qat import Roundings, matrix_types
from llmkit.quantization.tensor_types import quantization
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_files import load_tokenizer

MAX_SUGGESTED = 4  # models named where a folder of them is given
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; tensors are read when asked for."""

    folder: Path
    config: ModelConfig
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

    def load_model(
        self, device: torch.device | None = None, *, for_training: bool = False
    ) -> LanguageModel:
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

    def add_adapter(self, model: LanguageModel) -> None:
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
                yield rounded_tensors(
                    file, matrix_types(self.config, quantization(self.base_quant))
                )
            elif self.qat is not None:
                unpacked = unpacked_tensors(file, self.trained_blocks(), self._trained_types())
                yield checked_tensors(unpacked, self.blocks_file)
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
                yield merged_tensors(base, adapter, self.lora, family_of(self.config))

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

    def grid(self, device: torch.device) -> Roundings:
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


def load_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder. Raises CheckpointError saying what is missing or damaged."""
    if not folder.is_dir():
        raise CheckpointError(_not_a_folder(folder))
    for name in (CONFIG_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; {_instead(folder)}")
    content = read_config(folder / CONFIG_FILE)
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


def _read_lora(folder: Path) -> LoRAConfig | None:
    path = folder / ADAPTER_CONFIG_FILE
    if not path.exists():
        return None
    try:
        return lora_config_of(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise CheckpointError(cannot_read(path, error)) from error


def _instead(folder: Path) -> str:
    """The models in the folder, which are easily meant instead."""
    checkpoints = (path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    found = sorted(map(str, (*checkpoints, *folder.glob("*.gguf"))))
    if 0 < len(found) <= MAX_SUGGESTED:
        return f"did you mean {' or '.join(found)}?"
    return "give a checkpoint folder written by llmkit"


def _not_a_folder(path: Path) -> str:
    if not path.exists():
        return f"checkpoint {path} does not exist; check the path, or create one with llmkit train"
    if path.suffix in PICKLE_SUFFIXES:
        return (
            f"{path} is a pickle file, which can run code when loaded; give a checkpoint folder "
            f"with {MODEL_FILE} and {CONFIG_FILE}"
        )
    return f"{path} is a file; give a checkpoint folder written by llmkit"
