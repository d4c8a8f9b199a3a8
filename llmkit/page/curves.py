"""Section of the tab Compare: the curves of all runs of training, live."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

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
    from llmkit.training.state import training_metrics

    runs = training_metrics(folder)
    if not runs:
        st.info(f"No run of training below {folder}.")
        return
    st.altair_chart(curve_chart(runs, title), alt=f"{title} of each run over its steps")
    if len(CURVES[title]) > 1:
        st.caption("Solid: training; dashed: validation")
    st.dataframe(
        [
            {
                "run": name,
                "step": metrics[-1].step,
                "validation loss": round(metrics[-1].val_loss, 4),
                "training loss": round(metrics[-1].train_loss, 4),
                "minutes": round(metrics[-1].elapsed_s / 60, 1),
                "tokens per second": round(metrics[-1].tokens_per_s),
            }
            for name, metrics in runs.items()
        ],
        hide_index=True,
    )
