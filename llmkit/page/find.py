"""The tab Find: which models there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from llmkit.page.context import Context
from llmkit.page.finding import KINDS, Found, file_hash

_COLUMNS = 3


def show(context: Context) -> None:
    """A card for each model."""
    models = context.finding.models
    st.header("Find")
    if not models:
        st.info(
            f"No models in {context.folder}. Train one with `llmkit train`, or run `llmkit demo`."
        )
    for start in range(0, len(models), _COLUMNS):
        row = st.columns(_COLUMNS)
        for column, model in zip(row, models[start : start + _COLUMNS], strict=False):
            with column.container(border=True):
                _card(model)
    for sentence in context.finding.refused:
        st.warning(sentence)


def _card(model: Found) -> None:
    st.markdown(f"**{_plain(model.name)}**")
    facts = [
        model.source,
        *([model.quant] if model.quant else []),
        *([f"{model.parameters / 1e6:,.1f} M parameters"] if model.parameters else []),
        f"{model.n_bytes / 1e6:,.1f} MB",
    ]
    st.caption(" · ".join(map(_plain, facts)))
    if model.source != "Ollama":
        labels = f": {', '.join(model.labels[:6])}" if model.labels else ""
        st.caption(_plain(f"{KINDS[model.kind]}{labels}"))
    if model.proof is None:
        return
    word, color = ("passed", "green") if model.passed else ("failed", "red")
    st.badge(f"proof {word}", color=color)  # type: ignore[arg-type]
    if st.button("Show the proof", key=f"proof_{model.name}"):
        _proof(model, model.proof)


@st.dialog("Proof", width="large")
def _proof(model: Found, proof: Mapping[str, Any]) -> None:
    """The checks as parity.json has them, once the file is known to be the one they are of."""
    if model.path is not None and not model.proof_is_checked:
        with st.spinner("Comparing the file with its proof"):
            if file_hash(model.path) != proof.get("sha256"):
                st.warning("The file has changed since; run `llmkit verify` again.")
                return
    st.markdown(f"`{model.name}` against `{proof.get('checkpoint')}`")
    checks = [
        {
            "": "✔" if check["passed"] else "✘",
            "check": check["name"],
            "value": f"{check.get('value', 0):.2g}",
            "limit": f"{check.get('limit', 0):.2g}",
            "found": check.get("detail", ""),
        }
        for check in proof.get("checks", [])
    ]
    st.table(checks, hide_index=True)


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()#+-.!|~$:<>" else c for c in text)
