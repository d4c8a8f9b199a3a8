"""The tab Label: texts through several classifiers at once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from llmkit.errors import DataError, LlmkitError
from llmkit.page.context import Context, choose, say_waiting

if TYPE_CHECKING:
    from llmkit.evaluation.labelling import LabelledBy
    from llmkit.records.json_records import Record

_MOST = 6
_ROWS = "label_rows"  # what was labelled last, in the session
_NO_COLUMN = "(none)"
_FORMATS = "a CSV, TSV, JSON or JSONL file with a column of texts"

Text = tuple[str, str | None]  # with the label that the file has for it


def show(context: Context) -> None:
    """One text or a file above, what the classifiers say of it below."""
    st.header("Label")
    models = context.of_kind("labels")
    if not models:
        st.info(f"No classifier in {context.folder}; see `llmkit finetune classify`.")
        return
    names = [model.name for model in models]
    chosen = choose("Classifiers", models, names[:_MOST], "label_models", _MOST)
    source = st.segmented_control(
        "Texts", ["One text", "A file"], default="One text", key="label_source", required=True
    )
    texts = _one_text() if source == "One text" else _file_texts()
    buttons = st.container(horizontal=True)
    starts = buttons.button(
        "Label", type="primary", key="label_start", disabled=not (chosen and texts)
    )
    buttons.button("Stop", key="label_stop")  # any click ends the run that labels
    if starts:
        rows = st.session_state[_ROWS] = []
        _label(context, chosen, texts, rows)
    rows = st.session_state.get(_ROWS, [])
    if len(rows) == 1:
        _show_one(rows[0])
    elif rows:
        _show_many(rows)


def _one_text() -> list[Text]:
    text = st.text_area("Text", key="label_text", persist_state="session")
    return [(text, None)] if text.strip() else []


def _file_texts() -> list[Text]:
    from llmkit.records.labelled import LABEL_NAMES, TEXT_NAMES

    file = st.file_uploader("File with texts", ["csv", "tsv", "json", "jsonl"], key="label_file")
    if file is None:
        return []
    records = _records(file.name, file.getvalue())
    columns = list(records[0].fields)
    text, label = st.columns(2)
    text_column = text.selectbox(
        "Column of texts", columns, _place(columns, TEXT_NAMES), key="label_text_column"
    )
    others = [_NO_COLUMN, *(column for column in columns if column != text_column)]
    label_column = label.selectbox(
        "Column of labels", others, _place(others, LABEL_NAMES), key="label_label_column"
    )
    return [
        (
            _cell(record, text_column),
            None if label_column == _NO_COLUMN else _cell(record, label_column),
        )
        for record in records
    ]


def _place(columns: Sequence[str], known: Sequence[str]) -> int:
    """Place of the column with a known name; the first column where there is none."""
    lower = [column.strip().lower() for column in columns]
    return next((lower.index(name) for name in known if name in lower), 0)


def _cell(record: Record, column: str) -> str:
    value = record.fields.get(column)
    return "" if value is None else str(value).strip()


def _records(name: str, content: bytes) -> list[Record]:
    """The records of an uploaded file. Raises DataError with its name and the line of a fault."""
    from llmkit.records.user_files import read_records

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(name).name
        path.write_bytes(content)
        try:
            return read_records(path, _FORMATS)
        except LlmkitError as error:
            raise DataError(str(error).replace(f"{folder}{os.sep}", "")) from error


def _label(
    context: Context, chosen: Sequence[str], texts: Sequence[Text], rows: list[LabelledBy]
) -> None:
    """Add a row for each text; a click of the user ends it, with the rows so far."""
    from llmkit.evaluation.labelling import LabelledBy, label_probabilities

    paths = [path for name in chosen if (path := context.named(name).path) is not None]
    place = st.empty()
    with context.models.use(paths, lambda: say_waiting(place)) as runners:
        classifiers = dict(zip(chosen, runners, strict=True))
        for text, label in _with_progress(texts, place):
            found = {name: label_probabilities(one, text) for name, one in classifiers.items()}
            rows.append(LabelledBy(text, label or None, found))
    place.empty()


def _with_progress(texts: Sequence[Text], place: DeltaGenerator) -> Iterator[Text]:
    for number, text in enumerate(texts):
        if number % max(1, len(texts) // 100) == 0:
            place.progress(number / len(texts), f"{number} of {len(texts)} texts")
        yield text


def _show_one(row: LabelledBy) -> None:
    """A bar for each label and classifier."""
    for column, (model, found) in zip(
        st.columns(len(row.probabilities)), row.probabilities.items(), strict=True
    ):
        column.markdown(f"`{model}`")
        if found is None:
            column.warning("The text is longer than the model's context.")
            continue
        for label, probability in sorted(found.items(), key=lambda item: -item[1])[:10]:
            column.progress(probability, f"{label}: {probability:.1%}")


def _show_many(rows: Sequence[LabelledBy]) -> None:
    from llmkit.evaluation.labelling import disputed_first, label_counts, labelled_csv

    models = list(rows[0].probabilities)
    n_disputed = sum(row.is_disputed for row in rows)
    st.caption(f"{len(rows)} texts; the classifiers disagree on {n_disputed}, which come first")
    bars = {
        f"{model}: probability": st.column_config.ProgressColumn(
            f"{model}: probability", min_value=0, max_value=1, format="percent"
        )
        for model in models
    }
    st.dataframe([_cells(row, models) for row in disputed_first(rows)], column_config=bars)
    st.download_button(
        "Download as CSV", labelled_csv(rows, models), "labelled.csv", "text/csv", key="label_csv"
    )
    counts = {model: label_counts(rows, model) for model in models}
    if not any(counts.values()):
        return
    st.subheader("Against the file's labels")
    st.caption("Row: the true label; column: the predicted one")
    for column, (model, count) in zip(st.columns(len(models)), counts.items(), strict=True):
        if count is None:
            continue
        column.markdown(f"`{model}`: {count.accuracy:.1%} right")
        column.dataframe(
            [
                {"true": label, **dict(zip(count.labels, row, strict=True))}
                for label, row in zip(count.labels, count.confusion, strict=True)
            ],
            hide_index=True,
        )


def _cells(row: LabelledBy, models: Sequence[str]) -> dict[str, object]:
    cells: dict[str, object] = {"text": row.text}
    if row.label is not None:
        cells["label"] = row.label
    for model in models:
        label = row.predicted.get(model)
        cells[model] = label or "too long"
        found = row.probabilities[model] or {}
        cells[f"{model}: probability"] = found[label] if label else None
    return cells
