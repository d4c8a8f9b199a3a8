from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import ConfigError, DataError
from llmkit.modelfiles.prompt_format import ALPACA, CHATML, COMPLETION, Message
from llmkit.records.conversations import Conversation, read_conversations
from llmkit.records.labelled import LabelledText, read_labelled
from llmkit.records.preferences import read_preferences
from llmkit.records.splits import Fractions, balance, split, split_stratified
from llmkit.records.text_files import Reading

Write = Callable[[str, object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes text, bytes, or anything else as JSON (one a line for .jsonl), into a file."""

    def written(name: str, content: object) -> Path:
        path = tmp_path / name
        if name.endswith("jsonl") and isinstance(content, list):
            content = "\n".join(json.dumps(record) for record in content)
        elif not isinstance(content, str | bytes):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert message.isprintable()  # one line, whatever the file holds
    return message


def names(fault: str, message: str) -> bool:
    """Whether the message has the pieces of `fault`, which " ... " divides, in their order."""
    return bool(re.search(".*".join(map(re.escape, fault.split(" ... "))), message))


def pairs(records: Sequence[LabelledText]) -> list[tuple[str, str]]:
    return [(record.text, record.label) for record in records]


# --- labelled texts -----------------------------------------------------------------------------

FOUR = [("Good.", "yes"), ("Bad.", "no"), ("Fine, really.", "yes"), ("Awful.", "no")]


def test_sms_spam_gives_every_line_in_spite_of_stray_quotes(shared_data: Path) -> None:
    records = read_labelled(shared_data / "sms_spam.tsv")
    assert Counter(record.label for record in records) == {"ham": 4827, "spam": 747}
    lines = (shared_data / "sms_spam.tsv").read_text("utf-8").split("\n")[:-1]
    assert [f"{record.label}\t{record.text}" for record in records] == lines
    assert records[-1].where == f"{shared_data / 'sms_spam.tsv'}, line 5574"


def test_amazon_sentiment_gives_every_line_without_its_quotes(shared_data: Path) -> None:
    records = read_labelled(shared_data / "amazon_sentiment.tsv")
    assert Counter(record.label for record in records) == {"0": 500, "1": 500}
    assert pairs(records)[1] == ("Good case, Excellent value.", "1")
    assert '"' not in records[1].text + records[6].text
    assert 'the ear "clip" is not' in records[14].text


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.txt", "a", "a.TSV"])
@pytest.mark.parametrize(
    "header", [None, ("text", "label"), ("Message", "Category"), ("v1", "CLASS")]
)
@pytest.mark.parametrize("label_first", [True, False])
def test_table_is_read_with_either_order_and_with_or_without_header(
    write: Write, name: str, header: tuple[str, str] | None, label_first: bool
) -> None:
    rows = ([header] if header else []) + FOUR
    file = io.StringIO()
    delimiter = "\t" if name.lower().endswith("tsv") else ","
    csv.writer(file, delimiter=delimiter).writerows(
        row[::-1] if label_first else row for row in rows
    )
    records = read_labelled(write(name, file.getvalue()))
    assert pairs(records) == FOUR
    assert records[0].where.endswith(f"{name}, line {2 if header else 1}")


def test_columns_are_found_by_name_among_others(write: Write) -> None:
    path = write("a.csv", "id,Label,Text\n1,x,one\n2,y,two\n3,x,three\n")
    assert pairs(read_labelled(path)) == [("one", "x"), ("two", "y"), ("three", "x")]


def test_known_name_that_occurs_again_is_a_label_and_no_header(write: Write) -> None:
    path = write("a.tsv", "review\tone\nother\ttwo\nreview\tthree\n")
    assert [record.label for record in read_labelled(path)] == ["review", "other", "review"]


def test_quoted_text_may_span_lines_and_the_lines_are_counted(write: Write) -> None:
    path = write("a.csv", '"one\nand ""more""",x\r\n\r\n"two, too",y\r\nthree,x\r\n')
    records = read_labelled(path)
    assert [record.text for record in records] == ['one\nand "more"', "two, too", "three"]
    assert [record.where.rsplit(", ")[-1] for record in records] == ["line 1", "line 4", "line 5"]


def test_spaces_before_quoted_cells_are_no_part_of_them(write: Write) -> None:
    path = write("a.csv", 'text, label\n"one, 1", "x"\n"two", "y"\n"three", "x"\n')
    assert pairs(read_labelled(path)) == [("one, 1", "x"), ("two", "y"), ("three", "x")]


def test_stray_quotes_that_would_swallow_whole_rows_are_text(write: Write) -> None:
    path = write("a.tsv", 'ham\t"one\nspam\ttwo\nham\tthree"\nspam\tfour\n')
    texts = [record.text for record in read_labelled(path)]
    assert texts == ['"one', "two", 'three"', "four"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(("text", "label"), [("text", "label"), ("Review", "SENTIMENT")])
def test_json_records_are_read_with_numbers_as_labels(
    write: Write, name: str, text: str, label: str
) -> None:
    values = [("one", 0), ("two", 1), ("three", 0)]
    path = write(name, [{"id": 7, label: value, text: given} for given, value in values])
    assert pairs(read_labelled(path)) == [("one", "0"), ("two", "1"), ("three", "0")]


def table(
    rows: Sequence[Sequence[str]], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL
) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows(rows)
    return file.getvalue()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("header", [None, ("text", "label"), ("Label", "Text")])
def test_delimiter_is_found_whatever_the_file_is_called(
    write: Write, name: str, delimiter: str, header: tuple[str, str] | None
) -> None:
    rows = [(f"{text} {n}", label) for n in range(3) for text, label in FOUR]
    swapped = header is not None and header[0] == "Label"
    content = [header] * (header is not None) + [row[::-1] if swapped else row for row in rows]
    path = write(name, table(content, delimiter))
    assert pairs(read_labelled(path)) == rows
    assert pairs(read_labelled(path, Reading(delimiter=delimiter))) == rows


def test_delimiter_is_not_one_that_only_the_texts_have(write: Write) -> None:
    rows = [(label, f"{text}, {n}") for n in range(3) for text, label in FOUR]
    unquoted = "".join(f"{label};{text}\n" for label, text in [("label", "text"), *rows])
    assert pairs(read_labelled(write("a.csv", unquoted))) == [row[::-1] for row in rows]
    message = refused(
        lambda: read_labelled(write("b.csv", unquoted.replace("; ", ";", 1) + "a;b;c\n"))
    )
    assert names("line 14: ... 2 columns ... line 1, ... 3", message)


def test_excels_line_that_names_the_delimiter_is_believed(write: Write) -> None:
    path = write("a.csv", "sep=;\r\n" + table([("text", "label"), *FOUR], ";"))
    records = read_labelled(path)
    assert pairs(records) == FOUR
    assert records[0].where.endswith("line 3")


@pytest.mark.parametrize("name", ["", "|||", "12", "?a", "\n"])
def test_delimiter_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"delimiter {re.escape(repr(name))} "):
        Reading(delimiter=name)


def test_tab_has_a_name() -> None:
    assert Reading(delimiter="tab").delimiter == Reading(delimiter="\\t").delimiter == "\t"


MORE_CELLS = [
    # header, cells behind each row's text and label
    (("text", "label", ""), [""]),
    (("text", "label", "source"), ["source"]),
    (("text", "label", "", "", ""), ["", "", ""]),
    (("text", "label"), [""]),
    (("text", "label", ""), []),
    (("text", "label", "title"), ["label"]),
]


@pytest.mark.parametrize(("header", "behind"), MORE_CELLS)
def test_header_that_names_the_columns_is_one_whatever_the_rows_hold(
    write: Write, header: tuple[str, ...], behind: list[str]
) -> None:
    path = write("a.csv", table([header, *((*row, *behind) for row in FOUR)]))
    assert pairs(read_labelled(path)) == FOUR


def test_index_column_without_a_name_is_left_out_and_said(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(str(n), *row) for n, row in enumerate(FOUR)]
    path = write("a.csv", table([("", "comment", "label"), *rows]))
    assert pairs(read_labelled(path)) == FOUR
    assert "1 column without a name (line 2 " in capsys.readouterr().err


KAGGLE = [(["ham", "spam"][n % 3 == 0], f"Message {n}, say", "", "", "") for n in range(30)]


@pytest.mark.parametrize("filled", [False, True])
def test_header_of_unknown_names_is_found_because_its_label_occurs_once(
    write: Write, capsys: pytest.CaptureFixture[str], filled: bool
) -> None:
    rows = [list(row) for row in KAGGLE]
    rows[7][3] = "the rest of it" * filled
    path = write("spam.csv", table([["v1", "v2", "", "", ""], *rows]))
    expected = [(text, label) for label, text, *_ in KAGGLE]
    assert pairs(read_labelled(path)) == expected
    said = capsys.readouterr().err
    assert "3 columns without names" in said
    assert ("line 9" in said) == filled
    assert "line 1 is read as a header: 'v2' is the text, 'v1' the label" in said
    assert pairs(read_labelled(path, Reading("v2", "v1"))) == expected
    assert pairs(read_labelled(path, Reading("2", "1"))) == expected
    assert pairs(read_labelled(path, Reading(label_column="V1"))) == expected


def test_columns_without_a_header_are_chosen_by_number(write: Write) -> None:
    rows = [(f"id {n}", label, text) for n, (text, label) in enumerate(FOUR)]
    path = write("a.csv", table(rows))
    assert pairs(read_labelled(path, Reading("3", "2"))) == FOUR
    for wrong in (Reading("4", "2"), Reading("0", "2"), Reading("body", "2")):
        assert "line 1: no column '" in refused(lambda wrong=wrong: read_labelled(path, wrong))
    assert "same column" in refused(lambda: read_labelled(path, Reading("2", "2")))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "columns.json"])
