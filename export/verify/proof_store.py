"""Proofs on disk: parity.json, one for all files of a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.console import say
from llmkit.files import write_text

if TYPE_CHECKING:
    from llmkit.export.check import Proof

PROOF_FILE = "parity.json"


def keep(proof: Proof) -> None:
    """Save the proof beside its file and replace an older one of the same file.

    A failed proof against another checkpoint does not replace a passed one of the same bytes.
    """
    gguf = Path(proof.gguf)
    path = gguf.parent / PROOF_FILE
    own = kept_proof(gguf)
    if (
        not proof.passed
        and own is not None
        and (own.get("passed"), own.get("sha256")) == (True, proof.sha256)
        and own.get("checkpoint_sha256") not in (None, proof.checkpoint_sha256)
    ):
        say(f"{path} keeps the earlier proof of {gguf.name}; it passed for {own.get('checkpoint')}")
        return
    kept = [old for old in _kept_proofs(path) if Path(old["gguf"]).name != gguf.name]
    write_text(path, json.dumps({"proofs": [*kept, proof.to_dict()]}, indent=2) + "\n")


def kept_proof(gguf: Path) -> dict[str, Any] | None:
    """The proof of a file in the `parity.json` beside it; None if there is none."""
    kept = _kept_proofs(gguf.parent / PROOF_FILE)
    return next((proof for proof in kept if Path(proof["gguf"]).name == gguf.name), None)


def _kept_proofs(path: Path) -> Iterable[dict[str, Any]]:
    try:
        proofs = list(json.loads(path.read_text(encoding="utf-8"))["proofs"])
    except (OSError, ValueError, LookupError, TypeError):
        return []  # none yet, or not ours: the new proof is what counts
    return [old for old in proofs if isinstance(old, dict) and isinstance(old.get("gguf"), str)]
