"""The result of one check, and of all checks of a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmkit.export.evaluation.divergence import Distance


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `value` passes up to `limit`."""

    name: str
    passed: bool
    value: float
    limit: float
    detail: str  # on failure: where it differs, and by how much


@dataclass(frozen=True)
class Proof:
    """The results of `verify` for one GGUF file."""

    passed: bool
    checkpoint: str
    gguf: str
    sha256: str
    quant: str
    checks: list[Check]
    distances: dict[str, Distance]  # of logits, by what is compared; empty if nothing was run
    checkpoint_sha256: str
    texts: str  # their source
    sha256_of: dict[str, str]  # of the other inputs: adapter, Modelfile, texts
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def counted(name: str, wrong: int, fine: str, failure: str) -> Check:
    """A check that everything is equal. Value: how many things differ."""
    return Check(name, wrong == 0, wrong, 0, failure if wrong else fine)
