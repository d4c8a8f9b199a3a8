"""Answers of judges and people, kept in a file as they come, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llmkit.errors import DataError
from llmkit.files import cannot_read, cannot_write


class Ledger:
    """A JSONL file; each line has the key of what was asked, and the answer."""

    def __init__(self, path: Path) -> None:
        """Read what is there, without a last line that was cut off. Raises DataError."""
        self.path = path
        self._answers: dict[str, dict[str, Any]] = {}
        try:
            content = path.read_bytes() if path.exists() else b""
            whole = content[: content.rfind(b"\n") + 1]
            for number, line in enumerate(whole.splitlines(), start=1):
                entry = json.loads(line)
                if not isinstance(entry, dict) or "key" not in entry:
                    raise DataError(f"{path}, line {number}: not a line that evaluate wrote")
                self._answers[entry["key"]] = entry
        except (OSError, ValueError) as error:
            raise DataError(cannot_read(path, error)) from error
        self._cut_off = len(content) - len(whole)

    def find(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to what was asked, if there is one."""
        return self._answers.get(_key(asked))

    def add(self, asked: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
        """Keep an answer; it is on disk when this returns."""
        entry = {"key": _key(asked), **answer}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                if self._cut_off:
                    file.truncate(file.tell() - self._cut_off)
                    self._cut_off = 0
                file.write(json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._answers[entry["key"]] = entry
        return entry


def _key(asked: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:32]
