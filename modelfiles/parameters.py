"""The settings of a PARAMETER line, with their types.

Names and types are those of Ollama's api.Options; numbers are read as Go's strconv reads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from llmkit.errors import ConfigError, ModelfileError, unknown_name

# Ollama warns of these and ignores them.
DEPRECATED = (
    "penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock",
    "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip

_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_INT = re.compile(r"([+-]?)0*([0-9]{1,19})")
_DIGITS = "[0-9](_?[0-9])*"
_DECIMAL = re.compile(rf"[+-]?({_DIGITS}\.?({_DIGITS})?|\.{_DIGITS})([eE][+-]?{_DIGITS})?")
_HEX_DIGITS = "[0-9a-fA-F](_?[0-9a-fA-F])*"
_HEX = re.compile(
    rf"[+-]?0[xX](_?{_HEX_DIGITS}\.?({_HEX_DIGITS})?|\.{_HEX_DIGITS})[pP][+-]?{_DIGITS}"
)
_NOT_FINITE = re.compile(r"[+-]?inf(inity)?|nan", re.IGNORECASE)
# From here on a number rounds to infinity as a 32-bit float.
_FLOAT32_OVERFLOW = (2 - 2**-24) * 2.0**127


@dataclass(frozen=True)
class Parameters:
    """The settings of a model; None leaves one to Ollama."""

    num_keep: int | None = None
    seed: int | None = None
    num_predict: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_last_n: int | None = None
    temperature: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()
    num_ctx: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    num_thread: int | None = None
    draft_num_predict: int | None = None


NONE_GIVEN = Parameters()

# "float", "int", "bool" or, for `stop`, "text".
KINDS = {
    field.name: "text" if field.name == "stop" else str(field.type).split(" ")[0]
    for field in fields(Parameters)
}


# Outside of these Ollama accepts a number, but it has no meaning for sampling or memory.
RANGES = {
    "temperature": (0, math.inf), "top_p": (0, 1), "min_p": (0, 1), "typical_p": (0, 1),
    "repeat_penalty": (0, math.inf), "num_ctx": (1, math.inf), "num_batch": (1, math.inf),
}  # fmt: skip


def read_parameters(options: Iterable[str]) -> Parameters:
    """Parameters of options NAME=VALUE. Raises ConfigError for what Ollama does not have."""
    found: dict[str, Any] = {}
    for option in options:
        name, equals, text = option.partition("=")
        if not equals:
            raise ConfigError(f"--parameter {option}: write NAME=VALUE, such as temperature=0.8")
        if name not in KINDS:
            raise ConfigError(unknown_name("parameter", name, KINDS))
        if name == "stop":
            found["stop"] = (*found.get("stop", ()), text)
            continue
        try:
            found[name] = read_number(KINDS[name], text)
        except ModelfileError as error:
            raise ConfigError(f"{name}: {error}") from error
    return Parameters(**found)


def read_number(kind: str, text: str) -> float | int | bool:
    """The number that Go reads for a parameter of this kind.

    Raises ModelfileError with Ollama's message for text that is none.
    """
    if kind == "bool" and text in _TRUE + _FALSE:
        return text in _TRUE
    if kind == "int" and (found := _INT.fullmatch(text)):
        number = int(found[1] + found[2])
        if -(2**63) <= number < 2**63:
            return number
    if kind == "float":
        if _NOT_FINITE.fullmatch(text):
            raise ModelfileError(f"json: unsupported value: {text}")
        value = _float(text)
        if value is not None and abs(value) < _FLOAT32_OVERFLOW:
            return value
    raise ModelfileError(f"invalid {kind} value [{text}]")


def written_number(name: str, number: float | int | bool) -> str:
    """The number as a PARAMETER line has it. Raises ModelfileError for one that Go cannot read."""
    if isinstance(number, bool):
        text = "true" if number else "false"
    elif isinstance(number, float) and number.is_integer() and abs(number) < 2**53:
        text = str(int(number)) if math.copysign(1, number) > 0 or number else "-0"
    else:
        text = repr(number)
    try:
        read_number(KINDS[name], text)
    except ModelfileError as error:
        raise ModelfileError(f"PARAMETER {name}: {error}") from error
    return text


def _float(text: str) -> float | None:
    if _DECIMAL.fullmatch(text):
        return float(text.replace("_", ""))
    if _HEX.fullmatch(text):
        try:
            return float.fromhex(text.replace("_", ""))
        except OverflowError:
            return math.inf
    return None
