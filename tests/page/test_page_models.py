"""Models in memory: each once, the least recently used one goes first."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import llmkit.export.llamacpp.runners as runners
from llmkit.errors import ConfigError
from llmkit.page.models import ModelCache


class Opened:
    """Counts what is opened and closed, in the place of real models."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.opened: list[str] = []
        self.closed: list[str] = []
        patch.setattr(runners, "open_runner", self.open)

    @contextmanager
    def open(self, path: Path) -> Iterator[Any]:
        self.opened.append(path.name)
        yield path.name
        self.closed.append(path.name)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name in "abc":
        (tmp_path / name).write_bytes(bytes(1 << 20))
    return [tmp_path / name for name in "abc"]


def test_a_model_is_loaded_once_for_all_sessions(opened: Opened, files: list[Path]) -> None:
    cache = ModelCache(files[0].parent)
    threads = [threading.Thread(target=_use, args=(cache, files[:2])) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(opened.opened) == ["a", "b"]


def _use(cache: ModelCache, paths: list[Path]) -> None:
    with cache.use(paths) as found:
        assert found == [path.name for path in paths]


def test_the_least_recently_used_model_goes_first(opened: Opened, files: list[Path]) -> None:
    a, b, c = files
    cache = ModelCache(a.parent, limit_bytes=5 << 19)  # two and a half of them
    for path in (a, b, a, c):
        _use(cache, [path])
    assert opened.closed == ["b"]
    assert cache.names == ["a", "c"]
    assert cache.n_bytes <= cache.limit_bytes


def test_a_model_in_use_stays(opened: Opened, files: list[Path]) -> None:
    a, b, _ = files
    cache = ModelCache(a.parent, limit_bytes=1)
    with cache.use([a]):
        _use(cache, [b])
        assert not opened.closed
    with cache.use([b]):
        assert opened.closed == ["a"]


def test_a_model_that_was_written_anew_is_loaded_anew(opened: Opened, files: list[Path]) -> None:
    cache = ModelCache(files[0].parent)
    _use(cache, files[:1])
    os.utime(files[0], ns=(1, 1))
    _use(cache, files[:1])
    assert (opened.opened, opened.closed) == (["a", "a"], ["a"])


def test_who_waits_for_a_model_is_told(opened: Opened, files: list[Path]) -> None:
    cache = ModelCache(files[0].parent)
    told = threading.Event()
    held = threading.Event()

    def hold() -> None:
        with cache.use(files[:1]):
            held.set()
            assert told.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    with cache.use(files[:1], told.set):
        assert told.is_set()
    thread.join()


def test_models_outside_the_folder_are_refused(page_folder: Path, tmp_path: Path) -> None:
    cache = ModelCache(tmp_path)
    shutil.copytree(page_folder / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    (tmp_path / "base" / "model.safetensors").symlink_to(page_folder / "base/model.safetensors")
    for path in (page_folder / "base", tmp_path / ".." / "x", tmp_path / "base"):
        with pytest.raises(ConfigError), cache.use([path]):
            pass
    assert not cache.names
