"""Before the first step: is the folder free, which tokenizer, and the text as token files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit.architectures.base import ModelConfig
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.layout import CHECKPOINT_FILES, TOKENIZER_FILE
from llmkit.console import Progress, progress, say
from llmkit.data.sources import note_left_out, read_documents, source_files
from llmkit.data.tokens import split_documents, token_dtype, write_token_file
from llmkit.errors import CheckpointError, DataError
from llmkit.files import cannot_read
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.records.text_files import AS_IT_COMES, Reading
from llmkit.tokenizer import Tokenizer, download_gpt2, load_tokenizer
from llmkit.tokenizer_training import train_bpe, train_characters
from llmkit.training.state import RunFolder, RunState

PARTS = ("train", "validation")


def sha256_of(files: list[Path]) -> str:
    """One hash over the contents of all files. Raises DataError where one cannot be read."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise DataError(cannot_read(path, error)) from error
    return digest.hexdigest()


def refuse_foreign(out: Path) -> None:
    """Raise CheckpointError where `out` holds anything but a preparation that was cut short."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose a new folder for --out")
    folder = RunFolder(out)
    prepared = {folder.training, *(out / name for name in CHECKPOINT_FILES)}
    prepared |= {*map(folder.token_file, PARTS), folder.trained_file, folder.held_out_file}
    there = {*out.glob("*"), *folder.training.glob("*")}
    foreign = [file for file in there - prepared if not file.match(".*.tmp")]
    if there and (folder.training not in there or foreign):
        raise CheckpointError(f"{out} is not empty and not a training run; choose another --out")


def refuse_other_run(folder: RunFolder, state: RunState, settings: dict[str, Any]) -> None:
    """Raise CheckpointError where the run in the folder has other settings, naming them."""
    if state.settings == settings:
        return
    there, asked = _flat(state.settings), _flat(settings)
    told = {  # what one run alone has differs too, even where it is None
        name: (there.get(name, "unset"), asked.get(name, "unset")) for name in {**asked, **there}
    }
    names = [name for name, (before, now) in told.items() if before != now]
    detail = ", ".join(f"{name} was {told[name][0]}, now {told[name][1]}" for name in names[:2])
    if names[:1] == ["data"]:
        detail = "the data differ"
    raise CheckpointError(
        f"{folder.folder} has a run with other settings ({detail}); choose another --out"
    )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat.update(
            {f"{name}.{key}": v for key, v in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
    return flat


def prepare(
    folder: RunFolder,
    data: Path,
    settings: dict[str, Any],
    sizes: ModelConfig,
    reading: Reading = AS_IT_COMES,
) -> RunState:
    """Train the tokenizer, write the token files and commit step 0."""

    def part(name: str) -> Iterator[str]:
        return split_documents(read_documents(data, reading), name)

    if next(part("train"), None) is None:
        raise DataError(f"{data} has no text to train on")
    tokenizer = _tokenizer(settings["tokenizer"], lambda: part("train"), sizes.vocab_size)
    sizes = replace(sizes, vocab_size=tokenizer.vocab_size)
    folder.remove_half_written()
    data_bytes = write_token_files(folder, data, tokenizer, sizes.context_length, reading)
    tokenizer.save(folder.folder / TOKENIZER_FILE)
    save_config(folder.folder, CheckpointConfig(sizes, COMPLETION))
    state = RunState(settings, data_bytes)
    folder.write_state(state)
    return state


def write_token_files(
    folder: RunFolder,
    data: Path,
    tokenizer: Tokenizer,
    context_length: int,
    reading: Reading = AS_IT_COMES,
) -> dict[str, int]:
    """Write both parts of the text in `data` as token files; return the bytes of text in each.

    Raises DataError where a part is too short for one example.
    """
    note_left_out(data)
    data_bytes = {}
    total = sum(file.stat().st_size for file in source_files(data))
    for name in PARTS:
        with progress(f"tokenize {name}", total, "bytes") as bar:
            texts = _watched(split_documents(read_documents(data, reading), name), bar)
            data_bytes[name] = write_token_file(folder.token_file(name), texts, tokenizer)
        n_file_bytes = folder.token_file(name).stat().st_size
        n_tokens = n_file_bytes // token_dtype(tokenizer.vocab_size).itemsize
        advice = "use more text or a smaller context_length"
        refuse_too_short(name, n_tokens, context_length, str(data), advice)
        say(f"{name}: {n_tokens:,} tokens of {data_bytes[name]:,} bytes")
    return data_bytes


def refuse_too_short(
    part: str, n_tokens: int, context_length: int, source: str, advice: str
) -> None:
    """Raise DataError where a part is too short for one example."""
    if n_tokens <= context_length:
        raise DataError(
            f"{source} is too short: the {part} part has {n_tokens} tokens, but one example "
            f"needs {context_length + 1}; {advice}"
        )


def _watched(texts: Iterator[str], bar: Progress) -> Iterator[str]:
    done = 0
    for text in texts:
        yield text
        done += len(text)  # close enough to bytes, and free
        bar.update(done)


def _tokenizer(name: str, texts: Callable[[], Iterator[str]], vocab_size: int) -> Tokenizer:
    if name == "bpe":
        return train_bpe(texts(), vocab_size)
    if name == "char":
        return train_characters(texts())
    if name == "gpt2":
        return download_gpt2()
    if not Path(name).is_dir():
        raise DataError(f"unknown tokenizer {name!r}; choose bpe, char, gpt2 or a folder")
    return load_tokenizer(Path(name))