@pytest.mark.parametrize("labels", [(0.0, 1.0), (0, 1), (True, False), (1e30, -2.5)])
def test_a_table_means_the_same_in_every_format(
    write: Write, name: str, labels: tuple[object, object]
) -> None:
    rows = [(n, labels[n % 2]) for n in range(100, 112)]
    records = [{"text": text, "label": label} for text, label in rows]
    content: object = records
    if name == "columns.json":
        content = {
            field: {str(n): record[field] for n, record in enumerate(records)}
            for field in ("text", "label")
        }
    elif "json" not in name:
        content = table([("text", "label"), *rows], "\t" if name == "a.tsv" else ",")  # type: ignore[list-item]
    assert pairs(read_labelled(write(name, content))) == [(str(n), str(label)) for n, label in rows]


def test_another_encoding_is_read_where_it_is_given(write: Write) -> None:
    content = table([("text", "label"), ("Müßig £5", "a"), ("Café", "b"), ("Äpfel", "a")])
    latin = write("a.csv", content.encode("latin-1"))
    message = refused(lambda: read_labelled(latin))
    assert "line 2: byte 0xfc is not UTF-8" in message
    assert "--encoding" in message
    expected = [("Müßig £5", "a"), ("Café", "b"), ("Äpfel", "a")]
    assert pairs(read_labelled(latin, Reading(encoding="Latin-1"))) == expected
    utf16 = write("b.csv", content.encode("utf-16"))
    assert names(
        "line 1: byte 0xff ... --encoding ... utf-16", refused(lambda: read_labelled(utf16))
    )
    assert pairs(read_labelled(utf16, Reading(encoding="utf-16"))) == expected
    with pytest.raises(ConfigError, match="'klingon'"):
        Reading(encoding="klingon")


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.tsv", "", "a.tsv is empty; give a TSV, CSV, JSON or JSONL"),
        ("a.tsv", b"one\tx\ntw\xff\ty\n", "a.tsv, line 2: byte 0xff is not UTF-8"),
        ("a.tsv", "one\tx\ntwo\ty\n\nthree\tx\tz\n", "line 4: ... 2 columns ... line 1, ... 3"),
        ("a.csv", "one,x\ntwo, too,y\nthree,x\n", "line 2: ... 2 columns ... line 1, ... 3"),
        ("a.csv", 'one,x\n"two, too,y\nthree,x\n', "line 2: ... no closing quote"),
        ("a.csv", '"a, b",x\n"c, "d",y\n', 'line 2: ... closing quote; ... " as ""'),
        ("a.tsv", 'a\tx\n"b" c\ty\n\n\tx\n', "line 4: the text is empty"),
        ("a.tsv", "one\tx\n \ty\nthree\tx\n", "line 2: the text is empty"),
        ("a.tsv", "one\tx\ntwo\t \nthree\tx\n", "line 2: the label is empty"),
        ("a.tsv", "one\ntwo\n", "line 1: 1 column and no header line"),
        ("a.csv", "1,one,x\n2,two,y\n", "line 1: 3 columns and no header line"),
        ("a.csv", "id,text,kind\n2,two,y\n", "line 1: no label column among id, text, kind"),
        ("a.csv", "text,label\n", "a.csv ... no row"),
        ("a.csv", "text,label,Label\none,x,y\n", "line 1: 2 columns ... 'label'"),
        ("a.tsv", "one\tx\ntwo\tx\n", "label 'x'; ... two labels"),
        ("a.tsv", "one\tx\ntwo\ty\n", "both columns ... 2 different values in 2 rows"),
        ("a.tsv", "text\tlabel\none\tx\ntwo\ty\n", "2 texts ... label"),
        (
            "a.tsv",
            "text\tlabel\n" + "".join(f"{n}\tl{n // 2}\n" for n in range(202)),
            "101 different labels, ... 100 ... 'l0'",
        ),
        ("a.jsonl", [{"text": "a", "label": "b"}, {"text": "a"}], 'line 2: no field "label" (or'),
        ("a.jsonl", [{"a": "b"}], 'line 1: no field "text" (or sentence, message, review, co'),
        ("a.jsonl", [{"text": "a", "label": [1]}], 'line 1: "label": ... text, ... a list'),
        ("a.jsonl", [{"text": None, "label": 1}], "line 1: the text is empty"),
        ("a.jsonl", [{"text": "a", "label": None}], "line 1: the label is empty"),
        ("a.jsonl", [{"text": "a", "label": math.nan}], "line 1: the label is empty"),
        ("a.json", [{"text": "", "label": 1}], "record 1, line 1: the text is empty"),
    ],
)  # fmt: skip
def test_fault_in_labelled_texts_is_named(
    write: Write, name: str, content: object, fault: str
) -> None:
    path = write(name, content)
    message = refused(lambda: read_labelled(path))
    assert message.startswith(str(path))
    assert names(fault, message)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    assert "nowhere.tsv does not exist" in refused(lambda: read_labelled(tmp_path / "nowhere.tsv"))
    assert f"{tmp_path} is a folder" in refused(lambda: read_labelled(tmp_path))


