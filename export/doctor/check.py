"""One line of the doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DoctorCheck:
    """One check: whether it passed, what was found, what to do."""

    name: str
    passed: bool
    found: str
    advice: str = ""  # what to do; beside a tick, what to know

    def __str__(self) -> str:
        mark = "✔" if self.passed else "✘"
        return f"{mark} {self.name}: {self.found}" + (f" → {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Diagnosis:
    """All lines."""

    checks: tuple[DoctorCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all_passed(self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def all_passed(checks: Sequence[DoctorCheck]) -> bool:
    """Whether all checks passed."""
    return all(check.passed for check in checks)
