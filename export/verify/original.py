"""The checkpoint's own model in memory that one layer takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.registry import head_spec, model_without_weights, tensor_specs
from llmkit.checkpoint.checkpoint import Checkpoint


@torch.inference_mode()
def original_hidden_states(checkpoint: Checkpoint, texts: Sequence[Tensor]) -> Tensor:
    """Normalised outputs (T, C) of the last block for token ids: T tokens of all texts.

    All texts go through a block before the next is read. An adapter is merged.
    """
    model = model_without_weights(checkpoint.config).eval()
    specs = [spec for spec in tensor_specs(checkpoint.config) if not spec.is_absent]
    around = {spec.checkpoint_name for spec in specs if spec.layer is None}
    _load(checkpoint, model, around)
    streams = [model.embed(ids[None]) for ids in texts]  # (1, T, C)
    model.token_embedding.to("meta")
    for layer, block in enumerate(model.blocks):
        _load(checkpoint, model, {s.checkpoint_name for s in specs if s.layer == layer})
        streams = [block(x, None) for x in streams]
        block.to("meta")
    return torch.cat([model.final_norm(x)[0] for x in streams])


def original_head(checkpoint: Checkpoint) -> Tensor:
    """The matrix (V, C) that makes the logits."""
    with checkpoint.open_merged() as tensors:
        return tensors.get_tensor(head_spec(checkpoint.config).checkpoint_name)


def _load(checkpoint: Checkpoint, model: LanguageModel, names: Collection[str]) -> None:
    """Give a model some weights. The file is open no longer: what is mapped of it counts."""
    with checkpoint.open_merged() as tensors:
        weights = {name: tensors.get_tensor(name) for name in names}
    model.load_state_dict(weights, strict=False, assign=True)
