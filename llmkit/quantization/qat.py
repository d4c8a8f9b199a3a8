"""Training for the grid: compute with the weights that a file's blocks hold, learn the floats.

The blocks of a GGUF type can hold only some numbers, their grid. Here the model computes with the
weights rounded to it in every step, and the gradient of each rounded weight moves the float that it
was rounded from: the straight-through estimator (Bengio et al. 2013,
https://arxiv.org/abs/1308.3432), with the floats kept as Courbariaux et al. 2015 do
(https://arxiv.org/abs/1511.00363).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from llmkit.architectures.base import LanguageModel, ModelConfig
from llmkit.architectures.registry import in_llama_cpp, tensor_specs
from llmkit.errors import ConfigError
from llmkit.quant.rounding import Repacked, Rounding
from llmkit.quant.types import QuantType
from llmkit.quantization.tensor_types import Quantization

Roundings = Mapping[str, Rounding]  # of each matrix, by checkpoint name


def matrix_types(config: ModelConfig, quantization: Quantization) -> dict[str, QuantType]:
    """The types of a model's matrices in a file, by checkpoint name.

    Raises ConfigError where a file has other weights than the checkpoint.
    """
    if in_llama_cpp(config, lambda spec: quantization.type_of(spec, config).name)[1]:
        raise ConfigError(
            f"training on {quantization.name} blocks is not possible: llama.cpp has no ReLU, so "
            "a GGUF file has other weights than this model; train without --qat and --quant"
        )
    return {
        spec.checkpoint_name: quantization.type_of(spec, config)
        for spec in tensor_specs(config)
        if spec.is_matrix
    }


def rounded(weights: Tensor, qtype: QuantType, name: str) -> Tensor:
    """What the blocks of weights (out, in) hold once packed. Raises QuantizationError."""
    return Repacked(qtype, name).rounded(weights)


def packed(grid: Roundings, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The blocks of all matrices, (rows, row_bytes). Raises QuantizationError naming a tensor."""
    return {name: torch.from_numpy(grid[name].packed(weights[name])) for name in grid}


@contextmanager
def on_grid(model: LanguageModel, grid: Roundings) -> Iterator[None]:
    """Let the model compute with its matrices rounded; afterwards they are the floats again.

    Gradients of a backward pass inside are those of the rounded weights, and stay with the
    floats. Raises QuantizationError where a weight cannot be packed.
    """
    floats = {name: model.get_parameter(name).data for name in grid}
    try:
        for name, rounding in grid.items():
            model.get_parameter(name).data = rounding.rounded(floats[name])
        yield
    finally:
        for name, weights in floats.items():
            model.get_parameter(name).data = weights
