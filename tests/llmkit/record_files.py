"""Records in files for the tests of their readers, and what a refusal says."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from llmkit.errors import DataError

Write = Callable[[str, object], Path]


def refused(read: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert message.isprintable()  # one line, whatever the file holds
    return message


def names(fault: str, message: str) -> bool:
    """Whether the message has the pieces of `fault`, which " ... " divides, in their order."""
    return bool(re.search(".*".join(map(re.escape, fault.split(" ... "))), message))


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


def turns(*roles: str) -> list[dict[str, object]]:
    return [{"messages": [{"role": role, "content": "x"} for role in roles]}]


def table(
    rows: Sequence[Sequence[str]], delimiter: str = ",", quoting: int = csv.QUOTE_MINIMAL
) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows(rows)
    return file.getvalue()
