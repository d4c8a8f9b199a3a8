"""What an import makes: a checkpoint folder, whole or not at all, and a report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmkit.architectures.base import ModelConfig
from llmkit.errors import ConfigError
from llmkit.files import cannot_write
from llmkit.importing.facts import Fact
from llmkit.importing.reference import ImportProof
from llmkit.importing.steps import Step


@dataclass(frozen=True)
class Import:
    """What an import took the source for, and what it made of it."""

    folder: Path
    recognised: str  # the program
    container: str
    config: ModelConfig
    steps: list[Step]  # what went where
    facts: list[tuple[str, Fact]]  # what names and shapes do not say
    tokenizer: str  # where it is from
    notes: list[str]
    proof: ImportProof | None  # None without reference logits
    activation_cost: float | None  # largest logit difference of the exact GELU and llama.cpp's


def check_out(out: Path) -> None:
    """Raise ConfigError where something lies at `out` already."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; choose a folder with --out")
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; choose another folder with --out")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out`, or is removed after an error."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise cannot_write(out, error) from error
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's is its owner's alone
        if out.is_dir():
            out.rmdir()
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
