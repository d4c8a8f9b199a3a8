"""A GPT-2 shaped language model, to be read from top to bottom.

Shapes in comments: B sequences, T tokens, C = n_embd channels, H heads of D = C / H channels,
V tokens in the vocabulary. Parameter names are GPT-2's (wte, wpe, h.0.attn.c_attn, ...);
weights are stored (out, in) as torch.nn.Linear has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmkit.architectures.config import GPTConfig
from llmkit.errors import ConfigError


def attention_by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention spelled out: scores, mask, softmax, weighted sum.

    q, k, v: (B, H, T, D) -> (B, H, T, D). The model runs F.scaled_dot_product_attention, which
    computes the same in one fused call; a test holds the two equal.
    """
    T, D = q.shape[-2:]
    scores = q @ k.transpose(-2, -1) / math.sqrt(D)  # (B, H, T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)  # each row sums to 1
    return weights @ v


def gelu(x: Tensor) -> Tensor:
    """GELU by the tanh formula, as GPT-2 and llama.cpp's gpt2 graph have it."""
    return F.gelu(x, approximate="tanh")


@dataclass
class KVCache:
    """Keys and values of the tokens seen so far, a pair (B, H, T, D) per layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of tokens seen."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens' keys and values of a layer; return all of them."""
        if layer == len(self.layers):
            self.layers.append((k, v))
        else:
            past_k, past_v = self.layers[layer]
            self.layers[layer] = (torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2))
        return self.layers[layer]


class CausalSelfAttention(nn.Module):
    """Every token looks at itself and the tokens before it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.qkv_bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        """Attend and mix the heads: (B, T, C) -> (B, T, C)."""
        return self.c_proj(self.attend(self.c_attn(x), cache))  # type: ignore[no-any-return]

    def attend(self, qkv: Tensor, cache: KVCache | None = None) -> Tensor:
        """What each head saw, side by side: queries, keys and values (B, T, 3C) -> (B, T, C)."""
        B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in torch.split(qkv, C, dim=2)
        )
        mask = None
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, H, S, D), S = tokens seen + T
            S = k.shape[2]
            mask = torch.ones(T, S, dtype=torch.bool, device=qkv.device).tril(S - T)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return y.transpose(1, 2).reshape(B, T, C)


class FeedForward(nn.Module):
    """Two linear layers with GELU between, applied to each token alone."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.n_ff)
        self.c_proj = nn.Linear(config.n_ff, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Transform: (B, T, C) -> (B, T, C)."""
        return self.c_proj(gelu(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then feed-forward; each on a normalised copy and added to the stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        """Add what attention and feed-forward say: (B, T, C) -> (B, T, C)."""
        x = x + self.dropout(self.attn(self.ln_1(x), cache))
        return x + self.dropout(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Token ids in, a logit for every token of the vocabulary out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.context_length, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        # A tied head is the token embedding itself and has no parameters of its own.
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        )
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """GPT-2's start: N(0, 0.02), smaller where 2 n_layer outputs add up in the stream."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, CausalSelfAttention | FeedForward):
            nn.init.normal_(module.c_proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) for token ids (B, T); see `hidden_states` for the cache."""
        return self.logits(self.hidden_states(tokens, cache))

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head says of hidden states: (..., C) -> (..., V)."""
        head = self.wte.weight if self.lm_head is None else self.lm_head.weight  # (V, C)
        return F.linear(hidden, head)

    def hidden_states(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Normalised outputs (B, T, C) of the last block for token ids (B, T).

        With a cache, `tokens` go on where it ends, and it grows by them. Raises ConfigError
        where the tokens reach past context_length.
        """
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        if end > self.config.context_length:
            raise ConfigError(
                f"{end} tokens exceed the model's context length of {self.config.context_length}"
            )
        positions = torch.arange(start, end, device=tokens.device)  # (T,)
        return self.transform(self.wte(tokens) + self.wpe(positions), cache)

    def transform(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the blocks make of embedded tokens: (B, T, C) -> (B, T, C), normalised."""
        x = self.dropout(x)
        for block in self.h:
            x = block(x, cache)
        return self.ln_f(x)  # type: ignore[no-any-return]

    @property
    def blocks(self) -> list[Block]:
        """The blocks in the order in which they are run."""
        return [block for block in self.h if isinstance(block, Block)]

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.wpe.weight.device  # never packed, as wte may be

    def n_parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.numel() for p in self.parameters())


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


def gpt_without_weights(config: GPTConfig) -> GPT:
    """A GPT of names and shapes alone, on the meta device: weights are to be assigned.

    It initialises nothing: random numbers on the meta device make PyTorch import its compiler,
    which takes a second or more.
    """
    with torch.device("meta"), _NoInitialisation():
        return GPT(config)
