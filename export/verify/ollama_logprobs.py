"""Ollama's log-probabilities against PyTorch's, by the arithmetic that explains them best."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol

import gguf
import torch
from torch import Tensor

from llmkit.export.ollama.server import OllamaServer, Said
from llmkit.export.verify.arithmetic import CPU, GPU, Arithmetic, Type
from llmkit.export.verify.reference import Reference
from llmkit.export.verify.target import VerifyTarget
from llmkit.generation import ends_inside_character
from llmkit.tokenizer import Tokenizer

N_PROMPTS, N_TOKENS = 10, 12
# Ollama keeps keys and values as f16 and sums attention in f16; the reference with f16 keys and
# values differs from itself by what one of these roundings does (docs/parity.md).
MULTIPLE = 4.0


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


@dataclass
class Compared:
    """Log-probabilities of Ollama against the expected ones."""

    faults: list[str] = field(default_factory=list)
    n_prompts: int = 0
    n: int = 0
    largest: float = 0.0
    noise: float = 0.0
    arithmetic: Arithmetic = CPU  # with the type of keys and values, of PyTorch's
    place: str = "unknown"  # where the server runs the model

    @property
    def explanation(self) -> str:
        """Where the model runs, and which arithmetic explains its numbers."""
        return f"on {self.place}, as with {self.arithmetic.name}"

    @property
    def limit(self) -> float:
        """How far apart they may be."""
        return MULTIPLE * self.noise


@torch.inference_mode()
def compared_logprobs(
    server: OllamaServer, name: str, target: VerifyTarget, prompts: Sequence[Sequence[int]]
) -> Compared:
    """Greedy tokens and their log-probabilities, as far as Ollama tells them.

    PyTorch computes them with each arithmetic that the server's device may have, and each type of
    keys and values; the nearest counts.
    """
    source = target.checkpoint
    read = [as_ollama_reads(prompt, source.tokenizer) for prompt in prompts[:N_PROMPTS]]
    exact = Reference(target, torch.float64)
    compared = Compared()
    heard = _hear(
        server, name, read, source.tokenizer, source.config.context_length, exact, compared
    )
    ids_of = _whole_tokens(source.tokenizer)
    share = server.gpu_share(name) if heard else None
    width = source.config.n_embd // source.config.n_head
    candidates = [
        (arithmetic, kv)
        for kv in (Type.F16, Type.Q8_0)
        if not width % gguf.GGML_QUANT_SIZES[kv][0]
        for arithmetic in (CPU, *(GPU if share is None or share > 0 else ()))
    ]
    if heard:
        logprobs = _computed_once(target, heard)
        found = [_compared_as(*one, heard, logprobs, ids_of) for one in candidates]
        nearest = min(found, key=lambda one: (bool(one.faults), one.largest / (one.limit or 1)))
        nearest.n_prompts, nearest.faults = compared.n_prompts, compared.faults + nearest.faults
        compared = nearest
    compared.place = _place(share)
    return _judged(compared)


@torch.inference_mode()
def compare_logprobs(
    server: OllamaServer,
    name: str,
    prompts: Iterable[tuple[str, list[int]]],
    tokenizer: Vocabulary,
    n_ctx: int,
    *,
    exact: Logits,
    rounded: Logits,
) -> Compared:
    """The same for prompts as text and as token ids, against any program.

    The limit follows from how far `rounded`, with keys and values as f16, is from `exact`.
    """
    compared = Compared()
    ids_of = _whole_tokens(tokenizer)
    for one in _hear(server, name, prompts, tokenizer, n_ctx, exact, compared):
        ids, n = torch.tensor([*one.prompt, *one.path[:-1]]), len(one.path)
        wanted, other = (
            program.logits(ids)[-n:][one.places].log_softmax(-1) for program in (exact, rounded)
        )
        _compare_tokens(one, ids_of, wanted, (other - wanted).abs(), compared)
    return _judged(compared)


def _hear(
    server: OllamaServer,
    name: str,
    prompts: Iterable[tuple[str, list[int]]],
    tokenizer: Vocabulary,
    n_ctx: int,
    exact: Logits,
    compared: Compared,
) -> list[_Heard]:
    """What the server says to each prompt that fits; faults and the count go into `compared`."""
    heard: list[_Heard] = []
    ids_of = _whole_tokens(tokenizer)
    for text, ids in prompts:
        if not 0 < len(ids) < n_ctx:
            continue
        said = server.continued(name, text, N_TOKENS, n_ctx)
        if said.text and not said.tokens:
            compared.faults.append("Ollama returns no log-probabilities; update Ollama")
            break
        compared.n_prompts += 1
        path, places = path_of(said, ids, ids_of, tokenizer, exact)
        if path:
            heard.append(_Heard(said, ids, path, places))
    return heard


def _judged(compared: Compared) -> Compared:
    """With a fault where nothing was compared, or the largest difference is beyond the limit."""
    if not compared.n and not compared.faults:
        compared.faults.append(nothing_compared(compared.n_prompts))
    if not compared.largest <= compared.limit:
        compared.faults.append(
            f"log-probabilities differ by {compared.largest:.1e}, the limit is {compared.limit:.1e}"
        )
    return compared


def _place(share: float | None) -> str:
    if share is None:
        return "an unknown device"
    if share >= 1:
        return "the GPU"
    return f"the GPU to {100 * share:.0f} %" if share else "the CPU"


@dataclass(frozen=True)
class _Heard:
    """What Ollama said to a prompt of these ids, and the path that it took."""

    said: Said
    prompt: list[int]
    path: list[int]
    places: list[int]


def _computed_once(target: VerifyTarget, heard: Sequence[_Heard]) -> LogProbs:
    """PyTorch's log-probabilities of the n-th thing heard, (entries, V)."""

    @cache
    def logprobs(arithmetic: Arithmetic, dtype: torch.dtype, number: int) -> Tensor:
        one = heard[number]
        ids, n = torch.tensor([*one.prompt, *one.path[:-1]]), len(one.path)
        reference = Reference(target, dtype, arithmetic=arithmetic)
        return next(reference.last_logits([ids], [n]))[one.places].log_softmax(-1)

    return logprobs


