"""A file or folder of another program, opened."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from itertools import chain
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmkit.errors import CheckpointError
from llmkit.files import cannot_read
from llmkit.importing.source.content import (
    classes_in,
    first_of_each,
    module_settings,
    module_tensors,
    plain_settings,
    weights_in,
)
from llmkit.importing.source.llmc import open_llmc
from llmkit.importing.source.pickles import Bag
from llmkit.importing.source.source import Source, inside
from llmkit.importing.source.torch_files import read_pickle

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".model")
_WEIGHTS = ("*.safetensors", *(f"*{suffix}" for suffix in PICKLES))
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_NOT_WEIGHTS = re.compile(
    r"meta\.pkl|(optimizer|optim|scheduler|scaler|rng_state|training_args|trainer_state)\b.*"
)
_LLMC_MAGIC = 20240326


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


def _open_pickle(path: Path) -> Source:
    content = read_pickle(path)
    container = "PyTorch file" if path.suffix != ".pkl" else "pickle file"
    classes = frozenset(classes_in(content))
    if isinstance(content, Bag):
        tensors = dict(module_tensors(content))
        settings = first_of_each(module_settings(content))
        kind = f"whole module {content.class_name} in a {container}"
        return Source(path, path.parent, kind, tensors, settings, classes=classes)
    if isinstance(content, list | tuple):
        content = {str(number): value for number, value in enumerate(content)}
    if not isinstance(content, dict):
        content = {}
    box, tensors = weights_in(content)
    extras = {str(n): v for n, v in content.items() if n != box and not isinstance(v, Tensor)}
    module = content.get(box)
    inner = module_settings(module) if isinstance(module, Bag) else iter(())
    return Source(
        path,
        path.parent,
        f"{container}, weights under {box!r}" if box else f"{container} with a state dict",
        tensors,
        first_of_each(chain(plain_settings(extras), inner)),
        extras,
        frozenset(map(str, content)) if box else frozenset(),
        classes,
    )


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
            for key, value in plain_settings(content):
                settings.setdefault(key, value)
    return replace(source, settings=settings, extras=extras)
