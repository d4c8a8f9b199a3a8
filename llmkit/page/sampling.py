"""The controls of sampling, the same in every tab that generates."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    from llmkit.sampling import Sampling


def sampling_controls(key: str) -> Sampling:
    """Sliders and numbers, and what they are set to."""
    from llmkit.sampling import Sampling

    columns = st.columns(6)
    slider = [partial(column.slider, persist_state="session") for column in columns]
    number = [partial(column.number_input, persist_state="session") for column in columns]
    temperature = slider[0]("Temperature", 0.0, 2.0, 0.8, 0.05, key=f"{key}_temperature")
    top_k = number[1]("Top-k (0: all)", 0, None, 0, key=f"{key}_top_k")
    top_p = slider[2]("Top-p", 0.05, 1.0, 1.0, 0.05, key=f"{key}_top_p")
    min_p = slider[3]("Min-p", 0.0, 1.0, 0.0, 0.01, key=f"{key}_min_p")
    length = number[4]("Length in tokens", 1, 4096, 120, key=f"{key}_length")
    seed = number[5]("Seed", 0, None, 0, key=f"{key}_seed")
    return Sampling(
        temperature,
        top_k or None,
        top_p if top_p < 1 else None,
        min_p or None,
        seed=int(seed),
        max_tokens=int(length),
    )
