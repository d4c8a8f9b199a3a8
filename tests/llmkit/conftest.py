"""Fixtures for the core: text and run settings so small that a run takes a second."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from llmkit.data.tales import tales


@pytest.fixture(scope="session")
def short_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file of 40 tales."""
    path = tmp_path_factory.mktemp("short") / "tales.txt"
    path.write_text("<|endoftext|>".join(islice(tales(7), 40)), encoding="utf-8")
    return path
