from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import LlmkitError
from llmkit.modelfiles.modelfile import Modelfile, quoted, render
from llmkit.modelfiles.prompt_format import PROMPT_FORMATS, prompt_format

INSTRUCTIONS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser",
    "parameter", "message", "requires",
)  # fmt: skip
PRINTABLE = ("L", "M", "N", "P", "S")  # the categories that Go's strconv.IsPrint lets through


@dataclass
class Parsed:
    """What Ollama reads: (instruction, value) in order; for PARAMETER `parameter NAME`."""

    commands: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for command, value in self.commands if command == name]


def parse(text: str) -> Parsed:
    """Ollama's Modelfile grammar, character by character. Raises ValueError where it refuses."""
    parsed = Parsed()
    rest = text
    while rest := rest.lstrip(" \t\r\n"):
        if rest[0] == "#":
            ends = [rest.find(end) for end in "\r\n" if end in rest]
            rest = rest[min(ends) :] if ends else ""
            continue
        name, rest = word(rest)
        if name.lower() not in INSTRUCTIONS:
            raise ValueError(f"command must be one of ..., not {name!r}")
        command = name.lower()
        if command == "parameter":
            name, rest = word(rest)
            command = f"parameter {name}"
        found, rest = value(rest)
        parsed.commands.append((command, "".join(c for c in found if c in "\n\r\t" or prints(c))))
    if not parsed.all("from"):
        raise ValueError("no FROM line")
    return parsed


def word(text: str) -> tuple[str, str]:
    """The letters up to the space that must follow."""
    end = next((i for i, c in enumerate(text) if c in " \t\r\n"), len(text))
    return text[:end], text[end:].lstrip(" \t")


def value(text: str) -> tuple[str, str]:
    """A bare value to the end of the line, or one between single or triple quotes."""
    for quote in ('"""', '"'):
        if text.startswith(quote):
            start = end = len(quote)
            while True:  # it ends at a closing quote with white space, or nothing, behind it
                end = text.find(quote, end)
                if end < 0:
                    raise ValueError("unexpected EOF")
                behind = text[end + len(quote) :]
                if not behind or behind[0] in " \t\r\n":
                    return text[start:end], behind
                end += 1
    line = text.splitlines()[0] if text else ""
    return line.strip(), text[len(line) :]


def prints(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] in PRINTABLE


def modelfile(**changes: object) -> Modelfile:
    values = {"source": "./m.gguf", "template": "{{ .Prompt }}", "stops": ("x",), "num_ctx": 64}
    return Modelfile(**{**values, **changes})  # type: ignore[arg-type]


def refused(text: str) -> bool:
    """Whether the grammar has no way to say this value."""
    if any(not prints(c) and c not in "\n\t" for c in text):
        return True
    return '"""' in text or text.endswith('"')


VALUES = st.text(
    st.one_of(st.sampled_from(list(" \"\n\t{}.#\\'|<>")), st.characters(exclude_categories=["Cs"])),
    max_size=30,
)


@given(template=VALUES, stops=st.lists(VALUES, max_size=3), source=VALUES)
def test_what_is_written_is_what_ollama_reads(template: str, stops: list[str], source: str) -> None:
    model = modelfile(template=template, stops=tuple(stops), source=source, num_ctx=128)
    if any(refused(text) for text in (template, source, *stops)):
        with pytest.raises(LlmkitError):
            render(model)
        return
    parsed = parse(render(model))
    assert parsed.commands == [
        ("from", source),
        ("template", template),
        *(("parameter stop", stop) for stop in stops),
        ("parameter num_ctx", "128"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "\n", "\t", "plain", "two\nlines", " both sides ", 'a "b" c', '"begins', '"" x',
        'a "b"\nc', 'a"b', "# no comment", "\\n", "{{ if .System }}{{ .System }}\n{{ end }}", "'",
        '""\nx', "FROM x\nSYSTEM y", "<|endoftext|>", "é 中 😀",
    ],
)  # fmt: skip
def test_any_text_that_the_grammar_can_hold_comes_back(text: str) -> None:
    parsed = parse(f"FROM m\nTEMPLATE {quoted(text)}\nSYSTEM after")
    assert parsed.all("template") == [text]
    assert parsed.all("system") == ["after"]


@pytest.mark.parametrize("text", ['a """ b', 'ends with "', '"', '""', '"""', '""""'])
def test_quotes_that_the_grammar_cannot_hold_are_refused(text: str) -> None:
    with pytest.raises(LlmkitError, match="no escape for its quotes"):
        quoted(text)


@pytest.mark.parametrize(
    "character", ["\0", "\r", "\x1b", "\x7f", "\x85", "\u00a0", "\u2028", "\ue000", "\ufeff"]
)
def test_characters_that_ollama_drops_are_refused_by_number(character: str) -> None:
    with pytest.raises(LlmkitError, match=f"U\\+{ord(character):04X}"):
        quoted(f"a{character}b")


@given(comments=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_a_comment_holds_no_instruction(comments: list[str]) -> None:
    assert parse(render(modelfile(comment=tuple(comments)))) == parse(render(modelfile()))


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\u2028", "\x0b", "\x85"])
def test_a_line_end_in_a_comment_does_not_end_it(end: str) -> None:
    text = render(modelfile(comment=(f"name{end}FROM evil", "second")))
    assert parse(text).all("from") == ["./m.gguf"]
    assert "# second" in text


def test_the_parser_of_this_test_refuses_what_ollama_refuses() -> None:
    for text in ('FROM m\nTEMPLATE "x"y', "TEMPLATE x", "FROM m\nFOO x", 'FROM m\nSYSTEM "x'):
        with pytest.raises(ValueError, match=r"unexpected EOF|no FROM|command"):
            parse(text)
    assert parse("# c\nfrom m\nParameter stop a b \n").commands == [
        ("from", "m"), ("parameter stop", "a b"),
    ]  # fmt: skip


def test_prompt_formats_are_found_by_name() -> None:
    for name, form in PROMPT_FORMATS.items():
        assert prompt_format(name) is form
        assert form.name == name
        assert parse(f"FROM m\nTEMPLATE {quoted(form.template)}").all("template") == [form.template]
    with pytest.raises(LlmkitError, match="did you mean 'completion'"):
        prompt_format("completoin")


def test_nothing_follows_the_answer_of_a_completion() -> None:
    template = PROMPT_FORMATS["completion"].template
    assert template.endswith("{{ .Response }}")
    assert template.replace("{{ .Prompt }}", "Once").replace("{{ .Response }}", "") == "Once"
