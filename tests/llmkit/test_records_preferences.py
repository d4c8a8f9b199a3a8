from __future__ import annotations

import json
from pathlib import Path

import pytest
from record_files import (
    CHAT,
    NO,
    SHAREGPT,
    TWO_TURNS,
    Write,
    names,
    refused,
    turns,
)

from llmkit.modelfiles.prompt_format import ALPACA, CHATML, COMPLETION, Message
from llmkit.records.preferences import read_preferences


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
