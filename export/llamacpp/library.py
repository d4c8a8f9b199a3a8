"""llama.cpp's library: its errors, the tokens of a call, and what runs without a context."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp

from llmkit.errors import GGUFError

_LEVEL_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_errors: list[str] = []


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _collect(level: int, text: bytes, _user_data: Any) -> None:
    if level == _LEVEL_ERROR:
        _errors.append(text.decode("utf-8", errors="replace"))


def collect_errors() -> None:
    """Forget earlier errors and keep those to come, for `reason`."""
    _errors.clear()
    llama_cpp.llama_log_set(_collect, ctypes.c_void_p(0))


def quantize_file(source: Path, target: Path, file_type: int) -> None:
    """What llama-quantize does, with its own choice of types, of a quantized file too.

    Raises GGUFError with llama.cpp's own reason where it refuses.
    """
    collect_errors()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = file_type, True
    paths = os.fsencode(source), os.fsencode(target)
    if llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) != 0:
        raise GGUFError(f"llama.cpp cannot quantize {source}: {reason()}")


class Token(NamedTuple):
    """A token of a batch, and the sequence that it is part of."""

    id: int
    position: int
    sequence: int
    wants_logits: bool = True


@contextmanager
def batch_of(tokens: Sequence[Token]) -> Iterator[Any]:
    """The argument of llama_decode, freed at the end of the `with`."""
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i] = token.id
            batch.pos[i] = token.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = token.sequence
            batch.logits[i] = token.wants_logits
        yield batch
    finally:
        llama_cpp.llama_batch_free(batch)


def reason() -> str:
    """The first error that llama.cpp logged: the cause, of which later ones are consequences."""
    return " ".join(_errors[0].split()) if _errors else "no reason given"
