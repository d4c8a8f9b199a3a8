"""metrics.jsonl: a line for each evaluation of a run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from llmkit.files import cannot_write, write_text
from llmkit.training.run_state import Metrics, unusable


@dataclass(frozen=True)
class MetricsFile:
    """The file at a path, which need not be there yet."""

    path: Path

    def append(self, metrics: Metrics) -> None:
        """Add a line."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(metrics.to_json() + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def read(self) -> list[Metrics]:
        """All whole lines. Raises CheckpointError where there are none."""
        if not self.path.exists():
            raise unusable(self.path, "is missing")
        metrics = self._written()
        if not metrics:
            raise unusable(self.path, "is empty")
        return metrics

    def up_to(self, step: int) -> list[Metrics]:
        """The evaluations up to a step; none where there was none."""
        there = self._written() if self.path.exists() else []
        return [metrics for metrics in there if metrics.step <= step]

    def drop_after(self, step: int) -> None:
        """Drop the evaluations past a step."""
        if not self.path.exists():
            return
        text = "".join(metrics.to_json() + "\n" for metrics in self.up_to(step))
        if text != self.path.read_text(encoding="utf-8"):
            write_text(self.path, text)

    def _written(self) -> list[Metrics]:
        """All whole lines; a kill may leave half a line at the end."""
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")
            return [Metrics(**json.loads(line)) for line in lines[:-1]]
        except (ValueError, TypeError, OSError) as error:
            raise unusable(self.path, f"is damaged ({error})") from error
