"""The vocabulary of a GGUF file, as llama.cpp reads it."""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import llama_cpp

from llmkit.errors import GGUFError
from llmkit.tokenizer import utf8


class Vocabulary:
    """Text to ids and back, and what the special tokens are."""

    def __init__(self, model: Any) -> None:
        """Of a model that llama.cpp has loaded."""
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.bos_id = int(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos_id = int(llama_cpp.llama_vocab_eos(self._vocab))
        self.adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self._vocab))

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Ids of the special tokens by their text."""
        found = {}
        for token_id in range(self.vocab_size):
            if llama_cpp.llama_vocab_is_control(self._vocab, token_id):
                found[self.token_text(token_id)] = token_id
        return found

    def token_text(self, token_id: int) -> str:
        """A token as the vocabulary has it; nothing where there is none (-1)."""
        text = b"" if token_id < 0 else llama_cpp.llama_vocab_get_text(self._vocab, token_id)
        return (text or b"").decode(errors="replace")

    def with_bos(self, ids: list[int]) -> list[int]:
        """Ids with the token before them that the file wants at the start of every text."""
        return [self.bos_id, *ids] if self.adds_bos and ids[:1] != [self.bos_id] else ids

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Ids of `text`, in which the text of special tokens is text like any other.

        With `parse_special` it is the tokens, as Ollama reads every prompt.
        """
        data = utf8(text)
        room = len(data) + 1
        ids = (llama_cpp.llama_token * room)()
        n = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, room, False, parse_special)
        if n < 0:
            raise GGUFError(f"llama.cpp made {-n} tokens from {len(data)} bytes of text")
        return list(ids[:n])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; none for a special one."""
        room = 4096
        buffer = ctypes.create_string_buffer(room)
        n = llama_cpp.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, False)
        if n < 0:
            raise GGUFError(f"token {token_id} stands for {-n} bytes, more than {room}")
        return buffer.raw[:n]

    def is_end_of_generation(self, token_id: int) -> bool:
        """Whether a generation ends at this token."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token_id))
