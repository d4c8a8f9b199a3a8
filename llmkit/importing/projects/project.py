"""What is known of a program's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from llmkit.importing.source.source import Source


@dataclass(frozen=True)
class Project:
    """A program, the names that show its checkpoints, and facts that its files do not hold.

    `marks` are patterns that each match some tensor's whole name; none of `absent` does.
    """

    name: str
    marks: tuple[str, ...]
    absent: tuple[str, ...] = ()
    boxes: frozenset[str] = frozenset()  # entries that the file must have
    classes: str = ""  # a pattern that a pickled class must match
    container: str = ""  # a pattern of the kind of file
    is_transposed: bool | None = None  # matrices are (in, out); None: either
    facts: Mapping[str, str] = field(default_factory=dict)  # by the names in `facts.py`
    asks: frozenset[str] = frozenset()  # facts that are never assumed: its users choose them
    needs: tuple[str, ...] = ()  # patterns of names without which a file is damaged
    tokenizer: str | None = None  # "gpt2" where the program has no other
    refused: str = ""  # what of it llama.cpp's gpt2 graph cannot compute

    def matches(self, source: Source, tensors: Mapping[str, Tensor]) -> bool:
        """Whether a checkpoint is this program's."""

        def has(pattern: str) -> bool:
            return any(re.fullmatch(pattern, name) for name in tensors)

        return (
            all(map(has, self.marks))
            and not any(map(has, self.absent))
            and self.boxes <= source.boxes
            and (not self.classes or any(re.fullmatch(self.classes, c) for c in source.classes))
            and re.search(self.container, source.container) is not None
            and self.is_transposed in (None, _is_transposed(tensors))
        )


def recognised(
    projects: Iterable[Project], source: Source, tensors: Mapping[str, Tensor]
) -> Project | None:
    """The first program whose checkpoint it is; None for a scheme of names that is not known."""
    return next((project for project in projects if project.matches(source, tensors)), None)


def _is_transposed(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a fused matrix of queries, keys and values is (C, 3C)."""
    fused = (t for name, t in tensors.items() if re.fullmatch(r".*\b(c_attn|qkv)\.weight", name))
    found = next(fused, None)
    return found is not None and found.ndim == 2 and found.shape[1] == 3 * found.shape[0]
