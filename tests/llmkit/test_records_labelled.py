from __future__ import annotations

import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_files import (
    Write,
    names,
    refused,
    table,
)

from llmkit.errors import ConfigError
from llmkit.records.labelled import LabelledText, read_labelled
from llmkit.records.text_files import Reading


def pairs(records: Sequence[LabelledText]) -> list[tuple[str, str]]:
    return [(record.text, record.label) for record in records]


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
