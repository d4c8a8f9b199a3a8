"""How far a run is, and what its evaluations measured."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llmkit.errors import CheckpointError

UNPLANNED = 1 << 50  # steps of a run of minutes, until it has a plan


@dataclass(frozen=True)
class RunState:
    """How far a run is, and the settings that make it this run and no other."""

    settings: dict[str, Any]
    data_bytes: dict[str, int]  # bytes of text in the train and validation parts
    step: int = 0
    elapsed_s: float = 0.0
    losses: list[float] = field(default_factory=list)  # of the steps since the last evaluation
    sources: dict[str, str] = field(default_factory=dict)  # paths as given: `data`, and the `base`
    files: dict[str, str] = field(default_factory=dict)  # SHA-256 of this step's tensor files
    diverged: str | None = None  # what made the run go back and lower its learning rate

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return bool(self.step >= self.settings["training"]["steps"])

    @property
    def steps(self) -> int | None:
        """Of the whole run; None for a run of minutes that has no plan yet."""
        steps: int = self.settings["training"]["steps"]
        return None if steps == UNPLANNED else steps

    @property
    def plan(self) -> dict[str, Any]:
        """The settings of training that a run of minutes finds out; empty for other runs."""
        if self.settings.get("minutes") is None:
            return {}
        return {name: self.settings["training"][name] for name in ("steps", "decay_share")}

    def planned(self, steps: int, decay_share: float) -> RunState:
        """The state with a plan."""
        plan = {"steps": steps, "decay_share": decay_share}
        training = {**self.settings["training"], **plan}
        return replace(self, settings={**self.settings, "training": training})


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


def unusable(path: Path, fault: str) -> CheckpointError:
    """The error for a file without which a run cannot continue."""
    return CheckpointError(f"{path} {fault}; restore it, or train into another folder")
