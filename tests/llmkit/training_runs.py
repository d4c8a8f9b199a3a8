"""A run that takes a tenth of a second, kills at every moment of it, and what must be equal however
it got to its end."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import llmkit.checkpoint.tensors
from llmkit.training import TrainingResult, train
from llmkit.training.loop import TrainingLoop

MODEL: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 32, "context_length": 16}
TRAINING: dict[str, Any] = {
    "steps": 12,
    "batch_size": 4,
    "eval_interval": 4,
    "eval_tokens": 64,
    "warmup_steps": 2,
}
SAME_EVERY_TIME = [
    "step",
    "tokens",
    "train_loss",
    "val_loss",
    "val_bits_per_byte",
    "lr",
    "grad_norm",
]


def run(
    data: Path,
    out: Path,
    *,
    dropout: float = 0.0,
    resume: bool = False,
    training: dict[str, Any] | None = None,
    **changes: Any,
) -> TrainingResult:
    options: dict[str, Any] = {"device": "cpu", **changes}
    if options.get("tokenizer", "bpe") == "bpe":
        options.setdefault("vocab_size", 300)
    return train(
        data,
        out,
        model={**MODEL, "dropout": dropout, **options.pop("model", {})},
        training={**TRAINING, **(training or {})},
        resume=resume,
        **options,
    )


def run_in_process(data: Path, out: Path, steps: int) -> None:
    """What a child process does: go on with the run; Ctrl-C is 130."""
    training = {"steps": steps, "eval_interval": 5}
    try:
        run(data, out, dropout=0.1, resume=True, training=training)
    except KeyboardInterrupt:
        sys.exit(130)


class Killed(BaseException):
    """Ends a run as a kill does: nothing is written or cleaned up any more."""


OPERATIONS = (
    *((Path, name) for name in ("open", "touch", "chmod", "replace", "unlink", "mkdir", "rmdir")),
    (os, "fsync"),
    (shutil, "rmtree"),
    (llmkit.checkpoint.tensors, "save_file"),
)


@contextmanager
def before_each_operation(act: Callable[[], None]) -> Iterator[None]:
    """`act` is called before every operation on files."""

    def acting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            act()
            return operation(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in OPERATIONS:
            patch.setattr(owner, name, acting(getattr(owner, name)))
        yield


def killed_at(n: int, run: Callable[[], object]) -> bool:
    """Whether a run has an n-th operation on files, at which and after which all fail."""
    done = 0

    def die() -> None:
        nonlocal done
        done += 1
        if done >= n:
            raise Killed

    try:
        with before_each_operation(die):
            run()
    except Killed:
        return True
    return False


def killed_states(run: Callable[[], object], out: Path, copies: Path) -> list[Path]:
    """What a kill before each operation leaves of `out`: copies of it, one for each state."""
    states: dict[frozenset[tuple[str, bytes]], Path] = {}

    def keep() -> None:
        files = ((str(path.relative_to(out)), path) for path in out.rglob("*"))
        state = frozenset((name, _lasting(path)) for name, path in files)
        if out.exists() and state not in states:
            states[state] = copies / str(len(states))
            shutil.copytree(out, states[state])

    with before_each_operation(keep):
        run()
    return list(states.values())


def _lasting(path: Path) -> bytes:
    """A file's content without times."""
    if not path.is_file():
        return b""
    with open(path, "rb") as file:  # noqa: PTH123  Path.open is one of the operations
        return re.sub(rb'"(elapsed_s|tokens_per_s)": [0-9.e+-]+', b"", file.read())


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = (out / "training" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def outcome(out: Path) -> dict[str, Any]:
    """Every number of a run, and which files there are."""
    files = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    times = ("metrics.jsonl", "state.json")  # hold times, which differ
    content = {name: b"" if name.endswith(times) else data for name, data in files.items()}
    numbers = [{key: line.get(key) for key in SAME_EVERY_TIME} for line in metrics(out)]
    state = json.loads((out / "training" / "state.json").read_text(encoding="utf-8"))
    return {"files": content, "metrics": numbers, "state": {**state, "elapsed_s": None}}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Names, times and contents of all files of a folder."""
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


class StopError(Exception):
    """Ends a run in the middle."""


def before_step(
    monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None], call: str = "step"
) -> None:
    original = getattr(TrainingLoop, call)

    def step(self: TrainingLoop, number: int, *rest: Any) -> Any:
        act(number)
        return original(self, number, *rest)

    monkeypatch.setattr(TrainingLoop, call, step)


def stop_at(stops: int, error: type[BaseException] = StopError) -> Callable[[int], None]:
    def act(number: int) -> None:
        if number == stops:
            raise error

    return act
