"""State of optimizers as named tensors: PARAMETER.ENTRY."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.tensors import open_tensors
from llmkit.training.distributed import divided


def optimizer_tensors(
    model: LanguageModel, optimizers: Iterable[torch.optim.Optimizer]
) -> dict[str, torch.Tensor]:
    """What a file keeps of them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{entry}": tensor
        for optimizer in optimizers
        for parameter in _parameters_of(optimizer)
        for entry, tensor in optimizer.state[parameter].items()
    }


def _parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def load_optimizers(
    path: Path, model: LanguageModel, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Put back what the file keeps."""
    optimizer_of = {p: optimizer for optimizer in optimizers for p in _parameters_of(optimizer)}
    parameters = dict(model.named_parameters())
    with open_tensors(path) as tensors:
        for key in tensors.keys():  # noqa: SIM118
            name, _, entry = key.rpartition(".")
            parameter = parameters[name]
            saved = tensors.get_tensor(key).to(parameter.device)
            if saved.shape == parameter.shape:
                saved = divided(saved, parameter)
            optimizer_of[parameter].state[parameter][entry] = saved
