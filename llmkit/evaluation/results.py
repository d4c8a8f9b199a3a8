"""What `compare` and `evaluate` have measured of all models below a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from llmkit.errors import DataError
from llmkit.evaluation.evaluate import Evaluation
from llmkit.export.compare import Comparison
from llmkit.export.results import RESULTS_FILE, KeptResult, kept_results
from llmkit.files import StrPath

T = TypeVar("T")


@dataclass(frozen=True)
class Results:
    """By a title that tells them apart, the newest first."""

    comparisons: dict[str, Comparison] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)


def find_results(folder: StrPath) -> Results:
    """The results in every results.json below `folder`.

    Damaged files are passed over, and results of models that have changed since.
    """
    folder, found = Path(folder), Results()
    files = [path for path in folder.glob(f"**/{RESULTS_FILE}") if not path.is_symlink()]
    for path in sorted(files, key=lambda path: -path.stat().st_mtime):
        name = path.parent.relative_to(folder).as_posix()
        with suppress(DataError):
            for one in _current(kept_results(path.parent, "comparisons", Comparison)):
                files_of_it = ", ".join(Path(row.file).name for row in one.result.rows)
                title = f"{name}: {files_of_it} ({one.result.tokens:,} tokens)"
                found.comparisons.setdefault(title, one.result)
            for scored in _current(kept_results(path.parent, "evaluations", Evaluation)):
                models = ", ".join(Path(model.model).name for model in scored.result.models)
                title = f"{scored.result.task}: {models} ({scored.result.source})"
                found.evaluations.setdefault(title, scored.result)
    return found


def _current(kept: list[KeptResult[T]]) -> Iterator[KeptResult[T]]:
    """Those whose models are as they were, the newest first."""
    return (one for one in reversed(kept) if one.is_current())
