"""What a model family must say, so that everything else can ask and names no tensor itself.

A family is one file beside this one: its config, its PyTorch module, its tensors with their roles,
its GGUF keys and the graph of operations that llama.cpp runs. `registry.py` finds it by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, ClassVar, Protocol

import gguf
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llmkit.architectures.cache import KVCache
from llmkit.architectures.graph import Operation
from llmkit.errors import ConfigError

HEAD = "lm_head.weight"  # in every family's checkpoint, where the head is not the token embedding
GGUF_HEAD = "output.weight"  # llama.cpp's name for it


class Layers(Protocol):
    """Of a model: what the types of a quantization depend on."""

    @property
    def n_layer(self) -> int: ...  # noqa: D102
    @property
    def tie_embeddings(self) -> bool: ...  # noqa: D102


class ModelConfig(Layers, Protocol):
    """Sizes that every family has. A family's config is a frozen dataclass with these and more."""

    architecture: ClassVar[str]  # the family's name in config.json and in general.architecture
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def context_length(self) -> int: ...  # noqa: D102
    @property
    def n_head(self) -> int: ...  # noqa: D102
    @property
    def n_embd(self) -> int: ...  # noqa: D102


class Role(Enum):
    """What a tensor is for. Whether it is quantized, adapted or copied follows from it."""

    TOKEN_EMBEDDING = auto()
    POSITION_EMBEDDING = auto()
    QKV = auto()  # values; in a fused matrix queries and keys above them
    SHARED_VALUE = auto()  # values that four query heads or more share
    QUERY_OR_KEY = auto()
    ATTENTION_OUTPUT = auto()
    FEED_FORWARD_UP = auto()
    FEED_FORWARD_DOWN = auto()
    NORM = auto()
    BIAS = auto()
    HEAD = auto()
    OTHER_MATRIX = auto()
    KEPT = auto()  # any other tensor, which is never quantized


_BLOCK_MATRICES = frozenset(
    (
        Role.QKV,
        Role.SHARED_VALUE,
        Role.QUERY_OR_KEY,
        Role.ATTENTION_OUTPUT,
        Role.FEED_FORWARD_UP,
        Role.FEED_FORWARD_DOWN,
        Role.OTHER_MATRIX,
    )
)
_MATRICES = _BLOCK_MATRICES | {Role.TOKEN_EMBEDDING, Role.HEAD}


def head_role(model: Layers) -> Role:
    """Of the matrix that makes the logits."""
    return Role.TOKEN_EMBEDDING if model.tie_embeddings else Role.HEAD


@dataclass(frozen=True)
class TensorSpec:
    """One tensor under both names. Shapes are (out, in).

    `is_absent`: llama.cpp needs it, this checkpoint lacks it; zeros stand in.
    """

    checkpoint_name: str
    gguf_name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None = None
    is_absent: bool = False

    @property
    def is_matrix(self) -> bool:
        """Whether it may be quantized. What is added (biases, norms, positions) stays f32."""
        return self.role in _MATRICES

    @property
    def is_block_matrix(self) -> bool:
        """Whether it is a matrix of a layer, which LoRA can adapt and Muon trains."""
        return self.role in _BLOCK_MATRICES

    @property
    def module(self) -> str:
        """The path of the PyTorch module that it belongs to."""
        return self.checkpoint_name.rpartition(".")[0]

    @property
    def module_in_block(self) -> str:
        """The same path within its block."""
        return self.module.partition(f".{self.layer}.")[2]


@dataclass(frozen=True)
class SizeKey:
    """A GGUF key and the property of the config that it states."""

    key: str  # with {arch} for the family's name
    size: str
    kind: gguf.GGUFValueType = gguf.GGUFValueType.UINT32


