from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import ModelfileError
from llmkit.modelfiles.grammar import RefusalError, decode
from llmkit.modelfiles.modelfile import Modelfile, render
from llmkit.modelfiles.parameters import DEPRECATED, KINDS, Parameters
from llmkit.modelfiles.prompt_format import Message
from llmkit.modelfiles.reading import ParsedModelfile, parse, read_modelfile

COMMAND = (
    'command must be one of "from", "license", "template", "system", "adapter", "draft", '
    '"renderer", "parser", "parameter", "message", or "requires"'
)
ROLE = 'message role must be one of "system", "user", or "assistant"'
REQUIRES = "requires must be a valid semver (e.g. 0.14.0)"


def says(**fields: Any) -> Modelfile:
    """A Modelfile for the model m: fields of Modelfile, and of its parameters."""
    parameters = {name: fields.pop(name) for name in list(fields) if name in KINDS}
    return Modelfile(**{"source": "m", **fields}, parameters=Parameters(**parameters))


# What stands behind `FROM m` and a line end, and what Ollama then reads.
ACCEPTED: dict[str, Modelfile] = {
    # every instruction
    "LICENSE MIT": says(licenses=("MIT",)),
    "TEMPLATE {{ .Prompt }}": says(template="{{ .Prompt }}"),
    "SYSTEM Be brief.": says(system="Be brief."),
    "ADAPTER ./a.gguf": says(adapter="./a.gguf"),
    "DRAFT ./d.gguf": says(drafts=("./d.gguf",)),
    "RENDERER qwen3-coder": says(renderer="qwen3-coder"),
    "PARSER qwen3-coder": says(parser="qwen3-coder"),
    "PARAMETER num_ctx 4096": says(num_ctx=4096),
    "MESSAGE user Hello": says(messages=(Message("user", "Hello"),)),
    "REQUIRES 0.14.0": says(requires="0.14.0"),
    # in any case, with any white space around
    "sYsTeM x": says(system="x"),
    "   SYSTEM x": says(system="x"),
    "SYSTEM \t x \t ": says(system="x"),
    "SYSTEM\tx": says(system="x"),
    "\n\r\n\r\t\nSYSTEM x\r\nPARSER y\rRENDERER z": says(system="x", parser="y", renderer="z"),
    # comments, only where an instruction would begin
    "# SYSTEM x": says(comment=("SYSTEM x",)),
    "  # SYSTEM x\rSYSTEM y": says(system="y", comment=("SYSTEM x",)),
    "#": says(comment=("",)),
    "SYSTEM x # y": says(system="x # y"),
    'SYSTEM "x\n# y\n"': says(system="x\n# y\n"),
    # bare values
    "SYSTEM ": says(system=""),
    "SYSTEM  \nPARSER x": says(system="", parser="x"),
    "SYSTEM it's 5\" wide": says(system="it's 5\" wide"),
    'SYSTEM he said "no"': says(system='he said "no"'),
    "SYSTEM a\\nb": says(system="a\\nb"),
    "SYSTEM a\tb": says(system="a\tb"),
    "SYSTEM 'x'": says(system="'x'"),
    # between quotes
    'SYSTEM "x"': says(system="x"),
    'SYSTEM ""': says(system=""),
    'SYSTEM " x "  \nPARSER y': says(system=" x ", parser="y"),
    'SYSTEM "x\n\ny\n"\nPARSER z': says(system="x\n\ny\n", parser="z"),
    'SYSTEM "x\r\ny"\r\nPARSER z': says(system="x\r\ny", parser="z"),
    'SYSTEM "a "b" c"': says(system='a "b" c'),
    'SYSTEM "a" b"': says(system='a" b'),
    'SYSTEM "a" b\nc"': says(system='a" b\nc'),
    'SYSTEM "\nx"': says(system="\nx"),
    'SYSTEM "\n"': says(system="\n"),
    'SYSTEM "\\"': says(system="\\"),
    'FROM "n o"': says(source="m", more_sources=("n o",)),
    'MESSAGE assistant " a: b"': says(messages=(Message("assistant", " a: b"),)),
    'PARAMETER temperature "0.5"': says(temperature=0.5),
    # between triple quotes
    'SYSTEM """x"""': says(system="x"),
    'SYSTEM """"""': says(system=""),
    'SYSTEM """\nx\n"""\t\nPARSER y': says(system="\nx\n", parser="y"),
    'SYSTEM """say "hi" """': says(system='say "hi" '),
    'SYSTEM """say "hi""""': says(system='say "hi"'),
    'SYSTEM """x"\ny"""': says(system='x"\ny'),
    'SYSTEM """a """ b"""': says(system='a """ b'),
    # characters that do not print
    "SYSTEM a\0b\u200bc\u00a0d\u2028e": says(system="abcde"),
    '\ufeffSYSTEM "x"\u200b\nPARSER y': says(system="x", parser="y"),
    "SYSTEM é 中 😀": says(system="é 中 😀"),
    # parameters
    "PARAMETER stop a b": says(stop=("a b",)),
    'PARAMETER stop "\n"\nPARAMETER stop x\nPARAMETER stop x': says(stop=("\n", "x", "x")),
    "PARAMETER temperature 1e-1": says(temperature=0.1),
    "PARAMETER temperature .5": says(temperature=0.5),
    "PARAMETER temperature 0x1p-2": says(temperature=0.25),
    "PARAMETER temperature 1_0.5": says(temperature=10.5),
    "PARAMETER num_predict -1": says(num_predict=-1),
    "PARAMETER seed +007": says(seed=7),
    "PARAMETER use_mmap T": says(use_mmap=True),
    "PARAMETER use_mmap 0": says(use_mmap=False),
    "PARAMETER mirostat what ever": says(),
    "PARAMETER system x": says(system="x"),
    "PARAMETER model n": says(more_sources=("n",)),
    "PARAMETER message user: a: b": says(messages=(Message("user", "a: b"),)),
    # several of a kind
    "SYSTEM a\nsystem b": says(system="b"),
    "PARAMETER num_ctx 1\nPARAMETER num_ctx 2": says(num_ctx=2),
    "ADAPTER a\nADAPTER b": says(adapter="b"),
    "LICENSE a\nLICENSE b": says(licenses=("a", "b")),
    "FROM n\nFROM m": says(more_sources=("n", "m")),
    "MESSAGE user a\nMESSAGE system b\nMESSAGE assistant ": says(
        messages=(Message("user", "a"), Message("system", "b"), Message("assistant", ""))
    ),
    # versions
    "REQUIRES v0.14.0-rc.1+build": says(requires="0.14.0-rc.1+build"),
    "REQUIRES 1.2": says(requires="1.2"),
}

