"""The tab Compare: what each file costs, where a text shows it, proofs, curves, a blind test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from llmkit.page.blind_test import show_blind_test
from llmkit.page.charts import size_quality_chart
from llmkit.page.context import Context, choose, choose_one
from llmkit.page.curves import show_training
from llmkit.page.finding import file_hash
from llmkit.page.text_divergence import show_text

if TYPE_CHECKING:
    from llmkit.evaluation.evaluate import Score
    from llmkit.evaluation.results import Results
    from llmkit.export.compare import Comparison

_MOST = 8


def show(context: Context) -> None:
    """One of the sections."""
    st.header("Compare")
    section = st.segmented_control(
        "Section",
        list(_SECTIONS),
        default=next(iter(_SECTIONS)),
        key="compare_section",
        required=True,
        label_visibility="collapsed",
        persist_state="session",
    )
    _SECTIONS[section](context)


def _show_sizes(context: Context) -> None:
    """Saved comparisons and evaluations, and a form to measure."""
    results = _results(context.folder)
    if results.comparisons:
        names = list(results.comparisons)
        name = names[0]
        if len(names) > 1:
            name = st.selectbox("Measured", names, key="compare_file", persist_state="session")
        _show_comparison(context, results.comparisons[name])
        st.caption(f"Measured in `{name}`")
    else:
        st.info("Nothing is measured yet.")
    _measure(context)
    for name, evaluation in results.evaluations.items():
        st.subheader(f"Task {evaluation.task}")
        st.dataframe(
            [
                {"model": Path(model.model).name, "group": group, **_score_cells(scores)}
                for model in evaluation.models
                for group, scores in {"all": model.scores, **model.groups}.items()
            ],
            hide_index=True,
        )
        st.caption(f"{evaluation.items} items of `{name}`")


def _score_cells(scores: Mapping[str, Score]) -> dict[str, object]:
    cells: dict[str, object] = {}
    for measure, score in scores.items():
        cells[measure] = round(score.value, 4)
        if score.interval is not None:
            cells[f"{measure}: 95 % interval"] = (
                f"{score.interval[0]:.3f} to {score.interval[1]:.3f}"
            )
    return cells


def _show_comparison(context: Context, comparison: Comparison) -> None:
    from llmkit.export.inspection import inspect
    from llmkit.export.report.tables import comparison_measures

    st.altair_chart(size_quality_chart(comparison), alt="Mean KL divergence over file size")
    st.caption(
        f"Mean KL divergence from {Path(comparison.reference).name} on {comparison.tokens:,} "
        "tokens, with its 95 % interval: lower is better, 0 is the same model"
    )
    header, *measures = comparison_measures(comparison)
    columns = [_unlike(name, header[1:], place) for place, name in enumerate(header[1:])]
    st.dataframe(
        [dict(zip(("measure", *columns), cells, strict=True)) for cells in measures],
        hide_index=True,
    )
    files = {Path(row.file).resolve() for row in comparison.rows}
    found = [one for one in context.finding.models if one.path and one.path.resolve() in files]
    if found:
        st.subheader("Types in each file")
        st.dataframe(
            [
                {
                    "file": model.name,
                    "type": group.type,
                    "tensors": group.tensors,
                    "parameters": group.parameters,
                    "MB": round(group.bytes / 1e6, 2),
                }
                for model in found
                for group in inspect(str(model.path)).groups
            ],
            hide_index=True,
        )


def _unlike(name: str, names: Sequence[str], place: int) -> str:
    """The name of a file; with its number where several have it."""
    return name if list(names).count(name) == 1 else f"{name} ({place + 1})"


def _measure(context: Context) -> None:
    """Run `compare`, which keeps its result beside the reference."""
    from llmkit.export.compare import compare

    files = [model for model in context.finding.models if model.source == "GGUF"]
    references = [model for model in context.finding.models if model.path is not None]
    if not files:
        st.info("There is no GGUF file to measure; see `llmkit export`.")
        return
    original = next((model.original for model in files if model.original), references[0].name)
    with st.expander("Measure", expanded=not _results(context.folder).comparisons):
        references.sort(key=lambda model: model.name != original)
        reference = choose_one("Reference", references, "compare_reference")
        of_it = [model.name for model in files if model.original == reference.name]
        chosen = choose("Files", files, of_it[:_MOST], "compare_files", _MOST)
        if not st.button("Measure", type="primary", key="compare_measure", disabled=not chosen):
            return
        paths = [path for name in chosen if (path := context.named(name).path) is not None]
        with st.spinner("Comparing each file with the reference"):
            compare(str(reference.path), paths)
        _results.clear()
    st.rerun()


def _show_proofs(context: Context) -> None:
    """The page of one file's proof."""
    from llmkit.export.verify.page import kept_proof_page

    proved = [model for model in context.finding.models if model.proof is not None]
    if not proved:
        st.info("No file here has a proof; see `llmkit verify`.")
        return
    model = choose_one("File", proved, "compare_proof")
    if model.proof is None or model.path is None:
        return
    if not model.proof_is_checked and file_hash(model.path) != model.proof.get("sha256"):
        st.warning("The file has changed since; run `llmkit verify` again.")
        return
    html = kept_proof_page(model.proof)
    st.iframe(html, height=720)
    st.download_button(
        "Download the page", html, f"{model.path.stem}-proof.html", "text/html", key="proof_page"
    )


@st.cache_data(ttl=10, show_spinner=False)
def _results(folder: Path) -> Results:
    from llmkit.evaluation.results import find_results

    return find_results(folder)


_SECTIONS = {
    "Size and quality": _show_sizes,
    "Along a text": show_text,
    "Proofs": _show_proofs,
    "Training": show_training,
    "Blind test": show_blind_test,
}
