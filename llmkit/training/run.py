"""`train`: one run from text to a finished checkpoint, prepared, resumed or found finished."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.architectures.base import ModelConfig
from llmkit.architectures.registry import model_config, model_without_weights
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.console import say
from llmkit.data.prepared import (
    DEFAULT_VOCAB_SIZE,
    is_prepared,
    open_prepared,
    refuse_vocab_size,
)
from llmkit.data.sources import source_files
from llmkit.device import choose_device
from llmkit.errors import CheckpointError, ConfigError
from llmkit.files import StrPath, all_or_nothing, sha256_of
from llmkit.quant import quant_names, quant_type
from llmkit.records.text_files import Reading
from llmkit.training.config import training_config
from llmkit.training.loop import TrainingLoop
from llmkit.training.prepare import prepare, prepare_from, refuse_foreign, refuse_other_run
from llmkit.training.pretraining import Pretraining
from llmkit.training.state import Metrics, RunFolder, RunState


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to."""

    checkpoint: Path
    steps: int
    n_parameters: int
    metrics: list[Metrics]


def train(
    data: StrPath,
    out: StrPath,
    *,
    preset: str = "nano",
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
    batch_tokens: int | None = None,
    text_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> TrainingResult:
    """Train a GPT on the text in `data` and write the checkpoint folder `out`.

    `data`: a text file, JSON, JSONL or Parquet with a `text` field, a table, a folder of text,
    JSONL and Parquet files, or a folder that `prepare_data` wrote. `text_column` names another
    field, or the column of a table, which `delimiter` divides; `encoding` is that of text and
    tables. `tokenizer`: `bpe`, `word` or `char` (trained on the data), `gpt2`, or a file.
    `batch_tokens` sets the batch size in tokens. `model` and `training` change single fields of
    the preset (GPTConfig, TrainingConfig). With `resume` an unfinished run goes on where it
    stopped; a finished one is reported and left alone.

    Raises LlmkitError (DataError, ConfigError, CheckpointError) for what cannot be trained on,
    and KeyboardInterrupt after Ctrl-C, with the step reached saved.
    """
    data, out = Path(data), Path(out)
    changes = {"vocab_size": DEFAULT_VOCAB_SIZE, **(model or {})}
    if vocab_size is not None:
        refuse_vocab_size(tokenizer)
        changes["vocab_size"] = vocab_size
    prepared = open_prepared(data) if is_prepared(data) else None
    if prepared is not None:
        if tokenizer != "bpe" or "vocab_size" in (model or {}) or vocab_size is not None:
            raise ConfigError(f"{data} is tokenized; omit tokenizer and vocab_size")
        changes["vocab_size"] = prepared.vocab_size
    sizes = model_config(preset, **changes)
    if batch_tokens is not None:
        if (training or {}).get("batch_size") is not None:
            raise ConfigError("batch_tokens and batch_size say the same; give one of them")
        training = {**(training or {}), "batch_size": max(batch_tokens // sizes.context_length, 1)}
    config = training_config(preset, **(training or {}))
    reading = Reading(text_column, None, delimiter, encoding)
    where = choose_device(device)
    if prepared is None and data.is_dir() and out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            f"{out} is inside {data}, so its files would become training text; choose another --out"
        )
    settings: dict[str, Any] = {
        "data": prepared.sha256() if prepared else sha256_of(source_files(data)),
        "reading": asdict(reading),
        "tokenizer": tokenizer,
        "model": asdict(sizes),
        "training": asdict(config),
    }
    folder = RunFolder(out)
    state = open_run(
        folder,
        settings,
        resume,
        lambda: (
            prepare_from(folder, prepared, settings, sizes)
            if prepared
            else prepare(folder, data, settings, sizes, reading)
        ),
    )
    if state.finished:
        return _result(folder)
    say(_quantization_note(sizes))
    tokens = prepared.tokens("train") if prepared else None
    task = Pretraining(folder, state, config, sizes, tokens)
    TrainingLoop(folder, state, config, task, where).train()
    return _result(folder)


def open_run(
    folder: RunFolder, settings: dict[str, Any], resume: bool, prepare: Callable[[], RunState]
) -> RunState:
    """The state of the run in a folder: newly prepared, to be gone on with, or finished.

    Raises CheckpointError where the folder holds something else, or an unfinished run that was
    not asked to be resumed.
    """
    state = folder.read_state()
    if state is None:
        refuse_foreign(folder.folder)
        with all_or_nothing(folder.folder):
            return prepare()
    refuse_other_run(folder, state, settings)
    if not state.finished and not resume:
        raise CheckpointError(
            f"{folder.folder} has this run, stopped at step {state.step}; add --resume to continue"
        )
    folder.recover(state)
    if state.finished:
        say(f"{folder.folder} is already finished ({state.step} steps)")
    return state


def _result(folder: RunFolder) -> TrainingResult:
    checkpoint = load_checkpoint(folder.folder)
    n_parameters = model_without_weights(checkpoint.config).n_parameters()
    metrics = folder.read_metrics()
    return TrainingResult(folder.folder, metrics[-1].step, n_parameters, metrics)


def _quantization_note(sizes: ModelConfig) -> str:
    """What exports store instead of types that do not fit n_embd, without the IQ and TQ types."""
    instead: dict[str, list[str]] = {}
    for name in (name for name in quant_names() if name.startswith("q")):
        stored = quant_type(name).fitting(sizes.n_embd).name
        if stored != name:
            instead.setdefault(stored, []).append(name)
    if not instead:
        return f"n_embd {sizes.n_embd}: every quantization type fits"
    pairs = [f"{stored} instead of {', '.join(names)}" for stored, names in instead.items()]
    return (
        f"n_embd {sizes.n_embd} does not fit every quantization type; "
        f"exports will use {'; '.join(pairs)}"
    )
