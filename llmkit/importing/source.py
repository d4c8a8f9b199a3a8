"""What lies at the source of an import: tensors by name, settings, vocabularies."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmkit.errors import CheckpointError
from llmkit.files import cannot_read
from llmkit.importing.pickles import Bag, read_pickle

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".model")
_WEIGHTS = ("*.safetensors", *(f"*{suffix}" for suffix in PICKLES))
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NOT_WEIGHTS = re.compile(
    r"meta\.pkl|(optimizer|optim|scheduler|scaler|rng_state|training_args|trainer_state)\b.*"
)
_LLMC_MAGIC = 20240326
_STATE_DICTS = (
    "model_state_dict", "state_dict", "model_state", "model", "module", "net", "weights", "params",
)  # fmt: skip
_MAX_MODULES = 20_000
_PREFIXES = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")


@dataclass(frozen=True)
class Source:
    """An opened checkpoint of another program.

    `settings` is every name with a plain value found in the file or beside it, the later ones of
    a name left out. `extras` are whole entries that may hold a vocabulary.
    """

    path: Path
    folder: Path
    container: str  # what kind of file it is, for people
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    boxes: frozenset[str] = frozenset()  # names of the entries beside the weights
    classes: frozenset[str] = frozenset()  # of a pickle's objects
    step: str = "0"  # of training, which the files that llmkit exports state

    @property
    def files_beside(self) -> list[str]:
        """Names of the files in its folder."""
        return sorted(path.name for path in self.folder.iterdir())


def open_source(path: Path) -> Source:
    """Open a file or folder. Raises CheckpointError saying what is missing or damaged."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; check the path")
    try:
        found = _open_folder(path) if path.is_dir() else _open_file(path)
    except OSError as error:
        raise CheckpointError(cannot_read(path, error)) from error
    except (RecursionError, ValueError) as error:  # of names and nesting that no program makes
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    if not found.tensors:
        raise CheckpointError(f"{path} has no tensors; give the file of the model's weights")
    return found


def _open_folder(folder: Path) -> Source:
    for index in _INDEXES:
        if (folder / index).is_file():
            return _with_config(_open_shards(folder, index))
    found = sorted(
        path
        for pattern in _WEIGHTS
        for path in folder.glob(pattern)
        if path.is_file() and not _NOT_WEIGHTS.fullmatch(path.name)
    )
    if shards := [path.name for path in found if re.search(r"-\d+-of-\d+\.", path.name)]:
        raise CheckpointError(f"{folder} has {shards[0]}, but not the index.json of its shards")
    named = [p for p in found if p.stem in ("model", "pytorch_model")]
    chosen = (found if len(found) == 1 else named)[:1]
    if not chosen:
        names = ", ".join(path.name for path in found[:6])
        raise CheckpointError(
            f"{folder} has {len(found)} files of weights ({names}); give one of them"
            if found
            else f"{folder} has no weights (.safetensors, .pt, .pth, .bin or .pkl)"
        )
    return open_source(inside(folder, chosen[0].name))


def _open_file(path: Path) -> Source:
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        raise CheckpointError(f"{path} is empty; copy it again")
    if len(head) >= 4 and struct.unpack("<i", head[:4])[0] == _LLMC_MAGIC:
        from llmkit.importing.llmc import open_llmc

        return open_llmc(path)
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and not head.startswith(b"PK")):
        tensors, step = _safetensors(path)
        return _with_config(Source(path, path.parent, "safetensors", tensors, step=step))
    return _with_config(_open_pickle(path))


def _safetensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors, and the training step that the file states."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
            # save_model keeps one of tied tensors, and writes the others' names here.
            for name, kept in metadata.items():
                if kept in tensors:
                    tensors.setdefault(name, tensors[kept])
            step = metadata.get("step", "")
            return tensors, step if step.isdigit() else "0"
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}); copy it again"
        ) from error


def _open_shards(folder: Path, index: str) -> Source:
    path = folder / index
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(map(str, weight_map.values())))
    except OSError as error:
        raise CheckpointError(cannot_read(path, error)) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has no weight_map ({error}); copy it again") from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        shard = inside(folder, name)
        if not shard.is_file():
            raise CheckpointError(f"{folder}: the shard {name} is missing; copy all files again")
        read = _safetensors(shard)[0] if shard.suffix == ".safetensors" else read_pickle(shard)
        if not isinstance(read, dict):
            raise CheckpointError(f"{shard} has no tensors; copy it again")
        tensors |= {name: tensor for name, tensor in read.items() if isinstance(tensor, Tensor)}
    if missing := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(f"{folder}: tensor {missing[0]} is not in its shard; copy all again")
    kind = "safetensors" if "safetensors" in index else "PyTorch files"
    return Source(path, folder, f"{kind} in {len(names)} shards", tensors)


