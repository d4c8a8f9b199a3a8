"""Writing files so that an interrupt or a full disk never leaves a half-written one; paths."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from llmkit.errors import DataError, LlmkitError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

StrPath = str | Path  # what the functions of llmkit.api take for a file or folder


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success fsync it and rename it to `path`.

    On any exception, an interrupt included, the file beside and folders made for it are removed
    and `path` stays as it was. Raises LlmkitError where the system refuses (no space, no
    permission).
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with no_empty_folders(path.parent):
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


@contextmanager
def all_or_nothing(folder: Path) -> Iterator[None]:
    """On any exception remove what the block put into `folder`; what was there before stays."""
    there = set(folder.glob("*"))
    with no_empty_folders(folder):
        try:
            yield
        except BaseException:
            for path in set(folder.glob("*")) - there:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            raise


@contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Remove `folder` and those above it if the block made them and left them empty."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        yield
    finally:
        for one in missing:
            with suppress(OSError):
                one.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with unchanged line ends, whole or not at all."""
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8", newline="")


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where the file system has no links."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def cannot_write(path: Path, error: OSError) -> LlmkitError:
    """The one line for a write that the system refused."""
    reason, advice = error.strerror or str(error), "choose another folder"
    if error.errno in _NO_SPACE:
        advice = "free space, or choose a folder on another disk"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        reason = f"{error.filename} is a file"
    elif isinstance(error, IsADirectoryError):
        reason, advice = "it is a folder", "give the path of a file"
    return LlmkitError(f"cannot write {path}: {reason}; {advice}")


def cannot_read(path: StrPath, error: Exception) -> str:
    """The one line for a file that cannot be opened, or not as the text that it should be."""
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist"
    if Path(path).is_dir():  # on Windows the error is that of a missing permission
        return f"{path} is a folder; give a file"
    return f"cannot read {path}: {getattr(error, 'strerror', None) or error}"


def sha256_of(files: Iterable[Path]) -> str:
    """One hash over the contents of all files. Raises DataError where one cannot be read."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(cannot_read(path, error)) from error
    return digest.hexdigest()


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
