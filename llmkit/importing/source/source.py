"""What lies at the source of an import: tensors by name, settings, vocabularies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from llmkit.errors import CheckpointError

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


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what torch.compile and DataParallel put before every name."""
    names = list(tensors)
    prefix = ""
    while found := [p for p in _PREFIXES if all(n.startswith(prefix + p) for n in names)]:
        prefix += found[0]
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
