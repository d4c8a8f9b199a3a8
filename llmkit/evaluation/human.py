"""The task `human`: a person chooses between the answers of two models without their names."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from llmkit.errors import ConfigError
from llmkit.evaluation.answers import answered
from llmkit.evaluation.evaluate import Evaluation, model_names, summed_up
from llmkit.evaluation.items import Outcome
from llmkit.evaluation.judge import WINS
from llmkit.evaluation.ledger import Ledger
from llmkit.export.llamacpp.devices import Backend
from llmkit.files import StrPath

KEYS = {"1": 0, "2": 1}
EQUAL, QUIT = "=", "q"


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
    names = model_names(models)
    if len(names) != 2:
        raise ConfigError(f"the task human needs two models, not {len(names)}")
    ledger = Ledger(Path(out))
    questions, answers = answered(names, Path(data), limit, backend)
    found: list[list[Outcome] | None] = []
    stopped = False
    for number, (question, *both) in enumerate(zip(questions, *answers, strict=True), start=1):
        asked = {"question": question.question, "answers": both}
        known = ledger.find(asked)
        if both[0] == both[1]:
            known = {"won": 0.5}
        elif known is None and not stopped:
            won = _choice(f"{number}/{len(questions)}: {question.question}", both, ask)
            stopped = won is None
            if won is not None:
                known = ledger.add(asked, {**asked, "models": names, "won": won})
        value = None if known is None else float(known["won"])
        found.append(None if value is None else [Outcome({WINS: value}, is_tie=value == 0.5)])
    rated = [place for place, outcome in enumerate(found) if outcome is not None]
    if not rated:
        raise ConfigError("nothing is rated yet; answer 1, 2 or = to at least one pair")
    return summed_up(
        "human",
        str(data),
        [f"{names[1]} against {names[0]}"],
        [questions[place] for place in rated],
        [[found[place] for place in rated]],
    )


def _choice(question: str, answers: Sequence[str], ask: Callable[[str], str]) -> float | None:
    """1 where the second model's answer is chosen, 0 the first one's, None to stop."""
    order = random.Random(f"{question}{answers}").sample(range(2), 2)
    shown = "\n\n".join(f"[{place}] {answers[model]}" for place, model in enumerate(order, start=1))
    while True:
        key = ask(f"{question}\n\n{shown}\n\nBetter: 1, 2, = (equal) or q (stop)? ").strip().lower()
        if key == QUIT:
            return None
        if key == EQUAL:
            return 0.5
        if key in KEYS:
            return float(order[KEYS[key]])
