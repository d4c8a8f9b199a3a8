"""The training/ folder: what a run needs to go on exactly where it stopped.

A checkpoint is the trained tensors, the optimizer's and state.json. Tensors are written to
training/next/ first; renaming state.json into place commits them; then they are moved to their
places. Whatever moment the process dies at, `recover` brings them all to one step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.layout import HELD_OUT_FILE, TRAINED_FILE, TRAINING_FOLDER
from llmkit.checkpoint.tensors import open_tensors, save_tensors
from llmkit.errors import CheckpointError
from llmkit.files import StrPath, cannot_write, write_text
from llmkit.training.task import TensorFiles

OPTIMIZER_FILE = "optimizer.safetensors"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class RunState:
    """How far a run is, and the settings that make it this run and no other."""

    settings: dict[str, Any]
    data_bytes: dict[str, int]  # bytes of text in the train and validation parts
    step: int = 0
    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)  # of the steps since the last evaluation

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return bool(self.step >= self.settings["training"]["steps"])


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One evaluation. Losses in nats; what a task does not measure is None and not written."""

    step: int
    tokens: int
    train_loss: float
    val_loss: float
    val_bits_per_byte: float | None = None
    accuracy: float | None = None
    margin: float | None = None
    kl: float | None = None
    lr: float
    grad_norm: float  # of the last step, before clipping
    tokens_per_s: float
    elapsed_s: float

    def to_json(self) -> str:
        """A line of metrics.jsonl."""
        return json.dumps({name: v for name, v in asdict(self).items() if v is not None})


def training_metrics(folder: StrPath) -> dict[str, list[Metrics]]:
    """Metrics so far of every run below `folder`, by its path there.

    Runs without a whole line in metrics.jsonl are left out.
    """
    folder = Path(folder)
    found = {}
    for file in sorted(folder.glob(f"**/{TRAINING_FOLDER}/{METRICS_FILE}")):
        run = file.parent.parent
        with suppress(CheckpointError):
            found[run.relative_to(folder).as_posix()] = RunFolder(run).read_metrics()
    return found


def unusable(path: Path, fault: str) -> CheckpointError:
    """The error for a file without which a run cannot continue."""
    return CheckpointError(f"{path} {fault}; train into another folder")


class RunFolder:
    """Paths, state and metrics of a run's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.training = folder / TRAINING_FOLDER
        self.state_file = self.training / "state.json"
        self.metrics_file = self.training / METRICS_FILE
        self._next = self.training / "next"

    @property
    def held_out_file(self) -> Path:
        """Records that fine-tuning held out."""
        return self.training / HELD_OUT_FILE

    @property
    def trained_file(self) -> Path:
        """Records that fine-tuning trained on."""
        return self.training / TRAINED_FILE

    def token_file(self, part: str) -> Path:
        """Token ids of the `train` or `validation` part."""
        return self.training / f"{part}.tokens"

    def read_state(self) -> RunState | None:
        """The committed state, or None where no run has begun. Raises CheckpointError."""
        if not self.state_file.exists():
            return None
        try:
            return RunState(**json.loads(self.state_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError) as error:
            raise unusable(self.state_file, f"is damaged ({error})") from error

    def write_state(self, state: RunState) -> None:
        """Commit a state."""
        write_text(self.state_file, json.dumps(asdict(state), indent=2) + "\n")

    def save(
        self,
        state: RunState,
        trained: TensorFiles,
        model: LanguageModel,
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        """Write trained tensors and optimizers of `state.step` and commit them together."""
        for name, tensors in trained.items():
            save_tensors(self._next / name, tensors, state.step)
        tensors = _optimizer_tensors(model, optimizers)
        save_tensors(self._next / OPTIMIZER_FILE, tensors, state.step)
        self.write_state(state)
        self._move_next()

    def recover(self, state: RunState) -> None:
        """Finish or undo a save that was killed, and drop metrics past the committed step.

        Changes no file where there is nothing to do.
        """
        if self._next.exists():
            # Committed files are moved one by one, so those still here may be all, some or none.
            if any(_step_of(file) == state.step for file in self._next.glob("*.safetensors")):
                self._move_next()
            shutil.rmtree(self._next, ignore_errors=True)
        self.remove_half_written()
        if self.metrics_file.exists():
            lines = [m.to_json() for m in self._written_metrics() if m.step <= state.step]
            text = "".join(line + "\n" for line in lines)
            if text != self.metrics_file.read_text(encoding="utf-8"):
                write_text(self.metrics_file, text)

    def remove_half_written(self) -> None:
        """Remove files that a kill left beside those they were to become."""
        for folder in (self.folder, self.training):
            for half_written in folder.glob(".*.tmp"):
                half_written.unlink()

    def load_optimizers(
        self,
        model: LanguageModel,
        optimizers: Sequence[torch.optim.Optimizer],
        step: int,
        trained_files: Iterable[str],
    ) -> None:
        """Put back the optimizers' state. Raises CheckpointError where it is of another step."""
        path = self.training / OPTIMIZER_FILE
        for file in (path, *(self.folder / name for name in trained_files)):
            if _step_of(file) != step:
                raise CheckpointError(
                    f"{file} does not belong to step {step}, the step in {self.state_file.name}; "
                    "train into another folder"
                )
        names = {parameter: name for name, parameter in model.named_parameters()}
        with open_tensors(path) as tensors:
            saved: dict[str, dict[str, torch.Tensor]] = {}
            for key in tensors.keys():  # noqa: SIM118
                name, _, entry = key.rpartition(".")
                saved.setdefault(name, {})[entry] = tensors.get_tensor(key)
        for optimizer in optimizers:
            for parameter in _parameters_of(optimizer):
                entries = saved.get(names[parameter], {})
                optimizer.state[parameter] = {
                    entry: tensor.to(parameter.device) for entry, tensor in entries.items()
                }

    def append_metrics(self, metrics: Metrics) -> None:
        """Add a line to metrics.jsonl."""
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(metrics.to_json() + "\n")
        except OSError as error:
            raise cannot_write(self.metrics_file, error) from error

    def read_metrics(self) -> list[Metrics]:
        """All whole lines of metrics.jsonl. Raises CheckpointError where there are none."""
        if not self.metrics_file.exists():
            raise unusable(self.metrics_file, "is missing")
        metrics = self._written_metrics()
        if not metrics:
            raise unusable(self.metrics_file, "is empty")
        return metrics

    def _written_metrics(self) -> list[Metrics]:
        """All whole lines; a kill may leave half a line at the end."""
        try:
            lines = self.metrics_file.read_text(encoding="utf-8").split("\n")
            return [Metrics(**json.loads(line)) for line in lines[:-1]]
        except (ValueError, TypeError, OSError) as error:
            raise unusable(self.metrics_file, f"is damaged ({error})") from error

    def _move_next(self) -> None:
        for file in self._next.glob("[!.]*.safetensors"):
            place = self.training if file.name == OPTIMIZER_FILE else self.folder
            file.replace(place / file.name)
        self._next.rmdir()


def _optimizer_tensors(
    model: LanguageModel, optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{entry}": tensor
        for optimizer in optimizers
        for parameter in _parameters_of(optimizer)
        for entry, tensor in optimizer.state[parameter].items()
    }


def _parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _step_of(path: Path) -> int | None:
    with open_tensors(path) as file:
        step = (file.metadata() or {}).get("step", "")
    return int(step) if step.isdigit() else None
