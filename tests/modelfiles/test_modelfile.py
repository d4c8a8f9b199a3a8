from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import LlmkitError, ModelfileError
from llmkit.modelfiles.modelfile import Modelfile, render
from llmkit.modelfiles.parameters import Parameters
from llmkit.modelfiles.prompt_format import (
    PROMPT_FORMATS,
    Message,
    PromptFormat,
    prompt_format,
)
from llmkit.modelfiles.quoting import quoted
from llmkit.modelfiles.reading import parse as read

INSTRUCTIONS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser",
    "parameter", "message", "requires",
)  # fmt: skip
PRINTABLE = ("L", "M", "N", "P", "S")  # the categories that Go's strconv.IsPrint lets through


@dataclass
class Parsed:
    """What Ollama reads: (instruction, value) in order; also `parameter NAME`, `message ROLE`."""

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
        if command in ("parameter", "message"):
            name, rest = word(rest)
            command = f"{command} {name}"
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
            while True:  # it ends at a closing quote that is the last of its line
                end = text.find(quote, end)
                if end < 0:
                    raise ValueError("unexpected EOF")
                behind = text[end + len(quote) :].lstrip(" \t")
                if not behind or behind[0] in "\r\n":
                    return text[start:end], behind
                end += 1
    line = re.split(r"[\r\n]", text, maxsplit=1)[0]
    return line.strip(" \t"), text[len(line) :]


def prints(character: str) -> bool:
    return character == " " or unicodedata.category(character)[0] in PRINTABLE


def modelfile(**changes: object) -> Modelfile:
    stops = changes.pop("stops", ("x",))
    values = {
        "source": "./m.gguf",
        "template": "{{ .Prompt }}",
        "parameters": Parameters(stop=stops, num_ctx=128),  # type: ignore[arg-type]
    }
    return Modelfile(**{**values, **changes})  # type: ignore[arg-type]


def refused(text: str) -> bool:
    """Whether the grammar has no way to say this value."""
    if any(not prints(c) and c not in "\r\n\t" for c in text):
        return True
    return not any(is_read_as(text, way) for way in (text, f'"{text}"', f'"""{text}"""'))


def is_read_as(text: str, way: str) -> bool:
    try:
        return value(f"{way}\nSYSTEM x") == (text, "\nSYSTEM x")
    except ValueError:
        return False


VALUES = st.text(
    st.one_of(st.sampled_from(list(" \"\n\t{}.#\\'|<>")), st.characters(exclude_categories=["Cs"])),
    max_size=30,
)


@given(template=VALUES, stops=st.lists(VALUES, max_size=3), source=VALUES)
def test_what_is_written_is_what_ollama_reads(template: str, stops: list[str], source: str) -> None:
    model = modelfile(template=template, stops=tuple(stops), source=source)
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
        'ends with "', 'a """ b', 'a """ b\nc', 'two\nlines, "quoted"', "\r\n", "a\rb", "\r", '""x',
        'a"\nb', '"a"\nb', '""" x\ny', 'x"""',
    ],
)  # fmt: skip
def test_any_text_that_the_grammar_can_hold_comes_back(text: str) -> None:
    parsed = parse(f"FROM m\nTEMPLATE {quoted(text)}\nSYSTEM after")
    assert parsed.all("template") == [text]
    assert parsed.all("system") == ["after"]


@pytest.mark.parametrize("text", ['x """\ny', 'a """\nb "\n', '"""\n"\n', '"""\n', ' x """\n y"\n'])
def test_quotes_that_the_grammar_cannot_hold_are_refused(text: str) -> None:
    with pytest.raises(LlmkitError, match="quotes"):
        quoted(text)


