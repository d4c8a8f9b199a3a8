"""Embeddings, final norm and head by the names of their tensors: what is in no layer."""

from __future__ import annotations

from llmkit.errors import CheckpointError
from llmkit.importing.naming.parts import Linear, no_place, raise_not_one, refused, wrong_shape
from llmkit.importing.naming.words import EMBEDDINGS, HEADS, words_of


def find_ends(outside: dict[str, Linear]) -> tuple[Linear, Linear, Linear, Linear | None]:
    """Embeddings, final norm and head: what is in no layer."""
    matrices = {name: module for name, module in outside.items() if module.weight.ndim == 2}
    norms = {name: module for name, module in outside.items() if module.weight.ndim == 1}
    positions = {n: m for n, m in matrices.items() if _is_position(n)}
    rest = {n: m for n, m in matrices.items() if n not in positions}
    heads = {n: m for n, m in rest.items() if _is_head(n)}
    tokens = {n: m for n, m in rest.items() if n not in heads}
    if len(tokens) == 2:
        _settle(tokens, positions, heads)
    if len(tokens) != 1:
        raise_not_one("token embedding", tokens)
    if not positions:
        raise refused("no table of learned positions (RoPE, ALiBi or relative ones)", "")
    position_name = next(iter(positions))
    if words_of(position_name)[-1] in ("pe", "encoding") and not any(
        "embed" in word or word == "emb" for word in words_of(position_name)
    ):
        raise refused("sinusoidal positions", position_name)
    for kind, found in (("table of positions", positions), ("head", heads)):
        if len(found) > 1:
            raise_not_one(kind, found)
    token_width = next(iter(tokens.values())).weight.shape[1]
    for name, module in (positions | heads).items():
        if module.weight.shape[1] != token_width:
            raise wrong_shape(module, ("any", token_width))
        if module.bias is not None and len(module.bias) != len(module.weight):
            raise CheckpointError(f"{module.bias_name} does not fit {name} in length")
    norms = {name: norm for name, norm in norms.items() if len(norm.weight) == token_width}
    if strange := [n for n, m in outside.items() if m.weight.ndim == 1 and n not in norms]:
        raise no_place(strange[0], outside[strange[0]].weight)
    if early := [n for n in norms if any("emb" in word for word in words_of(n))]:
        raise refused("a norm on the embeddings", early[0])
    if len(norms) > 1:
        raise refused("a second norm outside the layers, as on the embeddings", next(iter(norms)))
    if not norms:
        raise refused("no norm before the head, as post-norm models", "")
    return (
        next(iter(tokens.values())),
        positions[position_name],
        next(iter(norms.values())),
        next(iter(heads.values()), None),
    )


def _settle(
    tokens: dict[str, Linear], positions: dict[str, Linear], heads: dict[str, Linear]
) -> None:
    """Take the table of positions or the head from two matrices whose names do not tell."""
    a, b = (module.weight.shape for module in tokens.values())
    if heads and not positions and a[1] == b[1]:
        n_rows = len(next(iter(heads.values())).weight)
        found = [name for name, module in tokens.items() if len(module.weight) != n_rows]
        into = positions
    else:
        found = [name for name in tokens if not EMBEDDINGS & set(words_of(name))]
        into = heads
    if len(found) == 1 and not into and (into is positions or a == b):
        into[found[0]] = tokens.pop(found[0])


def _is_position(name: str) -> bool:
    return any(word.startswith("pos") or word in ("wpe", "pe") for word in words_of(name))


def _is_head(name: str) -> bool:
    words = set(words_of(name))
    return bool(words & HEADS) and not words & EMBEDDINGS
