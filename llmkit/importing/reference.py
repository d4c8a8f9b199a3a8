"""The proof of an import: its logits against those that the model's own program computed."""

from __future__ import annotations

import itertools
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.gpt2 import ACTIVATIONS
from llmkit.console import progress
from llmkit.errors import ConfigError
from llmkit.importing.assemble import Vocabulary, in_order
from llmkit.importing.facts import QKV_ORDERS, Fact, Facts, divisors
from llmkit.importing.naming.parts import Layer, Linear, Parts

LIMIT = 1e-4  # of logits in float32, where the largest is below 10
_RELATIVE = 1e-5
_TRIED_TOKENS = 64  # of one text, for the search of what would fit
_SEARCH_SECONDS = 60

_OTHER_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # llama.cpp's graph has none of them
    "silu": F.silu,
    "relu_squared": lambda x: F.relu(x).square(),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}
_IMPOSSIBLE = (  # facts with which a model is not imported
    ("norm", "post"),
    ("norm_type", "rms"),
    ("mask", "none"),
    *(("activation", name) for name in _OTHER_ACTIVATIONS),
)


@dataclass(frozen=True)
class ReferenceLogits:
    """`tokens` (B, T) and the `logits` (B, T, V), or (B, 1, V), of the model's own program."""

    tokens: Tensor
    logits: Tensor

    @property
    def limit(self) -> float:
        """The largest difference that float32 explains."""
        largest = float(self.logits.abs().max())
        return max(LIMIT, _RELATIVE * largest)


@dataclass(frozen=True)
class ImportProof:
    """The largest difference of a logit, over how many positions."""

    max_difference: float
    limit: float
    n_positions: int

    @property
    def passed(self) -> bool:
        """Whether the import computes what the program did."""
        return self.max_difference <= self.limit


def read_reference(path: Path) -> ReferenceLogits:
    """Read an .npz file. Raises ConfigError where it is none with `tokens` and `logits`."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            tokens, logits = np.asarray(arrays["tokens"]), np.asarray(arrays["logits"])
    except (OSError, ValueError, LookupError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(
            f"{path} is not a file of reference logits ({error}); save it with "
            "numpy.savez(FILE, tokens=..., logits=...)"
        ) from error
    if tokens.ndim == 1:
        tokens = tokens[None]
    if logits.ndim == 2:
        logits = logits[None] if len(tokens) == 1 else logits[:, None]
    fits = tokens.ndim == 2 and logits.ndim == 3 and len(tokens) == len(logits)
    if not fits or logits.shape[1] not in (1, tokens.shape[1]):
        raise ConfigError(
            f"{path}: tokens has shape {tokens.shape} and logits {logits.shape}; expected (B, T) "
            "and (B, T, V)"
        )
    if not np.issubdtype(tokens.dtype, np.integer):
        raise ConfigError(f"{path}: tokens are {tokens.dtype}; expected integers")
    if not np.isfinite(logits.astype(np.float64)).all():
        raise ConfigError(f"{path}: logits have NaN or infinity")
    return ReferenceLogits(
        torch.from_numpy(tokens.astype(np.int64)), torch.from_numpy(logits.astype(np.float32))
    )


def check_reference(reference: ReferenceLogits, n_tokens: int, context_length: int) -> None:
    """Raise ConfigError for tokens that the model cannot read."""
    low, high = int(reference.tokens.min()), int(reference.tokens.max())
    if low < 0 or high >= n_tokens:
        raise ConfigError(
            f"the reference has token {high if high >= n_tokens else low}, but the tokenizer's are "
            f"0 to {n_tokens - 1}; make it with these"
        )
    if reference.tokens.shape[1] > context_length:
        raise ConfigError(
            f"the reference has {reference.tokens.shape[1]} tokens in a row, but the model's "
            f"context is {context_length}"
        )


@torch.inference_mode()
def prove(model: LanguageModel, reference: ReferenceLogits, vocabulary: Vocabulary) -> ImportProof:
    """Compare at every position, over the tokens that the program's model has."""
    n_last = reference.logits.shape[1]
    worst = 0.0
    ids = list(vocabulary.labels)
    with progress("compare logits", len(reference.tokens), "texts") as bar:
        for number, (tokens, wanted) in enumerate(
            zip(reference.tokens, reference.logits, strict=True), start=1
        ):
            found = model(tokens[None])[0, -n_last:]
            if ids:
                found = found[:, ids]
            n = min(found.shape[1], wanted.shape[1], vocabulary.n_kept if not ids else len(ids))
            worst = max(worst, float((found[:, :n] - wanted[:, :n]).abs().max()))
            bar.update(number)
    return ImportProof(worst, reference.limit, n_last * len(reference.tokens))


@dataclass(frozen=True)
class Alternative:
    """Other facts with which the logits agree."""

    changed: dict[str, object]
    difference: float

    @property
    def is_possible(self) -> bool:
        """Whether a model with them can be imported."""
        return not any(change in _IMPOSSIBLE for change in self.changed.items())


