"""Data sets of the Hugging Face hub by name, read as a stream: `hf:USER/NAME[:CONFIG]`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError, DataError

PREFIX = "hf:"
SPLIT = "train"


def is_on_hub(source: Path) -> bool:
    """Whether a source is the name of a data set."""
    return source.as_posix().startswith(PREFIX)


@lru_cache(maxsize=16)
def revision(source: Path) -> str:
    """The commit that the name stands for in this process. Raises DataError offline."""
    from huggingface_hub import HfApi

    name, _ = _parts(source)
    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:  # every network failure has its own type
        raise _unreadable(source, error) from error


def hub_texts(source: Path, column: str) -> Iterator[str]:
    """The text of each row of the training part, in the order of the data set.

    Raises ConfigError without datasets, DataError for what cannot be read.
    """
    try:
        from datasets import load_dataset
        from datasets.utils.logging import set_verbosity_error
    except ImportError as error:
        raise ConfigError(f"{source} needs datasets: pip install 'llmkit[hub]'") from error
    set_verbosity_error()
    name, config = _parts(source)
    try:
        rows: Any = load_dataset(
            name, config, split=SPLIT, streaming=True, revision=revision(source)
        )
        for number, row in enumerate(rows, start=1):
            if column not in row:
                raise DataError(
                    f"{source} has no column {column!r} (it has {', '.join(row)}); "
                    "choose one with --text-column"
                )
            if not isinstance(row[column], str):
                kind = type(row[column]).__name__
                raise DataError(f"{source}, row {number}: {column!r} is {kind}, not text")
            yield row[column]
    except DataError:
        raise
    except Exception as error:  # of the network, of files of many formats
        raise _unreadable(source, error) from error


def _parts(source: Path) -> tuple[str, str | None]:
    name, _, config = source.as_posix().removeprefix(PREFIX).partition(":")
    return name, config or None


def _unreadable(source: Path, error: Exception) -> DataError:
    reason = str(error).strip().partition("\n")[0]
    return DataError(f"cannot read {source} ({reason}); check the name and the network")
