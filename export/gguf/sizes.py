"""What a GGUF file says of its model, whatever its architecture.

Keys have the architecture's name as prefix, as in `llama.block_count`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from llmkit.architectures.base import GGUF_HEAD, ModelConfig, Role, TensorSpec
from llmkit.architectures.registry import FAMILIES, family_of, tensor_specs
from llmkit.errors import GGUFError
from llmkit.export.gguf.reader import GGUFFile, config_of
from llmkit.export.gguf.tensor_roles import is_gate, role_of

_LLM, _ATTENTION = gguf.Keys.LLM, gguf.Keys.Attention
_MANY = 4  # query heads of one value head, from which on presets give values more bits


@dataclass(frozen=True)
class ModelSizes:
    """Sizes that memory and types depend on."""

    context_length: int
    n_layer: int
    n_embd: int
    vocab_size: int
    n_cached: int  # numbers that the KV cache holds of one token
    n_feed_forward: int  # numbers of one token that a feed-forward layer computes at once
    heads_per_value: int  # query heads that share a value head
    tie_embeddings: bool


def architecture_of(file: GGUFFile) -> str:
    """The file's architecture. Raises GGUFError if it names none."""
    found = file.metadata.get(gguf.Keys.General.ARCHITECTURE)
    if not isinstance(found, str):
        raise GGUFError(f"{file.path} does not name its architecture; is it a model?")
    return found


def sizes_of(file: GGUFFile) -> ModelSizes:
    """The sizes that a file states. Raises GGUFError naming a key that is missing."""
    return _sizes(architecture_of(file), file.metadata, _shapes(file), str(file.path))


def sizes_of_config(config: ModelConfig) -> ModelSizes:
    """The sizes that a file of such a model states."""
    known = family_of(config)
    keys = {size.key.format(arch=known.name): getattr(config, size.size) for size in known.sizes}
    shapes = {spec.gguf_name: spec.shape for spec in known.tensors(config)}
    return _sizes(known.name, keys, shapes, known.name)


def specs_of(file: GGUFFile) -> list[TensorSpec]:
    """What each tensor of a file is for.

    Checkpoint names are the GGUF names where llmkit does not know the model family.
    """
    known = {}
    if architecture_of(file) in FAMILIES:
        known = {spec.gguf_name: spec for spec in tensor_specs(config_of(file))}
    sizes = sizes_of(file)
    return [
        known.get(name) or named_spec(name, shape, sizes) for name, shape in _shapes(file).items()
    ]


def named_spec(name: str, shape: tuple[int, ...], sizes: ModelSizes) -> TensorSpec:
    """What a tensor is for, by its name."""
    role = role_of(name, shape)
    if role is Role.QKV and sizes.heads_per_value >= _MANY:
        role = Role.SHARED_VALUE
    block = re.match(r"blk\.(\d+)\.", name)
    return TensorSpec(name, name, shape, role, int(block[1]) if block else None)


def _shapes(file: GGUFFile) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in file.tensors.items()}


def _sizes(
    architecture: str,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    source: str,
) -> ModelSizes:
    def per_layer(key: str, default: int | None = None) -> list[int]:
        """A number for each layer; files of some architectures state one for all."""
        name = key.format(arch=architecture)
        found = metadata.get(name, default)
        if found is None:
            raise GGUFError(f"{source} has no {name}; export it again")
        values = found if isinstance(found, list) else [found] * n_layer
        if len(values) < n_layer or not all(isinstance(value, int) for value in values):
            raise GGUFError(f"{source}: {name} is not an integer, or not one for each layer")
        return list(values[:n_layer])

    def number(key: str, default: int | None = None) -> int:
        return max(per_layer(key, default))

    n_layer = 1  # of a number that is not a layer's
    n_layer = number(_LLM.BLOCK_COUNT)
    if not 0 < n_layer <= len(shapes):  # damage: every size derived from it would be huge
        raise GGUFError(
            f"{source}: the metadata says {n_layer} layers, but the file has only {len(shapes)} "
            "tensors; export or copy it again"
        )
    n_embd = number(_LLM.EMBEDDING_LENGTH)
    n_head = number(_ATTENTION.HEAD_COUNT, 0)  # none in a recurrent model
    value_heads = per_layer(_ATTENTION.HEAD_COUNT_KV, n_head)
    length = n_embd // n_head if n_head else 0
    head = number(_ATTENTION.KEY_LENGTH, length) + number(_ATTENTION.VALUE_LENGTH, length)
    n_tokens = [
        shape[0] for name, shape in shapes.items() if role_of(name, shape) is Role.TOKEN_EMBEDDING
    ]
    return ModelSizes(
        context_length=number(_LLM.CONTEXT_LENGTH),
        n_layer=n_layer,
        n_embd=n_embd,
        vocab_size=max(n_tokens, default=0),
        n_cached=head * sum(value_heads),
        n_feed_forward=_n_feed_forward(number, shapes, 4 * n_embd),
        heads_per_value=n_head // max(1, max(value_heads)),
        tie_embeddings=GGUF_HEAD not in shapes,
    )


def _n_feed_forward(number: Callable[[str, int], int], names: Collection[str], usual: int) -> int:
    """Input and output of the activation; with a gate two inputs, their product and a spare."""
    width = number(_LLM.FEED_FORWARD_LENGTH, usual)
    n_experts = number(_LLM.EXPERT_USED_COUNT, 0)
    if n_experts:
        width = max(width, n_experts * number(_LLM.EXPERT_FEED_FORWARD_LENGTH, width))
    return (4 if any(map(is_gate, names)) else 2) * width
