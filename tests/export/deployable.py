"""Export folders for tests of deployments, made without training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gguf_surgery import make_checkpoint

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
from llmkit.modelfiles.prompt_format import (
    END_OF_TEXT,
    USER_ASSISTANT,
    Message,
    PromptFormat,
)
from llmkit.tokenizer_training import train_bpe

QUESTIONS = ("What merge?", "Some words?", "And more words to merge?", "Which?", "Who is it?")
ENDS_EVERY = 4  # positions


def records_of(*talks: tuple[Message, ...]) -> list[list[Message]]:
    """Records that ask each of the questions, after each of the talks."""
    return [
        [*talk, Message("user", text), Message("assistant", "words")]
        for talk in talks or ((),)
        for text in QUESTIONS
    ]


def answering_checkpoint(
    folder: Path,
    form: PromptFormat = USER_ASSISTANT,
    records: Sequence[Sequence[Message]] | None = None,
) -> Checkpoint:
    """A random model whose answers end after some tokens, with questions that were held out."""
    special = [token for token in form.stops if token != END_OF_TEXT]
    tokenizer = train_bpe(["some words to merge, some more words"], 280)
    tokenizer = tokenizer.with_tokens(special=special) if special else tokenizer

    def end_at_some_positions(weights: dict[str, Any]) -> None:
        weights["wpe.weight"][:, 0] = 0
        weights["wpe.weight"][::ENDS_EVERY, 0] = 20
        weights["lm_head.weight"][tokenizer.special_id(form.end), 0] = 0.5

    made = make_checkpoint(
        folder,
        tokenizer=tokenizer,
        change=end_at_some_positions,
        context_length=256,
        tie_embeddings=False,
    )
    save_config(folder, CheckpointConfig(made.config, form))
    held_out = made.held_out_file
    held_out.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps({"messages": [asdict(message) for message in record]})
        for record in records or records_of()
    ]
    held_out.write_text("\n".join(lines), encoding="utf-8")
    return load_checkpoint(folder)


def stammering_checkpoint(folder: Path) -> Checkpoint:
    """A model that says the first byte of é again and again."""

    tokenizer = train_bpe(["some words"], 260)

    def say_one_byte(weights: dict[str, Any]) -> None:
        weights["ln_f.weight"][:] = 0
        weights["ln_f.bias"][:] = 1
        weights["lm_head.weight"][:] = 0
        weights["lm_head.weight"][tokenizer.tokens.index("Ã")] = 1

    assert tokenizer.decode_bytes([tokenizer.tokens.index("Ã")]) == "é".encode()[:1]
    change = say_one_byte
    return make_checkpoint(folder, tokenizer=tokenizer, change=change, tie_embeddings=False)


def exported(checkpoint: Checkpoint, out: Path, quant: str = "q8_0") -> Path:
    """An export folder with a proof that passed."""
    done = export(checkpoint.folder, out, QuantConfig([quant]), name="tales", prove=False)
    adapter = {"adapter": _sha256(done.adapter.path)} if done.adapter else {}
    write_proof(checkpoint, done.files[0].path, sha256_of=adapter)
    return out


def write_proof(source: Checkpoint, gguf: Path, **changes: Any) -> None:
    """The parts of `parity.json` that a deployment reads."""
    proof = {
        "gguf": str(gguf),
        "checkpoint": str(source.folder),
        "sha256": _sha256(gguf),
        "checkpoint_sha256": source.sha256,
        "passed": True,
        **changes,
    }
    (gguf.parent / "parity.json").write_text(json.dumps({"proofs": [proof]}), encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