# What stands behind `FROM m` and a line end, the place, Ollama's message and our advice.
REFUSED: dict[str, tuple[str, str, str]] = {
    "SYTEM x": ("2:1", COMMAND, "; did you mean 'SYSTEM'?"),
    "  PARAMETERS num_ctx 1": ("2:3", COMMAND, "; did you mean 'PARAMETER'?"),
    "temperature 1": ("2:1", COMMAND, "; did you mean 'PARAMETER temperature'?"),
    "// note": ("2:1", COMMAND, ""),
    "SYSTEM x\nYou are kind.": ("3:1", COMMAND, ""),
    "SYSTEM: x": ("2:1", COMMAND, "; SYSTEM "),
    "SYSTEM\nx": ("2:1", COMMAND, "; SYSTEM "),
    'SYSTEM"x"': ("2:1", COMMAND, "; SYSTEM "),
    "\u200b SYSTEM x": ("2:1", COMMAND, ""),
    "SYS\u200bTEM x": ("2:1", COMMAND, "; did you mean 'SYSTEM'?"),
    "\r\n\rSYTEM x": ("4:1", COMMAND, "; did you mean 'SYSTEM'?"),
    'SYSTEM "a\r\nb"\r\nSYTEM x': ("4:1", COMMAND, "; did you mean 'SYSTEM'?"),
    "SYSTEM": ("2:7", "unexpected EOF", "; SYSTEM "),
    "S": ("2:2", "unexpected EOF", ""),
    "PARAMETER": ("2:10", "unexpected EOF", "; PARAMETER "),
    "PARAMETER num_ctx": ("2:18", "unexpected EOF", "; PARAMETER num_ctx "),
    "PARAMETER num_ctx\nSYSTEM x": ("2:18", "unexpected EOF", "; PARAMETER num_ctx "),
    "PARAMETER num-ctx 1": ("2:14", "unexpected EOF", "; PARAMETER num "),
    "MESSAGE user": ("2:13", "unexpected EOF", "; MESSAGE user "),
    "MESSAGE user: hi": ("2:13", "unexpected EOF", "; MESSAGE user "),
    'SYSTEM "x': ("2:8", "unexpected EOF", '; close the " '),
    'SYSTEM "': ("2:8", "unexpected EOF", '; close the " '),
    'SYSTEM """x"': ("2:8", "unexpected EOF", '; close the """ '),
    'SYSTEM """"': ("2:8", "unexpected EOF", '; close the """ '),
    'SYSTEM "x"y': ("2:8", "unexpected EOF", '; remove the text after the closing "'),
    'SYSTEM """x"""y\nPARSER z': ("2:8", "unexpected EOF", "; remove "),
    'SYSTEM "x" # y': ("2:8", "unexpected EOF", "; remove "),
    "MESSAGE tool x": ("2:9", ROLE, ": system, user, assistant"),
    "MESSAGE User x": ("2:9", ROLE, "; did you mean 'user'?"),
    "MESSAGE  user x": ("2:9", ROLE, ";"),
    "PARAMETER temprature 1": (
        "2:11", "unknown parameter 'temprature'", "; did you mean 'temperature'?",
    ),
    "PARAMETER Temperature 1": (
        "2:11", "unknown parameter 'Temperature'", "; did you mean 'temperature'?",
    ),
    "PARAMETER tfs_z 1": ("2:11", "unknown parameter 'tfs_z'", ""),
    "PARAMETER foo 1": ("2:11", "unknown parameter 'foo'", ": num_keep, seed"),
    "PARAMETER  stop x": ("2:11", "unknown parameter ''", ";"),
    "PARAMETER from x": ("2:11", "unknown parameter 'from'", ""),
    "PARAMETER top_p abc": ("2:17", "invalid float value [abc]", "; top_p "),
    "PARAMETER top_p ": ("2:17", "invalid float value []", ""),
    "PARAMETER top_p 0,5": ("2:17", "invalid float value [0,5]", ""),
    "PARAMETER top_p 1e39": ("2:17", "invalid float value [1e39]", ""),
    "PARAMETER top_p 1__0": ("2:17", "invalid float value [1__0]", ""),
    "PARAMETER top_p NaN": ("2:17", "json: unsupported value: NaN", ""),
    "PARAMETER num_ctx 4096.0": ("2:19", "invalid int value [4096.0]", "; num_ctx "),
    "PARAMETER num_ctx 4_096": ("2:19", "invalid int value [4_096]", ""),
    "PARAMETER num_ctx ٣": ("2:19", "invalid int value [٣]", ""),
    "PARAMETER seed 9223372036854775808": ("2:16", "invalid int value [9223372036854775808]", ""),
    "PARAMETER num_ctx 8 # small": (
        "2:19", "invalid int value [8 # small]", "comment",
    ),
    'PARAMETER num_ctx "1\n2"': ("2:19", "invalid int value [1\\n2]", ""),
    "PARAMETER use_mmap yes": ("2:20", "invalid bool value [yes]", "; use_mmap "),
    "PARAMETER use_mmap tRUE": ("2:20", "invalid bool value [tRUE]", ""),
    "REQUIRES new": ("2:10", REQUIRES, ", not 'new'"),
    "REQUIRES 01.2.3": ("2:10", REQUIRES, ""),
    "REQUIRES 1.2-rc": ("2:10", REQUIRES, ""),
    "REQUIRES 1.2.3.4": ("2:10", REQUIRES, ""),
}  # fmt: skip


