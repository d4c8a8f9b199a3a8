"""Errors that a user can cause. The command line prints each as one line and exits with 2."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class LlmkitError(Exception):
    """One line for the user: what happened, where, and what to do."""


class OtherProcessError(LlmkitError):
    """Another process of the run has failed, and says why."""


class ConfigError(LlmkitError):
    """Sizes or settings that do not fit together."""


class PromptTooLongError(ConfigError):
    """A prompt that fills the model's context."""


class DataError(LlmkitError):
    """Text, JSONL or token data that cannot be used."""


class CheckpointError(LlmkitError):
    """A checkpoint folder that is missing, damaged, foreign or in use by another run."""


class GGUFError(LlmkitError):
    """A GGUF file that is damaged, foreign or cannot be written."""


class ModelfileError(LlmkitError):
    """A Modelfile that Ollama refuses, or text that a Modelfile cannot hold."""


class OllamaError(LlmkitError):
    """An Ollama server that does not answer, or refuses."""


class QuantizationError(LlmkitError):
    """Numbers or shapes that a quantization type cannot hold."""


def wrong_field(error: ValidationError, known: Iterable[str]) -> str:
    """What is wrong with one field of a mapping; an unknown one first: it may be a misspelling."""
    first = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        nested = len(first["loc"]) > 1
        return f"unknown setting {field!r}" if nested else unknown_name("setting", field, known)
    if first["type"] == "missing":
        return f"{field} is missing"
    message = re.sub(r"^(Input|String) should", "must", first["msg"]).replace("valid tuple", "list")
    return f"{field} {message}, not {first['input']!r}"


_LETTERS_FOR_DIGITS = str.maketrans("ol", "01")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that is not in a table: the nearest known name, then all of them."""
    names = list(known)
    key = name.lower()
    mistaken = key.translate(_LETTERS_FOR_DIGITS)  # q4_o is as near to q4_k as to q4_0
    near = [mistaken] if mistaken in names else difflib.get_close_matches(key, names, 1, 0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}choose one of: {', '.join(names)}"
