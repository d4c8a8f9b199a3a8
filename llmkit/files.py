"""Writing files so that an interrupt or a full disk never leaves a half-written one; paths."""

from __future__ import annotations

import inspect
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from llmkit.errors import LlmkitError

P = ParamSpec("P")
R = TypeVar("R")


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


def taking_strings(function: Callable[P, R]) -> Callable[P, R]:
    """The function, with a string allowed for each Path, and one path for a Sequence of them.

    Its annotations are unevaluated text, as `from __future__ import annotations` leaves them.
    """
    signature = inspect.signature(function)
    convert: dict[str, Callable[[Any], Any]] = {}
    parameters = []
    for name, parameter in signature.parameters.items():
        kind = str(parameter.annotation)
        if kind == "Sequence[Path]":
            convert[name] = _paths
            kind = "str | Path | Sequence[str | Path]"
        elif kind in ("Path", "Path | None"):
            convert[name] = _path
            kind = f"str | {kind}"
        parameters.append(parameter.replace(annotation=kind))

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            given.arguments[name] = convert.get(name, lambda same: same)(value)
        return function(*given.args, **given.kwargs)

    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return called


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


def _paths(value: Any) -> list[Path]:
    return [Path(item) for item in ([value] if isinstance(value, str | Path) else value)]