LogProbs = Callable[[Arithmetic, torch.dtype, int], Tensor]


def _compared_as(
    arithmetic: Arithmetic,
    kv: Type,
    heard: Sequence[_Heard],
    logprobs: LogProbs,
    ids_of: dict[bytes, int],
) -> Compared:
    """Compare all that Ollama said with one arithmetic.

    The noise is what keys and values in f16 change, or sums where they are in f16.
    """
    own = arithmetic if kv == Type.F16 else arithmetic.with_cache(kv)
    pairs = [((CPU, torch.float64), (CPU.with_cache(Type.F16), torch.float64))]
    if arithmetic.sums == Type.F16:
        pairs.append(((own, torch.float64), (own, torch.float32)))
    compared = Compared(arithmetic=arithmetic.with_cache(kv))
    for number, one in enumerate(heard):
        differences = [logprobs(*a, number) - logprobs(*b, number) for a, b in pairs]
        noise = torch.stack(differences).abs().amax(0)
        _compare_tokens(one, ids_of, logprobs(own, torch.float64, number), noise, compared)
    return compared


def nothing_compared(n_prompts: int) -> str:
    """The fault of a comparison without a single number."""
    if not n_prompts:
        return "no log-probability was compared: no prompt fits the context"
    return (
        f"no log-probability was compared: Ollama returned no usable token for {n_prompts} prompts"
    )


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


def _compare_tokens(
    heard: _Heard, ids_of: dict[bytes, int], wanted: Tensor, noise: Tensor, compared: Compared
) -> None:
    """Compare each entry's log-probabilities with PyTorch's at its place, (entries, V)."""
    chosen = [heard.path[place] for place in heard.places]
    tokens = heard.said.tokens
    for row, noise_row, token, token_id in zip(wanted, noise, tokens, chosen, strict=False):
        for content, logprob in token.logprobs.items():
            if content in ids_of:
                difference = abs(float(row[ids_of[content]]) - logprob)
                compared.n += 1
                compared.largest = max(compared.largest, difference)
                compared.noise = max(compared.noise, float(noise_row[ids_of[content]]))
        gap = float(row.max() - row[token_id])
        if gap > 2 * MULTIPLE * max(compared.noise, compared.largest):
            compared.faults.append(
                f"Ollama chose token {token_id} instead of {int(row.argmax())}, whose "
                f"log-probability is {gap:.1e} higher"
            )
