"""The tab Ask: a conversation with a model, in its own prompt format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from llmkit.errors import LlmkitError
from llmkit.page.context import Context, choose_one, say_waiting
from llmkit.page.finding import Found
from llmkit.page.sampling import sampling_controls

if TYPE_CHECKING:
    from llmkit.faq import Faq, FaqAnswer
    from llmkit.modelfiles.prompt_format import Message
    from llmkit.sampling import Sampling

_CONVERSATION = "ask_conversation"


@dataclass
class Turn:
    """A question and what was answered so far."""

    question: str
    answer: str = ""
    faq: FaqAnswer | None = None  # where the FAQ answered
    note: str = ""
    fault: str = ""


@dataclass
class Conversation:
    """All turns with one model."""

    model: str
    turns: list[Turn] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """What the model is given: all that was said and answered, and the last question."""
        from llmkit.modelfiles.prompt_format import Message

        messages = []
        for turn in self.turns[:-1]:
            if turn.answer.strip():  # an empty answer cannot be part of what follows
                messages += [Message("user", turn.question)]
                messages += [Message("assistant", turn.answer.strip())]
        return [*messages, Message("user", self.turns[-1].question)]


def show(context: Context) -> None:
    """The conversation, and a line for the next question."""
    st.header("Ask")
    models = context.of_kind("answers", with_ollama=True)
    if not models:
        st.info(f"No model in {context.folder} answers questions; see `llmkit finetune instruct`.")
        return
    model = choose_one("Model", models, "ask_model")
    with st.expander("Settings"):
        system = st.text_area("System prompt", key="ask_system", height=68, persist_state="session")
        sampling = sampling_controls("ask")
    conversation = _conversation(model.name)
    buttons = st.container(horizontal=True)
    buttons.button("Stop", key="ask_stop")  # any click ends the answer that is being written
    if buttons.button("New conversation", key="ask_new"):
        conversation.turns.clear()
    if context.faq is not None:
        st.caption(f"Questions that are in {context.faq.name} are answered from there.")
    for turn in conversation.turns:
        _show_turn(turn)
    question = st.chat_input("Your question", key="ask_question")
    if question:
        turn = Turn(question)
        conversation.turns.append(turn)
        _answer(context, model, conversation, system, sampling)


def _conversation(model: str) -> Conversation:
    """The conversation with the chosen model; another model begins a new one."""
    found = st.session_state.get(_CONVERSATION)
    if found is None or found.model != model:
        found = st.session_state[_CONVERSATION] = Conversation(model)
    return found


def _show_turn(turn: Turn) -> None:
    with st.chat_message("user"):
        st.text(turn.question)
    with st.chat_message("assistant"):
        if turn.faq is not None:
            _mark_faq(turn.faq)
        st.text(turn.answer)
        _show_end(turn)


def _show_end(turn: Turn) -> None:
    if turn.note:
        st.caption(turn.note)
    if turn.fault:
        st.error(turn.fault)


def _mark_faq(found: FaqAnswer) -> None:
    st.badge(f"FAQ, similarity {found.similarity:.2f}", color="blue")
    st.caption(f"Question in the file: {found.question}")


def _answer(
    context: Context, model: Found, conversation: Conversation, system: str, sampling: Sampling
) -> None:
    """Answer the last turn, from the FAQ or piece by piece from the model."""
    turn = conversation.turns[-1]
    with st.chat_message("user"):
        st.text(turn.question)
    with st.chat_message("assistant"):
        turn.faq = (
            None
            if context.faq is None
            else _faq(context.faq, context.faq.stat().st_mtime_ns).answer(turn.question)
        )
        if turn.faq is not None:
            turn.answer = turn.faq.answer
            _mark_faq(turn.faq)
            st.text(turn.answer)
            return
        place = st.empty()
        try:
            for piece in _pieces(context, model, conversation, system, sampling):
                turn.answer += piece
                place.text(turn.answer)
        except LlmkitError as error:
            turn.fault = str(error)
        _show_end(turn)


def _pieces(
    context: Context, model: Found, conversation: Conversation, system: str, sampling: Sampling
) -> Iterator[str]:
    from llmkit.export.llamacpp.chat import answer, open_reply
    from llmkit.export.llamacpp.runners import answer_text

    turn, messages = conversation.turns[-1], conversation.messages

    def note(text: str) -> None:
        turn.note = text

    if model.path is None:
        with open_reply(None, model.name, None, sampling) as reply:
            yield from answer(reply, messages, system, note)
        return
    place = st.empty()
    with context.models.use([model.path], lambda: say_waiting(place)) as (runner,):
        yield from answer(
            lambda turns: answer_text(runner, runner.prompt(turns), sampling),
            messages,
            system,
            note,
        )


@st.cache_resource(show_spinner=False)
def _faq(path: Path, changed: int) -> Faq:
    from llmkit.faq import Faq

    return Faq.load(path)
