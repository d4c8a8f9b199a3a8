from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from record_files import (
    CHAT,
    CHAT_SAID,
    SHAREGPT,
    Write,
    names,
    refused,
    table,
    turns,
)

from llmkit.modelfiles.prompt_format import ALPACA, CHATML, COMPLETION
from llmkit.records.conversations import Conversation, read_conversations


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


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
