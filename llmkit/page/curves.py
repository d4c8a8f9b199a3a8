"""Section of the tab Compare: the curves of all runs of training, live."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from llmkit.errors import DataError
from llmkit.page.charts import CURVES, curve_chart
from llmkit.page.context import Context

_SECONDS = 2  # between two looks at the files


def show_training(context: Context) -> None:
    """The curves of all runs, read again every few seconds."""
    chosen = st.segmented_control(
        "Curve",
        list(CURVES),
        default="Loss",
        key="compare_curve",
        required=True,
        persist_state="session",
    )
    _curves(context.folder, chosen)


@st.fragment(run_every=_SECONDS)
def _curves(folder: Path, title: str) -> None:
    from llmkit.training.runs import find_runs

    try:
        runs = {run.folder.relative_to(folder).as_posix(): run for run in find_runs(folder)}
    except DataError as error:
        st.info(str(error))
        return
    curves = {name: run.metrics for name, run in runs.items()}
    st.altair_chart(curve_chart(curves, title), alt=f"{title} of each run over its steps")
    if len(CURVES[title]) > 1:
        st.caption("Solid: training; dashed: validation")
    st.dataframe(
        [
            {
                "run": name,
                "status": run.status,
                "step": run.steps[0],
                "of": run.steps[1],
                "validation loss": round(run.last.val_loss, 4),
                "training loss": round(run.last.train_loss, 4),
                "minutes": round(run.last.elapsed_s / 60, 1),
                "tokens per second": round(run.last.tokens_per_s),
            }
            for name, run in runs.items()
            if run.last is not None
        ],
        hide_index=True,
    )
