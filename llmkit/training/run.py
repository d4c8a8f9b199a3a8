"""`train`: one run from text to a finished checkpoint, prepared, resumed or found finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmkit.architectures.base import ModelConfig
from llmkit.architectures.registry import model_without_weights
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.console import say
from llmkit.data.folders import content_sha256
from llmkit.data.hub import is_on_hub
from llmkit.device import refuse_compile
from llmkit.errors import CheckpointError, ConfigError
from llmkit.files import StrPath, all_or_nothing
from llmkit.quantization.qat import Roundings
from llmkit.records.text_files import Reading
from llmkit.training.config import TrainingConfig
from llmkit.training.distributed import ALONE, Processes, joined, refuse_several
from llmkit.training.loop import RATE_AFTER_DIVERGENCE, TrainingLoop
from llmkit.training.losses import SPIKE_STEPS, DivergedError
from llmkit.training.micro_batch import with_micro_batch
from llmkit.training.options import quantization_note, resolved, sized_for
from llmkit.training.prepare import prepare, prepare_from, refuse_foreign, refuse_other_run
from llmkit.training.pretraining import Pretraining
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_lock import locked
from llmkit.training.run_state import Metrics, RunState
from llmkit.training.task import Task
from llmkit.training.tensorboard import TensorBoard, summary_writer


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
    preset: str | None = None,
    depth: int | None = None,
    tokenizer: str = "bpe",
    vocab_size: int | None = None,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    resume: bool = False,
    device: str | None = None,
    batch_tokens: int | None = None,
    minutes: float | None = None,
    started: float | None = None,
    tensorboard: bool = False,
    text_column: str | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    shard: bool = False,
) -> TrainingResult:
    """Train a GPT on the text in `data` and write the checkpoint folder `out`.

    `data`: a text file, JSON, JSONL or Parquet with a `text` field, a table, a folder of text,
    JSONL and Parquet files, or a folder that `prepare_data` wrote. `text_column` names another
    field, or the column of a table, which `delimiter` divides; `encoding` is that of text and
    tables. `preset` or `depth` (the number of layers, which sets the rest) gives the sizes; else
    they follow from `minutes`, or are those of `nano`. `tokenizer`: `bpe`, `word` or `char`
    (trained on the data), `gpt2`, or a file.
    `batch_tokens` sets the batch size in tokens. `minutes` trains for so long, preparation
    included, with the schedule wsd: the number of steps is chosen where the decay begins. A resumed
    run keeps it, also where neither is given. The minutes count from `started`, a time of
    time.monotonic(); by default from now. `tensorboard` also writes the evaluations into
    `training/tensorboard`. `model` and `training` change single fields of the preset (GPTConfig,
    TrainingConfig).
    With `resume` an unfinished run goes on where it stopped; a finished one is reported and left
    alone. Processes that torchrun started train together; with `shard` they divide the model.

    Raises LlmkitError (DataError, ConfigError, CheckpointError) for what cannot be trained on,
    and KeyboardInterrupt after Ctrl-C, with the step reached saved.
    """
    started = time.monotonic() if started is None else started
    data, out = Path(data), Path(out)
    folder = RunFolder(out)
    if tensorboard:
        summary_writer()  # before the work: whether it is there
    with joined(device, shard) as (processes, where):
        if resume and minutes is None and (training or {}).get("steps") is None:
            minutes = processes.first(folder.minutes)
        prepared, sizes, config = resolved(
            data,
            preset=preset,
            depth=depth,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            model=model,
            training=training,
            batch_tokens=batch_tokens,
            minutes=minutes,
            device=where,
        )
        if config.compile:
            refuse_compile(where)
        reading = Reading(text_column, None, delimiter, encoding)
        if not config.micro_batch:
            text = None if prepared else (data, tokenizer, reading)
            find = partial(_with_micro_batch, folder, config, sizes, where, text)
            config = processes.first(find)
        processes.share(config.batch_size)  # refuses a batch that cannot be divided
        if prepared is None and data.is_dir() and out.resolve().is_relative_to(data.resolve()):
            raise ConfigError(
                f"{out} is inside {data}, so its files would become training text; choose another "
                "--out"
            )
        settings: dict[str, Any] = {
            "data": processes.first(
                lambda: prepared.sha256() if prepared else _sha256_of(data, folder, resume)
            ),
            "reading": asdict(reading),
            "tokenizer": tokenizer,
            "minutes": minutes,
            "model": asdict(sizes),
            "training": asdict(config),
        }

        def prepared_run() -> RunState:
            if prepared:
                return prepare_from(folder, prepared, settings, sizes)
            return prepare(folder, data, settings, sizes, reading)

        with opened_run(folder, settings, resume, prepared_run, processes, started) as state:
            if not state.finished:
                say(quantization_note(sizes))
                tokens = prepared.tokens("train") if prepared else None
                if tensorboard:
                    processes.first(TensorBoard(folder.tensorboard).start)
                task = Pretraining(folder, state, config, sizes, tokens, processes)
                train_to_the_end(folder, state, config, task, where, processes=processes)
        return processes.first(lambda: _result(folder))


@contextmanager
def opened_run(
    folder: RunFolder,
    settings: dict[str, Any],
    resume: bool,
    prepare: Callable[[], RunState],
    processes: Processes = ALONE,
    started: float | None = None,
) -> Iterator[RunState]:
    """The state of the run in a folder: newly prepared, to be continued, or finished.

    Other processes cannot open it meanwhile. Raises CheckpointError where one has, where the
    folder holds something else, or an unfinished run without `resume`.
    """
    if not processes.joined:
        refuse_several()
    with ExitStack() as lock:

        def opened() -> RunState:
            if not folder.state_file.exists():
                refuse_foreign(folder.folder)
            lock.enter_context(locked(folder))
            since = time.monotonic() if started is None else started
            return _opened(folder, settings, resume, prepare, since)

        yield processes.first(opened)


def _opened(
    folder: RunFolder,
    settings: dict[str, Any],
    resume: bool,
    prepare: Callable[[], RunState],
    started: float,
) -> RunState:
    found = folder.find()
    if found is None:
        with all_or_nothing(folder.folder), all_or_nothing(folder.training):
            state = prepare()
        folder.keep(state)
        return replace(state, elapsed_s=time.monotonic() - started)
    state = found.state
    settings = {**settings, "training": {**settings["training"], **state.plan}}
    refuse_other_run(folder, state, settings)
    if not resume and found.damaged is not None:
        raise CheckpointError(
            f"{found.damaged} is damaged; add --resume to go back to the checkpoint of step "
            f"{state.step}"
        )
    if not resume and not state.finished:
        raise CheckpointError(
            f"{folder.folder} has this run, stopped at step {state.step}; add --resume to continue"
        )
    folder.recover(found)
    if state.finished:
        say(f"{folder.folder} is already finished ({state.step} steps)")
    return state


def _with_micro_batch(
    folder: RunFolder,
    config: TrainingConfig,
    sizes: ModelConfig,
    device: torch.device,
    text: tuple[Path, str, Reading] | None,
) -> TrainingConfig:
    """The micro-batch that the run has, or the largest that fits with the text's vocabulary."""
    if known := folder.micro_batch():
        return replace(config, micro_batch=known)
    return with_micro_batch(config, sized_for(*text, sizes) if text else sizes, device)


