"""Tensors that lie under each other's names, single ones and whole layers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmkit.export.parity.tensor_diagnosis import Suspect, WantedTensor
from llmkit.quant.types import PackedRows

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")


@dataclass(frozen=True)
class _Place:
    """A name of the file, with its layer if it has one."""

    name: str
    layer: int | None
    part: str  # the name within the layer

    @classmethod
    def of(cls, name: str) -> _Place:
        match = _LAYER.fullmatch(name)
        return cls(name, int(match[1]), match[2]) if match else cls(name, None, name)


def moved_texts(
    differing: Sequence[Suspect], wanted: Sequence[WantedTensor]
) -> tuple[list[str], list[Suspect]]:
    """What lies under other names, in words, and the tensors that are not explained by that.

    `wanted`: all tensors of the file.
    """
    holders: dict[bytes, list[WantedTensor]] = {}
    for tensor in wanted:
        holders.setdefault(_digest(tensor.blocks()), []).append(tensor)
    contents = {
        suspect.wanted.name: same
        for suspect in differing
        if (
            same := [
                tensor
                for tensor in holders.get(_digest(suspect.found), ())
                if _fits(tensor, suspect.wanted)
            ]
        )
    }
    layers = _moved_layers(differing, contents)
    texts = list(_layer_texts(layers))
    alone = {n: c for n, c in contents.items() if _Place.of(n).layer not in layers}
    texts += _single_texts(alone)
    return texts, [suspect for suspect in differing if suspect.wanted.name not in contents]


def _fits(content: WantedTensor, place: WantedTensor) -> bool:
    return content.shape == place.shape and content.stored is place.stored


def _digest(blocks: PackedRows) -> bytes:
    return hashlib.blake2b(blocks.tobytes(), digest_size=16).digest()


def _moved_layers(
    differing: Sequence[Suspect], contents: Mapping[str, Sequence[WantedTensor]]
) -> dict[int, int]:
    """Layers all of whose differing tensors, several, are those of one other layer."""
    sources: dict[int, list[set[int | None]]] = {}
    for suspect in differing:
        place = _Place.of(suspect.wanted.name)
        if place.layer is not None:
            others = (_Place.of(content.name) for content in contents.get(place.name, ()))
            same_part = {other.layer for other in others if other.part == place.part}
            sources.setdefault(place.layer, []).append(same_part)
    moved = {}
    for layer, candidates in sources.items():
        common = set.intersection(*candidates)
        if len(candidates) > 1 and len(common) == 1:
            (source,) = common
            if source is not None:
                moved[layer] = source
    return moved


def _layer_texts(layers: Mapping[int, int]) -> Iterator[str]:
    for layer, source in layers.items():
        if layers.get(source) == layer:
            if layer < source:
                yield (
                    f"layers {layer} and {source} are exchanged: blk.{layer} holds h.{source}, "
                    f"blk.{source} holds h.{layer}"
                )
        else:
            yield f"blk.{layer} holds layer h.{source}"


def _single_texts(contents: Mapping[str, Sequence[WantedTensor]]) -> Iterator[str]:
    for name, candidates in contents.items():
        back = [c for c in candidates if any(b.name == name for b in contents.get(c.name, ()))]
        if not back:
            yield f"{name} holds {candidates[0].source}"
        elif name < back[0].name:
            yield (f"{name} and {back[0].name} are exchanged: {name} holds {back[0].source}")
