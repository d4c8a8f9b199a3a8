"""Fixtures for the core: text and run settings so small that a run takes a second."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import training_runs
from finetune_runs import write_questions
from record_files import Write

from llmkit.data.tales import tales


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 40 tales."""
    path = tmp_path_factory.mktemp("short") / "tales.txt"
    path.write_text("<|endoftext|>".join(islice(tales(7), 40)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def uninterrupted(
    short_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[float], dict[str, Any]]:
    """What a run comes to that nothing stops, for a dropout."""
    outcomes: dict[float, dict[str, Any]] = {}

    def of(dropout: float) -> dict[str, Any]:
        if dropout not in outcomes:
            out = tmp_path_factory.mktemp("uninterrupted") / "out"
            training_runs.run(short_text, out, dropout=dropout)
            outcomes[dropout] = training_runs.outcome(out)
        return outcomes[dropout]

    return of


@pytest.fixture(scope="session")
def small_base(short_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of one layer to fine-tune. Tests must not write into it."""
    out = tmp_path_factory.mktemp("base") / "base"
    # Twelve steps of Muon at its learning rate take the weights farther than fine-tuning expects.
    training = {"optimizer": "adamw", "learning_rate": 1e-3}
    training_runs.run(short_text, out, model={"context_length": 64}, training=training)
    return out


@pytest.fixture(scope="session")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 20 questions with their answers."""
    return write_questions(tmp_path_factory.mktemp("questions") / "questions.jsonl")


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts children that have everything imported."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["llmkit.finetuning.instruct", "torch._dynamo", "torch.distributed.fsdp"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONSAFEPATH", "1")  # import the installed package, not the folder here
        forkserver.ensure_running()
    return context


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text, bytes, or anything else as JSON (one a line for .jsonl), into a file."""

    def written(name: str, content: object) -> Path:
        path = tmp_path / name
        if name.endswith("jsonl") and isinstance(content, list):
            content = "\n".join(json.dumps(record) for record in content)
        elif not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written
