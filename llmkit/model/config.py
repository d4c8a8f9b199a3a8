"""The sizes of a GPT and the presets that name them."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from llmkit.errors import ConfigError, unknown_name, wrong_field

T = TypeVar("T")
Size = Annotated[int, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class GPTConfig:
    """Sizes and switches of a GPT-2 shaped model. Everything a forward pass depends on."""

    vocab_size: Size
    context_length: Annotated[int, Field(gt=1)]  # a prompt and one token after it
    n_layer: Size
    n_head: Size
    n_embd: Size
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    qkv_bias: bool = True
    tie_embeddings: bool = True
    layer_norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head:
            raise ConfigError(f"n_embd {self.n_embd} must be a multiple of n_head {self.n_head}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def n_ff(self) -> int:
        """Inner width of the feed-forward layer: 4 x n_embd as in GPT-2."""
        return 4 * self.n_embd


# nano and micro are for a laptop's CPU. Their widths are multiples of 256, so that every GGUF
# type, K-quants included, can hold their rows. The others are OpenAI's GPT-2 sizes.
PRESETS: dict[str, dict[str, int]] = {
    "nano": {"n_layer": 4, "n_head": 4, "n_embd": 256, "context_length": 256},
    "micro": {"n_layer": 6, "n_head": 8, "n_embd": 512, "context_length": 512},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "context_length": 1024},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "context_length": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "context_length": 1024},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "context_length": 1024},
}


def gpt_config(preset: str, /, vocab_size: int, **changes: Any) -> GPTConfig:
    """Sizes of `preset` for a vocabulary, with single fields changed by name.

    Raises ConfigError for an unknown preset or field and for values that do not fit.
    """
    if preset not in PRESETS:
        raise ConfigError(unknown_name("preset", preset, PRESETS))
    return validated(GPTConfig, {**PRESETS[preset], "vocab_size": vocab_size, **changes}, "model")


def validated(kind: type[T], fields: dict[str, Any], where: str) -> T:
    """Build `kind` from a mapping; ConfigError names the first field that is wrong."""
    try:
        return kind(**fields)
    except ValidationError as error:
        known = inspect.signature(kind).parameters
        raise ConfigError(f"{where}: {wrong_field(error, known)}") from error
