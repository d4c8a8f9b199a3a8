"""Export folders for tests of deployments, made without training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gguf_surgery import make_checkpoint

from llmkit.checkpoint import Checkpoint, CheckpointConfig, load_checkpoint, save_config
from llmkit.export.convert import export
from llmkit.export.recipe import Recipe
from llmkit.modelfiles.prompt_format import USER_ASSISTANT, Message
from llmkit.tokenizer import train_bpe

QUESTIONS = ("What merge?", "Some words?", "And more words to merge?", "Which?", "Who is it?")
ENDS_EVERY = 4  # positions


def answering_checkpoint(folder: Path) -> Checkpoint:
    """A random model whose answers end after some tokens, with questions that were held out."""
    tokenizer = train_bpe(["some words to merge, some more words"], 280)

    def end_at_some_positions(weights: dict[str, Any]) -> None:
        weights["wpe.weight"][:, 0] = 0
        weights["wpe.weight"][::ENDS_EVERY, 0] = 20
        weights["lm_head.weight"][tokenizer.end_of_text_id, 0] = 0.5

    made = make_checkpoint(
        folder,
        tokenizer=tokenizer,
        change=end_at_some_positions,
        context_length=256,
        tie_embeddings=False,
    )
    save_config(folder, CheckpointConfig(made.config, USER_ASSISTANT))
    held_out = made.held_out_file
    held_out.parent.mkdir(exist_ok=True)
    records = [[Message("user", text), Message("assistant", "words")] for text in QUESTIONS]
    lines = [json.dumps({"messages": [asdict(message) for message in r]}) for r in records]
    held_out.write_text("\n".join(lines), encoding="utf-8")
    return load_checkpoint(folder)


def exported(checkpoint: Checkpoint, out: Path, quant: str = "q8_0") -> Path:
    """An export folder with a proof that passed."""
    done = export(checkpoint.folder, out, Recipe([quant]), name="tales", prove=False)
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