# Label names that are unlikely inside random text, so that no line of a text looks like a row.
LABELS = st.sampled_from(["yes, good", "nö", "'other'", 'the "best"', "<>"])
TEXTS = st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip)
TABLES = st.lists(st.tuples(TEXTS, LABELS), min_size=3, max_size=12).filter(
    lambda rows: 1 < len({label for _, label in rows}) < len(rows)
)


@given(
    rows=TABLES,
    suffix=st.sampled_from(["csv", "tsv"]),
    label_first=st.booleans(),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_the_csv_module_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    suffix: str,
    label_first: bool,
    quoting: int,
) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter="," if suffix == "csv" else "\t", quoting=quoting)  # type: ignore[arg-type]
    writer.writerows(row[::-1] if label_first else row for row in [("text", "label"), *rows])
    path = tmp_path_factory.mktemp("table") / f"table.{suffix}"
    path.write_bytes(file.getvalue().encode())
    assert pairs(read_labelled(path)) == rows


@given(rows=TABLES, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_what_the_json_module_writes_is_read_back_with_its_line(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    indent: int | None,
    ascii_only: bool,
) -> None:
    values = [{"text": text, "label": label} for text, label in rows]
    folder = tmp_path_factory.mktemp("json")
    whole = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    lines = [json.dumps(value, ensure_ascii=ascii_only) for value in values]
    for name, content in (("list.json", whole), ("lines.jsonl", "\n".join(lines) + "\n")):
        (folder / name).write_bytes(content.encode())
        records = read_labelled(folder / name)
        assert pairs(records) == rows
        for number, record in enumerate(records):
            line = int(record.where.rsplit(" ", 1)[1])
            expected = number * 4 + 2 if indent else 1
            assert line == (number + 1 if name == "lines.jsonl" else expected)


# --- conversations ------------------------------------------------------------------------------


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": " Hi. \n"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Farewell."},
]
TWO_TURNS = [*CHAT[:2], {"role": "assistant", "content": "Hi."}, CHAT[3]]
CHAT_SAID = [
    ("system", "Be kind."),
    ("user", "Hello"),
    ("assistant", "Hi."),
    ("user", "Bye"),
    ("assistant", "Farewell."),
]
NO = {"role": "assistant", "content": " No"}
SHAREGPT_NAMES = {"system": "system", "user": "human", "assistant": "gpt"}
SHAREGPT = [{"from": SHAREGPT_NAMES[m["role"]], "value": m["content"]} for m in CHAT]


