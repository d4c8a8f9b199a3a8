"""In words: tensors that are missing, left over, of another shape or type, or other ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmkit.errors import QuantizationError
from llmkit.export.gguf_file import GGUFFile, StoredTensor
from llmkit.export.parity.tensor_diagnosis import (
    Diagnosis,
    Suspect,
    WantedTensor,
    looks_like,
    relative_error,
)
from llmkit.export.parity.tensor_places import moved_texts
from llmkit.quant import dequantize, quant_type_of
from llmkit.quant.types import PackedRows

_DIAGNOSED = 3  # tensors of each kind of fault of which a detail says more than the number
_TOKENS, _HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True)
class Faults:
    """What is wrong with the tensors of one file."""

    file: GGUFFile
    left_over: list[str]
    missing: list[WantedTensor]
    other_shape: list[WantedTensor]
    other_type: list[WantedTensor]
    differing: list[Suspect]  # right in shape and type
    rehashed: list[str]  # near the checkpoint's, and not the blocks that were chosen for it

    @property
    def count(self) -> int:
        """Number of tensors that are wrong."""
        named = len(self.left_over) + len(self.missing) + len(self.rehashed)
        return named + len(self.other_shape) + len(self.other_type) + len(self.differing)


def rows_of(found: StoredTensor) -> PackedRows:
    """A tensor's blocks, (n_rows, row_bytes)."""
    return found.blocks.reshape(-1, found.blocks.shape[-1])


def fault_texts(faults: Faults, wanted: Sequence[WantedTensor]) -> list[str]:
    """Each fault and what it looks like, alike ones together. `wanted`: all of the file's."""
    return [
        *_missing(faults),
        *_left_over(faults),
        *(_shape(faults.file.tensors[t.name], t) for t in faults.other_shape[:_DIAGNOSED]),
        *_types(faults),
        *_differences(faults, wanted),
        *_rehashed(faults),
    ]


def _missing(faults: Faults) -> Iterator[str]:
    names = [tensor.name for tensor in faults.missing]
    if _HEAD in names:
        names.remove(_HEAD)
        yield f"{_HEAD} is missing: the head is tied to {_TOKENS}, the checkpoint's is not"
    if names and all(name.endswith(".bias") for name in names):
        yield f"{_listed(names)} missing: biases were dropped, llama.cpp needs zeros at least"
    elif names:
        yield f"{_listed(names)} missing"


def _left_over(faults: Faults) -> Iterator[str]:
    names = list(faults.left_over)
    if _HEAD in names:
        names.remove(_HEAD)
        head, tokens = (faults.file.tensors.get(name) for name in (_HEAD, _TOKENS))
        is_copy = head and tokens and np.array_equal(head.blocks, tokens.blocks)
        what = f"a copy of {_TOKENS}" if is_copy else "another head"
        yield f"{_HEAD} is left over, {what}: the checkpoint's head is tied"
    if names:
        yield f"{_listed(names)} left over: the checkpoint has no such tensor"


def _shape(found: StoredTensor, wanted: WantedTensor) -> str:
    if (
        len(wanted.shape) != 2
        or found.shape[1:] != wanted.shape[1:]
        or found.ggml_type != wanted.stored.ggml_type
    ):
        return f"{wanted.name} has shape {found.shape} instead of {wanted.shape}"
    rows, blocks = rows_of(found), wanted.blocks()
    n = min(len(rows), len(blocks))
    text = f"{wanted.name} has {len(rows)} rows instead of {len(blocks)}"
    if np.array_equal(rows[:n], blocks[:n]):
        added = rows[n:]
        if not len(added):
            return f"{text}: the last {len(blocks) - n} missing"
        zeros = "zeros" if not dequantize(added, wanted.stored).any() else "padding"
        return f"{text}: the first {n} are right, the last {len(added)} are {zeros}"
    if np.array_equal(rows[-n:], blocks[-n:]):
        what = f"the first {len(blocks) - n} missing" if len(rows) == n else "more before the first"
        return f"{text}: {what}"
    n_equal = int((rows[:n] == blocks[:n]).all(axis=1).argmin())
    return f"{text}, and differs from row {n_equal} on"


def _types(faults: Faults) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for tensor in faults.other_type:
        found = faults.file.tensors[tensor.name]
        kind = f"{found.ggml_type.name.lower()} instead of {tensor.stored.name}"
        groups.setdefault(kind, []).append(tensor.name)
    by_name = {tensor.name: tensor for tensor in faults.other_type}
    for kind, names in groups.items():
        first = faults.file.tensors[names[0]]
        values = "its" if len(names) == 1 else "the first's"
        same = f" ({values} numbers are the checkpoint's)" * _is_same(first, by_name[names[0]])
        yield f"{_listed(names)} {kind}{same}"


def _is_same(found: StoredTensor, wanted: WantedTensor) -> bool:
    """Whether a tensor of another type is made of the checkpoint's numbers all the same."""
    try:
        return np.array_equal(rows_of(found), wanted.pack(quant_type_of(found.ggml_type)))
    except QuantizationError:  # a type that we cannot write
        return False


def _differences(faults: Faults, wanted: Sequence[WantedTensor]) -> Iterator[str]:
    if not faults.differing:
        return
    moved, rest = moved_texts(faults.differing, wanted)
    yield from moved
    diagnoses = [looks_like(suspect) for suspect in rest[:_DIAGNOSED]]
    matrices = {tensor.name for tensor in wanted if len(tensor.shape) == 2}
    unknown = not any(diagnosis.is_known for diagnosis in diagnoses)
    if rest and unknown and matrices <= {suspect.wanted.name for suspect in rest}:
        errors = _errors(rest)
        yield (
            f"another checkpoint's file: every matrix differs (relative RMS error "
            f"{min(errors):.2g} to {max(errors):.2g})"
        )
        return
    yield from _grouped(rest, diagnoses)


def _errors(suspects: Sequence[Suspect]) -> list[float]:
    return [
        relative_error(
            dequantize(suspect.found, suspect.stored),
            dequantize(suspect.wanted.blocks(), suspect.stored),
        )
        for suspect in suspects
        if len(suspect.shape) == 2
    ]


def _grouped(rest: Sequence[Suspect], diagnoses: Sequence[Diagnosis]) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for suspect, diagnosis in zip(rest, diagnoses, strict=False):
        names.setdefault(diagnosis.text, []).append(suspect.wanted.name)
    for text, group in names.items():
        yield f"{', '.join(group)}: {text}"
    if len(rest) > len(diagnoses):
        yield f"and {len(rest) - len(diagnoses)} more tensors differ"


def _rehashed(faults: Faults) -> Iterator[str]:
    if faults.rehashed:
        yield (
            f"{_listed(faults.rehashed)} near the checkpoint's, but the blocks are not those that "
            "were chosen for its weights: their hash is another"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_DIAGNOSED])
    if len(names) > _DIAGNOSED:
        shown += f" and {len(names) - _DIAGNOSED} more"
    return f"{shown} {'is' if len(names) == 1 else 'are'}"
