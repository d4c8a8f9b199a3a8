"""What every kind of fine-tuning does around its own task: open the folder, train, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.device import choose_device
from llmkit.errors import CheckpointError
from llmkit.files import sha256_of, write_text
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.start import Start
from llmkit.lora import n_trainable
from llmkit.quantization.packed import n_weights
from llmkit.training.config import TrainingConfig
from llmkit.training.run import opened_run, train_to_the_end
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import Metrics, RunState
from llmkit.training.task import Task


@dataclass(frozen=True)
class FinetuneResult:
    """What a run of any kind came to."""

    quality_name: ClassVar[str] = "validation loss"
    higher_is_better: ClassVar[bool] = False

    checkpoint: Path
    steps: int
    n_parameters: int
    n_trained: int
    n_records: tuple[int, int, int]  # train, validation, test
    metrics: list[Metrics]

    @property
    def quality(self) -> float:
        """The number by which variants are compared."""
        return self.last.val_loss

    @property
    def last(self) -> Metrics:
        """The last evaluation."""
        return self.metrics[-1]


@dataclass(frozen=True)
class Records:
    """How many records went into which part, and what of them stays in the checkpoint."""

    n: tuple[int, int, int]
    source: Path
    trained: Sequence[dict[str, Any]]  # the training part, to calibrate quantization with
    held_out: Sequence[dict[str, Any]]  # the test part, for checks of exported files


def run_settings(
    kind: str,
    base: Checkpoint,
    files: list[Path],
    config: FinetuneConfig,
    training: TrainingConfig,
    **more: Any,
) -> dict[str, Any]:
    """Everything that makes a run this one and no other, as JSON holds it."""
    settings = {
        "data": sha256_of(files),
        "kind": kind,
        "base": base.sha256,
        "finetune": asdict(config),
        "training": asdict(training),
        **more,
    }
    return dict(json.loads(json.dumps(settings)))


def train_task(
    out: Path,
    start: Start,
    records: Records,
    training: TrainingConfig,
    settings: dict[str, Any],
    make_task: Callable[[RunFolder], Task],
    *,
    resume: bool,
    device: str | None,
) -> FinetuneResult:
    """Prepare or resume the run in `out`, train what is left of it, and say what came out."""
    where = choose_device(device)
    if out.resolve() == start.base.folder.resolve():
        raise CheckpointError(f"{out} is the base checkpoint; choose another --out")
    folder = RunFolder(out)
    with opened_run(
        folder, settings, resume, lambda: _prepare(folder, start, records, settings)
    ) as state:
        task = make_task(folder)
        if not state.finished:
            train_to_the_end(
                folder, state, training, task, where, lambda: load_checkpoint(out).grid(where)
            )
    metrics = folder.metrics.read()
    model = task.load_model(metrics[-1].step, torch.device("cpu"))
    return FinetuneResult(
        checkpoint=out,
        steps=metrics[-1].step,
        n_parameters=n_weights(model),
        n_trained=n_trainable(model),
        n_records=records.n,
        metrics=metrics,
    )


def trained_model(result: FinetuneResult, device: str | None) -> tuple[Checkpoint, LanguageModel]:
    """The finished model, as the checkpoint on disk has it."""
    checkpoint = load_checkpoint(result.checkpoint)
    return checkpoint, checkpoint.load_model(choose_device(device))


def _prepare(
    folder: RunFolder, start: Start, records: Records, settings: dict[str, Any]
) -> RunState:
    """Write the checkpoint as it is before the first step, and commit step 0."""
    folder.remove_half_written()
    _write_records(folder.trained_file, records.trained)
    _write_records(folder.held_out_file, records.held_out)
    start.write(folder)
    sources = {"data": str(records.source), "base": str(start.base.folder)}
    state = RunState(settings, {}, sources=sources)
    folder.write_state(state)
    return state


def _write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    # In ASCII: no reader may take a character such as U+2028 for the end of a line.
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))