def test_every_instruction_of_the_shared_file_is_read_with_its_line(shared_data: Path) -> None:
    path = shared_data / "instructions.json"
    conversations = read_conversations(path, ALPACA)
    assert len(conversations) == 1100
    lines = path.read_text("utf-8").split("\n")
    for number, conversation in enumerate(conversations, start=1):
        where, line = conversation.where.rsplit(" ", 1)
        assert where == f"{path}, record {number}, line"
        assert lines[int(line) - 1].strip() == "{"
    record = json.loads(path.read_text("utf-8"))[1]
    question = ALPACA.user_content(record["instruction"], record["input"])
    assert said(conversations[1]) == [("user", question), ("assistant", record["output"])]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"instruction": "Do", "output": " Done\n"}, [("user", "Do"), ("assistant", "Done")]),
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            [("user", CHATML.user_content("Add", "1 2")), ("assistant", "3")],
        ),
        ({"instruction": "Do", "input": None, "output": "x"}, [("user", "Do"), ("assistant", "x")]),
        (
            {"instruction": "Who", "context": "Ida", "response": "she", "category": "qa"},
            [("user", CHATML.user_content("Who", "Ida")), ("assistant", "she")],
        ),
        ({"prompt": "Once", "completion": " upon"}, [("user", "Once"), ("assistant", "upon")]),
        ({"question": "Why?", "answer": "So."}, [("user", "Why?"), ("assistant", "So.")]),
        ({"prompt": CHAT[:2], "completion": CHAT[2:3]}, CHAT_SAID[:3]),
        ({"prompt": CHAT[1], "completion": CHAT[2]}, CHAT_SAID[1:3]),
        ({"prompt": CHAT[:4], "completion": "Farewell."}, CHAT_SAID),
        ({"messages": [*CHAT[:2], {**CHAT[2], "tool_calls": None}]}, CHAT_SAID[:3]),
        ({"messages": CHAT, "prompt": "Hello"}, CHAT_SAID),
        ({"messages": [{"role": "system", "content": ""}, *CHAT[1:]]}, CHAT_SAID[1:]),
        ({"conversations": SHAREGPT}, CHAT_SAID),
        ({"messages": json.dumps(CHAT)}, CHAT_SAID),
        ({"system": CHAT[0]["content"], "conversations": SHAREGPT[1:]}, CHAT_SAID),
        ({"system": "", "messages": CHAT}, CHAT_SAID),
        ({"instruction": "Add", "output": 3}, [("user", "Add"), ("assistant", "3")]),
    ],
)
def test_conversation_is_read_from_each_shape(
    write: Write, name: str, record: object, expected: list[tuple[str, str]]
) -> None:
    path = write(name, [record, record])
    first, second = read_conversations(path, CHATML)
    assert said(first) == said(second) == expected
    place = "record 2, line 1" if name == "a.json" else "line 2"
    assert second.where == f"{path}, {place}"


