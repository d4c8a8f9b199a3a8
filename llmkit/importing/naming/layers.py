"""The parts of one layer by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmkit.errors import CheckpointError
from llmkit.importing.naming.parts import Layer, Linear, Parts, raise_not_one, refused, wrong_shape
from llmkit.importing.naming.words import (
    ATTENTION,
    FEED_FORWARD,
    FILLERS,
    HEAD_NUMBER,
    QKV,
    K,
    Q,
    V,
    numbers,
    words_of,
)


def read_layer(modules: dict[str, Linear], where: str, width: int, is_transposed: bool) -> Layer:
    """The parts of a layer. Raises CheckpointError, which calls it `where`."""
    layer = Layer()
    left = dict(modules)
    for name, module in modules.items():
        if module.weight.ndim == 1:
            layer.norms.append(left.pop(name))
    layer.norms = _ordered_norms(layer.norms, where)
    attention: set[str] = set()
    for name in list(left):
        kind = _projection(name, left[name], width)
        if kind is None:
            continue
        attention.add(_parent(name))
        if kind == "qkv":
            layer.qkv = left.pop(name)
        else:
            getattr(layer, kind).append(left.pop(name))
    for heads in (layer.q, layer.k, layer.v):
        heads.sort(key=lambda head: numbers(head.name))  # some files sort 10 before 2
    counts = {len(layer.q), len(layer.k), len(layer.v)}
    if len(counts) > 1 or (layer.qkv is None) == (counts == {0}):
        raise CheckpointError(f"{where} has no complete queries, keys and values")
    outputs = [n for n in left if _is_attention_output(n, left[n], attention, width)]
    if len(outputs) > 1:
        raise_not_one(f"output projection of {where}", {name: left[name] for name in outputs})
    if outputs:
        layer.attention_output = left.pop(outputs[0])
    if len(left) != 2:
        name = next(iter(left), "")
        raise CheckpointError(
            f"{where} has {len(left)} matrices where a GPT has the two of its feed-forward layer"
            + (f"; the first is {name}" if name else "")
        )
    layer.up, layer.down = _feed_forward(list(left.items()), width, is_transposed)
    return layer


def _ordered_norms(norms: list[Linear], where: str) -> list[Linear]:
    if len(norms) != 2:
        raise CheckpointError(f"{where} has {len(norms)} norms; a GPT has two in each layer")

    def is_second(norm: Linear) -> int:
        words = set(words_of(norm.name.rpartition(".")[0].rpartition(".")[2]))
        if words & (FEED_FORWARD | {"2", "second", "after"}):
            return 1
        return -1 if words & (ATTENTION | {"1", "first", "before", "input", "pre"}) else 0

    return sorted(norms, key=is_second)


def _projection(name: str, module: Linear, width: int) -> str | None:
    """Whether it makes queries, keys, values or all three."""
    per_head = HEAD_NUMBER.fullmatch(name)
    last = (per_head[3] if per_head else name).split(".")
    for segment in reversed(last):
        words = [word for word in words_of(segment) if word not in FILLERS and not word.isdigit()]
        joined = "_".join(words)
        if len(words) == 1 and len(words[0]) > 1 and words[0][0] == "w":
            joined = words[0][1:]
        if joined in QKV or joined.replace("_", "") == "qkv":
            return "qkv"
        for kind, names in (("q", Q), ("k", K), ("v", V)):
            if joined in names:
                return kind
        if joined:
            break
    if sorted(module.weight.shape) == sorted((3 * width, width)) and (
        set(words_of(name)) & ATTENTION
    ):
        return "qkv"
    return None


def _is_attention_output(name: str, module: Linear, parents: set[str], width: int) -> bool:
    if module.weight.shape != (width, width):
        return False
    if set(words_of(name)) & FEED_FORWARD:
        return False
    parent = _parent(name)
    near = any(p == parent or p.startswith(f"{parent}.") or parent.startswith(p) for p in parents)
    return near or bool(set(words_of(name)) & ATTENTION)


def _parent(name: str) -> str:
    """The module that a layer's matrix lies in; of one head's, that of the heads."""
    per_head = HEAD_NUMBER.fullmatch(name)
    return per_head[1].rstrip(".") if per_head else name.rpartition(".")[0]


def _feed_forward(
    found: Sequence[tuple[str, Linear]], width: int, is_transposed: bool
) -> tuple[Linear, Linear]:
    """The matrix into the wider space and the one back: by shapes, or by names where both fit."""
    (first_name, first), (second_name, second) = found
    if first.weight.shape != second.weight.shape[::-1]:
        raise CheckpointError(
            f"{first.name} {tuple(first.weight.shape)} and {second.name} "
            f"{tuple(second.weight.shape)} do not make a feed-forward layer"
        )
    n_in, n_out = (linear.weight.shape[not is_transposed] for linear in (first, second))
    if n_in == n_out:
        is_second = _is_down(first_name) and not _is_down(second_name)
        is_second |= numbers(first_name) > numbers(second_name)
    else:
        is_second = n_in != width
    return (second, first) if is_second else (first, second)


def _is_down(name: str) -> bool:
    words = set(words_of(name.rpartition(".")[2]))
    return bool(words & {"down", "proj", "out", "2", "output"}) and "up" not in words


def shows_transposed(modules: Mapping[str, Linear], width: int) -> bool:
    """Whether matrices are (in, out): a fused one of q, k and v shows it, or a bias's length."""
    for name, module in modules.items():
        shape = tuple(module.weight.shape)
        if len(shape) != 2 or shape[0] == shape[1]:
            continue
        if module.bias is not None:
            return len(module.bias) == shape[1]
        if _projection(name, module, width) == "qkv":
            return shape == (width, 3 * width)
    return False


def check_shapes(layer: Layer, parts: Parts) -> None:
    """Raise CheckpointError where a layer's tensors do not fit together, naming one."""
    width = parts.n_embd
    if sum(len(head.weight) for head in layer.q) > sum(len(head.weight) for head in layer.k):
        raise refused("fewer keys than queries (grouped-query attention)", layer.k[0].name)
    n_apart = len(layer.q) or 1
    wanted: list[tuple[Linear | None, tuple[int, int]]] = [
        (layer.qkv, (3 * width, width)),
        *((head, (width // n_apart, width)) for head in (*layer.q, *layer.k, *layer.v)),
        (layer.attention_output, (width, width)),
        *((norm, (width, 0)) for norm in (*layer.norms, parts.final_norm)),
    ]
    if layer.up is not None and layer.down is not None:
        n_ff = layer.up.weight.shape[parts.is_transposed]
        wanted += [(layer.up, (n_ff, width)), (layer.down, (width, n_ff))]
    for linear, (n_out, n_in) in wanted:
        if linear is None:
            continue
        shape = (n_in, n_out) if parts.is_transposed else (n_out, n_in)
        if tuple(linear.weight.shape) != (shape if n_in else (n_out,)):
            raise wrong_shape(linear, shape)
        if linear.bias is not None and len(linear.bias) != n_out:
            raise CheckpointError(
                f"{linear.bias_name} has {len(linear.bias)} numbers; {n_out} would fit"
            )
