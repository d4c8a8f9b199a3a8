"""An HTML page with a proof and its plots, to publish with a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pydantic import TypeAdapter, ValidationError

from llmkit.errors import GGUFError
from llmkit.export.check import Proof
from llmkit.export.report.page import page, png_data
from llmkit.export.verify.logits_check import LogitsComparison
from llmkit.files import write_text

_TEMPLATE = """
<p><span class="{{ 'passed' if proof.passed else 'failed' }}">
{{ 'llama.cpp computes what PyTorch computes.' if proof.passed
else 'The proof failed.' }}</span></p>
{{ checks_table(proof) }}
{% if distances %}{{ numbers_table(distance_columns, distances) }}{% endif %}
{% if plot %}<img alt="KL per position and logits of both" src="{{ plot }}">
<p>Left: KL divergence of llama.cpp's predictions from PyTorch's at each position. Conversion
compares with PyTorch on the file's weights; it should be about as small as rounding alone.
Quantization compares with PyTorch on the original weights. Right: a random sample of logits; equal
logits lie on the line.</p>{% endif %}
<h2>What was compared</h2>
<table>
{% for name, value in facts %}<tr><td>{{ name }}</td><td><code>{{ value }}</code></td></tr>
{% endfor %}</table>
{% if prompts %}<h2>Prompts</h2>
<p>Both programs continued {{ n_prompts }} prompts. The first ones:</p>
<ol>{% for prompt in prompts %}<li><code>{{ prompt }}</code></li>{% endfor %}</ol>{% endif %}
"""
_DISTANCE_COLUMNS = (
    "", "mean KL", "99.9 % KL", "largest KL", "largest logit difference", "RMS logit difference",
    "top-1",
)  # fmt: skip
N_SHOWN = 20


def write_page(
    path: Path, proof: Proof, comparison: LogitsComparison | None, prompts: Sequence[str]
) -> None:
    """Write the proof as one self-contained page."""
    write_text(path, _html(proof, comparison, prompts))


def kept_proof_page(kept: Mapping[str, Any]) -> str:
    """The page of a proof as `parity.json` has it, without plots. Raises GGUFError."""
    try:
        proof = TypeAdapter(Proof).validate_python(dict(kept))
    except ValidationError as error:
        raise GGUFError(
            f"the proof of {kept.get('gguf')} is of another version; run `llmkit verify` again"
        ) from error
    return _html(proof, None, [])


def _html(proof: Proof, comparison: LogitsComparison | None, prompts: Sequence[str]) -> str:
    facts = [
        ("checkpoint", proof.checkpoint),
        ("checkpoint SHA-256", proof.checkpoint_sha256),
        ("GGUF", proof.gguf),
        ("texts", proof.texts),
        *((f"{name} SHA-256", value) for name, value in proof.sha256_of.items()),
        ("GGUF SHA-256", proof.sha256),
        *((f"{name} version", value) for name, value in proof.versions.items()),
    ]
    return page(
        _TEMPLATE,
        title=f"Proof of {Path(proof.gguf).name}",
        proof=proof,
        distance_columns=_DISTANCE_COLUMNS,
        distances=[] if comparison is None else _distance_rows(comparison),
        plot=None if comparison is None else png_data(logits_figure(comparison)),
        facts=facts,
        prompts=prompts[:N_SHOWN],
        n_prompts=len(prompts),
    )


def _distance_rows(comparison: LogitsComparison) -> list[tuple[str, ...]]:
    """What is compared, then a cell for each of _DISTANCE_COLUMNS."""
    rows = []
    for name, d in comparison.distances.items():
        numbers = (d.mean_kl, d.p999_kl, d.max_kl, d.max_difference, d.rms_difference)
        rows.append((name, *(f"{number:.2e}" for number in numbers), f"{100 * d.top1:.2f} %"))
    return rows


def logits_figure(comparison: LogitsComparison) -> Figure:
    """KL at each position, sorted; and llama.cpp's logits over PyTorch's."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    kl_axes, logit_axes = figure.subplots(1, 2)
    for name, divergence in (
        ("quantization", comparison.cost),
        ("conversion", comparison.conversion),
        ("rounding alone", comparison.noise),
    ):
        kl = np.sort(divergence.kl)
        kl_axes.plot(np.linspace(0, 100, len(kl)), np.maximum(kl, 1e-16), label=name)
    kl_axes.set_yscale("log")
    kl_axes.set_xlabel("positions, sorted (%)")
    kl_axes.set_ylabel("KL divergence (nats)")
    kl_axes.legend()
    ours, theirs = comparison.logit_pairs.T
    logit_axes.plot([ours.min(), ours.max()], [ours.min(), ours.max()], color="0.7", zorder=0)
    logit_axes.plot(ours, theirs, ".", markersize=3)
    logit_axes.set_xlabel("logit in PyTorch, on the file's weights")
    logit_axes.set_ylabel("logit in llama.cpp")
    for axes in (kl_axes, logit_axes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