@pytest.mark.parametrize("text", ACCEPTED)
def test_ollama_reads_this(text: str) -> None:
    assert parse(f"FROM m\n{text}").modelfile == ACCEPTED[text]
    assert parse(f"FROM m\n{text}\n").modelfile == ACCEPTED[text]


@pytest.mark.parametrize("text", REFUSED)
def test_ollama_refuses_this(text: str) -> None:
    place, message, advice = REFUSED[text]
    with pytest.raises(ModelfileError) as refusal:
        parse(f"FROM m\n{text}", "some/Modelfile")
    line = str(refusal.value)
    assert isinstance(refusal.value, RefusalError)
    finding = refusal.value.finding
    assert (finding.level, str(finding.place)) == ("error", f"some/Modelfile:{place}")
    assert line.startswith(f"some/Modelfile:{place}: {message}")
    assert advice in line
    assert line.isprintable()


SEVERAL_FAULTS = """\
FRON m
SYSTEM You are
a helpful bot
of the village.
PARAMETER top_p 7
PARAMETER foo 3
PARAMETER temperature
PARAMETER temperature abc
MESSAGE bot hi
TEMPLATE \"\"\"{{ .Prompt }}
PARAMETER bar 4
"""


def test_every_fault_before_an_open_quote_is_found() -> None:
    with pytest.raises(RefusalError, match=r"^Modelfile:1:1: .*'FROM'") as refused:
        parse(SEVERAL_FAULTS)
    found = {(each.level, each.place.line) for each in refused.value.others}
    assert found == {("warning", 5), *(("error", line) for line in (3, 6, 7, 8, 9, 10))}


