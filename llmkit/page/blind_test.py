"""Section of the tab Compare: answers of two models without their names, and a person's choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from llmkit.errors import LlmkitError
from llmkit.page.context import Context, choose
from llmkit.page.finding import Found, refuse_outside

if TYPE_CHECKING:
    from llmkit.evaluation.human import BlindTest, Pair

RATINGS = "ratings.jsonl"
_NOT_QUESTIONS = ("parity.json", "results.json", RATINGS)
_TEST = "blind_test"  # in the session


def show_blind_test(context: Context) -> None:
    """Answers of two models without their names, and the choices of a person."""
    from llmkit.evaluation.human import BlindTest

    models = context.of_kind("base", "answers")
    questions = _question_files(context.folder)
    if len(models) < 2 or not questions:
        st.info(
            "A blind test needs two models and a file of questions and answers (JSON, JSONL or "
            f"CSV) in {context.folder}."
        )
        return
    chosen = choose("Two models", models, _default(models), "blind_models", 2)
    file = st.selectbox("Questions", questions, key="blind_file", persist_state="session")
    count = st.number_input("Number of questions", 1, 1000, 10, key="blind_count")
    st.caption(f"Your choices are kept in `{RATINGS}`; a later test goes on behind them.")
    if st.button("Start", type="primary", key="blind_start", disabled=len(chosen) != 2):
        path = context.folder / file
        refuse_outside(path, context.folder)
        with st.spinner("Both models are answering"):
            paths = [str(context.named(name).path) for name in chosen]
            st.session_state[_TEST] = BlindTest(paths, path, context.folder / RATINGS, int(count))
    test: BlindTest | None = st.session_state.get(_TEST)
    if test is None:
        return
    pair = test.next_pair()
    if pair is not None:
        _ask(test, pair)
    else:
        st.success("All pairs are rated; equal answers need no rating.")
    if pair is None or st.toggle("Show the result so far", key="blind_result"):
        _show_ratings(test)


def _default(models: Sequence[Found]) -> list[str]:
    """The first model that answers and the smallest file made from it, if there are both."""
    for model in models:
        made = [one for one in models if one.original == model.name]
        if model.kind == "answers" and made:
            return [model.name, min(made, key=lambda one: one.n_bytes).name]
    return []


def _ask(test: BlindTest, pair: Pair) -> None:
    from llmkit.evaluation.evaluate import keep_evaluation

    st.subheader(f"{pair.number} of {len(test.questions)}")
    st.text(pair.question)
    for column, number, answer in zip(st.columns(2), "12", pair.answers, strict=True):
        with column.container(border=True):
            st.caption(f"Answer {number}")
            st.text(answer)
    buttons = st.container(horizontal=True)
    for key, title in (("1", "1 is better"), ("=", "Equal"), ("2", "2 is better")):
        if buttons.button(title, key=f"blind_{key}"):
            test.choose(pair, key)
            if test.next_pair() is None:
                keep_evaluation(test.evaluation())
            st.rerun()


def _show_ratings(test: BlindTest) -> None:
    try:
        evaluation = test.evaluation()
    except LlmkitError:
        st.caption("Nothing is rated yet.")
        return
    (score,) = evaluation.models[0].scores.values()
    first, second = (Path(name).name for name in test.names)
    st.metric(f"{second} against {first}", f"{score.value:.0%} won")
    if score.interval is not None:
        low, high = score.interval
        st.caption(
            f"{evaluation.items} pairs, 95 % interval {low:.0%} to {high:.0%}; "
            "equal ones count half"
        )


def _question_files(folder: Path) -> list[str]:
    """Files that may hold questions, by their path below the folder."""
    return sorted(
        path.relative_to(folder).as_posix()
        for suffix in ("json", "jsonl", "csv", "tsv")
        for path in folder.glob(f"**/*.{suffix}")
        if path.name not in _NOT_QUESTIONS
        and "training" not in path.relative_to(folder).parts
        and not (path.parent / "config.json").exists()
    )