@pytest.mark.parametrize(
    "character", ["\0", "\x1b", "\x7f", "\x85", "\u00a0", "\u2028", "\ue000", "\ufeff"]
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


@pytest.mark.parametrize("form", PROMPT_FORMATS.values(), ids=PROMPT_FORMATS)
def test_a_modelfile_holds_every_prompt_format(form: PromptFormat) -> None:
    assert prompt_format(form.name) is form
    parsed = parse(render(modelfile(template=form.template, stops=form.stops)))
    assert parsed.all("template") == [form.template]
    assert parsed.all("parameter stop") == list(form.stops)


def test_nothing_but_the_end_follows_the_answer_of_a_completion() -> None:
    before, after = PROMPT_FORMATS["completion"].template.split("{{ .Response }}")
    assert before.endswith("{{ if .Prompt }}{{ .Prompt }}{{ end }}")
    assert after == "<|endoftext|>"


HOSTILE = st.lists(
    st.sampled_from(
        [
            '"', '""', '"""', " ", "\n", "\r\n", "\t", "#", "FROM evil", "{{ .System }}", "{{",
            "\\", "\nSYSTEM x", '"\nSYSTEM x', '"""\nFROM evil', "PARAMETER stop", ": ", "x", "é😀",
        ]
    ),
    max_size=6,
).map("".join)  # fmt: skip
TEXT = HOSTILE.filter(lambda text: not refused(text))
MAYBE = st.none() | TEXT
SEVERAL = st.lists(TEXT, max_size=2).map(tuple)
INTEGERS = st.none() | st.integers(-(2**63), 2**63 - 1)
FLOATS = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)
MODELFILES = st.builds(
    Modelfile,
    source=TEXT,
    more_sources=SEVERAL,
    adapter=MAYBE,
    drafts=SEVERAL,
    template=MAYBE,
    system=st.none() | VALUES | HOSTILE,
    messages=st.lists(
        st.builds(Message, st.sampled_from(["system", "user", "assistant"]), TEXT), max_size=3
    ).map(tuple),
    parameters=st.builds(
        Parameters, stop=SEVERAL, num_ctx=INTEGERS, seed=INTEGERS, temperature=FLOATS, top_p=FLOATS,
        use_mmap=st.none() | st.booleans(), draft_num_predict=INTEGERS,
    ),
    renderer=MAYBE,
    parser=MAYBE,
    requires=st.sampled_from([None, "0.14.0", "1", "1.2", "1.2.3-rc.1+x", "new", "1\nFROM x"]),
    licenses=SEVERAL,
    comment=st.lists(st.sampled_from(["a", " b", "FROM x", "#", '"', ""]), max_size=2).map(tuple),
)  # fmt: skip


def test_a_text_that_cannot_be_written_is_named() -> None:
    with pytest.raises(ModelfileError, match=r"^SYSTEM: .*'a\"\"\"") as error:
        render(modelfile(system='a"""\nb"\n' + "x" * 1000))
    assert len(str(error.value)) < 200
    with pytest.raises(ModelfileError, match=r"^PARAMETER stop: .* U\+0000"):
        render(modelfile(stops=("x", "\0")))


@given(MODELFILES)
def test_a_modelfile_that_is_written_is_read_back(model: Modelfile) -> None:
    if refused(model.system or "") or model.requires in ("new", "1\nFROM x"):
        with pytest.raises(ModelfileError):
            render(model)
        return
    text = render(model)
    assert read(text).modelfile == model
    # The reader of this test is another one.
    said = parse(text)
    assert said.all("system") == ([] if model.system is None else [model.system])
    assert said.all("from") == [model.source, *model.more_sources]
    assert len(said.commands) == len(read(text).instructions)


def test_every_instruction_is_written() -> None:
    model = Modelfile(
        source="./m.gguf",
        more_sources=("./projector.gguf",),
        adapter="./a.gguf",
        drafts=("./d.gguf",),
        template="{{ .Prompt }}",
        system='Say "no".',
        messages=(Message("user", "Hi"), Message("assistant", "No")),
        parameters=Parameters(stop=("\n", "x"), temperature=0.5, num_predict=10, use_mmap=False),
        renderer="r",
        parser="p",
        requires="0.14.0",
        licenses=("MIT", "BSD"),
        comment=("one", "two\nlines"),
    )
    assert (
        render(model)
        == '''# one
# two
# lines

FROM "./m.gguf"
FROM "./projector.gguf"
ADAPTER "./a.gguf"
DRAFT "./d.gguf"
TEMPLATE "{{ .Prompt }}"
SYSTEM """Say "no"."""
MESSAGE user "Hi"
MESSAGE assistant "No"
PARAMETER stop "
"
PARAMETER stop "x"
PARAMETER num_predict 10
PARAMETER temperature 0.5
PARAMETER use_mmap false
RENDERER "r"
PARSER "p"
REQUIRES "0.14.0"
LICENSE "MIT"
LICENSE "BSD"
'''
    )


@pytest.mark.parametrize("requires", ["", "new", "0.14.0\nFROM x", "0.14.0 "])
def test_a_version_that_is_none_is_not_written(requires: str) -> None:
    with pytest.raises(ModelfileError, match="requires must be a valid semver"):
        render(modelfile(requires=requires))


def test_a_role_that_ollama_does_not_know_is_not_written() -> None:
    message = Message("tool\nFROM x", "hi")  # type: ignore[arg-type]
    with pytest.raises(ModelfileError, match="message role must be one of"):
        render(modelfile(messages=(message,)))