@pytest.mark.parametrize(
    ("text", "place", "name"),
    [
        ('PARAMETER stop ""', "2:11", "stop"),
        ("PARAMETER top_p 7", "2:17", "0 to 1"),
        ("PARAMETER min_p -0.1", "2:17", "0 to 1"),
        ("PARAMETER temperature -1", "2:23", "0 or more"),
        ("PARAMETER num_ctx 0", "2:19", "1 or more"),
    ],
)
def test_a_value_that_ollama_takes_without_a_meaning_is_a_warning(
    text: str, place: str, name: str
) -> None:
    (found,) = parse(f"FROM m\n{text}").warnings
    assert str(found).startswith(f"Modelfile:{place}: warning: ")
    assert name in str(found)


@pytest.mark.parametrize("text", ["PARAMETER top_p 1", "PARAMETER top_k -1", "PARAMETER min_p 0"])
def test_the_ends_of_a_range_are_no_warning(text: str) -> None:
    assert not parse(f"FROM m\n{text}").warnings


@pytest.mark.parametrize("text", ["", "# FROM m", "SYSTEM x", "PARAMETER foo x", 'SYSTEM "FROM m"'])
def test_a_modelfile_names_a_model(text: str) -> None:
    with pytest.raises(ModelfileError, match=r"^Modelfile:1:1: no FROM line"):
        parse(text)


def test_the_model_may_come_last() -> None:
    assert parse("PARAMETER top_k 3\nFROM m").modelfile == says(top_k=3)


def test_a_mistake_in_the_grammar_is_told_before_one_in_a_value() -> None:
    with pytest.raises(ModelfileError, match=r"^Modelfile:3:1: command must"):
        parse("FROM m\nPARAMETER top_k many\nSYTEM x")


@pytest.mark.parametrize("name", DEPRECATED)
def test_deprecated_parameters_are_warned_of_and_ignored(name: str) -> None:
    parsed = parse(f"FROM m\nPARAMETER {name} x")
    assert parsed.modelfile == says()
    assert [str(warning) for warning in parsed.warnings] == [
        f"Modelfile:2:11: warning: parameter {name} is deprecated and ignored; remove the line"
    ]


def test_what_ollama_leaves_out_is_warned_of() -> None:
    def warnings(text: str) -> list[str]:
        found = parse(text).warnings
        return [f"{warning.place}: {warning.message}" for warning in found]

    assert warnings("FROM m\nSYSTEM a\u200bb\0\u200b\n system c") == [
        "Modelfile:2:8: Ollama drops U+200B, U+0000 from this value",
        "Modelfile:3:2: SYSTEM overrides line 2",
    ]
    assert warnings("FROM m\nPARAMETER top_k 1\nPARAMETER top_k 2") == [
        "Modelfile:3:1: PARAMETER top_k overrides line 2",
    ]
    assert parse("FROM m\nFROM n\nLICENSE a\nLICENSE b\nPARAMETER stop a").warnings == ()


def test_every_parameter_is_read_with_its_type() -> None:
    examples = {"int": "3", "float": "0.25", "bool": "true", "text": "x"}
    values: dict[str, object] = {"int": 3, "float": 0.25, "bool": True, "text": ("x",)}
    assert len(KINDS) == 20
    for name, kind in KINDS.items():
        assert parse(f"FROM m\nPARAMETER {name} {examples[kind]}").modelfile == says(
            **{name: values[kind]}
        )


