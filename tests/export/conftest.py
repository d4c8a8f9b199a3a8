"""Fixtures of the export tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from gguf_surgery import make_checkpoint

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.export.convert import Export
from llmkit.export.evaluation import eval_data
from llmkit.export.verify import tokenizer_check


@pytest.fixture(scope="session")
def files(tiny_export: Export) -> dict[str, Path]:
    """The tiny checkpoint's GGUF files by quantization."""
    return {file.quant: file.path for file in tiny_export.files}


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """An untrained checkpoint in which no tensor is trivial. Tests must not write into it."""
    return make_checkpoint(tmp_path_factory.mktemp("random") / "random")


@pytest.fixture
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, of which, as on Windows, none that is mapped is removed."""
    if not hasattr(psutil.Process, "memory_maps"):
        pytest.skip("this system does not say which files are mapped")
    folder, unlink = tmp_path / "temporary", os.unlink
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def unlink_unmapped(path: Any, **options: Any) -> None:
        mapped = [Path(mapping.path) for mapping in psutil.Process().memory_maps()]
        if any(file.name == Path(path).name for file in mapped if folder in file.parents):
            raise PermissionError(f"{path} is mapped")
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", unlink_unmapped)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _few_texts() -> Iterator[None]:
    """What makes a proof quick. The tests of whole programs, the demo above all, leave it out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eval_data, "N_PROMPTS", 8)
        patch.setattr(tokenizer_check, "N_FUZZED", 200)
        yield
