"""The tab Write: one prompt, several models side by side, token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from operator import methodcaller
from typing import TYPE_CHECKING

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from llmkit.errors import LlmkitError
from llmkit.page.context import Context, choose, say_waiting
from llmkit.page.finding import Found
from llmkit.page.sampling import sampling_controls
from llmkit.page.style import visible

if TYPE_CHECKING:
    from llmkit.export.llamacpp.runners import Runner
    from llmkit.generation import Candidate, GeneratedToken
    from llmkit.sampling import Sampling

MOST = 4
_TEXTS = "write_texts"  # what was written last, in the session
_PAUSE = 0.05  # seconds between two pictures of a growing text
_EXAMPLE = "Tell a story about Anton."


@dataclass
class Text:
    """What a model has written so far."""

    tokens: list[GeneratedToken] = field(default_factory=list)
    # What the original prefers where it prefers another token: one for each token, or none yet.
    differences: list[Candidate | None] = field(default_factory=list)
    original: str = ""  # name of the model that was compared with
    fault: str = ""


def show(context: Context) -> None:
    """Prompt and settings above, a column of text for each model below."""
    st.header("Write")
    models = context.of_kind("base", "answers")
    if not models:
        st.info(f"No model in {context.folder} writes text.")
        return
    chosen = choose("Models, side by side", models, _default(models), "write_models", MOST)
    prompt = st.text_area("Prompt", _EXAMPLE, key="write_prompt", persist_state="session")
    sampling = sampling_controls("write")
    buttons = st.container(horizontal=True)
    starts = buttons.button("Write", type="primary", key="write_start", disabled=not chosen)
    buttons.button("Stop", key="write_stop")  # any click ends the run that writes
    if starts:
        st.session_state[_TEXTS] = {name: Text() for name in chosen}
    texts: dict[str, Text] = st.session_state.get(_TEXTS, {})
    if not texts:
        return
    columns = st.columns(len(texts))
    places = {}
    for column, name in zip(columns, texts, strict=True):
        column.markdown(f"`{name}`")
        places[name] = column.empty()
    if starts:
        _write(context, prompt, sampling, texts, places)
    for name, text in texts.items():
        with places[name].container():
            _show_text(text)
    st.caption(
        "Tinted: the less probable a token was, the darker. Click a token to see the ten most "
        "likely ones. Underlined in red: the original model prefers another token there."
    )


def _default(models: Sequence[Found]) -> list[str]:
    """A checkpoint and the smallest file made from it; else the first model."""
    files = [model for model in models if model.original is not None]
    if not files:
        return [models[0].name]
    smallest = min(files, key=lambda model: model.n_bytes)
    return [str(smallest.original), smallest.name]


def _write(
    context: Context,
    prompt: str,
    sampling: Sampling,
    texts: dict[str, Text],
    places: dict[str, DeltaGenerator],
) -> None:
    """Let all models write, a token each in turn; then compare with the originals."""
    from llmkit.modelfiles.prompt_format import Message

    paths = [path for name in texts if (path := context.named(name).path) is not None]
    wait = st.empty()
    with context.models.use(paths, lambda: say_waiting(wait)) as runners:
        wait.empty()
        prompts: dict[str, list[int]] = {}
        streams: dict[str, Iterator[GeneratedToken]] = {}
        for name, runner in zip(texts, runners, strict=True):
            try:
                prompts[name] = runner.prompt([Message("user", prompt)])
                tokens = runner.tokens(prompts[name], sampling)
                streams[name] = map(methodcaller("described", runner.token_bytes), tokens)
            except LlmkitError as error:
                texts[name].fault = str(error)
        for _ in _in_turn(streams, texts):
            for name in streams:
                places[name].html(tokens_html(texts[name], with_candidates=False))
    for name, ids in prompts.items():
        original = _original(context.named(name), texts, context)
        if original is not None and original.path is not None:
            with context.models.use([original.path], lambda: say_waiting(wait)) as (runner,):
                _compare(texts[name], ids, runner, original.name)


def _in_turn(
    streams: dict[str, Iterator[GeneratedToken]], texts: dict[str, Text]
) -> Iterator[None]:
    """Take a token of each stream in turn; pause now and then for the texts to be shown."""
    open_ones, shown = dict(streams), 0.0
    while open_ones:
        for name, stream in list(open_ones.items()):
            try:
                texts[name].tokens.append(next(stream))
            except StopIteration:
                del open_ones[name]
            except LlmkitError as error:
                texts[name].fault = str(error)
                del open_ones[name]
        if time.monotonic() - shown > _PAUSE:
            yield
            shown = time.monotonic()


def _original(model: Found, texts: dict[str, Text], context: Context) -> Found | None:
    """What a quantized file is compared with: its own checkpoint, else the first one chosen."""
    if model.source == "checkpoint":
        return None
    if model.original is not None:
        return context.named(model.original)
    chosen = map(context.named, texts)
    return next((one for one in chosen if one.source == "checkpoint"), None)


def _compare(text: Text, prompt: Sequence[int], original: Runner, name: str) -> None:
    from llmkit.export.llamacpp.differences import differences

    try:
        ids = [token.id for token in text.tokens]
        greedy = [token.candidates[0] for token in text.tokens]
        text.differences = differences(prompt, ids, greedy, original)
        text.original = name
    except LlmkitError as error:
        text.fault = f"not compared with {name}: {error}"


def _show_text(text: Text) -> None:
    if text.fault:
        st.error(text.fault)
    if not text.tokens:
        return
    st.html(tokens_html(text, with_candidates=True))
    facts = f"{len(text.tokens)} tokens"
    if text.original:
        n = sum(difference is not None for difference in text.differences)
        facts += f"; at {n} of them `{text.original}` prefers another token"
    st.caption(facts)


def tokens_html(text: Text, *, with_candidates: bool) -> str:
    """The text, each token tinted, and with its panel where that is wanted."""
    tokens = list(text.tokens)  # a run that was stopped may still add one
    differences = text.differences or [None] * len(tokens)
    spans = [
        _span(token, difference, with_candidates)
        for token, difference in zip(tokens, differences, strict=True)
    ]
    return f'<div class="tokens">{"".join(spans)}</div>'


def _span(token: GeneratedToken, difference: Candidate | None, with_candidates: bool) -> str:
    kind = "token differs" if difference else "token"
    style = f'style="--p:{token.probability:.3f}"'
    if not with_candidates:
        return f'<span class="{kind}" {style}>{escape(token.text)}</span>'
    panel = _panel(token, difference)
    return f'<span class="{kind}" {style} tabindex="0">{escape(token.text)}{panel}</span>'


def _panel(token: GeneratedToken, difference: Candidate | None) -> str:
    rows = "".join(
        f'<span class="row{" chosen" * (candidate.id == token.id)}">'
        f"<code>{escape(visible(candidate.token))}</code>"
        f'<i style="--w:{candidate.probability:.3f}"></i>{candidate.probability:.1%}</span>'
        for candidate in token.candidates
    )
    note = ""
    if difference is not None:
        preferred = escape(visible(difference.token))
        note = (
            f'<span class="note">The original model prefers <code>{preferred}</code> '
            f"{difference.probability:.1%}</span>"
        )
    return f'<span class="top">{note}{rows}</span>'
