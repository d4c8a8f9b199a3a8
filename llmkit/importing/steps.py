"""The table of an import: what became of the source's tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.importing.assemble import Vocabulary, is_folded
from llmkit.importing.facts import Facts
from llmkit.importing.naming.parts import Linear, Parts


@dataclass(frozen=True)
class Step:
    """What became of tensors of the source, and why."""

    source: str
    target: str
    done: str


def steps_of(parts: Parts, facts: Facts, vocabulary: Vocabulary, is_tied: bool) -> list[Step]:
    """What went where, for a checkpoint whose head is tied or not."""
    layer = parts.layers[0]
    steps = [
        Step(parts.tokens.name, "token embedding", _embedding(parts, facts, vocabulary)),
        Step(parts.positions.name, "position embedding", "copied"),
        *_attention_steps(parts, facts),
    ]
    turned = ", transposed" if parts.is_transposed else ""
    for linear, target in (
        (layer.attention_output, "attention output"),
        (layer.up, "feed-forward up"),
        (layer.down, "feed-forward down"),
        (layer.norms[0], "norm before attention"),
        (layer.norms[1], "norm before feed-forward"),
    ):
        if linear is None:
            steps.append(Step("none", target, "identity: the model has none"))
            continue
        done = "copied" + (turned if linear.weight.ndim == 2 else "")
        if linear.bias is None:
            done += ", zeros for its bias"
        steps.append(Step(_of_all_layers(linear), target, done))
    if not layer.has_qkv_bias:
        steps.append(Step("none", "bias of queries, keys, values", "zeros: the model has none"))
    done = "folded into the head" if is_folded(parts, vocabulary) else "copied"
    steps.append(Step(parts.final_norm.name, "norm before the head", done))
    head = "tied to the token embedding" if is_tied else _head(parts, vocabulary)
    steps.append(Step(parts.head.name if parts.head else "none", "head", head))
    if parts.ignored:
        more = f" and {len(parts.ignored) - 1} more" if len(parts.ignored) > 1 else ""
        steps.append(Step(parts.ignored[0] + more, "nothing", "ignored: masks and positions"))
    return steps


def _embedding(parts: Parts, facts: Facts, vocabulary: Vocabulary) -> str:
    kept, rows = vocabulary.n_kept, len(parts.tokens.weight)
    done = "copied" if kept == rows else f"cropped from {rows:,} to {kept:,} rows: no such tokens"
    if vocabulary.n_new:
        done += f", {vocabulary.n_new:,} tokens added that are never said"
    if (factor := facts.embedding_factor(parts.n_embd)) != 1:
        done += f", times {factor:.4g}"
    return done


def _attention_steps(parts: Parts, facts: Facts) -> Iterator[Step]:
    layer, target = parts.layers[0], "queries, keys, values"
    if layer.qkv is not None:
        order = facts.qkv_order.value
        turned = ", transposed" if parts.is_transposed else ""
        moved = "" if order == "qkv" else f", rows put in order (were {order})"
        yield Step(_of_all_layers(layer.qkv), target, f"copied{turned}{moved}")
    else:
        heads = ", ".join(_of_all_layers(part[0]) for part in (layer.q, layer.k, layer.v))
        yield Step(heads, target, f"{'per head, ' if len(layer.q) > 1 else ''}concatenated")
    factors = [facts.query_factor(parts.n_embd, i) for i in range(len(parts.layers))]
    if any(factor != 1 for factor in factors):
        shown = ", ".join(f"{factor:.4g}" for factor in dict.fromkeys(factors))
        yield Step("attention scale", "query", f"folded: query times {shown}")


def _head(parts: Parts, vocabulary: Vocabulary) -> str:
    means = ", their mean for all other tokens" if vocabulary.labels else ""
    if not is_folded(parts, vocabulary):
        return f"copied{means}"
    why = [
        *(["its bias"] if parts.head_bias is not None else []),
        *(["tokens that are never said"] if vocabulary.n_new and not vocabulary.labels else []),
    ]
    untied = ", untied" if parts.is_tied else ""
    return f"folded with the norm, for {' and '.join(why)}{untied}{means}"


def _of_all_layers(linear: Linear) -> str:
    return linear.name.replace(".0.", ".N.", 1)
