"""Writing files so that an interrupt or a full disk never leaves a half-written one; paths."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkit.errors import LlmkitError

StrPath = str | Path  # what the functions of llmkit.api take for a file or folder


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success fsync it and rename it to `path`.

    On any exception, an interrupt included, the file beside is removed and `path` stays as
    it was. Raises LlmkitError where the system refuses (no space, no permission).
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        try:
            mode = beside.stat().st_mode
            yield beside
            beside.chmod(mode)  # some writers make a file that only its owner can read
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            beside.replace(path)
            _fsync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with unchanged line ends, whole or not at all."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def cannot_write(path: Path, error: OSError) -> LlmkitError:
    """The one line for a write that the system refused."""
    reason = error.strerror or str(error)
    return LlmkitError(f"cannot write {path}: {reason}; free space or choose another folder")


def _fsync_folder(folder: Path) -> None:
    # A rename is durable only once the folder is. Windows has no such call.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def optional_path(value: StrPath | None) -> Path | None:
    """The path, if one is given."""
    return None if value is None else Path(value)
