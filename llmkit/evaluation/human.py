"""The task `human`: a person chooses between the answers of two models without their names."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError
from llmkit.evaluation.answers import answered
from llmkit.evaluation.evaluate import Evaluation, keep_evaluation, model_names, summed_up
from llmkit.evaluation.items import Outcome
from llmkit.evaluation.judge import WINS
from llmkit.evaluation.ledger import Ledger
from llmkit.export.llamacpp.devices import Backend
from llmkit.files import StrPath

EQUAL, QUIT = "=", "q"
KEYS = ("1", "2", EQUAL)


@dataclass(frozen=True)
class Pair:
    """A question and the two models' answers, in an order that does not tell whose they are."""

    number: int  # of the question, from 1
    question: str
    answers: tuple[str, str]
    order: tuple[int, int]  # the models whose answers they are


class BlindTest:
    """Two models' greedy answers to the questions of a file, for a person to choose between."""

    def __init__(
        self,
        models: Sequence[StrPath],
        data: StrPath,
        out: StrPath,
        limit: int | None = None,
        backend: Backend = "cpu",
    ) -> None:
        """Let both models answer. `out`: a JSONL file of the choices, also of earlier ones.

        Raises LlmkitError: not two models, data that cannot be read.
        """
        self.names = model_names(models)
        if len(self.names) != 2:
            raise ConfigError(f"the task human needs two models, not {len(self.names)}")
        self._data, self._ledger = str(data), Ledger(Path(out))
        self.questions, answers = answered(self.names, Path(data), limit, backend)
        self._answers = list(zip(*answers, strict=True))

    def next_pair(self) -> Pair | None:
        """The first pair that is not rated; None where all are. Equal answers need no rating."""
        for place, (question, both) in enumerate(zip(self.questions, self._answers, strict=True)):
            if self._won(place) is None:
                seed = f"{place + 1}/{len(self.questions)}: {question.question}{list(both)}"
                one, two = random.Random(seed).sample(range(2), 2)
                answers = both[one], both[two]
                return Pair(place + 1, question.question, answers, (one, two))
        return None

    def choose(self, pair: Pair, key: str) -> None:
        """Keep a choice: 1, 2 or = (equal); it is on disk when this returns."""
        won = 0.5 if key == EQUAL else float(pair.order[KEYS.index(key)])
        asked = self._asked(pair.number - 1)
        self._ledger.add(asked, {**asked, "models": self.names, "won": won})

    def evaluation(self) -> Evaluation:
        """The second model's win rate so far. Raises ConfigError where nothing is rated yet."""
        won = [self._won(place) for place in range(len(self.questions))]
        rated = [(place, value) for place, value in enumerate(won) if value is not None]
        if not rated:
            raise ConfigError("nothing is rated yet; answer 1, 2 or = to at least one pair")
        return summed_up(
            "human",
            self._data,
            self.names[1:],
            [self.questions[place] for place, _ in rated],
            [[[Outcome({WINS: value}, is_tie=value == 0.5)] for _, value in rated]],
            against=self.names[0],
        )

    def _won(self, place: int) -> float | None:
        """Whether the second model's answer was chosen; a half where they are equal."""
        first, second = self._answers[place]
        if first == second:
            return 0.5
        known = self._ledger.find(self._asked(place))
        return None if known is None else float(known["won"])

    def _asked(self, place: int) -> dict[str, Any]:
        return {
            "question": self.questions[place].question,
            "answers": list(self._answers[place]),
        }


def rate(
    models: Sequence[StrPath],
    data: StrPath,
    out: StrPath,
    *,
    ask: Callable[[str], str],
    limit: int | None = None,
    backend: Backend = "cpu",
) -> Evaluation:
    """Let a person compare two models' greedy answers to the questions in `data`.

    `ask` shows a text and returns 1, 2, = (equal) or q (stop for now). `out`: a JSONL file of the
    choices; a run that was stopped goes on behind them. Equal answers are not asked about. The win
    rate is the second model's; equal counts half.

    Raises LlmkitError: not two models, data that cannot be read, nothing rated yet.
    """
    test = BlindTest(models, data, out, limit, backend)
    while pair := test.next_pair():
        title = f"{pair.number}/{len(test.questions)}: {pair.question}"
        shown = "\n\n".join(f"[{place}] {text}" for place, text in enumerate(pair.answers, start=1))
        key = ask(f"{title}\n\n{shown}\n\nBetter: 1, 2, = (equal) or q (stop)? ").strip().lower()
        if key == QUIT:
            break
        if key in KEYS:  # anything else: asked again
            test.choose(pair, key)
    evaluation = test.evaluation()
    keep_evaluation(evaluation)
    return evaluation
