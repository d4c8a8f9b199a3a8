"""LoRA matrices in a state dict, merged into the weights that they correct."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from llmkit.errors import CheckpointError, ConfigError

# The book's appendix E: NAME.linear.weight beside NAME.lora.A (in, r) and NAME.lora.B (r, out).
_WRAPPED = re.compile(r"(.*)\.linear\.(weight|bias)")
_HALF = re.compile(r"(.*)\.lora\.(A|B)")


def merged(tensors: Mapping[str, Tensor], alpha: float | None) -> tuple[dict[str, Tensor], int]:
    """The tensors with W + alpha/rank (A B)^T in the place of W, and how many have it.

    Raises ConfigError without alpha, which no file has; CheckpointError for another kind of LoRA.
    """
    halves = {name: found for name in tensors if (found := _HALF.fullmatch(name))}
    if other := sorted(n for n in tensors if "lora" in n.lower() and n not in halves):
        raise CheckpointError(
            f"{other[0]} is a LoRA matrix of another kind than the book's; merge it in the program "
            "that trained it, and save the whole model"
        )
    if not halves:
        if alpha is not None:
            raise ConfigError("--lora-alpha: the file has no LoRA matrices; omit it")
        return dict(tensors), 0
    if alpha is None:
        rank = next(tensors[name].shape[1] for name, found in halves.items() if found[2] == "A")
        raise ConfigError(
            f"the model has LoRA matrices of rank {rank}; give --lora-alpha, as in the program "
            "that trained it: no file has it"
        )
    result: dict[str, Tensor] = {}
    modules = {found[1] for found in halves.values()}
    for name, tensor in tensors.items():
        if name in halves:
            continue
        wrapped = _WRAPPED.fullmatch(name)
        if not wrapped or wrapped[1] not in modules:
            result[name] = tensor
            continue
        plain = f"{wrapped[1]}.{wrapped[2]}"
        result[plain] = tensor
        if wrapped[2] == "weight":
            pair = [tensors.get(f"{wrapped[1]}.lora.{half}") for half in "AB"]
            a, b = pair
            if a is None or b is None or (a.shape[0], b.shape[1]) != tuple(tensor.shape[::-1]):
                raise CheckpointError(f"{wrapped[1]}: its LoRA matrices do not fit its weight")
            result[plain] = tensor.float() + alpha / a.shape[1] * (a.float() @ b.float()).T
    return result, len(modules)
