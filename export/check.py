"""The result of one check, and of all checks of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from llmkit.export.evaluation.divergence import Distance


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    passed: bool
    detail: str  # what was found; on failure of a comparison: where it differs, and by how much
    advice: str = ""  # what to do; beside a tick, what to know
    value: float = 0  # of a comparison: passes up to `limit`
    limit: float = 0

    @property
    def mark(self) -> str:
        """A tick or a cross."""
        return "✔" if self.passed else "✘"

    def __str__(self) -> str:
        advice = f" → {self.advice}" if self.advice else ""
        return f"{self.mark} {self.name}: {self.detail}{advice}"

    def measured(self) -> dict[str, Any]:
        """Plain values for `verify --json` and parity.json."""
        return {
            "name": self.name,
            "passed": self.passed,
            "value": self.value,
            "limit": self.limit,
            "detail": self.detail,
        }

    def advised(self) -> dict[str, Any]:
        """Plain values for `doctor --json` and `deploy --json`."""
        return {
            "name": self.name,
            "passed": self.passed,
            "found": self.detail,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class Outcome:
    """What a check of `verify` found; the table of checks names it."""

    passed: bool
    detail: str
    value: float = 0
    limit: float = 0

    def named(self, name: str) -> Check:
        """The result of the check of this name."""
        return Check(name, self.passed, self.detail, value=self.value, limit=self.limit)


@dataclass(frozen=True)
class Proof:
    """The results of `verify` for one GGUF file."""

    passed: bool
    checkpoint: str
    gguf: str
    sha256: str
    quant: str
    checks: list[Check]
    distances: dict[str, Distance]  # of logits, by what is compared; empty if nothing was run
    checkpoint_sha256: str
    texts: str  # their source
    sha256_of: dict[str, str]  # of the other inputs: adapter, Modelfile, texts
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self) | {"checks": [check.measured() for check in self.checks]}


def all_passed(checks: Iterable[Check]) -> bool:
    """Whether all checks passed."""
    return all(check.passed for check in checks)


def counted(wrong: int, fine: str, failure: str) -> Outcome:
    """Of a check that everything is equal. Value: how many things differ."""
    return Outcome(wrong == 0, failure if wrong else fine, value=wrong)