def inside(folder: Path, name: str) -> Path:
    """A file of the folder. Raises CheckpointError for one that lies elsewhere."""
    path = folder / name
    is_plain = not Path(name).is_absolute() and "\0" not in name
    if not is_plain or not path.resolve().is_relative_to(folder.resolve()):
        if is_plain and path.is_symlink() and _is_hub_cache(path, folder):
            return path
        raise CheckpointError(f"{folder}: {name} leads out of the folder; copy the file into it")
    return path


def _is_hub_cache(path: Path, folder: Path) -> bool:
    """Whether it is a link of the Hugging Face cache, snapshots/REVISION/NAME to blobs/HASH."""
    blobs = folder.resolve().parent.parent / "blobs"
    return folder.resolve().parent.name == "snapshots" and path.resolve().is_relative_to(blobs)


def _open_pickle(path: Path) -> Source:
    content = read_pickle(path)
    container = "PyTorch file" if path.suffix != ".pkl" else "pickle file"
    classes = frozenset(_classes(content))
    if isinstance(content, Bag):
        tensors = dict(_module_tensors(content))
        settings = _first(_module_settings(content))
        kind = f"whole module {content.class_name} in a {container}"
        return Source(path, path.parent, kind, tensors, settings, classes=classes)
    if isinstance(content, list | tuple):
        content = {str(number): value for number, value in enumerate(content)}
    if not isinstance(content, dict):
        content = {}
    box, tensors = _weights_in(content)
    extras = {str(n): v for n, v in content.items() if n != box and not isinstance(v, Tensor)}
    module = content.get(box)
    inner = _module_settings(module) if isinstance(module, Bag) else iter(())
    return Source(
        path,
        path.parent,
        f"{container}, weights under {box!r}" if box else f"{container} with a state dict",
        tensors,
        _first(chain(_plain(extras), inner)),
        extras,
        frozenset(map(str, content)) if box else frozenset(),
        classes,
    )


def _weights_in(
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
        found = ((n, _weights_in(content[n], is_inside=True)) for n in inside)
        return next(((f"{n}.{box}", tensors) for n, (box, tensors) in found if tensors), ("", {}))
    box = usual[0] if usual else max(others, key=counts.__getitem__, default="")
    if not usual and (box == "" or counts[box] <= len(own)):
        return "", own
    return str(box), _tensors_of(content[box])


def _tensors_of(content: Any) -> dict[str, Tensor]:
    if isinstance(content, Bag):
        return dict(_module_tensors(content))
    items = content.items() if isinstance(content, dict) else ()
    return {str(name): value for name, value in items if isinstance(value, Tensor)}


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what torch.compile and DataParallel put before every name."""
    names = list(tensors)
    prefix = ""
    while found := [p for p in _PREFIXES if all(n.startswith(prefix + p) for n in names)]:
        prefix += found[0]
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _with_config(source: Source) -> Source:
    """With what the JSON files beside the weights say, and what was read before them first."""
    settings = dict(source.settings)
    extras = dict(source.extras)
    names = ["config.json", *(p.name for p in sorted(source.folder.glob("meta_*.json")))]
    names += ["model_config.json", "tokenizer_config.json", "generation_config.json"]
    for name in names:
        path = source.folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(inside(source.folder, name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(cannot_read(path, error)) from error
        if isinstance(content, dict):
            extras[name] = content
            for key, value in _plain(content):
                settings.setdefault(key, value)
    return replace(source, settings=settings, extras=extras)


def _plain(content: Any) -> Iterator[tuple[str, Any]]:
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


def _module_tensors(root: Bag) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a pickled torch.nn.Module."""
    for prefix, module in _modules(root):
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _entries(module, kind).items():
                if isinstance(tensor, Tensor):
                    yield f"{prefix}{name}", tensor


def _module_settings(root: Bag) -> Iterator[tuple[str, Any]]:
    """Plain attributes of a pickled module and of those in it; what was set by torch left out."""
    for _, module in _modules(root):
        where, _, kind = type(module).class_name.rpartition(".")
        if where.startswith("torch.nn.") and kind in ("GELU", "ReLU"):
            exact = "gelu" if vars(module).get("approximate", "none") == "none" else "gelu_tanh"
            yield "activation", "relu" if kind == "ReLU" else exact
        for name, value in vars(module).items():
            if isinstance(value, Bag) and "_modules" not in vars(value):
                yield from _plain(value)
            elif isinstance(value, int | float | str) and not name.startswith("_"):
                yield name, value
            elif isinstance(value, type) and issubclass(value, Bag):  # a function, as F.gelu
                yield name, value.class_name.rpartition(".")[2]


def _first(pairs: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    """The first value of each name that is not None."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if found.get(name) is None:
            found[name] = value
    return found


def _classes(content: Any) -> Iterator[str]:
    left, seen = [content], set()
    while left:
        found = left.pop()
        if isinstance(found, Bag):
            yield type(found).class_name
            found = vars(found)
        if isinstance(found, dict) and id(found) not in seen:
            seen.add(id(found))
            left += [value for value in found.values() if isinstance(value, dict | Bag)]
