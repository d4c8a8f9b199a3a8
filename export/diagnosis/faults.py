"""In words: tensors that are missing, unexpected, swapped, or of a wrong shape, type or content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmkit.export.diagnosis.diagnose import Suspect, WantedTensor, difference, known_cause
from llmkit.export.gguf.metadata import BLOCKS_KEY
from llmkit.export.gguf.reader import GGUFFile, StoredTensor
from llmkit.quant.types import PackedRows

_SHOWN = 3  # tensors of each kind of fault


@dataclass(frozen=True)
class Faults:
    """What is wrong with the tensors of one file."""

    file: GGUFFile
    left_over: list[str]
    missing: list[WantedTensor]
    other_shape: list[WantedTensor]
    other_type: list[WantedTensor]
    differing: list[Suspect]  # right in shape and type
    rehashed: list[str]  # near the checkpoint's, but with a wrong hash

    @property
    def count(self) -> int:
        """Number of tensors that are wrong."""
        named = len(self.left_over) + len(self.missing) + len(self.rehashed)
        return named + len(self.other_shape) + len(self.other_type) + len(self.differing)


def rows_of(found: StoredTensor) -> PackedRows:
    """A tensor's blocks, (n_rows, row_bytes)."""
    return found.blocks.reshape(-1, found.blocks.shape[-1])


def fault_texts(faults: Faults, wanted: Sequence[WantedTensor]) -> list[str]:
    """Each kind of fault with its first tensors. `wanted`: all tensors of the file."""
    texts = []
    if faults.missing:
        texts.append(f"missing: {_listed([tensor.name for tensor in faults.missing])}")
    if faults.left_over:
        texts.append(f"not in the checkpoint: {_listed(faults.left_over)}")
    for tensor in faults.other_shape[:_SHOWN]:
        shape = faults.file.tensors[tensor.name].shape
        texts.append(f"{tensor.name} has shape {shape} instead of {tensor.shape}")
    texts += _types(faults)
    moved = _moved(faults.differing, wanted)
    texts += _shown(list(_moved_texts(moved)))
    texts += _differences([s for s in faults.differing if s.wanted.name not in moved], wanted)
    if faults.rehashed:
        texts.append(f"hash differs from the one in {BLOCKS_KEY}: {_listed(faults.rehashed)}")
    return texts


def _types(faults: Faults) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for tensor in faults.other_type:
        found = faults.file.tensors[tensor.name].ggml_type.name.lower()
        groups.setdefault(f"{found} instead of {tensor.stored.name}", []).append(tensor.name)
    for types, names in groups.items():
        yield f"{types}: {_listed(names)}"


def _moved(differing: Sequence[Suspect], wanted: Sequence[WantedTensor]) -> dict[str, str]:
    """Names of tensors, with the name of the other tensor whose content each holds."""
    exact = {(s.wanted.shape, s.wanted.stored) for s in differing if s.far is None}
    holders = {_digest(t.blocks()): t.name for t in wanted if (t.shape, t.stored) in exact}
    moved = {}
    for suspect in differing:
        name = suspect.wanted.name
        if suspect.far is None:
            other = holders.get(_digest(suspect.found))
        else:
            alike = (t for t in wanted if t.name != name and t.shape == suspect.wanted.shape)
            other = next((t.name for t in alike if suspect.holds(t.weights())), None)
        if other is not None:
            moved[name] = other
    return moved


def _digest(blocks: PackedRows) -> bytes:
    return hashlib.blake2b(blocks.tobytes(), digest_size=16).digest()


def _moved_texts(moved: Mapping[str, str]) -> Iterator[str]:
    for name, other in moved.items():
        if moved.get(other) != name:
            yield f"{name} holds {other}"
        elif name < other:
            yield f"{name} and {other} are swapped"


def _differences(differing: Sequence[Suspect], wanted: Sequence[WantedTensor]) -> Iterator[str]:
    causes = [known_cause(suspect) for suspect in differing[:_SHOWN]]
    matrices = {tensor.name for tensor in wanted if len(tensor.shape) == 2}
    if differing and not any(causes) and matrices <= {s.wanted.name for s in differing}:
        yield "every matrix differs; verify with the checkpoint that the file was exported from"
    for suspect, cause in zip(differing, causes, strict=False):
        named = f"{suspect.wanted.name} {suspect.wanted.shape}"
        yield f"{named} {cause}" if cause else f"{named}: {difference(suspect)}"
    if len(differing) > _SHOWN:
        yield f"{len(differing) - _SHOWN} more tensors differ"


def _shown(texts: Sequence[str]) -> list[str]:
    more = [f"{len(texts) - _SHOWN} more are not in their place"] if len(texts) > _SHOWN else []
    return [*texts[:_SHOWN], *more]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
