"""Generating text from a model, token by token."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.cache import KVCache
from llmkit.sampling import Distribution, Sampling

TOP_CANDIDATES = 10
T = TypeVar("T")


class Candidate(NamedTuple):
    """A token that could be next."""

    id: int
    token: str
    probability: float  # by the model alone
    sampled: float  # after the sampling settings: 0 if they leave it out


@dataclass(frozen=True)
class GeneratedToken:
    """A token of an answer.

    `token` is the token by itself; bytes that are no whole character become U+FFFD. `text` is what
    can be shown with it: nothing while a character is not complete, or while what is there may
    become a stop string. `probability` is the model's alone, as log-probabilities of Ollama are.
    `candidates` are the ten most probable tokens at this place. `dropped` are the tokens of the
    context that were dropped before it, where the context slides.
    """

    id: int
    token: str
    text: str
    probability: float
    candidates: tuple[Candidate, ...]
    dropped: range | None


@dataclass(frozen=True)
class SampledToken:
    """A token, the logits (V,) at its place, and what it was drawn from."""

    id: int
    logits: Tensor
    drawn_from: Distribution
    dropped: range | None = None
    text: str = ""

    def described(self, decode: Callable[[int], bytes]) -> GeneratedToken:
        """The same as numbers and texts."""
        probabilities = self.logits.double().softmax(-1)
        top = probabilities.topk(min(TOP_CANDIDATES, len(probabilities)))
        sampled = dict(zip(*(part.tolist() for part in self.drawn_from), strict=True))

        def shown(token_id: int) -> str:
            return decode(token_id).decode("utf-8", errors="replace")

        candidates = tuple(
            Candidate(token_id, shown(token_id), probability, sampled.get(token_id, 0.0))
            for token_id, probability in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        )
        return GeneratedToken(
            self.id,
            shown(self.id),
            self.text,
            float(probabilities[self.id]),
            candidates,
            self.dropped,
        )


class Reader(Protocol):
    """A model that reads tokens, wherever it runs."""

    @property
    def context_length(self) -> int: ...  # noqa: D102

    def start(self, ids: Sequence[int]) -> Tensor:
        """Forget everything and read ids. Logits (V,) of the token behind them."""
        ...

    def read(self, token_id: int) -> Tensor:
        """Read one more token. Logits (V,) of the token behind it."""
        ...


@dataclass
class ModelReader:
    """A model in PyTorch (a Reader)."""

    model: LanguageModel
    _cache: KVCache = field(default_factory=lambda: KVCache(0))

    @property
    def context_length(self) -> int:  # noqa: D102
        return self.model.config.context_length

    def start(self, ids: Sequence[int]) -> Tensor:  # noqa: D102
        self._cache = KVCache(self.context_length)
        return self._logits(ids)

    def read(self, token_id: int) -> Tensor:  # noqa: D102
        return self._logits([token_id])

    @torch.inference_mode()
    def _logits(self, ids: Sequence[int]) -> Tensor:
        tokens = torch.tensor([ids], device=self.model.device)
        return self.model.logits(self.model.hidden_states(tokens, self._cache)[0, -1]).cpu()


def generate_tokens(
    reader: Reader,
    prompt: Sequence[int],
    sampling: Sampling,
    is_end: Callable[[int], bool],
    decode: Callable[[int], bytes],
) -> Iterator[SampledToken]:
    """Yield the tokens that follow `prompt`, until one that ends the text, or a stop string.

    Without `context_shift` the text also ends with the context. With it, the tokens that
    llama-server drops are dropped, and the model reads the others again at their new places.
    """
    tokens = _tokens(reader, prompt, sampling, is_end)
    characters = Characters()
    pieces = ((token, characters.add(decode(token.id))) for token in tokens)
    for token, text in before_stop(pieces, sampling.stop):
        yield replace(token, text=text)


def _tokens(
    reader: Reader,
    prompt: Sequence[int],
    sampling: Sampling,
    is_end: Callable[[int], bool],
) -> Iterator[SampledToken]:
    generator = sampling.generator()
    past, context = list(prompt), list(prompt)  # all tokens; those that the model sees
    dropped = None
    n_left = sampling.limit(len(prompt), reader.context_length)
    logits = reader.start(prompt)
    while True:
        drawn_from = sampling.distribution(logits, past)
        token_id = drawn_from.draw(generator)
        if is_end(token_id):
            return
        yield SampledToken(token_id, logits, drawn_from, dropped)
        n_left -= 1
        if not n_left:
            return
        dropped = sampling.dropped(len(context), reader.context_length)
        past.append(token_id)
        context.append(token_id)
        if dropped is None:
            logits = reader.read(token_id)
        else:
            del context[dropped.start : dropped.stop]
            logits = reader.start(context)


def generate_ids(
    model: LanguageModel, prompt: Sequence[int], sampling: Sampling, stops: Container[int]
) -> Iterator[int]:
    """Yield the ids that follow `prompt` until one of `stops` or the end of the context."""
    tokens = _tokens(ModelReader(model), prompt, sampling, stops.__contains__)
    return (token.id for token in tokens)


def prompt_ids(ids: list[int], start_of_document: int) -> list[int]:
    """What to begin with: the prompt, or the start of a document where the prompt is empty."""
    return ids or [start_of_document]


class Characters:
    """Bytes of tokens into text, in whole characters, as llama.cpp's server streams it.

    Bytes that are not UTF-8 become U+FFFD. A character that is cut off by the end is left out.
    """

    def __init__(self) -> None:
        self._held = b""

    def add(self, piece: bytes) -> str:
        """The text that is complete now."""
        self._held += piece
        if ends_inside_character(self._held):
            return ""
        text, self._held = self._held.decode("utf-8", errors="replace"), b""
        return text


def before_stop(pieces: Iterable[tuple[T, str]], stops: Sequence[str]) -> Iterator[tuple[T, str]]:
    """The pieces up to the first stop string, which may begin in one piece and end in another.

    Pieces that may be part of one are held back until it is clear.
    """
    held: list[tuple[T, int]] = []  # each with where it begins in the text
    text = ""
    for piece, more in pieces:
        held.append((piece, len(text)))
        text += more
        found = min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            yield from _cut([(each, at) for each, at in held if at < found], text[:found])
            return
        if not any(_begins_at_end(stop, text) for stop in stops):
            yield from _cut(held, text)
            held, text = [], ""
    yield from _cut(held, text)


def _begins_at_end(stop: str, text: str) -> bool:
    return any(text.endswith(stop[:n]) for n in range(1, min(len(stop), len(text) + 1)))


def _cut(held: Sequence[tuple[T, int]], text: str) -> Iterator[tuple[T, str]]:
    for number, (piece, begin) in enumerate(held, start=1):
        end = held[number][1] if number < len(held) else len(text)
        yield piece, text[begin:end]


def ends_inside_character(text: bytes) -> bool:
    """`validate_utf8` of llama.cpp's server: whether one of the last bytes begins a longer one."""
    for n_there, byte in enumerate(reversed(text[-4:]), start=1):
        length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        if 0xC0 <= byte < 0xF8 and n_there < length:
            return True
    return False
