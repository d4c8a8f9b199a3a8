"""One HTML page with tables and plot, that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2

from llmkit.export.measure import Comparison
from llmkit.export.parity.check import Proof
from llmkit.export.plot import size_quality_figure
from llmkit.export.tables import PROOF_COLUMNS, comparison_measures, proof_cells
from llmkit.files import write_text

STYLE = """
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
         padding: 0 1rem; }
  div.wide { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
  th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #ccc; text-align: left;
           white-space: nowrap; }
  .passed { color: #17702f; } .failed { color: #b3261e; font-weight: bold; }
  img { max-width: 100%; }
"""
_TEMPLATE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
<h1>{{ title }}</h1>
<p>Against {{ comparison.reference }} in PyTorch (f32), on {{ comparison.tokens }} tokens.
KL divergence and its 95 % confidence interval in nats per token, the same text for every file.
{% if peers %}llama-quantize's files have the same type for every tensor, without or with an
importance matrix, whichever has the smaller mean KL; the interval of the ratio to it is of pairs,
file against file on each piece of text.{% endif %}</p>
<img alt="Mean KL divergence over file size" src="data:image/png;base64,{{ plot }}">
<div class="wide"><table>
{% for measure in measures %}<tr><th>{{ measure[0] }}</th>
{% for cell in measure[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% for proof, rows in proofs %}
<h2>{{ proof.quant }}: <span class="{{ 'passed' if proof.passed else 'failed' }}">
{{ 'llama.cpp computes what PyTorch computes' if proof.passed else 'failed' }}</span></h2>
<p>{{ proof.gguf }}, SHA-256 {{ proof.sha256 }}</p>
<div class="wide"><table>
<tr>{% for column in proof_columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for cells in rows %}<tr>{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% endfor %}
</html>
"""


def write_report(
    path: Path, comparison: Comparison, proofs: Sequence[Proof] = (), title: str = "llmkit report"
) -> None:
    """Write the comparison, and proofs where there are some, as a self-contained page."""
    plot = io.BytesIO()
    size_quality_figure(comparison).savefig(plot, format="png", dpi=160)
    page = jinja2.Environment(autoescape=True).from_string(_TEMPLATE)
    html = page.render(
        title=title,
        style=STYLE,
        comparison=comparison,
        plot=base64.b64encode(plot.getvalue()).decode(),
        peers=any(row.against for row in comparison.rows),
        measures=comparison_measures(comparison),
        proofs=[(proof, [proof_cells(check) for check in proof.checks]) for proof in proofs],
        proof_columns=PROOF_COLUMNS,
    )
    write_text(path, html)
