from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.errors import LlmkitError
from llmkit.files import all_or_nothing, cannot_read, write_text, written_beside

OLD, NEW = "old content\n", "new content\r\nand more"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text(OLD, encoding="utf-8")
    return path


def write_half(file: Path, error: BaseException) -> None:
    with written_beside(file) as beside:
        beside.write_text("half", encoding="utf-8")
        raise error


def assert_unchanged(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == OLD
    assert list(file.parent.iterdir()) == [file]


def test_new_content_replaces_the_old(file: Path) -> None:
    with written_beside(file) as beside:
        assert beside.parent == file.parent
        beside.write_text(NEW, encoding="utf-8", newline="")
        assert file.read_text(encoding="utf-8") == OLD
    assert file.read_bytes() == NEW.encode()
    assert list(file.parent.iterdir()) == [file]


def test_text_is_written_as_it_is_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "é\r\n\n\ufeff🙂")
    assert path.read_bytes() == "é\r\n\n\ufeff🙂".encode()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_interrupted_write_leaves_the_old_file(file: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        write_half(file, error())
    assert_unchanged(file)


def test_interrupted_write_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "a" / "b" / "file.txt", KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def write_several(folder: Path, error: BaseException | None = None) -> None:
    with all_or_nothing(folder):
        write_text(folder / "first.txt", NEW)
        write_text(folder / "inner" / "second.txt", NEW)
        if error:
            raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_interrupt_between_files_leaves_what_was_there(
    file: Path, error: type[BaseException]
) -> None:
    for folder in (file.parent, file.parent / "new" / "out"):
        with pytest.raises(error):
            write_several(folder, error())
        assert_unchanged(file)
    write_several(file.parent / "new" / "out")
    assert len(list((file.parent / "new" / "out").rglob("*.txt"))) == 2


def test_full_disk_in_the_middle_of_a_write_is_one_line(file: Path) -> None:
    with pytest.raises(LlmkitError) as caught:
        write_half(file, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    for word in (str(file), "No space left on device", "free space"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert_unchanged(file)


def test_what_the_system_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(LlmkitError, match=r"taken is a file; choose another folder"):
        write_text(tmp_path / "taken" / "new", "a")
    with pytest.raises(LlmkitError, match=r"is a folder; give"):
        write_text(tmp_path, "a")
    assert "is a folder" in cannot_read(tmp_path, PermissionError())
    assert cannot_read("a", FileNotFoundError()) == "a does not exist"
    assert cannot_read("a", OSError(errno.EACCES, "denied")) == "cannot read a: denied"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_disk_that_fails_at_the_end_is_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(LlmkitError, match=r"cannot write .*file\.txt: Input/output error"):
        write_text(file, NEW)
    assert_unchanged(file)


def test_content_reaches_the_disk_before_the_name(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "content")  # noqa: PTH112
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        calls.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_text(file, NEW)
    assert calls == ["content", "rename", "folder"]


def test_place_that_cannot_be_written_is_one_line(file: Path) -> None:
    for path in (file / "below" / "a.txt", file / "a.txt", file.parent / ("long" * 70)):
        with pytest.raises(LlmkitError, match="cannot write"):
            write_text(path, NEW)
        assert_unchanged(file)
    folder = file.parent / "folder"
    folder.mkdir()
    with pytest.raises(LlmkitError, match="cannot write"):
        write_text(folder, NEW)
    assert not list(folder.iterdir())


FILLS_THE_DISK = """
import resource, sys
from pathlib import Path
import torch
from llmkit.checkpoint.tensors import save_tensors
from llmkit.data.sources import Piece
from llmkit.data.tokens import write_tokens
from llmkit.errors import LlmkitError
from llmkit.files import write_text
from llmkit.tokenizer_training import train_bpe

tokenizer = train_bpe(["text"], 257)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda path: write_text(path, "x" * 100_000),
    lambda path: write_tokens({"a": path}, [("a", Piece("x" * 100_000, True))], tokenizer),
    lambda path: save_tensors(path, {"x": torch.zeros(100_000)}, step=1),
    lambda path: tokenizer.save(path),
):
    try:
        write(Path(sys.argv[1]))
    except LlmkitError as error:
        print(error)
"""


@pytest.mark.slow
def test_every_writer_survives_a_full_disk(file: Path) -> None:
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(file)],
        cwd=file.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done
    assert all(line.startswith(f"cannot write {file}: ") for line in lines)
    assert all("File too large" in line for line in lines)
    assert_unchanged(file)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_are_as_readable_as_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "file.txt"
    before = os.umask(umask)
    try:
        with written_beside(path) as beside:
            beside.unlink()
            os.close(os.open(beside, os.O_CREAT | os.O_WRONLY, 0o600))  # as some libraries do
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
