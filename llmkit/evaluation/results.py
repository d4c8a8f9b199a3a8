"""Results of `compare` and `evaluate` in files, as `--json` prints them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from llmkit.checkpoint.layout import TRAINING_FOLDER
from llmkit.evaluation.evaluate import Evaluation
from llmkit.export.compare import Comparison
from llmkit.files import StrPath, write_text

_MOST_BYTES = 1 << 20  # of one result: a large JSON file is data

_RESULTS: TypeAdapter[Comparison | Evaluation] = TypeAdapter(Comparison | Evaluation)


@dataclass(frozen=True)
class Results:
    """What was measured below a folder, by the path of the file there, the newest first."""

    comparisons: dict[str, Comparison]
    evaluations: dict[str, Evaluation]


def find_results(folder: StrPath) -> Results:
    """Results in the JSON files below `folder`; other files are passed over."""
    folder = Path(folder)
    found = Results({}, {})
    for path in sorted(_json_files(folder), key=lambda path: -path.stat().st_mtime):
        try:
            result = _RESULTS.validate_json(path.read_bytes())
        except (OSError, ValidationError):
            continue
        name = path.relative_to(folder).as_posix()
        if isinstance(result, Comparison):
            found.comparisons[name] = result
        else:
            found.evaluations[name] = result
    return found


def save_result(path: StrPath, result: Comparison | Evaluation) -> None:
    """Write a result as `--json` prints it. Raises LlmkitError where that fails."""
    write_text(Path(path), json.dumps(result.to_dict(), indent=2) + "\n")


def _json_files(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):  # follows no link to a folder
        folders[:] = [n for n in folders if n != TRAINING_FOLDER and not n.startswith(".")]
        for name in files:
            path = Path(root) / name
            is_own = name.endswith(".json") and not path.is_symlink()
            if is_own and path.stat().st_size <= _MOST_BYTES:
                yield path
