"""Sources that are damaged, or that llama.cpp cannot compute."""

from __future__ import annotations

import re

from llmkit.errors import CheckpointError
from llmkit.importing.facts import Fact, Facts, setting
from llmkit.importing.naming.parts import Parts
from llmkit.importing.projects import Project
from llmkit.importing.source.source import Source, without_prefixes


def refuse_project(project: Project | None, source: str) -> None:
    """Raise CheckpointError for a program whose models llama.cpp's graph cannot compute."""
    if project is not None and project.refused:
        raise CheckpointError(
            f"{source} is {project.name}: it has {project.refused}, which llama.cpp's gpt2 graph "
            "cannot compute; llmkit imports models with learned positions and LayerNorm"
        )


def check_sizes(source: Source, project: Project | None, parts: Parts) -> None:
    """Raise CheckpointError where settings and tensors disagree, or tensors lack."""
    for name, found in (
        ("n_layer", len(parts.layers)),
        ("context_length", len(parts.positions.weight)),
        ("n_embd", parts.n_embd),
        ("vocab_size", len(parts.tokens.weight)),
    ):
        stated = setting(source, name)
        if stated is None or not isinstance(stated.value, int) or stated.value == found:
            continue
        if name == "n_layer" or (project is not None and project.is_transposed):
            raise CheckpointError(
                f"{source.path} says {name} {stated.value}, but its tensors have {found}; "
                "copy the whole checkpoint again"
            )
    names = without_prefixes(source.tensors).keys()
    for pattern in project.needs if project else ():
        if not any(re.fullmatch(pattern, name) for name in names):
            name = pattern.replace("\\", "").replace("(transformer.)?", "")
            raise CheckpointError(f"{source.path}: tensor {name} is missing; copy it again")


def refuse_impossible(facts: Facts, project: Project | None) -> None:
    """Raise CheckpointError for what llama.cpp's graph cannot compute."""
    name = project.name if project else "the model"
    for fact, value, shown, right in (
        ("norm", "post", "the norms come after attention and feed-forward (post-norm)", "pre"),
        ("norm_type", "rms", "its norms are RMSNorm", "layer"),
        ("mask", "none", "attention has no causal mask", "causal"),
    ):
        found: Fact = getattr(facts, fact)
        if found.value == value:
            raise CheckpointError(
                f"{name}: {shown}, which llama.cpp's gpt2 graph cannot compute ({found.origin}); "
                f"where that is wrong, give --{fact.replace('_', '-')} {right}"
            )
