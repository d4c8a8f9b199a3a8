"""Results of `compare` and `evaluate` on disk: results.json in the folder of the first model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter

from llmkit.console import say
from llmkit.errors import DataError, LlmkitError
from llmkit.export.gguf.reader import is_gguf, load_folder, read_gguf
from llmkit.files import cannot_read, write_text

RESULTS_FILE = "results.json"
Kind = Literal["comparisons", "evaluations"]
T = TypeVar("T")


@dataclass(frozen=True)
class KeptResult(Generic[T]):
    """A result, and the SHA-256 that each of its models had, by the path that was given."""

    result: T
    sha256: dict[str, str]

    def is_current(self) -> bool:
        """Whether no model has changed since; one that is not there cannot have."""
        return all(
            _sha256_now(Path(model)) in (None, known) for model, known in self.sha256.items()
        )


def keep_result(
    kind: Kind, about: dict[str, Any], models: Sequence[str], result: dict[str, Any]
) -> None:
    """Keep a result beside its first model; it replaces one `about` the same.

    `models`: checkpoint folders and GGUF files. If it cannot be written, that is a note.
    """
    first = Path(models[0])
    path = (first.parent if is_gguf(first) else first) / RESULTS_FILE
    try:
        kept = _read(path)
    except DataError:
        kept = {}  # damaged: the new result is what counts
    others = [old for old in kept.get(kind, []) if old.get("about") != about]
    try:
        hashes = {model: sha256_of_model(Path(model)) for model in models}
        entry = {"about": about, "sha256": hashes, "result": result}
        write_text(path, json.dumps(kept | {kind: [*others, entry]}, indent=1) + "\n")
    except LlmkitError as error:
        say(f"the result is not kept for llmkit report: {error}")


def kept_results(folder: Path, kind: Kind, of: type[T]) -> list[KeptResult[T]]:
    """The results in a folder, the newest last. Raises DataError for a damaged file."""
    path = folder / RESULTS_FILE
    try:
        found = TypeAdapter(list[KeptResult[of]])  # type: ignore[valid-type]
        return found.validate_python(_read(path).get(kind, []))
    except ValueError as error:
        raise _damaged(path) from error


def sha256_of_model(path: Path) -> str:
    """Hash of a GGUF file, or of a checkpoint's weights. Raises LlmkitError."""
    return read_gguf(path).sha256() if is_gguf(path) else load_folder(path).sha256


def _sha256_now(path: Path) -> str | None:
    """The hash, computed again only where a file has changed; None where there is no model."""
    files = [path] if path.is_file() else list(path.glob("*"))
    try:
        return _sha256_of(path, max((file.stat().st_mtime_ns for file in files), default=0))
    except (LlmkitError, OSError):
        return None


@lru_cache(maxsize=256)
def _sha256_of(path: Path, _changed: int) -> str:
    return sha256_of_model(path)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        return TypeAdapter(dict[str, list[dict[str, Any]]]).validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(cannot_read(path, error)) from error
    except ValueError as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> DataError:
    return DataError(f"{path} is damaged; delete it, and run llmkit compare and evaluate again")
