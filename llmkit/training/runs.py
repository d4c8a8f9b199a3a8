"""The runs below a folder: their settings and results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.architectures.registry import model_without_weights
from llmkit.checkpoint.config import read_config
from llmkit.checkpoint.layout import CONFIG_FILE, TRAINING_FOLDER, run_of_kept
from llmkit.errors import CheckpointError, DataError
from llmkit.files import StrPath
from llmkit.training.run_folder import STATE_FILE, RunFolder
from llmkit.training.run_lock import is_locked
from llmkit.training.run_state import Metrics


@dataclass(frozen=True)
class Run:
    """A training run in a folder."""

    folder: Path
    kind: str  # train, or what was fine-tuned
    status: str  # finished, running, stopped
    n_parameters: int
    steps: tuple[int, int | None]  # done, of all; None where no plan has a number yet
    settings: dict[str, Any]  # of training
    metrics: list[Metrics]

    @property
    def last(self) -> Metrics | None:
        """The last evaluation."""
        return self.metrics[-1] if self.metrics else None

    @property
    def best(self) -> Metrics | None:
        """The evaluation with the lowest validation loss."""
        return min(self.metrics, key=lambda metrics: metrics.val_loss, default=None)


def find_runs(folder: StrPath) -> list[Run]:
    """The runs in and below a folder, by path. Raises DataError where there are none.

    Folders whose files are damaged are left out.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give one with training runs below it")
    runs = list(_runs(folder))
    if not runs:
        raise DataError(f"{folder} has no training runs")
    return runs


def _runs(folder: Path) -> Iterator[Run]:
    for state_file in sorted(folder.rglob(f"{TRAINING_FOLDER}/{STATE_FILE}")):
        place = state_file.parent.parent
        if run_of_kept(place) is not None:
            continue
        run = RunFolder(place)
        try:
            state = run.read_state()
            config = read_config(place / CONFIG_FILE)
            metrics = run.metrics.up_to(state.step) if state else []
            settings = state.settings["training"] if state else None
        except (CheckpointError, KeyError, TypeError):
            continue
        if state is None or settings is None:
            continue
        running = "running" if is_locked(run) else "stopped"
        yield Run(
            folder=place,
            kind=state.settings.get("kind", "train"),
            status="finished" if state.finished else running,
            n_parameters=model_without_weights(config.model).n_parameters(),
            steps=(state.step, state.steps),
            settings=settings,
            metrics=metrics,
        )
