"""A checkpoint folder: config.json, model.safetensors, tokenizer.json. Never a pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
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
from llmkit.files import write_text, written_beside
from llmkit.model.config import GPTConfig, validated
from llmkit.model.gpt import GPT
from llmkit.tokenizer import Tokenizer, load_tokenizer

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
TRAINING_FOLDER = "training"


class TensorReader(Protocol):
    """Reads single tensors of an open file."""

    def keys(self) -> list[str]: ...  # noqa: D102
    def get_tensor(self, name: str) -> Tensor: ...  # noqa: D102
    def metadata(self) -> dict[str, str] | None: ...  # noqa: D102


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; tensors are read when asked for."""

    folder: Path
    config: GPTConfig
    prompt_format: str
    tokenizer: Tokenizer

    @property
    def model_file(self) -> Path:
        """Path of the weights."""
        return self.folder / MODEL_FILE

    @property
    def validation_tokens_file(self) -> Path:
        """Path of the ids that training held out; absent where llmkit did not train the model."""
        return self.folder / TRAINING_FOLDER / "validation.tokens"

    def load_model(self, device: torch.device | None = None) -> GPT:
        """The model in evaluation mode. Raises CheckpointError for missing or foreign tensors."""
        with open_tensors(self.model_file) as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return build_model(self.config, weights, str(self.model_file)).to(device or "cpu").eval()

    @cached_property
    def sha256(self) -> str:
        """Hash of the weights file."""
        with self.model_file.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def build_model(config: GPTConfig, weights: Mapping[str, Tensor], source: str) -> GPT:
    """A GPT around existing tensors, without initialising it first.

    Raises CheckpointError naming `source` and the first tensor that is missing, left over or of
    another shape.
    """
    with torch.device("meta"):
        model = GPT(config)
    wanted = model.state_dict()
    for name in (*wanted, *weights):
        if name not in weights:
            raise CheckpointError(f"{source} has no tensor {name}; it is not this model's file")
        if name not in wanted:
            raise CheckpointError(f"{source} has a tensor {name} that a GPT has not")
        if weights[name].shape != wanted[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(weights[name].shape)}, the sizes in "
                f"{CONFIG_FILE} need {tuple(wanted[name].shape)}"
            )
    model.load_state_dict(dict(weights), assign=True)
    return model


def load_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint folder. Raises CheckpointError saying what is missing or damaged."""
    if not folder.is_dir():
        raise CheckpointError(_not_a_folder(folder))
    for name in (CONFIG_FILE, MODEL_FILE):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}; a checkpoint is the folder that `llmkit train` writes"
            )
    config, prompt_format = _read_config(folder / CONFIG_FILE)
    tokenizer = load_tokenizer(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{folder}: {TOKENIZER_FILE} has {tokenizer.vocab_size} tokens, the model "
            f"{config.vocab_size}; they are not of one training"
        )
    return Checkpoint(folder, config, prompt_format, tokenizer)


def save_config(folder: Path, config: GPTConfig, prompt_format: str) -> None:
    """Write config.json."""
    content = {"model": asdict(config), "prompt_format": prompt_format}
    write_text(folder / CONFIG_FILE, json.dumps(content, indent=2) + "\n")


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
            f"{path} is truncated or not a safetensors file ({error}); train or copy it again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    with opened as file:
        yield file


def _read_config(path: Path) -> tuple[GPTConfig, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model, prompt_format = content["model"], content["prompt_format"]
        return validated(GPTConfig, model, str(path)), str(prompt_format)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not llmkit's: it needs `model` and `prompt_format` ({error})"
        ) from error
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _not_a_folder(path: Path) -> str:
    if not path.exists():
        return f"checkpoint {path} does not exist; `llmkit train --out {path}` makes one"
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"):
        return (
            f"{path} is a pickle, which can run code when read; llmkit reads checkpoint folders "
            f"with {MODEL_FILE} and {CONFIG_FILE}"
        )
    return f"{path} is a file; a checkpoint is the folder that `llmkit train` writes"
