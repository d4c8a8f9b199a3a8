"""What a report of a run says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmkit.evaluation.evaluate import Score
from llmkit.export.compare import Comparison, ComparisonRow
from llmkit.export.llamacpp.benchmark import Speed
from llmkit.sampling import Sampling
from llmkit.training.run_state import Metrics, RunState

CHECKPOINT = "checkpoint"  # its name beside those of the files


@dataclass(frozen=True)
class Stage:
    """One training run: this one, or one that it started from."""

    name: str
    state: RunState
    metrics: list[Metrics]


@dataclass(frozen=True)
class FileFacts:
    """One GGUF file of the run. KL in nats per token."""

    name: str
    path: str
    sha256: str
    bytes: int  # with its adapter
    bits_per_weight: float
    speed: Speed
    comparison: ComparisonRow | None  # kept by `compare`
    mean_kl: float | None  # of `compare`, or else of the proof
    top1: float | None
    checks: dict[str, bool]  # of `verify`: whether each passed; empty: not verified
    proof: str | None  # path of the file with the checks
    model_name: str | None  # as the file states it


@dataclass(frozen=True)
class TaskScores:
    """One measure of one task, by model: CHECKPOINT or a file's name.

    A score has a difference if the checkpoint was scored together with the file.
    """

    task: str
    source: str
    items: int
    chance: float | None
    measure: str
    scores: dict[str, Score]


@dataclass(frozen=True)
class Sample:
    """What the checkpoint says to a prompt."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Missing:
    """What the report cannot say, and the command that changes this."""

    what: str
    command: str | None = None


@dataclass(frozen=True)
class RunReport:
    """Everything about a run that a report shows."""

    name: str
    model: dict[str, str]
    is_classifier: bool
    stages: list[Stage]  # in the order of training
    scores: list[TaskScores]
    files: list[FileFacts]  # the largest first
    comparison: Comparison | None  # of the files that `compare` measured
    samples: list[Sample]
    sampling: Sampling
    missing: list[Missing]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)