TABLE_FORMS: dict[str, Callable[[list[dict[str, str]]], object]] = {
    "pandas' columns": lambda rows: {
        name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]
    },
    "pandas' index": lambda rows: {str(n): row for n, row in enumerate(rows)},
    "pandas' split": lambda rows: {
        "columns": [*rows[0]], "index": [0, 1], "data": [[*row.values()] for row in rows],
    },
    "pandas' table": lambda rows: {"schema": {"fields": []}, "data": rows},
    "Hugging Face's lists": lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    "lines": lambda rows: "\n".join(map(json.dumps, rows)),
    "csv": lambda rows: table([[*rows[0]], *([*row.values()] for row in rows)]),
    "tsv": lambda rows: table([[*rows[0]], *([*row.values()] for row in rows)], "\t"),
}  # fmt: skip


@pytest.mark.parametrize("form", TABLE_FORMS)
@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt", "a"])
def test_content_decides_how_a_table_is_read(write: Write, form: str, name: str) -> None:
    if form in ("csv", "tsv") and name != "a.csv":
        pytest.skip("JSON by its name, or prose with commas")
    rows = [{"instruction": f"Do {n}, please", "output": f"Done {n}"} for n in range(2)]
    found = read_conversations(write(name, TABLE_FORMS[form](rows)), ALPACA)
    assert [said(conversation) for conversation in found] == [
        [("user", row["instruction"]), ("assistant", row["output"])] for row in rows
    ]


def test_leading_space_belongs_to_a_completion_of_a_bare_prompt_only(write: Write) -> None:
    bare = write("a.jsonl", [{"prompt": "Once", "completion": " upon\n"}])
    asked = write("b.jsonl", [{"instruction": "Tell", "output": " Once\n"}])
    assert said(read_conversations(bare, COMPLETION)[0])[1] == ("assistant", " upon\n")
    assert said(read_conversations(asked, COMPLETION)[0])[1] == ("assistant", "Once")


def turns(*roles: str) -> list[dict[str, object]]:
    return [{"messages": [{"role": role, "content": "x"} for role in roles]}]


