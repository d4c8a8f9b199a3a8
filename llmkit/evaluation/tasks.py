"""The tasks: which items each reads, and how a model's work on one item is scored."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError, unknown_name
from llmkit.evaluation import formats, mmlu, village
from llmkit.evaluation.items import (
    Choice,
    Document,
    Item,
    Labelled,
    LastWord,
    Outcome,
    Question,
    Way,
)
from llmkit.evaluation.models import (
    BRANCHES,
    Continuation,
    Model,
    OllamaModel,
    with_log_probabilities,
)

# What PyTorch and llama.cpp say of the same option differs by up to 0.006 nats: llama.cpp has GELU
# in a table of half precision. Options nearer to each other than this are a tie.
TIE = 0.01
BITS = "bits per byte"
BLOCK = 1024  # bytes of text that count as one item
AnyModel = Model | OllamaModel
Scores = Callable[[AnyModel, Sequence[Any]], list[list[Outcome] | None]]


@dataclass(frozen=True)
class Task:
    """A kind of items and their scores; None for an item that is too long for the model."""

    name: str
    reads: str  # what --data is
    read: Callable[[Path], Sequence[Item]] | None
    score: Scores
    built_in: Callable[[], Sequence[Item]] | None = None
    lower_is_better: bool = False
    read_with_examples: Callable[[Path, int], Sequence[Item]] | None = None
    at_once: int = 1  # items that are scored together


def each(
    score: Callable[[AnyModel, Any], list[Outcome] | None],
) -> Scores:
    """Scores of one item after the other."""
    return lambda model, items: [score(model, item) for item in items]


def score_choices(model: AnyModel, items: Sequence[Choice]) -> list[list[Outcome] | None]:
    """The option with the largest log-probability, by itself and per character.

    One way after the other, because items that are asked in the same way may share examples, whose
    cache is kept.
    """
    able = with_log_probabilities(model)
    by_way = [
        [_after_examples(able, way) for way in ways]
        for ways in zip(*(item.ways for item in items), strict=True)
    ]
    return [_choice(item, found) for item, *found in zip(items, *by_way, strict=True)]


def _choice(item: Choice, by_way: Sequence[Found]) -> list[Outcome] | None:
    values: dict[str, float] = {}
    is_tie = is_cut = False
    for way, (found, n_examples) in zip(item.ways, by_way, strict=True):
        if found is None:
            return None
        is_cut |= n_examples < len(way.examples)
        scores = [option.log_probability for option in found]
        values[way.measure] = float(_largest(scores) == item.answer)
        is_tie |= _is_tie(scores)
        if way.normalised:
            lengths = map(len, way.options)
            scores = [score / n for score, n in zip(scores, lengths, strict=True)]
            values[way.normalised] = float(_largest(scores) == item.answer)
    chance = 1 / len(item.ways[0].options)
    return [Outcome(values, chance=chance, is_cut=is_cut, is_tie=is_tie, groups=item.groups)]


Found = tuple[list[Continuation] | None, int]  # of the options; how many examples fit


def _after_examples(model: Model, way: Way) -> Found:
    """The options after as many examples as fit the context."""
    for n in range(len(way.examples), -1, -1):
        context = way.after_examples(n)
        found = model.continuations(context, way.options, is_question=way.is_question)
        if found is not None:
            return found, n
    return None, 0


def score_last_word(model: AnyModel, item: LastWord) -> list[Outcome] | None:
    """Right if each token of the word is the most probable one."""
    found = with_log_probabilities(model).continuations(item.context, [item.word])
    return None if found is None else [Outcome({"accuracy": float(found[0].is_greedy)})]


def score_answers(model: AnyModel, items: Sequence[Question]) -> list[list[Outcome] | None]:
    """The greedy answers against the right ones, word by word (SQuAD's measures)."""
    found = model.answers([item.question for item in items])
    return [
        None if answer is None else [_compared(words(answer), words(item.answer))]
        for item, answer in zip(items, found, strict=True)
    ]


def _compared(said: Sequence[str], right: Sequence[str]) -> Outcome:
    return Outcome({"exact match": float(said == right), "F1": f1(said, right)})


def score_label(model: AnyModel, item: Labelled) -> list[Outcome] | None:
    """The label that a classifier answers; of another model the most probable one."""
    if isinstance(model, OllamaModel) or model.is_classifier:
        max_tokens = 8 if isinstance(model, OllamaModel) else 1
        (answer,) = model.answers([item.text], max_tokens)
        if answer is None:
            return None
        said = answer if answer in item.labels else OTHER
    else:
        way = Way(item.text, item.labels, is_question=True)
        found = model.continuations(way.context, way.options, is_question=True)
        if found is None:
            return None
        said = item.labels[_largest([option.log_probability for option in found])]
    outcome = Outcome(
        {"accuracy": float(said == item.label)},
        chance=1 / len(item.labels),
        labels=(item.label, said),
    )
    return [outcome]


OTHER = "(other)"  # an answer that is no label


def score_document(model: AnyModel, item: Document) -> list[Outcome]:
    """Bits of each block of BLOCK bytes, whatever its tokens are."""
    n_bytes = len(item.text.encode())
    bits = [0.0] * -(-n_bytes // BLOCK)
    for start, of_token in with_log_probabilities(model).bits(item.text):
        bits[min(start // BLOCK, len(bits) - 1)] += of_token
    return [
        Outcome({BITS: total}, weight=min(BLOCK, n_bytes - number * BLOCK))
        for number, total in enumerate(bits)
    ]


def words(text: str) -> list[str]:
    """Words in lower case without punctuation and articles, as SQuAD compares answers."""
    plain = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def f1(said: Sequence[str], right: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words; 1 where both have none."""
    if not said or not right:
        return float(list(said) == list(right))
    common = sum((Counter(said) & Counter(right)).values())
    return 2 * common / (len(said) + len(right))


def _largest(scores: Sequence[float]) -> int:
    return scores.index(max(scores))


def _is_tie(scores: Sequence[float]) -> bool:
    first, second = sorted(scores, reverse=True)[:2]
    return first - second < TIE


TASKS = {
    task.name: task
    for task in (
        Task("perplexity", "text", formats.documents, each(score_document), lower_is_better=True),
        Task("pairs", "minimal pairs (BLiMP's JSONL)", formats.pairs, score_choices),
        Task(
            "mmlu",
            "a folder with MMLU's CSV files",
            mmlu.mmlu,
            score_choices,
            read_with_examples=mmlu.mmlu,
            at_once=BRANCHES,
        ),
        Task("hellaswag", "HellaSwag's JSONL", formats.hellaswag, score_choices),
        Task("arc", "ARC's JSONL", formats.arc, score_choices),
        Task("piqa", "PIQA's JSONL", formats.piqa, score_choices),
        Task("lambada", "LAMBADA's JSONL", formats.lambada, each(score_last_word)),
        Task(
            "answers",
            "questions with answers",
            formats.answers,
            score_answers,
            at_once=BRANCHES,
        ),
        Task("classify", "texts with labels", formats.labelled, each(score_label)),
        Task("village-pairs", "", None, score_choices, village.pairs),
        Task("village-choices", "", None, score_choices, village.choices),
    )
}


def task_of(name: str, data: Path | None, shots: int = 0) -> tuple[Task, Sequence[Item], str]:
    """A task by its name and data, or by a file from which it is told; its items and source.

    `shots`: examples before each question. Raises ConfigError for an unknown name, missing data, or
    examples where the task has none.
    """
    if name not in TASKS:
        path = Path(name)
        if not path.exists() or data is not None:
            known = [*TASKS, "judge", "human"]
            raise ConfigError(f"{unknown_name('task', name, known)}; or give a file or folder")
        name, data = formats.kind_of(path), path
    task = TASKS[name]
    if shots < 0:
        raise ConfigError(f"--shots {shots}: expected 0 or more")
    if shots and task.read_with_examples is None:
        others = ", ".join(one.name for one in TASKS.values() if one.read_with_examples)
        raise ConfigError(f"only the task {others} takes --shots, not {name}")
    if task.built_in is not None:
        if data is not None:
            raise ConfigError(f"the task {name} is built in; omit --data")
        return task, task.built_in(), name
    if data is None or task.read is None:
        raise ConfigError(f"the task {name} needs --data: {task.reads}")
    if shots and task.read_with_examples is not None:
        return task, task.read_with_examples(data, shots), str(data)
    return task, task.read(data), str(data)
