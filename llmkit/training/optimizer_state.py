"""State of optimizers as named tensors: PARAMETER.ENTRY."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.tensors import open_tensors


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
    names = {parameter: name for name, parameter in model.named_parameters()}
    with open_tensors(path) as tensors:
        saved: dict[str, dict[str, torch.Tensor]] = {}
        for key in tensors.keys():  # noqa: SIM118
            name, _, entry = key.rpartition(".")
            saved.setdefault(name, {})[entry] = tensors.get_tensor(key)
    for optimizer in optimizers:
        for parameter in _parameters_of(optimizer):
            entries = saved.get(names[parameter], {})
            optimizer.state[parameter] = {
                entry: tensor.to(parameter.device) for entry, tensor in entries.items()
            }
