"""Before the first step: is the folder free, which tokenizer, and the text as token files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit.architectures.base import ModelConfig
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.checkpoint.layout import CHECKPOINT_FILES, TOKENIZER_FILE
from llmkit.console import progress, say
from llmkit.data.folders import content_bytes, note_left_out
from llmkit.data.prepared import Prepared, make_tokenizer, watched
from llmkit.data.sources import Piece, read_pieces
from llmkit.data.tokens import PARTS, split_pieces, token_dtype, write_tokens
from llmkit.errors import CheckpointError, DataError
from llmkit.files import written_beside
from llmkit.modelfiles.prompt_format import COMPLETION
from llmkit.records.text_files import AS_IT_COMES, Reading
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_files import load_tokenizer
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState

KEPT_TOKENS = 1 << 24  # of each part of prepared data, in the run's folder


def refuse_foreign(out: Path) -> None:
    """Raise CheckpointError where `out` holds anything but a preparation that was cut short."""
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file; choose a new folder for --out")
    folder = RunFolder(out)
    prepared = {folder.training, *(out / name for name in CHECKPOINT_FILES)}
    prepared |= {*map(folder.token_file, PARTS), folder.trained_file, folder.held_out_file}
    prepared.add(folder.lock_file)
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
        f"{folder.folder} has a run with other settings ({detail}); "
        "repeat its options or choose another --out"
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
    training_text = (piece for part, piece in _split(data, reading) if part == "train")
    if next(training_text, None) is None:
        raise DataError(f"{data} has no text to train on")
    pieces, n_bytes = _split(data, reading), content_bytes([data])
    tokenizer = make_tokenizer(settings["tokenizer"], pieces, sizes.vocab_size, n_bytes)
    folder.remove_half_written()
    data_bytes = write_token_files(folder, data, tokenizer, sizes.context_length, reading)
    return _committed(folder, settings, sizes, tokenizer, data_bytes, data)


def prepare_from(
    folder: RunFolder, prepared: Prepared, settings: dict[str, Any], sizes: ModelConfig
) -> RunState:
    """Commit step 0 of a run on prepared data.

    The folder gets the first tokens of each part: evaluation, `export` and `compare` read them.
    """
    data_bytes = {}
    for part in PARTS:
        tokens, total = prepared.tokens(part), prepared.total(part)
        advice = "prepare more text or use a smaller context_length"
        refuse_too_short(part, len(tokens), sizes.context_length, str(prepared.folder), advice)
        kept = tokens.read(0, min(len(tokens), KEPT_TOKENS))
        with written_beside(folder.token_file(part)) as beside:
            kept.astype(token_dtype(prepared.vocab_size)).tofile(beside)
        data_bytes[part] = round(total.bytes * len(kept) / total.tokens)
        say(f"{part}: {total.tokens:,} tokens of {total.bytes:,} bytes")
    tokenizer = load_tokenizer(prepared.folder)
    return _committed(folder, settings, sizes, tokenizer, data_bytes, prepared.folder)


def _committed(
    folder: RunFolder,
    settings: dict[str, Any],
    sizes: ModelConfig,
    tokenizer: Tokenizer,
    data_bytes: dict[str, int],
    data: Path,
) -> RunState:
    tokenizer.save(folder.folder / TOKENIZER_FILE)
    sizes = replace(sizes, vocab_size=tokenizer.vocab_size)
    save_config(folder.folder, CheckpointConfig(sizes, COMPLETION))
    state = RunState(settings, data_bytes, sources={"data": str(data)})
    folder.write_state(state)
    return state


def _split(data: Path, reading: Reading) -> Iterator[tuple[str, Piece]]:
    return split_pieces(lambda: read_pieces([data], reading))


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
    total = content_bytes([data])
    with progress("tokenize", total, "bytes") as bar:
        pieces = watched(_split(data, reading), bar)
        counts = write_tokens({part: folder.token_file(part) for part in PARTS}, pieces, tokenizer)
    for part in PARTS:
        advice = "use more text or a smaller context_length"
        refuse_too_short(part, counts[part].tokens, context_length, str(data), advice)
        say(f"{part}: {counts[part].tokens:,} tokens of {counts[part].bytes:,} bytes")
    return {part: counts[part].bytes for part in PARTS}


def refuse_too_short(
    part: str, n_tokens: int, context_length: int, source: str, advice: str
) -> None:
    """Raise DataError where a part is too short for one example."""
    if n_tokens <= context_length:
        raise DataError(
            f"{source} is too short: the {part} part has {n_tokens} tokens, but one example "
            f"needs {context_length + 1}; {advice}"
        )