GOOD = {"instruction": "a", "output": "b"}


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.txt", "Once upon a time.\n", "a.txt is neither JSON nor a table; give records"),
        ("a.html", "<p>Once</p>\n", "a.html is an HTML page"),
        ("a.csv", "id,text\n1,b\n", "line 2: no field of a known format"),
        ("a.csv", "prompt,completion\n", "a.csv ... no row"),
        ("a.json", "[]", "a.json ... no record"),
        ("a.json", " \n", "is empty"),
        ("a.json", '[{"a": 1},\n{"b" 2}]', "line 2: ... JSON: Expecting ':' delimiter"),
        ("a.json", '[{"a": "b"},\n', "line 2: ... JSON: "),
        ("a.json", "[" * 100_000, "a.json: ... JSON: "),
        ("a.jsonl", '{"instruction": "a", "output": "b"}\n\n{"inst', "line 3: ... JSON: "),
        ("a.json", '{\n"messages": []\n}', "line 1: \"messages\" ... end ... assistant"),
        ("a.json", '{\n"messages": [}\n', "line 1: ... JSON: "),
        ("a.json", [GOOD, "b"], "record 2, line 1: ... an object, ... text"),
        ("a.jsonl", [GOOD, {"instruction": "a", "x": ""}],
         'line 2: no field "output"; ... instruction, x'),
        ("a.jsonl", [GOOD, {}], 'line 2: no field "instruction"; ... none'),
        ("a.jsonl", [GOOD, {"prompt": "a", "completion": "b"}], 'line 2: no field "instruction"'),
        ("a.jsonl", [{"prompt": "a", "text\n": "b"}],
         'line 1: no field "completion"; ... prompt, text\\n'),
        ("a.jsonl", [{"text": "b"}], "line 1: no field of a known format; ... records"),
        ("a.jsonl", [GOOD | {"output": {"a": 3}}], 'line 1: "output": ... text, ... an object'),
        ("a.jsonl", [{"messages": "[{'role': 'user', 'content': 'a'}]"}], '"messages" ... JSON'),
        ("a.csv", "prompt,prompt,completion\na,b,c\n", "line 1: 2 columns ... 'prompt'"),
        ("a.jsonl", [GOOD | {"input": ["x"]}], 'line 1: "input": ... text, ... a list'),
        ("a.jsonl", [GOOD, GOOD | {"output": " \n"}], 'line 2: "output" is empty'),
        ("a.jsonl", [GOOD, GOOD | {"instruction": ""}], 'line 2: "instruction" is empty'),
        ("a.jsonl", [GOOD | {"output": "\ud83d"}], 'line 1: "output" ... surrogate'),
        ("a.jsonl", turns("user", "tool"),
         'line 1: message 2 of "messages" ... tool: ... not supported'),
        ("a.jsonl", turns("user", "bot"),
         "line 1, message 2 of \"messages\": unknown role 'bot'; ... system, user,"),
        ("a.jsonl", [{"messages": [{"role": "user", "content": " "}]}],
         'message 1 of "messages": "content" is empty'),
        ("a.jsonl", [{"messages": [{"role": "user"}]}],
         'message 1 of "messages": no field "content"; ... role'),
        ("a.jsonl", [{"conversations": [{"from": "human", "value": ["a"]}]}],
         'message 1 of "conversations": "value": ... text, ... a list'),
        ("a.jsonl", [{"messages": "hello"}], 'line 1: "messages" ... list'),
        ("a.jsonl", [{"messages": ["hello"]}] * 2, 'message 1 of "messages" ... object'),
        ("a.jsonl", turns(), 'line 1: "messages" ... end ... assistant'),
        ("a.jsonl", turns("system"), '"messages" ... end ... assistant'),
        ("a.jsonl", turns("user"), '"messages" ... end ... assistant'),
        ("a.jsonl", turns("user", "assistant", "user"), "\"messages\" ... end ... assistant"),
        ("a.jsonl", turns("assistant"),
         'message 1 of "messages" ... user, ... assistant'),
        ("a.jsonl", turns("user", "user"),
         'message 2 of "messages" ... assistant, ... user'),
        ("a.jsonl", turns("user", "system", "assistant"), "assistant, ... system"),
        ("a.jsonl", turns("system", "system", "user"), "user, ... system"),
    ],
)  # fmt: skip
def test_fault_in_conversations_is_named(
    write: Write, name: str, content: object, fault: str
) -> None:
    path = write(name, content)
    message = refused(lambda: read_conversations(path, CHATML))
    assert message.startswith(str(path))
    assert names(fault, message)


# --- preferences --------------------------------------------------------------------------------


