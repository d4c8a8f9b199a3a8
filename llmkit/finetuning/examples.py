"""Conversations as token ids, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.console import say
from llmkit.errors import DataError
from llmkit.modelfiles.prompt_format import Message, PromptFormat
from llmkit.tokenizer import Tokenizer

IGNORED = -100  # a target that counts for nothing, as in torch's cross_entropy
GROUPED = 32  # batches: little padding, and many batches to shuffle


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and which of them the model itself has to say."""

    ids: tuple[int, ...]
    is_answer: tuple[bool, ...]
    where: str


def encode_conversation(
    messages: Sequence[Message], form: PromptFormat, tokenizer: Tokenizer, where: str = ""
) -> Example:
    """Tokenize a conversation; each answer apart from the prompt before it.

    At inference the prompt is tokenized alone and the answer comes token by token; tokenized
    apart, training sees the same ids at the seam.
    """
    ids: list[int] = []
    is_answer: list[bool] = []
    after_answer = False
    for piece in form.pieces(messages):
        if piece.kind == "special":
            new = [tokenizer.special_id(piece.text)]
        else:
            new = tokenizer.encode(piece.text)
        ends_answer = piece.kind == "special" and after_answer  # the end token is learned too
        after_answer = piece.kind == "answer"
        ids += new
        is_answer += [after_answer or ends_answer] * len(new)
    return Example(tuple(ids), tuple(is_answer), where)


def encode_prompt(
    messages: Sequence[Message], form: PromptFormat, tokenizer: Tokenizer
) -> list[int]:
    """Ids up to where the answer to the last message begins."""
    ids: list[int] = []
    for piece in form.pieces(messages, for_answer=True):
        if piece.kind == "special":
            ids.append(tokenizer.special_id(piece.text))
        else:
            ids += tokenizer.encode(piece.text)
    return ids


def without_too_long(
    examples: Sequence[Example], context_length: int, source: str
) -> list[Example]:
    """Leave out, and report, examples that do not fit the context: a cut one teaches no end."""
    fitting = [example for example in examples if len(example.ids) <= context_length]
    too_long = [example for example in examples if len(example.ids) > context_length]
    if not fitting:
        raise DataError(
            f"{source}: all {len(examples)} records are longer than the model's context of "
            f"{context_length} tokens; the shortest has {min(len(one.ids) for one in examples)}"
        )
    if too_long:
        places = "; ".join(example.where.removeprefix(f"{source}, ") for example in too_long[:5])
        more = "; ..." if len(too_long) > 5 else ""
        say(
            f"{len(too_long)} of {len(examples)} records of {source} are longer than the context "
            f"of {context_length} tokens and were skipped ({places}{more}); the longest has "
            f"{max(len(example.ids) for example in too_long)} tokens"
        )
    return fitting


def packed(examples: Sequence[Example], context_length: int) -> list[Example]:
    """Examples joined to rows of up to `context_length` tokens, with little space left over.

    The longest come first, each into the row that it fills best (best-fit decreasing). In a row
    they stand as they came, so that examples of any length are seen at any position. Attention
    reaches from one to those before it in its row, as between documents in pretraining.
    """
    lengths = [len(example.ids) for example in examples]
    rows_by_space: list[list[list[int]]] = [[] for _ in range(context_length + 1)]
    for index in sorted(range(len(examples)), key=lambda i: -lengths[i]):
        spaces = range(lengths[index], context_length + 1)
        space = next((space for space in spaces if rows_by_space[space]), None)
        row = [] if space is None else rows_by_space[space].pop()
        row.append(index)
        left = (context_length if space is None else space) - lengths[index]
        rows_by_space[left].append(row)
    rows = sorted(sorted(row) for rows in rows_by_space for row in rows)
    return [_joined([examples[index] for index in row]) for row in rows]


def _joined(examples: Sequence[Example]) -> Example:
    return Example(
        tuple(token for example in examples for token in example.ids),
        tuple(is_answer for example in examples for is_answer in example.is_answer),
        examples[0].where,
    )


def padded(
    examples: Sequence[Example], pad_id: int, *, answers_only: bool
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T), filled up to the longest; T = its tokens - 1.

    Targets are IGNORED in the filling and, with `answers_only`, where the prompt is.
    """
    length = max(len(example.ids) for example in examples)
    ids = np.full((len(examples), length), pad_id, np.int64)
    counts = np.zeros((len(examples), length), bool)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = example.ids
        counts[row, : len(example.ids)] = example.is_answer if answers_only else True
    targets = np.where(counts, ids, IGNORED)
    return torch.from_numpy(ids[:, :-1]), torch.from_numpy(targets[:, 1:])


class Batches:
    """Which records each step trains on: a function of the seed and the step.

    An epoch takes every record once. It shuffles them, sorts GROUPED batches at a time by length
    and shuffles the batches: records of about one length share a batch, which has little padding.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = np.array(lengths)
        self._batch_size, self._seed = batch_size, seed
        self._order = lru_cache(maxsize=2)(self._order_of)  # a batch may span two epochs

    def indices(self, step: int) -> list[int]:
        """The records of a step's batch."""
        n = len(self._lengths)
        places = range(step * self._batch_size, (step + 1) * self._batch_size)
        return [int(self._order(place // n)[place % n]) for place in places]

    def _order_of(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.default_rng((self._seed, epoch))
        n, size = len(self._lengths), self._batch_size
        shuffled = generator.permutation(n)
        first = -epoch * n % size  # these end the batch that the epoch before began
        rest = shuffled[first:]
        groups = [rest[i : i + GROUPED * size] for i in range(0, len(rest), GROUPED * size)]
        by_length = [group[np.argsort(self._lengths[group], kind="stable")] for group in groups]
        batches = [group[i : i + size] for group in by_length for i in range(0, len(group), size)]
        n_full = len(rest) // size  # what is left begins a batch of the next epoch
        full = [batches[i] for i in generator.permutation(n_full)]
        return np.concatenate([shuffled[:first], *full, *batches[n_full:]])
