"""What a pickle holds: weights, settings and the classes of its objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from llmkit.errors import CheckpointError
from llmkit.importing.source.pickles import Bag

_STATE_DICTS = (
    "model_state_dict", "state_dict", "model_state", "model", "module", "net", "weights", "params",
)  # fmt: skip
_MAX_MODULES = 20_000


def weights_in(
    content: Mapping[Any, Any], is_inside: bool = False
) -> tuple[str, dict[str, Tensor]]:
    """The entry that holds the weights, by its usual name or as the one with most tensors."""
    known = [name for name in _STATE_DICTS if name in content]
    others = [n for n in content if n not in known and "optim" not in str(n)]
    counts = {name: len(_tensors_of(content[name])) for name in (*known, *others)}
    usual = [name for name in known if counts[name]]
    own = _tensors_of(content)
    if not own and not any(counts.values()) and not is_inside:  # one level deeper
        inside = [n for n in (*known, *others) if isinstance(content[n], dict)]
        found = ((n, weights_in(content[n], is_inside=True)) for n in inside)
        return next(((f"{n}.{box}", tensors) for n, (box, tensors) in found if tensors), ("", {}))
    box = usual[0] if usual else max(others, key=counts.__getitem__, default="")
    if not usual and (box == "" or counts[box] <= len(own)):
        return "", own
    return str(box), _tensors_of(content[box])


def _tensors_of(content: Any) -> dict[str, Tensor]:
    if isinstance(content, Bag):
        return dict(module_tensors(content))
    items = content.items() if isinstance(content, dict) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor)}


def plain_settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Names and plain values of nested settings, the outer ones first, optimizers left out."""
    level, seen = [content], set()
    for _ in range(4):
        deeper = []
        for part in level:
            items = vars(part) if isinstance(part, Bag) else part
            if not isinstance(items, dict) or len(items) > 1000 or id(items) in seen:
                continue
            seen.add(id(items))
            for name, value in items.items():
                if isinstance(value, str | int | float | bool) or value is None:
                    yield str(name), value
                elif isinstance(value, dict | Bag) and "optim" not in str(name):
                    deeper.append(value)
        level = deeper


def _modules(root: Bag) -> Iterator[tuple[str, Bag]]:
    """A pickled torch.nn.Module and those in it, each with the prefix of its tensors' names."""
    left = [("", root)]
    for _ in range(_MAX_MODULES):
        if not left:
            return
        prefix, module = left.pop()
        yield prefix, module
        children = reversed(_entries(module, "_modules").items())
        left += [(f"{prefix}{name}.", child) for name, child in children if isinstance(child, Bag)]
    raise CheckpointError(f"the pickled module has more than {_MAX_MODULES:,} modules in it")


def _entries(module: Bag, name: str) -> dict[Any, Any]:
    found = vars(module).get(name)
    return found if isinstance(found, dict) else {}


def module_tensors(root: Bag) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a pickled torch.nn.Module."""
    for prefix, module in _modules(root):
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _entries(module, kind).items():
                if isinstance(tensor, Tensor):
                    yield f"{prefix}{name}", tensor


def module_settings(root: Bag) -> Iterator[tuple[str, Any]]:
    """Plain attributes of a pickled module and of those in it; what was set by torch left out."""
    for _, module in _modules(root):
        where, _, kind = type(module).class_name.rpartition(".")
        if where.startswith("torch.nn.") and kind in ("GELU", "ReLU"):
            exact = "gelu" if vars(module).get("approximate", "none") == "none" else "gelu_tanh"
            yield "activation", "relu" if kind == "ReLU" else exact
        for name, value in vars(module).items():
            if isinstance(value, Bag) and "_modules" not in vars(value):
                yield from plain_settings(value)
            elif isinstance(value, int | float | str) and not name.startswith("_"):
                yield name, value
            elif isinstance(value, type) and issubclass(value, Bag):  # a function, as F.gelu
                yield name, value.class_name.rpartition(".")[2]


def first_of_each(pairs: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    """The first value of each name that is not None."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.get(name) is None:
            found[name] = value
    return found


def classes_in(content: Any) -> Iterator[str]:
    """Names of the classes of all objects."""
    left, seen = [content], set()
    while left:
        found = left.pop()
        if isinstance(found, Bag):
            yield type(found).class_name
            found = vars(found)
        if isinstance(found, dict) and id(found) not in seen:
            seen.add(id(found))
            left += [value for value in found.values() if isinstance(value, dict | Bag)]