def test_preferences_of_the_shared_file_are_read_and_equal_answers_counted(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shared_data / "preferences.json"
    assert len(read_preferences(path, ALPACA)) == 1094
    assert " 6 of 1100 records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": CHAT[:2], "chosen": CHAT[2], "rejected": "No"}, CHAT[:2]),
        ({"prompt": "Hello", "chosen": CHAT[2], "rejected": [NO]}, CHAT[1:2]),
        ({"prompt": CHAT[1], "chosen": CHAT[2:3], "rejected": NO}, CHAT[1:2]),
        ({"prompt": CHAT[:2], "chosen": CHAT[2], "rejected": NO}, CHAT[:2]),
        ({"prompt": "Hello", "chosen": CHAT[:3], "rejected": [*CHAT[:2], NO]}, CHAT[:2]),
        ({"prompt": CHAT[:2], "chosen": CHAT[1:3], "rejected": [CHAT[1], NO]}, CHAT[:2]),
        ({"conversations": SHAREGPT[:2], "chosen": SHAREGPT[2], "rejected": NO}, CHAT[:2]),
        ({"prompt": "Hello", "chosen": " Hi ", "rejected": "No"}, CHAT[1:2]),
        ({"prompt": CHAT[:2], "chosen": "Hi", "rejected": "No\n"}, CHAT[:2]),
        ({"prompt": CHAT[:2], "chosen": CHAT[2:3], "rejected": "No"}, CHAT[:2]),
        ({"prompt": "Hello", "chosen": CHAT[1:3], "rejected": "No"}, CHAT[1:2]),
        ({"instruction": "Hello", "input": "", "chosen": "Hi.", "rejected": "No"}, CHAT[1:2]),
        ({"system": "Be kind.", "question": "Hello", "chosen": "Hi.", "rejected": "No"}, CHAT[:2]),
        ({"prompt": json.dumps(CHAT[:2]), "chosen": "Hi", "rejected": json.dumps([NO])}, CHAT[:2]),
        (
            {"prompt": "Hello", "chosen": [*TWO_TURNS, CHAT[2]], "rejected": [*TWO_TURNS, NO]},
            TWO_TURNS,
        ),
        (
            {
                "chosen": "\n\nHuman: Hello\n\nAssistant: Hi.",
                "rejected": "\n\nHuman: Hello\n\nAssistant: No",
            },
            CHAT[1:2],
        ),
        (
            {
                "chosen": CHAT[:3],
                "rejected": [*CHAT[:2], {"role": "assistant", "content": "No "}],
            },
            CHAT[:2],
        ),
    ],
)
def test_preference_is_read_from_each_shape(
    write: Write, record: dict[str, object], messages: list[dict[str, str]]
) -> None:
    (preference,) = read_preferences(write("a.jsonl", [record]), CHATML)
    assert list(preference.messages) == [
        Message(message["role"], message["content"])  # type: ignore[arg-type]
        for message in messages
    ]
    assert preference.chosen.removesuffix(".") == "Hi"
    assert preference.rejected == "No"


def test_input_of_a_preference_joins_its_instruction(write: Write) -> None:
    record = {"instruction": "Add", "input": "1 2", "chosen": "3", "rejected": "4"}
    (preference,) = read_preferences(write("a.json", [record]), ALPACA)
    assert preference.messages == (Message("user", ALPACA.user_content("Add", "1 2")),)


def test_answers_to_a_bare_prompt_keep_their_space_in_the_completion_format(write: Write) -> None:
    path = write("a.jsonl", [{"prompt": "Once", "chosen": " upon", "rejected": " a"}])
    (preference,) = read_preferences(path, COMPLETION)
    assert (preference.chosen, preference.rejected) == (" upon", " a")


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "search"}}]}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ([PAIR, {"prompt": "a", "chosen": "b"}], 'line 2: no field "rejected"; ... prompt, chosen'),
        ([PAIR, {"chosen": "b", "rejected": "c"}], 'line 2: no field "prompt"'),
        ([{"chosen": "b", "rejected": "c"}], 'line 1: no field "prompt", and "chosen" ... whole'),
        ([PAIR | {"chosen": CHAT[:3]}], "line 1: ... the answer ... prompt"),
        ([PAIR, PAIR | {"chosen": {"role": "user", "content": "b"}}],
         'line 2: "chosen" ... end ... assistant'),
        ([PAIR, {"prompt": [CHAT[1], CALL], "chosen": "b", "rejected": "c"}],
         'line 2: message 2 of "prompt" has "tool_calls": tools are not supported'),
        ([PAIR, PAIR | {"rejected": CALL}], 'line 2: message 1 of "rejected" has "tool_calls"'),
        ([{"messages": turns("user", "tool")[0]["messages"], "chosen": "b", "rejected": "c"}],
         'line 1: message 2 of "messages" ... tool'),
        ([PAIR, PAIR | {"chosen": " "}], 'line 2: "chosen" is empty'),
        ([PAIR | {"prompt": " "}], 'line 1: "prompt" is empty'),
        ([PAIR | {"prompt": CHAT}], '"prompt" ... end ... user'),
        ([PAIR | {"chosen": []}], '"chosen" ... end ... assistant'),
        ([PAIR | {"rejected": CHAT[:2]}], '"rejected" ... end ... assistant'),
        ([{"chosen": CHAT, "rejected": CHAT[:3]}], "line 1: ... \"chosen\" and \"rejected\""),
        ([PAIR | {"chosen": "c "}], "chosen and rejected are the same in every record"),
    ],
)  # fmt: skip
def test_fault_in_preferences_is_named(write: Write, content: object, fault: str) -> None:
    path = write("a.jsonl", content)
    message = refused(lambda: read_preferences(path, CHATML))
    assert message.startswith(str(path))
    assert names(fault, message)


# --- splits -------------------------------------------------------------------------------------