def _sha256_of(data: Path, folder: RunFolder, resume: bool) -> str:
    """Of the text. A run whose tokens are there does not ask the hub which revision is newest."""
    state = folder.read_state() if resume and is_on_hub(data) else None
    if state is not None and state.sources.get("data") == str(data):
        return str(state.settings["data"])
    return content_sha256([data])


def train_to_the_end(
    folder: RunFolder,
    state: RunState,
    config: TrainingConfig,
    task: Task,
    device: torch.device,
    make_grid: Callable[[], Roundings] = dict,
    processes: Processes = ALONE,
) -> None:
    """Train what is left of a run; if it diverges, go back once with a lower learning rate.

    Raises ConfigError where it diverges again.
    """
    while True:
        try:
            TrainingLoop(folder, state, config, task, device, make_grid(), processes).train()
            return
        except DivergedError as error:
            diverged = error.with_traceback(None)  # it holds the loop with its model
        state = processes.first(partial(_gone_back, folder, diverged))


def _gone_back(folder: RunFolder, diverged: DivergedError) -> RunState:
    """A checkpoint from before, with a lower learning rate. Raises ConfigError the second time."""
    committed = folder.read_state()
    first = committed.diverged if committed else None
    if first is not None:
        raise ConfigError(
            f"training diverged twice: {first}; with {RATE_AFTER_DIVERGENCE} times the "
            f"learning rate {diverged}. Use a smaller learning_rate and another --out "
            f"({folder.folder} keeps its checkpoints)"
        )
    found = folder.kept_before(diverged.step - SPIKE_STEPS)
    newest = committed or found.state  # with the plan, and the time that was used
    state = replace(
        found.state,
        settings=newest.settings,
        elapsed_s=newest.elapsed_s,
        diverged=str(diverged),
    )
    folder.go_back(state, found.place)
    say(
        f"training diverged: {diverged}; back to the checkpoint of step {state.step}, with "
        f"{RATE_AFTER_DIVERGENCE} times the learning rate"
    )
    return state


def _result(folder: RunFolder) -> TrainingResult:
    checkpoint = load_checkpoint(folder.folder)
    n_parameters = model_without_weights(checkpoint.config).n_parameters()
    metrics = folder.metrics.read()
    return TrainingResult(folder.folder, metrics[-1].step, n_parameters, metrics)
