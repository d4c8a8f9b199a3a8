"""`doctor`: all checks, in the order in which one thing needs the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError, GGUFError
from llmkit.export.check import Check, all_passed
from llmkit.export.doctor.fit import fit_check
from llmkit.export.doctor.machine import (
    disk_check,
    gigabytes,
    llama_cpp_check,
    memory_check,
    python_check,
    torch_check,
)
from llmkit.export.doctor.ollama_server import installed_check, server_checks
from llmkit.export.gguf.reader import GGUFFile, read_gguf
from llmkit.export.gguf.sizes import architecture_of, sizes_of
from llmkit.files import StrPath, optional_path

# A file is uploaded, and Ollama writes it once more in its own order.
COPIES = 2
_ELSEWHERE = Check(
    "memory", True, "Ollama runs on another machine; its memory and disk are unknown"
)


@dataclass(frozen=True)
class Examination:
    """What the doctor found."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all_passed(self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return {"passed": self.passed, "checks": [check.advised() for check in self.checks]}


def doctor(
    gguf: StrPath | None = None, *, host: str | None = None, context: int | None = None
) -> Examination:
    """Look at this machine, its Ollama, its port, its memory and its disk.

    With a GGUF file also at what it needs with room for `context` tokens; the model's own
    context unless given. Raises ConfigError for a context that is none, or without a file.
    """
    gguf = optional_path(gguf)
    if context is not None and (gguf is None or context < 1):
        raise ConfigError(
            "--context needs a GGUF file"
            if gguf is None
            else f"--context {context}: expected at least 1"
        )
    found = server_checks(host)
    checks = [python_check(), torch_check(), llama_cpp_check(), installed_check(found)]
    checks += found.checks
    if gguf is None:
        checks += [memory_check(), disk_check()] if found.is_here else [_ELSEWHERE]
    else:
        checks += _file_checks(gguf, context, is_here=found.is_here)
    return Examination(tuple(checks))


def room_checks(file: GGUFFile, context: int, *, is_here: bool) -> list[Check]:
    """Memory and disk for a file, where its server is on this machine."""
    if not is_here:
        return [_ELSEWHERE]
    return [fit_check(file, context), disk_check(COPIES * file.path.stat().st_size)]


def _file_checks(gguf: Path, context: int | None, *, is_here: bool) -> list[Check]:
    try:
        file = read_gguf(gguf)
        architecture, length = architecture_of(file), sizes_of(file).context_length
    except GGUFError as error:
        return [Check("file", False, str(error))]
    n_bytes = gigabytes(gguf.stat().st_size)
    said = f"{gguf.name}: {architecture}, {file.quant}, {n_bytes}, context {length}"
    note = ""
    if context is not None and context > length:
        note = f"the model's context is {length} tokens; a larger one has no effect"
    return [
        Check("file", True, said, note),
        *room_checks(file, context or length, is_here=is_here),
    ]