FRACTIONS = st.sampled_from([(0.7, 0.1, 0.2), (0.85, 0.05, 0.1), (1 / 3, 1 / 3, 1 / 3)])


def labelled(texts: Sequence[tuple[str, str]]) -> list[LabelledText]:
    return [
        LabelledText(text, label, f"file, line {line}")
        for line, (text, label) in enumerate(texts, start=1)
    ]


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=3), min_size=3, max_size=60).filter(
        lambda texts: len(set(texts)) >= 3
    ),
    fractions=FRACTIONS,
    seed=st.integers(0, 9),
)
def test_split_is_complete_disjoint_and_keeps_repeats_together(
    texts: list[str], fractions: Fractions, seed: int
) -> None:
    records = labelled([(text, "x") for text in texts])
    parts = split(records, fractions, seed)
    assert all(parts)
    assert sorted(r.where for part in parts for r in part) == sorted(r.where for r in records)
    seen = [{record.text for record in part} for part in parts]
    assert sum(map(len, seen)) == len(set(texts))
    assert parts == split(records, fractions, seed)


@given(
    counts=st.lists(st.integers(20, 70), min_size=2, max_size=4),
    fractions=FRACTIONS,
    seed=st.integers(0, 9),
)
def test_stratified_split_divides_each_label_within_one_record(
    counts: list[int], fractions: Fractions, seed: int
) -> None:
    records = labelled(
        [(f"{label} {n}", str(label)) for label, count in enumerate(counts) for n in range(count)]
    )
    parts = split_stratified(records, fractions, seed)
    assert sorted(r.where for part in parts for r in part) == sorted(r.where for r in records)
    for part, fraction in zip(parts, fractions, strict=True):
        for label, count in enumerate(counts):
            got = sum(record.label == str(label) for record in part)
            assert abs(got - count * fraction) < 1 + 1e-9
    assert parts == split_stratified(records, fractions, seed)


def test_repeated_spam_stays_in_one_part_of_a_stratified_split(shared_data: Path) -> None:
    records = balance(read_labelled(shared_data / "sms_spam.tsv"), seed=1)
    assert Counter(record.label for record in records) == {"ham": 747, "spam": 747}
    parts = split_stratified(records, (0.7, 0.1, 0.2), seed=1)
    assert [len(part) for part in parts] == [1046, 150, 298]
    texts = [{record.text.strip() for record in part} for part in parts]
    assert len(set.union(*texts)) == sum(map(len, texts)) < len(records)


def test_another_seed_splits_and_balances_otherwise() -> None:
    records = labelled([(str(n), "ab"[n % 3 == 0]) for n in range(40)])
    for way in (split, split_stratified):
        assert way(records, (0.5, 0.25, 0.25), 1) != way(records, (0.5, 0.25, 0.25), 2)
    assert balance(records, 1) != balance(records, 2)


def test_balance_keeps_order_and_as_many_of_each_label_as_the_rarest_has() -> None:
    records = labelled([(str(n), "ab"[n % 5 == 0]) for n in range(40)])
    balanced = balance(records, 3)
    assert Counter(record.label for record in balanced) == {"a": 8, "b": 8}
    assert balanced == [record for record in records if record in balanced]
    assert balanced == balance(records, 3)


def test_too_few_records_are_refused_with_the_number_needed() -> None:
    records = labelled([("a", "x"), ("a ", "x"), ("b", "y")])
    message = refused(lambda: split(records, (0.7, 0.1, 0.2), 1))
    assert "2 different records" in message
    assert "at least 3 are needed" in message


def test_label_with_too_few_texts_is_named_with_its_line() -> None:
    records = labelled([("v1", "head"), *[(str(n), "ab"[n % 2]) for n in range(20)]])
    message = refused(lambda: split_stratified(records, (0.7, 0.1, 0.2), 1))
    assert message.startswith(
        "file, line 1: the label 'head' has only 1 different text; at least 3"
    )


@pytest.mark.parametrize("repeats", [1, 2])
def test_label_that_is_too_rare_to_balance_is_the_one_named(repeats: int) -> None:
    rare = [(f"text {n}", "rare") for n in range(repeats)]
    records = labelled([*[(str(n), ("bad", "good")[n % 2]) for n in range(38)], *rare])
    message = refused(lambda: balance(records, 1))
    assert message.startswith(f"file, line 39: the label 'rare' has only {repeats} different text")


@pytest.mark.parametrize("fractions", [(0.8, 0.2, 0.0), (0.7, 0.2, 0.2), (1.2, -0.4, 0.2)])
def test_fractions_that_are_no_division_are_refused(fractions: Fractions) -> None:
    with pytest.raises(ConfigError, match="must be positive and add up to 1"):
        split(labelled([(str(n), "x") for n in range(9)]), fractions, 1)
