"""Models in memory: each once for all sessions, the least recently used one goes first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from llmkit.errors import ConfigError
from llmkit.page.finding import refuse_outside

if TYPE_CHECKING:
    from llmkit.export.llamacpp.runners import Runner

_MOMENT = 0.2  # seconds between two looks whether a model that another session runs is free
_SHARE_OF_FREE_MEMORY = 0.5

Version = tuple[tuple[str, int, int], ...]


@dataclass
class _Loaded:
    """A model in memory. Its lock is held by the session that runs it."""

    runner: Runner
    version: Version
    n_bytes: int
    close: ExitStack
    lock: threading.Lock = field(default_factory=threading.Lock)


class ModelCache:
    """Loads models of one folder and keeps them up to a limit of memory."""

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        """`limit_bytes`: of all models together; by default half of the memory that is free now."""
        self.folder = folder
        free = psutil.virtual_memory().available
        self.limit_bytes = limit_bytes or int(free * _SHARE_OF_FREE_MEMORY)
        self._loaded: OrderedDict[Path, _Loaded] = OrderedDict()  # the last one used last
        self._opening = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the models in memory, the last one used last."""
        return [path.name for path in self._loaded]

    @property
    def n_bytes(self) -> int:
        """Memory of all models."""
        return sum(model.n_bytes for model in self._loaded.values())

    @contextmanager
    def use(
        self, paths: Sequence[Path], wait: Callable[[], None] = lambda: None
    ) -> Iterator[list[Runner]]:
        """The models, for this session alone until the block ends; `wait` is called while waiting.

        Raises LlmkitError for a file that cannot be opened or lies outside the folder.
        """
        with ExitStack() as held:
            runners = {}
            for path in sorted(set(paths)):  # in one order: no two sessions wait for each other
                runners[path] = held.enter_context(self._held(path, wait))
            yield [runners[path] for path in paths]

    @contextmanager
    def _held(self, path: Path, wait: Callable[[], None]) -> Iterator[Runner]:
        while True:
            model = self._model(path)
            while not model.lock.acquire(timeout=_MOMENT):
                wait()
            if self._loaded.get(path) is model:
                break
            model.lock.release()  # evicted in between
        try:
            yield model.runner
        finally:
            model.lock.release()

    def _model(self, path: Path) -> _Loaded:
        with self._opening:
            version = _version(path)
            model = self._loaded.get(path)
            if model is not None and model.version != version:  # written anew
                self._evict(path)
                model = None
            if model is None:
                model = self._loaded[path] = self._load(path, version)
            self._loaded.move_to_end(path)
            self._make_room(path)
            return model

    def _load(self, path: Path, version: Version) -> _Loaded:
        from llmkit.export.llamacpp.runners import open_runner

        refuse_outside(path, self.folder)
        before = psutil.Process().memory_info().rss
        stack = ExitStack()
        runner = stack.enter_context(open_runner(path))
        grown = psutil.Process().memory_info().rss - before
        # A mapped file is in memory only where it was read: it counts in full.
        return _Loaded(runner, version, max(grown, sum(size for _, size, _ in version)), stack)

    def _make_room(self, kept: Path) -> None:
        for path in [path for path in self._loaded if path != kept]:
            if self.n_bytes <= self.limit_bytes:
                return
            self._evict(path)

    def _evict(self, path: Path) -> None:
        """Drop a model from memory; one that a session runs stays."""
        model = self._loaded[path]
        if model.lock.acquire(blocking=False):
            del self._loaded[path]
            model.close.close()
            model.lock.release()


def _version(path: Path) -> Version:
    """What changes when a model is written anew. Raises ConfigError where it is gone."""
    try:
        files = [one for one in path.iterdir() if one.is_file()] if path.is_dir() else [path]
        status = [(one.name, one.stat()) for one in files]
    except OSError as error:
        raise ConfigError(f"{path} is no longer there; reload the page") from error
    return tuple(sorted((name, s.st_size, s.st_mtime_ns) for name, s in status))