class LanguageModel(nn.Module, ABC):
    """A family's PyTorch module: token ids in, a logit for every token of the vocabulary out."""

    config: ModelConfig
    lm_head: nn.Linear | None  # None where the token embedding is the head
    recompute_blocks = False  # keep only what blocks read, and run them again in backward
    compiled_transform: Callable[[Tensor], Tensor] | None = None  # `transform` by torch.compile

    @property
    @abstractmethod
    def token_embedding(self) -> nn.Embedding:
        """The table that token ids are looked up in; a tied head multiplies with it."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks in the order in which they are run, each called as block(x, cache)."""

    @property
    @abstractmethod
    def final_norm(self) -> nn.Module:
        """The norm before the head."""

    @abstractmethod
    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """What the first block reads of token ids (B, T); positions (T,) or (B, T), else 0 to T."""

    @abstractmethod
    def transform(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the blocks make of embedded tokens: (B, T, C) -> (B, T, C), normalised."""

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) for token ids (B, T); see `hidden_states` for the cache."""
        return self.logits(self.hidden_states(tokens, cache))

    def hidden_states(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Normalised outputs (B, T, C) of the last block for token ids (B, T).

        With a cache, `tokens` go on where it ends, and it grows by them. Raises ConfigError
        where the tokens reach past context_length.
        """
        n_new = tokens.shape[1]
        self.refuse_too_long(n_new + (cache.n_text if cache is not None else 0))
        if cache is None:
            x, kind = self.embed(tokens), self.device.type
            if torch.is_autocast_enabled(kind):
                x = x.to(torch.get_autocast_dtype(kind))  # half of the bytes between the products
            transform = self.compiled_transform if self.training else None
            return (transform or self.transform)(x)
        x = self.embed(tokens, cache.positions(n_new, tokens.device))
        hidden = self.transform(x, cache)
        cache.length += n_new
        return hidden

    def refuse_too_long(self, n_tokens: int) -> None:
        """Raise ConfigError for more tokens than context_length."""
        if n_tokens > self.config.context_length:
            raise ConfigError(
                f"{n_tokens} tokens exceed the model's context length of "
                f"{self.config.context_length}"
            )

    def run_block(self, block: nn.Module, x: Tensor, cache: KVCache | None) -> Tensor:
        """What a block makes of (B, T, C)."""
        if self.recompute_blocks and torch.is_grad_enabled():
            return checkpoint(block, x, cache, use_reentrant=False)  # type: ignore[no-any-return]
        return block(x, cache)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head says of hidden states: (..., C) -> (..., V)."""
        return nn.functional.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> Tensor:
        """The matrix (V, C) that makes the logits."""
        return (self.token_embedding if self.lm_head is None else self.lm_head).weight

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.final_norm.parameters()).device  # never packed, as matrices may be

    def n_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.numel() for p in self.parameters())


@dataclass(frozen=True)
class HuggingFace:
    """A family's model in Hugging Face's transformers, whose names PEFT's adapters have too."""

    prefix: str = ""  # before every name but that of a head
    is_in_out: bool = False  # matrices of blocks are stored (in, out): PEFT's fan_in_fan_out
    label_head: str = ""  # a classifier's rows (n_labels, C)
    # Content of config.json, of a classifier or not; None where transformers has no such model.
    config: Callable[[Any, bool], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Family:
    """A model family. `config` arguments are instances of its config class."""

    config: type[Any]
    model: Callable[[Any], LanguageModel]
    presets: Mapping[str, Mapping[str, int]]  # sizes by the preset's name
    tensors: Callable[[Any], Iterable[TensorSpec]]  # in file order
    sizes: tuple[SizeKey, ...]  # of general.architecture's own keys, in file order
    graph: Callable[[Any], Iterable[Operation]]  # in llama.cpp's order
    # The config that llama.cpp's graph computes, and what a file has tensors multiplied with, by
    # checkpoint name, so that it computes the same. The name of each tensor's type is given.
    in_llama_cpp: Callable[[Any, Callable[[TensorSpec], str]], tuple[Any, Mapping[str, float]]] = (
        lambda config, _type_of: (config, {})
    )
    huggingface: HuggingFace = field(default_factory=HuggingFace)

    @property
    def name(self) -> str:
        """As config.json and general.architecture have it."""
        return str(self.config.architecture)
