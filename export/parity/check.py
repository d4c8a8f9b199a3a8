"""What a check says, and what all of them say together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llmkit.export.divergence import Distance


@dataclass(frozen=True)
class Check:
    """One thing that was compared. `value` passes up to `limit`."""

    name: str
    passed: bool
    value: float
    limit: float
    detail: str  # on failure: the place and the likely cause


@dataclass(frozen=True)
class Proof:
    """What `verify` found out about one GGUF file."""

    passed: bool
    checkpoint: str
    gguf: str
    sha256: str
    quant: str
    checks: list[Check]
    distances: dict[str, Distance]  # of logits, by what is compared; none where nothing was run
    checkpoint_sha256: str
    texts: str  # where they are from
    sha256_of: dict[str, str]  # of what else went in: adapter, Modelfile, texts
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


def counted(name: str, wrong: int, fine: str, failure: str) -> Check:
    """A check of things that must all be equal: its value is how many are not."""
    return Check(name, wrong == 0, wrong, 0, failure if wrong else fine)