@pytest.mark.parametrize(
    "data",
    [
        b"FROM m\nSYSTEM \xc3\xa9 \xf0\x9f\x98\x80",
        b"\xef\xbb\xbfFROM m\nSYSTEM \xc3\xa9 \xf0\x9f\x98\x80",
        b"\xff\xfe" + "FROM m\nSYSTEM é 😀".encode("utf-16-le"),
        b"\xfe\xff" + "FROM m\nSYSTEM é 😀".encode("utf-16-be"),
    ],
)
def test_a_file_is_read_by_its_byte_order_mark(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_bytes(data)
    assert read_modelfile(path).modelfile == says(system="é 😀")


def test_bytes_that_are_no_text_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_bytes(b"FROM m\nSYSTEM a\xffb\xe2\x82c\xf0\x9f\x98")
    assert read_modelfile(path).modelfile.system == "a\ufffdb\ufffdc\ufffd"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelfileError, match="absent does not exist"):
        read_modelfile(tmp_path / "absent")
    with pytest.raises(ModelfileError, match="is a folder"):
        read_modelfile(tmp_path)


def test_instructions_know_where_they_stand() -> None:
    first, second = parse("FROM m\n\n  Parameter stop \t  x").instructions
    assert (first.name, first.value, str(first.name_at)) == ("from", "m", "Modelfile:1:1")
    assert (second.name, second.argument, second.value) == ("parameter", "stop", "x")
    places = (second.name_at, second.argument_at, second.value_at)
    assert [(place.line, place.column) for place in places] == [(3, 3), (3, 13), (3, 21)]


def test_characters_of_a_value_know_where_they_stand() -> None:
    for text, line, column in (
        ("SYSTEM axb", 2, 9),
        ('SYSTEM "axb"', 2, 10),
        ('SYSTEM """axb"""', 2, 12),
        ('SYSTEM "\r\na\n  x"', 4, 3),
    ):
        _, system = parse(f"FROM m\n{text}").instructions
        place = system.place(system.value.index("x"))
        assert (place.line, place.column) == (line, column)


def test_what_ollama_shows_of_a_model_is_read(shared_data: Path) -> None:
    recordings = json.loads((shared_data.parent / "ollama" / "recordings.json").read_text("utf-8"))
    shown = next(r for r in recordings if r["name"] == "show")["response"]["body"][0]
    created = next(r for r in recordings if r["name"] == "create")["request"]["json"]
    read = parse(shown["modelfile"]).modelfile
    assert read.template == created["template"] == shown["template"]
    assert read.system == created["system"]
    assert read.licenses == (created["license"],)
    stops = tuple(created["parameters"]["stop"])
    assert read.parameters == Parameters(temperature=0, num_ctx=128, stop=stops)
    assert parse(render(read)).modelfile == read


# Python's tables and Go's may differ in what is assigned: see `quoting`.
ASSIGNED = st.characters(exclude_categories=["Cn"])
PIECES = st.sampled_from(
    ["FROM m\n", "SYSTEM ", "PARAMETER ", "MESSAGE user ", "stop ", "num_ctx ", "system ", '"""',
     *'" \t\r\n#\0\u200b:ax1.', "é", "\ud800", "\U0001f9ff", "REQUIRES ", "LICENSE "]
)  # fmt: skip


def read_or_refused(text: str) -> ParsedModelfile | str:
    try:
        return parse(text)
    except ModelfileError as error:
        return str(error)


@given(st.one_of(st.lists(PIECES, max_size=25).map("".join), st.text(ASSIGNED)))
def test_any_text_is_read_or_refused_in_one_line_with_its_place(text: str) -> None:
    result = read_or_refused("FROM m\n" + text)
    if isinstance(result, str):
        assert result.startswith("Modelfile:")
        assert result.isprintable()
    else:  # what was read can be written, and says the same
        written = parse(render(result.modelfile)).modelfile
        assert replace(written, comment=()) == replace(result.modelfile, comment=())


@given(st.binary() | st.binary().map(b"FROM m\nSYSTEM ".__add__))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refused(decode(data))
