"""Fixtures of the export tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_surgery import make_checkpoint

from llmkit.checkpoint import Checkpoint
from llmkit.export.convert import Export


@pytest.fixture(scope="session")
def files(tiny_export: Export) -> dict[str, Path]:
    """The tiny checkpoint's GGUF files by quantization."""
    return {file.quant: file.path for file in tiny_export.files}


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """An untrained checkpoint in which no tensor is trivial. Tests must not write into it."""
    return make_checkpoint(tmp_path_factory.mktemp("random") / "random")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    # llama.cpp's threads wait for each other at every one of a tiny model's small products.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 1)
        yield
