"""What happens inside a model: attention weights, logits after each layer, embeddings' neighbours.

Everything is read from the model while it runs, so it holds for any family whose blocks call
`F.scaled_dot_product_attention`. GPT-2's do in float32, in which models are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from llmkit.architectures.base import LanguageModel


@torch.inference_mode()
def attention_weights(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    """How much each token looks at each token: (L, H, T, T), each row adds up to 1.

    [l, h, t, s] is the weight of token s in what head h of layer l reads at token t. Raises
    ConfigError for more tokens than the context length.
    """
    with _AttentionWeights() as seen:
        model.hidden_states(_batch(model, ids))
    return torch.stack(seen.weights)


@torch.inference_mode()
def layer_logits(model: LanguageModel, ids: Sequence[int]) -> Iterator[Tensor]:
    """Yield what the head would say (T, V) of the embeddings, then of the output of each block.

    This is the logit lens: the final norm and the head, applied early. The last are the model's
    own logits. One layer's logits are in memory at a time. Raises ConfigError for more tokens than
    the context length.
    """
    model.refuse_too_long(len(ids))
    hidden = model.embed(_batch(model, ids))
    yield model.logits(model.final_norm(hidden))[0]
    for block in model.blocks:
        hidden = model.run_block(block, hidden, None)
        yield model.logits(model.final_norm(hidden))[0]


@torch.inference_mode()
def nearest_embeddings(model: LanguageModel, token_id: int, count: int) -> list[tuple[int, float]]:
    """The tokens whose embeddings are nearest to a token's, with the cosine; without itself."""
    table = model.token_embedding.weight
    cosines = F.cosine_similarity(table, table[token_id : token_id + 1])  # (V,)
    cosines[token_id] = -torch.inf
    nearest = torch.topk(cosines, min(count, len(cosines) - 1))
    return list(zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True))


def _batch(model: LanguageModel, ids: Sequence[int]) -> Tensor:
    return torch.tensor([ids], device=model.device)


class _AttentionWeights(TorchFunctionMode):
    """Computes the weights of each call of fused attention again, which does not return them."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []  # (H, T, T) of each call

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            self.weights.append(_weights(*args, **(kwargs or {}))[0])
        return func(*args, **(kwargs or {}))


def _weights(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Queries and keys (B, H, T, D) -> (B, H, T, T), as PyTorch's documentation defines it."""
    if enable_gqa:
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1)
