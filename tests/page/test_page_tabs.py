"""Each tab in Streamlit's own test runner: what a user sets, clicks and reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the extra page is not installed")

import streamlit as st
from streamlit.testing.v1 import AppTest

from llmkit.api import generate
from llmkit.errors import GGUFError
from llmkit.export.llamacpp import chat
from llmkit.export.llamacpp.gguf_runner import GGUFRunner
from llmkit.generation import GeneratedToken
from llmkit.modelfiles.prompt_format import Message
from llmkit.page import context, tabs, write
from llmkit.page.ask import Conversation, Turn
from llmkit.page.finding import Found
from llmkit.page.models import ModelCache
from llmkit.sampling import Sampling


def _script(module: str, folder: str, faq: str | None) -> None:
    from pathlib import Path

    from llmkit.page.tabs import open_tab

    open_tab(module, Path(folder), Path(faq) if faq else None)


def tab(module: str, folder: Path, faq: Path | None = None) -> AppTest:
    arguments = (module, str(folder), str(faq) if faq else None)
    shown = AppTest.from_function(_script, args=arguments, default_timeout=60).run()
    assert not shown.exception
    return shown


@pytest.fixture(autouse=True)
def no_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    st.cache_data.clear()
    st.cache_resource.clear()
    monkeypatch.setattr(context, "ollama_models", list)


def texts(shown: AppTest) -> list[str]:
    return [element.value for element in [*shown.markdown, *shown.caption, *shown.text]]


def bodies(shown: AppTest) -> list[str]:
    return [element.proto.body for element in shown.get("html")]


def test_find_shows_every_model_and_opens_a_proof(page_folder: Path) -> None:
    shown = tab("find", page_folder)
    assert sum("parameters" in text for text in texts(shown)) == 8
    assert sum("proof passed" in text for text in texts(shown)) == 1
    shown.button[0].click().run()
    (checks,) = shown.table
    assert checks.value.to_dict("records")[0]["check"] == "tensors"


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    for module in ("find", "write", "ask", "label"):
        (told,) = tab(module, tmp_path).info
        assert "llmkit" in told.value or str(tmp_path) in told.value


def test_write_shows_what_each_model_generates(page_folder: Path) -> None:
    shown = tab("write", page_folder)
    assert shown.multiselect(key="write_models").value == ["answers", "export/answers-q4_0.gguf"]
    shown.text_area(key="write_prompt").set_value("Once <b>")
    shown.slider(key="write_temperature").set_value(1.5)
    shown.number_input(key="write_length").set_value(12)
    shown.number_input(key="write_seed").set_value(7)
    shown.button(key="write_start").click().run()
    assert not shown.error
    sampling = Sampling(1.5, seed=7, max_tokens=12)
    for name in ("answers", "export/answers-q4_0.gguf"):
        text: write.Text = shown.session_state["write_texts"][name]
        assert "".join(token.text for token in text.tokens) == "".join(
            generate(page_folder / name, "Once <b>", sampling)
        )
        assert all(len(token.candidates) == 10 for token in text.tokens)
    small = shown.session_state["write_texts"]["export/answers-q4_0.gguf"]
    assert small.original == "answers"
    n = sum(one is not None for one in small.differences)
    assert bodies(shown)[-1].count('class="token differs"') == n
    assert bodies(shown)[-1].count('class="row') == 10 * len(small.tokens)


def test_min_p_and_top_k_are_those_of_the_sampling(page_folder: Path) -> None:
    shown = tab("write", page_folder)
    shown.slider(key="write_min_p").set_value(1.0)
    shown.number_input(key="write_length").set_value(5)
    shown.multiselect(key="write_models").set_value(["base"])
    shown.button(key="write_start").click().run()
    tokens = shown.session_state["write_texts"]["base"].tokens
    assert [token.id for token in tokens] == [token.candidates[0].id for token in tokens]


def test_tokens_are_escaped_and_tinted() -> None:
    token = GeneratedToken(1, "<script>", "<script>", 0.25, (), None)
    html = write.tokens_html(write.Text([token]), with_candidates=True)
    assert "<script>" not in html
    assert "--p:0.250" in html


def test_a_fault_of_one_model_is_a_sentence_beside_the_text_of_the_others(
    page_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise GGUFError("llama.cpp failed with status 7")

    shown = tab("write", page_folder)
    monkeypatch.setattr(GGUFRunner, "tokens", broken)
    shown.number_input(key="write_length").set_value(5)
    shown.button(key="write_start").click().run()
    assert [error.value for error in shown.error] == ["llama.cpp failed with status 7"]
    assert len(shown.session_state["write_texts"]["answers"].tokens) == 5


def test_an_unexpected_error_is_a_sentence_too(
    page_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(context.Context, "of_kind", broken)
    shown = tab("write", page_folder)
    (told,) = shown.error
    assert "ZeroDivisionError" in told.value
    assert "Traceback" in capsys.readouterr().err


def test_ask_continues_a_conversation(page_folder: Path) -> None:
    shown = tab("ask", page_folder)
    shown.number_input(key="ask_length").set_value(8)
    shown.slider(key="ask_temperature").set_value(0.0)
    shown.chat_input[0].set_value("Who is Anton?").run()
    shown.chat_input[0].set_value("And Paul?").run()
    assert not shown.error
    turns = shown.session_state["ask_conversation"].turns
    assert [turn.question for turn in turns] == ["Who is Anton?", "And Paul?"]
    greedy = Sampling(0.0, max_tokens=8)
    assert turns[0].answer == "".join(generate(page_folder / "answers", "Who is Anton?", greedy))
    assert [message.name for message in shown.chat_message] == ["user", "assistant"] * 2
    shown.button(key="ask_new").click().run()
    assert not shown.chat_message


def test_a_model_is_given_all_that_was_said() -> None:
    turns = [Turn("one?", " 1 "), Turn("nothing?"), Turn("two?")]
    assert Conversation("model", turns).messages == [
        Message("user", "one?"), Message("assistant", "1"), Message("user", "two?"),
    ]  # fmt: skip


def test_a_model_of_ollama_answers_too(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def reply(model: None, name: str, *_: object) -> Iterator[Any]:
        yield lambda messages: iter([f"{name} heard ", messages[-1].content])

    monkeypatch.setattr(context, "ollama_models", lambda: [Found("tales:latest", "Ollama")])
    monkeypatch.setattr(chat, "open_reply", reply)
    shown = tab("ask", page_folder)
    shown.selectbox(key="ask_model").set_value("tales:latest")
    shown.chat_input[0].set_value("a question").run()
    assert "tales:latest heard a question" in texts(shown)
    assert "tales:latest" not in tab("write", page_folder).multiselect[0].options


def test_a_question_of_the_faq_is_answered_from_there(page_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the extra faq is not installed")
    faq = tmp_path / "faq.csv"
    faq.write_text("question,answer\nWhen do you open?,At nine.\nWhere are you?,Here.\n")
    shown = tab("ask", page_folder, faq)
    shown.number_input(key="ask_length").set_value(3)
    shown.chat_input[0].set_value("When do you open?").run()
    shown.chat_input[0].set_value("Tell a tale of a cat").run()
    faq.write_text("question,answer\nWhen do you open?,At ten.\n")
    shown.chat_input[0].set_value("When do you open?").run()
    first, second, third = shown.session_state["ask_conversation"].turns
    assert (first.answer, third.answer) == ("At nine.", "At ten.")
    assert any("FAQ" in text for text in texts(shown))
    assert second.faq is None


def test_a_question_that_is_too_long_is_a_sentence(page_folder: Path) -> None:
    shown = tab("ask", page_folder)
    shown.chat_input[0].set_value("a word " * 200).run()
    (told,) = shown.error
    assert "context" in told.value


def test_label_shows_a_text_through_all_classifiers(page_folder: Path) -> None:
    shown = tab("label", page_folder)
    shown.text_area(key="label_text").set_value("Once there was a baker").run()
    shown.button(key="label_start").click().run()
    assert not shown.error
    (row,) = shown.session_state["label_rows"]
    assert list(row.probabilities) == ["labels-1", "labels-2", "labels-export/labels-1-f32.gguf"]
    bars = [bar.proto.text for bar in shown.get("progress")]
    assert len(bars) == 6
    assert all("%" in text for text in bars)


def test_label_takes_a_file_and_compares_with_its_labels(page_folder: Path) -> None:
    shown = tab("label", page_folder)
    shown.segmented_control(key="label_source").set_value("A file").run()
    content = "text,label\nOnce there was a baker,he\nAnton the cook,and\nthe cat,he\n"
    shown.file_uploader(key="label_file").set_value(("t.csv", content.encode(), "text/csv")).run()
    assert shown.selectbox(key="label_text_column").value == "text"
    assert shown.selectbox(key="label_label_column").value == "label"
    shown.button(key="label_start").click().run()
    assert not shown.error
    table, *confusions = shown.dataframe
    rows = shown.session_state["label_rows"]
    disputed = [row.is_disputed for row in rows]
    n = sum(disputed)
    ordered = [text in {r.text for r in rows if r.is_disputed} for text in table.value["text"]]
    assert ordered == [True] * n + [False] * (3 - n)
    assert [int(c.value.iloc[:, 1:].to_numpy().sum()) for c in confusions] == [3, 3, 3]


def test_a_bad_file_is_a_sentence_with_its_line(page_folder: Path) -> None:
    shown = tab("label", page_folder)
    shown.segmented_control(key="label_source").set_value("A file").run()
    content = b"text,label\none,two,three,four\n"
    shown.file_uploader(key="label_file").set_value(("bad.csv", content, "text/csv")).run()
    (told,) = shown.error
    assert told.value.startswith("bad.csv, line 2")


def test_a_rerun_loads_no_model_again(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = ModelCache._load

    def counted(self: ModelCache, path: Path, version: Any) -> Any:
        loaded.append(path.name)
        return load(self, path, version)

    monkeypatch.setattr(ModelCache, "_load", counted)
    shown = tab("write", page_folder)
    shown.number_input(key="write_length").set_value(3)
    for _ in range(3):
        shown.button(key="write_start").click().run()
    assert sorted(loaded) == ["answers", "answers-q4_0.gguf"]


def test_every_tab_has_a_module() -> None:
    for one in tabs.TABS:
        assert callable(tabs.import_module(f"llmkit.page.{one.module}").show)
