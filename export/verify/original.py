"""The checkpoint's own model in memory that one layer takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llmkit.architectures.gpt2 import gpt_without_weights
from llmkit.checkpoint.checkpoint import HEAD, Checkpoint


@torch.inference_mode()
def original_hidden_states(checkpoint: Checkpoint, texts: Sequence[Tensor]) -> Tensor:
    """Normalised outputs (T, C) of the last block for token ids: T tokens of all texts.

    All texts go through a block before the next is read. An adapter is merged.
    """
    model = gpt_without_weights(checkpoint.config).eval()
    _load(checkpoint, model.wte, "wte")
    _load(checkpoint, model.wpe, "wpe")
    streams = [model.wte(ids)[None] + model.wpe.weight[: len(ids)] for ids in texts]  # (1, T, C)
    model.wte.to("meta")
    for number, block in enumerate(model.blocks):
        _load(checkpoint, block, f"h.{number}")
        streams = [block(x, None) for x in streams]
        block.to("meta")
    _load(checkpoint, model.ln_f, "ln_f")
    return torch.cat([model.ln_f(x)[0] for x in streams])


def original_head(checkpoint: Checkpoint) -> Tensor:
    """The matrix (V, C) that makes the logits."""
    with checkpoint.open_merged() as tensors:
        return tensors.get_tensor("wte.weight" if checkpoint.config.tie_embeddings else HEAD)


def _load(checkpoint: Checkpoint, module: nn.Module, name: str) -> None:
    """Give a module its weights. The file is open no longer: what is mapped of it counts."""
    with checkpoint.open_merged() as tensors:
        weights = {key: tensors.get_tensor(f"{name}.{key}") for key in module.state_dict()}
    module.load_state_dict(weights, assign=True)
