"""The tab Look inside: attention of each head, the prediction after each layer, neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from llmkit.page.charts import attention_chart
from llmkit.page.context import Context, choose_one, say_waiting
from llmkit.page.finding import Found
from llmkit.page.style import visible

if TYPE_CHECKING:
    from llmkit.export.llamacpp.inside import Inside, Neighbour
    from llmkit.generation import Candidate

_EXAMPLE = "Anton the cook lives at the inn by the market."
_MOST_TOKENS = 48  # a heat map of more has cells that nobody can tell apart
_N_LIKELIEST, _N_NEIGHBOURS = 5, 12
_HEADS_IN_A_ROW = 2
_LAST = "inside_last"  # what was computed last, in the session, with what it was computed from


def show(context: Context) -> None:
    """A text above, what the model makes of it below."""
    st.header("Look inside")
    models = context.of_kind("base", "answers", "labels")
    if not models:
        st.info(f"No model in {context.folder}.")
        return
    model = choose_one("Model", models, "inside_model")
    text = st.text_area("Text", _EXAMPLE, key="inside_text", height=68, persist_state="session")
    section = st.segmented_control(
        "What",
        list(_SECTIONS),
        default=next(iter(_SECTIONS)),
        key="inside_section",
        required=True,
        label_visibility="collapsed",
        persist_state="session",
    )
    if text:
        found, neighbours, is_cut = _computed(context, model, text)
        if is_cut:
            st.caption(f"Only the first {_MOST_TOKENS} tokens are shown.")
        _SECTIONS[section](found, neighbours)


def _changed(path: Path | None) -> int:
    """When a model's files changed last, in nanoseconds."""
    if path is None:
        return 0
    return max(file.stat().st_mtime_ns for file in (path, *path.glob("*")))


def _computed(
    context: Context, model: Found, text: str
) -> tuple[Inside, dict[str, list[Neighbour]], bool]:
    """What the model computes from the text, the neighbours of its tokens, and if it was cut."""
    from llmkit.export.llamacpp.inside import inside, neighbours, pytorch_model

    asked = (model.name, _changed(model.path), text)
    if st.session_state.get(_LAST, (None,))[0] != asked:
        paths = [] if model.path is None else [model.path]
        place = st.empty()
        with context.models.use(paths, lambda: say_waiting(place)) as (runner,):
            place.empty()
            every = runner.begun(runner.encode(text))
            ids = every[: min(_MOST_TOKENS, runner.context_length)]
            module = pytorch_model(runner)
            found = inside(runner, module, ids, _N_LIKELIEST)
            near = {
                token: neighbours(runner, module, token_id, _N_NEIGHBOURS)
                for token, token_id in zip(found.tokens, ids, strict=True)
            }
        st.session_state[_LAST] = (asked, (found, near, len(ids) < len(every)))
    computed: tuple[Inside, dict[str, list[Neighbour]], bool] = st.session_state[_LAST][1]
    return computed


def _show_attention(found: Inside, _: object) -> None:
    """A heat map for each head of one layer."""
    n_layers, n_heads = found.attention.shape[:2]
    layer = 1
    if n_layers > 1:
        layer = st.slider("Layer", 1, n_layers, 1, key="inside_layer", persist_state="session")
    for start in range(0, n_heads, _HEADS_IN_A_ROW):
        heads = range(start, min(start + _HEADS_IN_A_ROW, n_heads))
        for column, head in zip(st.columns(len(heads)), heads, strict=True):
            column.altair_chart(
                attention_chart(found, layer - 1, head), alt=f"Attention of head {head + 1}"
            )
    st.caption(
        "Row: the token that looks; column: the token that it looks at. A row adds up to 1. "
        "Many heads look at the first token when they find nothing."
    )


def _show_layers(found: Inside, _: object) -> None:
    """The likeliest next token at each place after each layer, as the head would have it."""
    titles = ["embeddings", *(f"layer {n}" for n in range(1, len(found.layers)))]
    head = "".join(f"<th>{escape(visible(token))}</th>" for token in found.tokens)
    rows = "".join(
        f"<tr><th>{title}</th>{''.join(map(_cell, layer))}</tr>"
        for title, layer in reversed(list(zip(titles, found.layers, strict=True)))
    )
    st.html(f'<div class="lens"><table><tr><th></th>{head}</tr>{rows}</table></div>')
    st.caption(
        "The top row is the text, the one below it what the model predicts as the next token; "
        "further down, what it would predict if it ended after that layer (logit lens). The "
        "stronger the tint, the more probable. Point at a cell for the next likely ones."
    )


def _cell(likeliest: Sequence[Candidate]) -> str:
    best = likeliest[0]
    tip = ", ".join(f"{visible(c.token)} {c.probability:.1%}" for c in likeliest)
    return (
        f'<td style="--p:{best.probability:.3f}" title="{escape(tip, quote=True)}">'
        f"{escape(visible(best.token))}</td>"
    )


def _show_neighbours(_: object, neighbours: dict[str, list[Neighbour]]) -> None:
    """Tokens whose embeddings point the same way as one of the text."""
    tokens = list(neighbours)
    longest = tokens.index(max(tokens, key=len))  # most likely a whole word
    token = st.selectbox(
        "Token of the text", tokens, longest, format_func=visible, key="inside_token"
    )
    st.dataframe(
        [{"token": visible(near.text), "cosine": near.cosine} for near in neighbours[token]],
        column_config={
            "cosine": st.column_config.ProgressColumn(
                "cosine", min_value=0, max_value=1, format="%.3f"
            )
        },
        hide_index=True,
    )
    st.caption("Tokens with similar embeddings are used alike by the first layer.")


_SECTIONS = {
    "Attention": _show_attention,
    "After each layer": _show_layers,
    "Neighbours of a token": _show_neighbours,
}
