"""The training/ folder: what a run needs to go on exactly where it stopped.

A checkpoint is the trained tensors, the optimizer's and state.json. Tensors are written to
training/next/ first; renaming state.json into place commits them; then they are moved to their
places. Whatever moment the process dies at, `recover` brings them all to one step.

The last checkpoints are kept in training/saves/STEP/, the best one in training/best/: hard links,
which take no space until the next checkpoint replaces the files. state.json has the SHA-256 of the
tensor files, so that a damaged checkpoint is recognised and the one before is used.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.layout import (
    ADAPTER_FILE,
    BLOCKS_FILE,
    CHECKPOINT_FILES,
    HELD_OUT_FILE,
    MODEL_FILE,
    TRAINED_FILE,
    TRAINING_FOLDER,
)
from llmkit.checkpoint.tensors import open_tensors, save_tensors
from llmkit.console import say
from llmkit.data.tokens import PARTS
from llmkit.errors import CheckpointError, LlmkitError
from llmkit.files import cannot_write, link_or_copy, sha256_of, write_text
from llmkit.training.metrics_file import MetricsFile
from llmkit.training.optimizer_state import load_optimizers
from llmkit.training.run_state import RunState, unusable
from llmkit.training.task import TensorFiles

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
_TENSOR_FILES = (MODEL_FILE, BLOCKS_FILE, ADAPTER_FILE, OPTIMIZER_FILE)
_DATA_FILES = (*(f"{part}.tokens" for part in PARTS), HELD_OUT_FILE, TRAINED_FILE)


@dataclass(frozen=True)
class FoundState:
    """The newest undamaged checkpoint of a run."""

    state: RunState
    place: RunFolder  # the run's own folder, or that of a kept checkpoint to go back to
    damaged: Path | None  # what is damaged of the newest


class RunFolder:
    """Paths and state of a run's folder, and its kept checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.training = folder / TRAINING_FOLDER
        self.state_file = self.training / STATE_FILE
        self.metrics = MetricsFile(self.training / "metrics.jsonl")
        self.lock_file = self.training / "lock"
        self.tensorboard = self.training / "tensorboard"
        self.best = self.training / "best"
        self._next = self.training / "next"
        self._saves = self.training / "saves"

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

    def minutes(self) -> float | None:
        """Of a run that has minutes instead of a number of steps. Raises CheckpointError."""
        found = self.find()
        return found.state.settings.get("minutes") if found else None

    def micro_batch(self) -> int | None:
        """Of a run that has begun: one that was found stays. Raises CheckpointError."""
        found = self.find()
        return found.state.settings["training"]["micro_batch"] if found else None

    def read_state(self) -> RunState | None:
        """The committed state, or None where no run has begun. Raises CheckpointError."""
        return self._state() if self.state_file.exists() else None

    def find(self) -> FoundState | None:
        """The newest undamaged checkpoint, or None where no run has begun; changes no file.

        Raises CheckpointError where all are damaged.
        """
        if not self.state_file.exists():
            return None
        damaged: list[Path] = []
        for place in (self, *self._kept()):
            try:
                state = place._state()
            except CheckpointError:
                damaged.append(place.state_file)
                continue
            wrong = place._damaged_file(state)
            if wrong is None:
                return FoundState(state, place, damaged[0] if damaged else None)
            damaged.append(wrong)
        raise unusable(damaged[0], "is damaged, and no undamaged checkpoint is kept")

    def write_state(self, state: RunState) -> None:
        """Commit a state."""
        write_text(self.state_file, json.dumps(asdict(state), indent=2) + "\n")

    def save(self, state: RunState, tensor_files: TensorFiles) -> RunState:
        """Write tensors of `state.step`, the optimizer's included, and commit them together.

        Returns the state with the files' hashes. Where that fails, such as on a full disk, the
        checkpoint before stays.
        """
        try:
            for name, tensors in tensor_files.items():
                save_tensors(self._next / name, tensors, state.step)
            hashes = {name: sha256_of([self._next / name]) for name in tensor_files}
            state = replace(state, files=hashes)
            self.write_state(state)
            self._move_next()
            self.keep(state)
        except (LlmkitError, OSError) as error:
            committed = self.read_state()
            step = committed.step if committed else 0
            if step != state.step:
                shutil.rmtree(self._next, ignore_errors=True)
            cause = cannot_write(self.training, error) if isinstance(error, OSError) else error
            raise type(cause)(
                f"{cause}. The checkpoint of step {step} is intact; free space if the disk is "
                "full, then continue with --resume"
            ) from error
        return state

    def keep(self, state: RunState) -> None:
        """Keep the checkpoint of an evaluation: the last few, and the one with the lowest loss."""
        if state.losses:  # saved on Ctrl-C: no run without Ctrl-C has it
            return
        if not (self._saves / str(state.step)).exists():
            self._link_checkpoint(RunFolder(self._saves / str(state.step)))
        there = (_step_kept_in(self.best), state.step)
        evaluated = [m for m in self.metrics.up_to(state.step) if m.step in there]
        best = min(evaluated, key=lambda metrics: metrics.val_loss, default=None)
        if best is not None and best.step == state.step != there[0]:
            self._link_checkpoint(RunFolder(self.best))
        for old in self._kept()[state.settings["training"]["keep_checkpoints"] :]:
            shutil.rmtree(old.folder)

    def go_back(self, state: RunState, kept: RunFolder) -> None:
        """Put a kept checkpoint back as the newest, and commit `state` with it."""
        for name in _TENSOR_FILES:
            if (file := kept._place_of(name)).exists():
                self._next.mkdir(exist_ok=True)
                link_or_copy(file, self._next / name)
        self.write_state(state)
        self._move_next()
        self._drop_after(state.step)
        self.keep(state)

    def kept_before(self, step: int) -> FoundState:
        """The newest undamaged kept checkpoint of a step up to `step`, or else the oldest."""
        kept = [
            FoundState(state, place, None)
            for place in self._kept()
            if place._damaged_file(state := place._state()) is None
        ]
        if not kept:
            raise unusable(self._saves, "has no undamaged checkpoint")
        return next((found for found in kept if found.state.step <= step), kept[-1])

    def recover(self, found: FoundState) -> None:
        """Finish or undo a save that was killed, go back if the newest checkpoint is damaged.

        Drops metrics and kept checkpoints past the step. Changes no file if nothing is to be done.
        """
        state = found.state
        if found.damaged is not None:
            shutil.rmtree(self._next, ignore_errors=True)
            self.remove_half_written()
            say(f"{found.damaged} is damaged; continuing from the checkpoint of step {state.step}")
            self.go_back(state, found.place)
        elif self._next.exists():
            # Committed files are moved one by one, so those still here may be all, some or none.
            if any(_step_of(file) == state.step for file in self._next.glob("*.safetensors")):
                self._move_next()
            shutil.rmtree(self._next, ignore_errors=True)
        self.remove_half_written()
        self._drop_after(state.step)
        self.keep(state)

    def remove_half_written(self) -> None:
        """Remove files that a kill left beside those they were to become."""
        for folder in (self.folder, self.training):
            for half_written in folder.glob(".*.tmp"):
                if half_written.is_dir():
                    shutil.rmtree(half_written)
                else:
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
        load_optimizers(path, model, optimizers)

    def _drop_after(self, step: int) -> None:
        """Drop the metrics and kept checkpoints, also the best one, past a step."""
        for later in self._kept():
            if int(later.folder.name) > step:
                shutil.rmtree(later.folder)
        if (_step_kept_in(self.best) or 0) > step:
            shutil.rmtree(self.best)
        self.metrics.drop_after(step)

    def _kept(self) -> list[RunFolder]:
        """The kept checkpoints, the newest first."""
        kept = (folder for folder in self._saves.glob("*") if folder.name.isdecimal())
        newest_first = sorted(kept, key=lambda folder: int(folder.name), reverse=True)
        return [RunFolder(folder) for folder in newest_first]

    def _state(self) -> RunState:
        try:
            return RunState(**json.loads(self.state_file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError) as error:
            raise unusable(self.state_file, f"is damaged ({error})") from error

    def _damaged_file(self, state: RunState) -> Path | None:
        """A tensor file that is missing or not the one that was saved."""
        for name, sha256 in state.files.items():
            places = (self._place_of(name), self._next / name)  # a kill may leave it in either
            if not any(path.exists() and sha256_of([path]) == sha256 for path in places):
                return places[0]
        return None

    def _link_checkpoint(self, kept: RunFolder) -> None:
        """Make `kept` a checkpoint folder with the files that the run has now."""
        beside = RunFolder(self.training / f".{kept.folder.name}.tmp")
        if beside.folder.exists():
            shutil.rmtree(beside.folder)
        beside.training.mkdir(parents=True)
        optimizer = () if kept.folder == self.best else (OPTIMIZER_FILE,)  # nothing resumes it
        for name in (*CHECKPOINT_FILES, STATE_FILE, *optimizer):
            if (file := self._place_of(name)).exists():
                link_or_copy(file, beside._place_of(name))
        for name in _DATA_FILES:
            with suppress(OSError):  # not worth a copy
                (beside.training / name).hardlink_to(self.training / name)
        if kept.folder.exists():
            shutil.rmtree(kept.folder)
        kept.folder.parent.mkdir(exist_ok=True)
        beside.folder.replace(kept.folder)

    def _place_of(self, name: str) -> Path:
        return (self.training if name in (OPTIMIZER_FILE, STATE_FILE) else self.folder) / name

    def _move_next(self) -> None:
        if self._next.exists():
            for file in self._next.glob("[!.]*.safetensors"):
                file.replace(self._place_of(file.name))
            shutil.rmtree(self._next)  # a file and its link are left where they are


def _step_kept_in(place: Path) -> int | None:
    with suppress(CheckpointError):
        return RunFolder(place)._state().step
    return None


def _step_of(path: Path) -> int | None:
    with open_tensors(path) as file:
        step = (file.metadata() or {}).get("step", "")
    return int(step) if step.isdigit() else None
