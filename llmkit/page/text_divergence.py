"""Section of the tab Compare: where along a text files predict something else."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import streamlit as st

from llmkit.page.charts import divergence_chart, preferred
from llmkit.page.context import Context, choose, choose_one, say_waiting

if TYPE_CHECKING:
    from llmkit.export.evaluation.along import TokenDivergence

_MOST = 4
_EXAMPLE = (
    "Once there was a hungry cook named Anton who lived at the inn by the market with a pink "
    "piglet named Rudi."
)
_FOUND = "along_found"  # the last result, in the session


def show_text(context: Context) -> None:
    """The KL at each token of the user's text."""
    from llmkit.export.evaluation.along import along

    models = context.of_kind("base", "answers", "labels")
    if len(models) < 2:
        st.info(f"This needs two models of one vocabulary; {context.folder} has {len(models)}.")
        return
    originals = [model.original for model in models if model.original]
    models.sort(key=lambda model: model.name not in originals)
    reference = choose_one("Original", models, "along_original")
    others = [model for model in models if model.name != reference.name]
    made = [model.name for model in others if model.original == reference.name]
    chosen = choose("Compared with it", others, made[:_MOST], "along_others", _MOST)
    text = st.text_area("Text", _EXAMPLE, key="along_text", persist_state="session")
    can = bool(chosen and text.strip())
    if st.button("Compare", type="primary", key="along_start", disabled=not can):
        names = [reference.name, *chosen]
        paths = [path for name in names if (path := context.named(name).path) is not None]
        place = st.empty()
        with context.models.use(paths, lambda: say_waiting(place)) as (original, *runners):
            place.empty()
            st.session_state[_FOUND] = {
                name: along(original, runner, text)
                for name, runner in zip(chosen, runners, strict=True)
            }
    found: dict[str, list[TokenDivergence]] = st.session_state.get(_FOUND, {})
    if not found:
        return
    st.altair_chart(divergence_chart(found), alt="KL divergence at each token")
    most = max(token.kl for tokens in found.values() for token in tokens) or 1
    for name, tokens in found.items():
        n_other = sum(token.original.id != token.other.id for token in tokens)
        mean = sum(token.kl for token in tokens) / len(tokens)
        st.markdown(f"`{name}`: mean KL {mean:.2e}; it prefers another token at {n_other} places")
        st.html(f'<div class="tokens">{"".join(_tinted(token, most) for token in tokens)}</div>')
    st.caption(
        "The stronger the tint of a token, the further apart are the predictions of it. Underlined "
        "in red: the two models prefer different tokens there."
    )


def _tinted(token: TokenDivergence, most: float) -> str:
    kind = "token" if token.original.id == token.other.id else "token differs"
    tip = escape(f"KL {token.kl:.2e}; {preferred(token)}", quote=True)
    return (
        f'<span class="{kind}" style="--p:{1 - token.kl / most:.3f}" title="{tip}">'
        f"{escape(token.text)}</span>"
    )
