from __future__ import annotations

from typing import Any

import pytest

from llmkit.export.llamacpp.chat_template import ChatTemplate
from llmkit.modelfiles.prompt_format import Message


class Words:
    """A stand-in for llama.cpp that keeps what it was asked to cut into tokens."""

    def __init__(self, control_tokens: dict[str, int]) -> None:
        self.control_tokens = control_tokens
        self.parts: list[str] = []

    def tokenize(self, text: str) -> list[int]:
        self.parts.append(text)
        return [len(text)] if text else []


@pytest.mark.parametrize(
    ("tokens", "parts", "ids"),
    [
        ({"<s>": 7, "<s>>": 9}, ["", "to merge", ""], [7, 8, 9]),
        ({"<s>": 7, "<s>>": 9, "": 5}, ["", "to merge", ""], [7, 8, 9]),
        ({"": 5}, ["<s>to merge<s>>"], [15]),
        ({}, ["<s>to merge<s>>"], [15]),
    ],
)
def test_a_prompt_is_cut_at_its_special_tokens_alone(
    tokens: dict[str, int], parts: list[str], ids: list[int]
) -> None:
    llama: Any = Words(tokens)
    template = ChatTemplate("<s>{{ messages[0].content }}<s>>")
    assert template.prompt_ids([Message("user", "to merge")], llama) == ids
    assert llama.parts == parts
