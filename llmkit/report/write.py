"""`report`: an HTML page and a model card in Markdown about a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCardData

from llmkit.errors import ConfigError
from llmkit.export.report.markdown import code_block, markdown_table
from llmkit.export.report.page import page, png_data
from llmkit.files import StrPath, cannot_read, optional_path, write_text
from llmkit.report.collect import collect, open_run
from llmkit.report.facts import CHECKPOINT, RunReport
from llmkit.report.sections import Section, sections, summary

MARK = "<!-- written by llmkit report -->"  # a file with it may be replaced
NAMES = ("report.html", "report.md")
_TEMPLATE = """
{{ mark|safe }}
<style>
  .facts td { overflow-wrap: anywhere; } .facts th { font-weight: normal; }
  figure { display: inline-block; width: 28rem; max-width: 100%; margin: 0 0.5rem 0 0; }
  blockquote { margin: 1rem 0; padding-left: 1rem; border-left: 3px solid #ccc;
               white-space: pre-wrap; }
</style>
<p>{{ summary }}</p>
{% for section in sections %}
<h2>{{ section.heading }}</h2>
{% if section.note %}<p>{{ section.note }}</p>{% endif %}
{% if section.rows and section.columns|length <= 3 %}<table class="facts">
{% if section.columns|length > 2 %}<tr>{% for column in section.columns %}<th>{{ column }}</th>
{% endfor %}</tr>{% endif %}
{% for row in section.rows %}<tr><th>{{ row[0] }}</th>
{% for cell in row[1:] %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% elif section.rows %}{{ numbers_table(section.columns, section.rows) }}{% endif %}
{% if section.files %}<p>{% for file in section.files %}<a href="{{ link(file) }}">
{{ link(file) }}</a>{{ ", " if not loop.last }}{% endfor %}</p>{% endif %}
{% for name, figure in section.figures.items() %}
<figure><img alt="{{ name }}" src="{{ png_data(figure) }}"></figure>{% endfor %}
{% for prompt, text in section.quotes %}
<blockquote><b>{{ prompt }}</b>{{ text }}</blockquote>{% endfor %}
{% if section.missing %}<ul>{% for one in section.missing %}
<li>{{ one.what }}{% if one.command %}: <code>{{ one.command }}</code>{% endif %}</li>
{% endfor %}</ul>{% endif %}
{% endfor %}
"""


def report(
    run: StrPath, ggufs: StrPath | Sequence[StrPath] = (), *, out: StrPath | None = None
) -> tuple[RunReport, list[Path]]:
    """Write what is known about the run in the checkpoint folder `run`; returns it and the files.

    `ggufs`: GGUF files of the run; by default those that are found in and beside its folder.
    `out`: a file for the page (.html) or the model card (.md); by default both are written into
    `run`. A file there that `report` did not write is not replaced.

    Raises LlmkitError: not a checkpoint, an output that exists.
    """
    run, out = Path(run), optional_path(out)
    paths = [run / name for name in NAMES] if out is None else [out]
    checkpoint = open_run(run)
    for path in paths:
        _check_out(path)
    given = [ggufs] if isinstance(ggufs, str | Path) else ggufs
    collected = collect(checkpoint, [Path(path) for path in given])
    parts = sections(collected)
    for path in paths:
        write = _WRITERS[path.suffix.lower()]
        write_text(path, write(collected, parts, partial(_link, path.parent)))
    return collected, paths


def _check_out(path: Path) -> None:
    """Raise ConfigError for another suffix, and for a file that `report` did not write."""
    if path.suffix.lower() not in _WRITERS:
        raise ConfigError(f"{path}: unknown suffix; use .html or .md")
    if not path.exists():
        return
    try:
        is_ours = MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(cannot_read(path, error)) from error
    if not is_ours:
        raise ConfigError(
            f"{path} exists, and llmkit report did not write it; choose another file with --out"
        )


def _link(folder: Path, file: str) -> str:
    """The address of a file in a document in `folder`."""
    return quote(Path(os.path.relpath(file, folder)).as_posix())


def _html(collected: RunReport, parts: Sequence[Section], link: Callable[[str], str]) -> str:
    return page(
        _TEMPLATE,
        title=f"{collected.name}: report",
        mark=MARK,
        summary=summary(collected),
        sections=parts,
        link=link,
        png_data=png_data,
    )


def _markdown(collected: RunReport, parts: Sequence[Section], link: Callable[[str], str]) -> str:
    """With Hugging Face's front matter; without pictures and what is missing."""
    lines = [f"---\n{_front_matter(collected)}\n---", MARK, f"# {collected.name}"]
    lines.append(summary(collected))
    for section in (part for part in parts if not part.missing):
        lines += [f"## {section.heading}", *([section.note] if section.note else [])]
        if section.rows:
            lines.append(markdown_table(section.columns, section.rows))
        lines += [f"[{link(file)}]({link(file)})" for file in section.files]
        lines += [code_block("text", f"{prompt} ▸{text}") for prompt, text in section.quotes]
    return "\n\n".join(lines) + "\n"


def _front_matter(collected: RunReport) -> str:
    """Metadata of a Hugging Face model card, with the checkpoint's scores."""
    task = "text-classification" if collected.is_classifier else "text-generation"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=one.task,
            dataset_name=one.task if one.source == one.task else Path(one.source).name,
            metric_type=one.measure,
            metric_value=one.scores[CHECKPOINT].value,
        )
        for one in collected.scores
        if CHECKPOINT in one.scores
    ]
    card = ModelCardData(
        pipeline_tag=task,
        tags=["llmkit", *(["gguf"] if collected.files else [])],
        model_name=collected.name if results else None,
        eval_results=results or None,
    )
    return card.to_yaml()


_WRITERS = {".html": _html, ".md": _markdown}
