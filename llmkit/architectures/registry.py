"""The model families by name, and what is asked of a model whatever its family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llmkit.architectures.base import Family, LanguageModel, ModelConfig, TensorSpec, head_role
from llmkit.architectures.gpt2 import GPT2, sizes_at_depth
from llmkit.errors import ConfigError, unknown_name
from llmkit.validation import validated

FAMILIES: dict[str, Family] = {family.name: family for family in (GPT2,)}


def family(name: str) -> Family:
    """The family of this name. Raises ConfigError where there is none."""
    if name not in FAMILIES:
        raise ConfigError(unknown_name("architecture", name, FAMILIES))
    return FAMILIES[name]


def family_of(config: ModelConfig) -> Family:
    """The family that a config belongs to."""
    return FAMILIES[config.architecture]


def presets() -> dict[str, Mapping[str, int]]:
    """The sizes of every preset."""
    return {name: sizes for known in FAMILIES.values() for name, sizes in known.presets.items()}


def model_config(preset: str | int, /, vocab_size: int, **changes: Any) -> ModelConfig:
    """Sizes of a preset or a depth for a vocabulary, with single fields changed by name.

    Raises ConfigError for an unknown preset or field and for values that do not fit.
    """
    known = family_with(preset)
    fields = {**sizes_of(preset), "vocab_size": vocab_size, **changes}
    config: ModelConfig = validated(known.config, fields, "model")
    return config


def sizes_of(preset: str | int) -> Mapping[str, int]:
    """The sizes of a preset or a depth. Raises ConfigError where there is none."""
    if isinstance(preset, int):
        return sizes_at_depth(preset)
    return family_with(preset).presets[preset]


def family_with(preset: str | int) -> Family:
    """The family that a preset or a depth is of.

    Raises ConfigError with the nearest name if there is no such preset.
    """
    if isinstance(preset, int):
        return GPT2
    for known in FAMILIES.values():
        if preset in known.presets:
            return known
    raise ConfigError(unknown_name("preset", preset, presets()))


def tensor_specs(config: ModelConfig) -> list[TensorSpec]:
    """Every tensor of a model with these sizes, in file order."""
    return list(family_of(config).tensors(config))


def in_llama_cpp(
    config: ModelConfig, type_of: Callable[[TensorSpec], str]
) -> tuple[ModelConfig, Mapping[str, float]]:
    """What llama.cpp's graph computes, and what a file's tensors are multiplied with for it."""
    return family_of(config).in_llama_cpp(config, type_of)


def head_spec(config: ModelConfig) -> TensorSpec:
    """The matrix that makes the logits: the head, or the token embedding where they are tied."""
    role = head_role(config)
    return next(spec for spec in tensor_specs(config) if spec.role is role)


def block_matrices() -> list[str]:
    """What the matrices of a block are called within it, of every family."""
    names: dict[str, None] = {}
    for known in FAMILIES.values():
        sizes = next(iter(known.presets.values()))
        config = known.config(vocab_size=1, **sizes)
        for spec in known.tensors(config):
            if spec.layer == 0 and spec.is_block_matrix:
                names[spec.module_in_block] = None
    return list(names)


def new_model(config: ModelConfig) -> LanguageModel:
    """A model with random weights."""
    return family_of(config).model(config)


def model_without_weights(config: ModelConfig) -> LanguageModel:
    """A model of names and shapes alone, on the meta device: weights are to be assigned.

    It initialises nothing: random numbers on the meta device make PyTorch import its compiler,
    which takes a second or more.
    """
    with torch.device("meta"), _NoInitialisation():
        return new_model(config)


class _NoInitialisation(TorchFunctionMode):
    """Makes the functions of torch.nn.init leave tensors as they are."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
