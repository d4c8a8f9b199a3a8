"""The text that a checkpoint was trained on, as the token files of a run that goes on from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.data.tokens import PARTS, token_dtype
from llmkit.errors import CheckpointError, DataError
from llmkit.files import written_beside
from llmkit.finetuning.held_out import held_out_examples, trained_examples
from llmkit.training.prepare import refuse_too_short
from llmkit.training.run_folder import RunFolder


def own_files(base: Checkpoint) -> list[Path]:
    """Where the text is kept: records of fine-tuning, or token files. Raises DataError."""
    tokens = (base.train_tokens_file, base.validation_tokens_file)
    for files in ((base.trained_file, base.held_out_file), tokens):
        if all(file.is_file() for file in files):
            return list(files)
    raise DataError(f"{base.folder} does not contain its training text; pass a text with --data")


def write_own_text(base: Checkpoint, folder: RunFolder) -> dict[str, int]:
    """Write the token files of both parts; return the bytes of text in each.

    Records follow one another as the model reads them; those held out stay so in the new folder.
    Raises DataError where a part is too short for one example.
    """
    if base.trained_file in own_files(base):
        n_bytes = _write_records(base, folder)
        for record_file in (base.trained_file, base.held_out_file):
            _copy(record_file, folder.training / record_file.name)
        return n_bytes
    state = RunFolder(base.folder).read_state()
    if state is None:
        raise CheckpointError(f"{base.folder} has no state.json; pass the text with --data")
    for part in PARTS:
        _copy(RunFolder(base.folder).token_file(part), folder.token_file(part))
    return state.data_bytes


def _write_records(base: Checkpoint, folder: RunFolder) -> dict[str, int]:
    n_bytes = {}
    examples = {"train": trained_examples(base), "validation": held_out_examples(base)}
    for part in PARTS:
        ids = [token_id for example in examples[part] for token_id in example.ids]
        source, length = f"the text of {base.folder}'s records", base.config.context_length
        refuse_too_short(part, len(ids), length, source, "pass more text with --data")
        n_bytes[part] = len(base.tokenizer.decode(ids).encode())
        with written_beside(folder.token_file(part)) as beside:
            beside.write_bytes(np.asarray(ids, token_dtype(base.config.vocab_size)).tobytes())
    return n_bytes


def _copy(source: Path, target: Path) -> None:
    with written_beside(target) as beside:
        shutil.copyfile(source, beside)