def find_alternative(
    parts: Parts, facts: Facts, reference: ReferenceLogits, vocabulary: Vocabulary
) -> Alternative | None:
    """The known mistakes one by one, then two and three at once: which makes the logits agree."""
    end = time.monotonic() + _SEARCH_SECONDS
    for changes in _changes(parts, facts):
        if time.monotonic() > end:
            break
        tried = facts
        for name, value in changes.items():
            tried = tried.with_value(name, value)
        difference = _difference(parts, tried, reference)
        if difference <= reference.limit:
            return Alternative(changes, difference)
    return None


def with_fitting_heads(parts: Parts, facts: Facts, reference: ReferenceLogits) -> Facts:
    """The facts with the number of heads that makes the logits agree; as they are if none does."""
    for n in _possible_heads(parts):
        tried = replace(facts, n_head=Fact(n, "the logits of the reference"))
        if _difference(parts, tried, reference) <= reference.limit:
            return tried
    return facts


def _difference(parts: Parts, facts: Facts, reference: ReferenceLogits) -> float:
    tokens, wanted = reference.tokens[0], reference.logits[0]
    if facts.mask.value == "causal" and len(wanted) == len(tokens):
        # Later tokens do not change the logits of these.
        tokens, wanted = tokens[:_TRIED_TOKENS], wanted[:_TRIED_TOKENS]
    found = logits_of(parts, facts, tokens)
    n = min(found.shape[1], wanted.shape[1])
    return float((found[-len(wanted) :, :n] - wanted[:, :n]).abs().max())


def _possible_heads(parts: Parts) -> list[int]:
    return [n for n in divisors(parts.n_embd) if n <= 128] if len(parts.layers[0].q) <= 1 else []


def _changes(parts: Parts, facts: Facts) -> Iterator[dict[str, object]]:
    values: dict[str, list[object]] = {
        "activation": [*ACTIVATIONS, *_OTHER_ACTIVATIONS],
        "n_head": list(_possible_heads(parts)),
        "norm": ["pre", "post"],
        "norm_type": ["layer", "rms"],
        "mask": ["causal", "none"],
        "attention_scale": ["head", "embd", "none"],
        "layer_norm_epsilon": [1e-5, 1e-6, 1e-12, 1e-8],
        "embedding_scale": ["none", "sqrt"],
        "qkv_order": list(QKV_ORDERS) if parts.layers[0].qkv is not None else [],
    }
    single = [
        (name, value)
        for name, options in values.items()
        for value in options
        if value != getattr(facts, name).value
    ]
    for size in (1, 2, 3):
        for changes in itertools.combinations(single, size):
            if len(dict(changes)) == size:
                yield dict(changes)


@torch.inference_mode()
def logits_of(parts: Parts, facts: Facts, tokens: Tensor) -> Tensor:
    """A GPT as `facts` describe it, post-norm and unmasked ones too: ids (T,) -> logits (T, V)."""
    T, eps = len(tokens), float(facts.layer_norm_epsilon.value)
    is_post = facts.norm.value == "post"

    def norm(x: Tensor, module: Linear) -> Tensor:
        weight, bias = module.weight.float(), module.bias
        if facts.norm_type.value == "rms":
            return F.rms_norm(x, weight.shape, weight, eps)
        return F.layer_norm(x, weight.shape, weight, None if bias is None else bias.float(), eps)

    def linear(x: Tensor, module: Linear) -> Tensor:
        weight = module.weight.T if parts.is_transposed else module.weight
        return F.linear(x, weight.float(), None if module.bias is None else module.bias.float())

    activation = (ACTIVATIONS | _OTHER_ACTIVATIONS)[facts.activation.value]

    def attend(x: Tensor, layer: Layer, number: int) -> Tensor:
        if layer.qkv is not None:
            fused = linear(x, layer.qkv).T
            parted = in_order(fused, facts.qkv_order.value, int(facts.n_head.value))
            q, k, v = (part.T for part in parted)
        else:
            q, k, v = (
                torch.cat([linear(x, head) for head in heads], 1)
                for heads in (layer.q, layer.k, layer.v)
            )
        H = int(facts.n_head.value)
        q, k, v = (part.reshape(T, H, -1).transpose(0, 1) for part in (q, k, v))  # (H, T, D)
        scale = facts.score_factor(parts.n_embd)
        if facts.is_scaled_by_layer.value:
            scale /= number + 1
        causal = facts.mask.value == "causal"
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        y = y.transpose(0, 1).reshape(T, -1)
        return y if layer.attention_output is None else linear(y, layer.attention_output)

    def feed_forward(x: Tensor, layer: Layer) -> Tensor:
        if layer.up is None or layer.down is None:
            return x
        return linear(activation(linear(x, layer.up)), layer.down)

    x = parts.tokens.weight[tokens].float() * facts.embedding_factor(parts.n_embd)
    x = x + parts.positions.weight[:T].float()
    for number, layer in enumerate(parts.layers):
        first, second = layer.norms
        if is_post:
            x = norm(x + attend(x, layer, number), first)
            x = norm(x + feed_forward(x, layer), second)
        else:
            x = x + attend(norm(x, first), layer, number)
            x = x + feed_forward(norm(x, second), layer)
    logits = F.linear(norm(x, parts.final_norm), parts.head_weight.float())
    bias = parts.head.bias if parts.head is not None else None
    return logits if bias is None else logits + bias.float()
