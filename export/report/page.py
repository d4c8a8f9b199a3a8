"""One HTML page with tables and plot, that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from llmkit.export.check import Proof
from llmkit.export.compare import Comparison
from llmkit.export.report.plots import size_quality_figure
from llmkit.export.report.tables import PROOF_COLUMNS, comparison_measures, proof_cells
from llmkit.files import StrPath, write_text

_STYLE = """
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
         padding: 0 1rem; overflow-wrap: break-word; color: #111; background: #fff; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem;
          margin: 1rem 0; }
  th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #ccc; text-align: left;
           vertical-align: top; }
  code, .detail, .name { overflow-wrap: anywhere; }
  .passed { color: #17702f; } .failed { color: #b3261e; font-weight: bold; }
  img { max-width: 100%; }
  @media (max-width: 40rem) {
    th, td { padding: 0.3rem; }
    .checks tr { display: grid; grid-template-columns: 1rem 1fr 4rem 4rem; column-gap: 0.6rem;
                 border-bottom: 1px solid #ccc; }
    .checks th, .checks td { border: 0; padding: 0.1rem 0; }
    .checks .detail { grid-column: 2 / -1; }
    .numbers, .numbers tbody, .numbers tr, .numbers th { display: block; }
    .numbers .columns { display: none; }
    .numbers th { border: 0; padding: 0.6rem 0 0; }
    .numbers td { display: flex; justify-content: space-between; gap: 1rem; padding: 0.1rem 0;
                  white-space: nowrap; }
    .numbers td::before { content: attr(data-column); white-space: normal; min-width: 0;
                          overflow-wrap: anywhere; }
  }
"""
# On a phone the detail of a check stands below it, and a row of numbers becomes a line for each.
_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
<h1>{{ title }}</h1>
{% macro checks_table(proof) %}<table class="checks">
<tr>{% for column in proof_columns %}<th{% if loop.last %} class="detail"{% endif %}>{{ column }}
</th>{% endfor %}</tr>
{% for check in proof.checks %}<tr class="{{ 'passed' if check.passed else 'failed' }}">
{% for cell in proof_cells(check) %}<td{% if loop.last %} class="detail"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}</table>{% endmacro %}
{% macro numbers_table(columns, rows) %}<table class="numbers">
<tr class="columns">{% for column in columns %}<th class="name">{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}<tr><th>{{ row[0] }}</th>
{% for cell in row[1:] %}<td data-column="{{ columns[loop.index] }}">{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}</table>{% endmacro %}
"""
_TEMPLATE = """
<p>Each file compared with {{ comparison.reference }} in PyTorch (f32), on the same
{{ comparison.tokens }} tokens. KL divergence in nats per token, with its 95 % confidence interval.
{% if peers %}The files of llama-quantize have the same type for every tensor. The ratio is to the
better of its files with and without an importance matrix; the interval of the ratio is from paired
differences on each piece of text.{% endif %}</p>
<img alt="Mean KL divergence by file size" src="{{ plot }}">
{{ numbers_table(measures[0], measures[1:]) }}
{% for proof in proofs %}
<h2>{{ proof.quant }}: <span class="{{ 'passed' if proof.passed else 'failed' }}">
{{ 'llama.cpp computes what PyTorch computes' if proof.passed else 'failed' }}</span></h2>
<p>{{ proof.gguf }}, SHA-256 <code>{{ proof.sha256 }}</code></p>
{{ checks_table(proof) }}
{% endfor %}
"""


def write_report(
    path: StrPath,
    comparison: Comparison,
    proofs: Proof | Sequence[Proof] = (),
    title: str = "llmkit report",
) -> None:
    """Write the comparison, and proofs where there are some, as a self-contained page."""
    html = page(
        _TEMPLATE,
        title=title,
        comparison=comparison,
        plot=png_data(size_quality_figure(comparison)),
        peers=any(row.against for row in comparison.rows),
        measures=comparison_measures(comparison),
        proofs=(proofs,) if isinstance(proofs, Proof) else proofs,
    )
    write_text(Path(path), html)


def png_data(figure: Figure) -> str:
    """A figure as a data: URL."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=160)
    return f"data:image/png;base64,{base64.b64encode(drawn.getvalue()).decode()}"


def page(template: str, **values: object) -> str:
    """A page: the common head, then the template. Values are shown as text, never as HTML."""
    html = jinja2.Environment(autoescape=True).from_string(f"{_HEAD}{template}</html>\n")
    return html.render(style=_STYLE, proof_columns=PROOF_COLUMNS, proof_cells=proof_cells, **values)
