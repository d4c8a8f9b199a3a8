"""What Ollama says to prompts, as the tokens that it chose."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from llmkit.export.ollama.server import OllamaServer, Said
from llmkit.generation import ends_inside_character
from llmkit.tokenizer import Tokenizer

N_TOKENS = 12


class Logits(Protocol):
    """Who computes what Ollama's log-probabilities are compared with."""

    def logits(self, ids: Tensor) -> Tensor:
        """Logits (T, V) of token ids (T,)."""
        ...


class Vocabulary(Protocol):
    """The tokens of a model."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        ...

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes that tokens stand for."""
        ...


@dataclass(frozen=True)
class Heard:
    """What Ollama said to a prompt of these ids, and the path that it took."""

    said: Said
    prompt: list[int]
    path: list[int]
    places: list[int]

    @property
    def ids(self) -> Tensor:
        """The prompt and what follows it, but for the last token."""
        return torch.tensor([*self.prompt, *self.path[:-1]])

    def logprobs(self, logits: Tensor) -> Tensor:
        """Log-probabilities (entries, V) at each entry, from logits (T, V) for `ids`."""
        return logits[-len(self.path) :][self.places].log_softmax(-1)


@dataclass(frozen=True)
class Answers:
    """What a server said to the prompts that fit its context."""

    heard: list[Heard]
    ids_of: dict[bytes, int]  # of the tokens that stand for whole characters, by their bytes
    n_prompts: int
    faults: list[str]


def hear(
    server: OllamaServer,
    name: str,
    prompts: Iterable[tuple[str, list[int]]],
    tokenizer: Vocabulary,
    n_ctx: int,
    exact: Logits,
) -> Answers:
    """Let the server continue prompts, given as text and as token ids, greedily."""
    answers = Answers([], _whole_tokens(tokenizer), 0, [])
    for text, ids in prompts:
        if not 0 < len(ids) < n_ctx:
            continue
        said = server.continued(name, text, N_TOKENS, n_ctx)
        if said.text and not said.tokens:
            answers.faults.append("Ollama returns no log-probabilities; update Ollama")
            break
        answers = replace(answers, n_prompts=answers.n_prompts + 1)
        path, places = path_of(said, ids, answers.ids_of, tokenizer, exact)
        if path:
            answers.heard.append(Heard(said, ids, path, places))
    return answers


def as_ollama_reads(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """A prompt as the text that Ollama is given, special tokens written out, and its tokens there.

    Ollama parses special tokens wherever they stand. Characters that the prompt cuts are left out.
    """
    names = {tokenizer.tokens[token_id]: token_id for token_id in tokenizer.special_ids}
    content = b"".join(
        tokenizer.tokens[token_id].encode()
        if token_id in tokenizer.special_ids
        else tokenizer.decode_bytes([token_id])
        for token_id in ids
    )
    text = content.decode("utf-8", errors="ignore")
    longest_first = sorted(names, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    read: list[int] = []
    for number, part in enumerate(parts):
        read += [names[part]] if number % 2 else tokenizer.encode(part)
    return text, read


def _whole_tokens(tokenizer: Vocabulary) -> dict[bytes, int]:
    """Ids by the bytes that Ollama tells of a token: those of whole characters."""
    found = {}
    for token_id in range(tokenizer.vocab_size):
        content = tokenizer.decode_bytes([token_id])
        text = content.decode("utf-8", errors="replace")
        if content and "\ufffd" not in text:
            found[content] = token_id
    return found


def path_of(
    said: Said,
    prompt: list[int],
    ids_of: dict[bytes, int],
    tokenizer: Vocabulary,
    exact: Logits,
) -> tuple[list[int], list[int]]:
    """The ids that Ollama chose, and at which of them each of its entries stands.

    Tokens within a character come as one entry, of the last of them: the way through is PyTorch's,
    as far as it gives the same text.
    """
    path: list[int] = []
    places: list[int] = []
    for token in said.tokens:
        through: list[int] = []
        held = b""
        if token.token in ids_of:
            through = [ids_of[token.token]]
        while not through or ends_inside_character(held):
            logits = exact.logits(torch.tensor([*prompt, *path, *through]))
            through.append(int(logits[-1].argmax()))
            piece = tokenizer.decode_bytes(through[-1:])
            held += piece
            if not piece:
                return path, places
        if held and held.decode("utf-8", errors="replace").encode() != token.token:
            break
        path += through
        places.append(len(path) - 1)
    return path, places
