"""The task `judge`: a strong model scores answers, or chooses between two."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.console import progress
from llmkit.errors import ConfigError, OllamaError
from llmkit.evaluation.answers import answered
from llmkit.evaluation.evaluate import Evaluation, keep_evaluation, model_names, summed_up
from llmkit.evaluation.items import Outcome, Question
from llmkit.evaluation.ledger import Ledger
from llmkit.export.doctor.judge_memory import judge_check
from llmkit.export.llamacpp.devices import Backend
from llmkit.export.ollama.server import OllamaServer
from llmkit.export.ollama.transport import Transport
from llmkit.files import StrPath, cannot_read, optional_path

SCORE_PROMPT = """\
Given the input `{question}` and correct output `{reference}`, score the model response \
`{answer}` on a scale from 0 to 100, where 100 is the best score. Respond with the integer number \
only."""
PAIR_PROMPT = """\
Question: {question}
Correct answer: {reference}

Answer A: {answer_a}

Answer B: {answer_b}

Which answer is better? Respond with the letter A or B only."""
SCORE, WINS = "judge's score", "win rate"
MAX_TOKENS = 512  # of a judge that thinks before it answers
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True)
class Judged:
    """What a judge said."""

    evaluation: Evaluation
    judge: str
    prompt: str
    repeats: int
    agreement: float | None  # share of answers whose repeats, or both orders, say the same
    invalid: int  # replies that were not just a number or letter
    asked: int  # questions to the judge in this run; the others were in the file
    seconds: float
    tokens: int  # that the judge read and wrote in this run, as far as it says

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


def judge(
    models: StrPath | Sequence[StrPath],
    data: StrPath,
    out: StrPath,
    *,
    judge: str,
    url: str | None = None,
    prompt: StrPath | None = None,
    repeats: int = 1,
    pairwise: bool = False,
    limit: int | None = None,
    backend: Backend = "cpu",
) -> Judged:
    """Let the model `judge` score the models' greedy answers to the questions in `data`.

    `out`: a JSONL file of all replies; a run that was stopped goes on behind them. `url`: the
    address of an OpenAI-compatible server, such as https://host/v1, with its key in OPENAI_API_KEY;
    by default Ollama's. `prompt`: a text file with {question}, {reference} and {answer}, or with
    {answer_a} and {answer_b} if `pairwise`: then each answer is compared with the first model's in
    both orders, and wins if it is better in both. `repeats` ask with other seeds.

    Raises LlmkitError: a judge that does not fit into memory, an unusable prompt or server.
    """
    names = model_names(models)
    if repeats < 1:
        raise ConfigError(f"--repeats {repeats}: expected at least 1")
    if pairwise and len(names) < 2:
        raise ConfigError("--pairwise needs at least two models")
    template = _template(optional_path(prompt), pairwise)
    with _open(judge, url, Ledger(Path(out))) as server:
        questions, answers = answered(names, Path(data), limit, backend)
        total = len(questions) * repeats * (2 * (len(names) - 1) if pairwise else len(names))
        with progress(f"judge {judge}", total, "replies") as bar:
            work = _Work(server, template, repeats, lambda: bar.update(server.replies))
            if pairwise:
                found = [work.compared(questions, answers[0], own) for own in answers[1:]]
            else:
                found = [work.scored(questions, own) for own in answers]
    evaluation = summed_up(
        f"judge {judge}",
        str(data),
        names[1:] if pairwise else names,
        questions,
        found,
        against=names[0] if pairwise else None,
        left_out="without a valid reply",
    )
    keep_evaluation(evaluation)
    agreement = sum(work.agreed) / len(work.agreed) if work.agreed else None
    return Judged(
        evaluation, judge, template, repeats, agreement, work.invalid, server.asked,
        server.seconds, server.tokens,
    )  # fmt: skip


def score_of(reply: str) -> int | None:
    """A reply that is just an integer from 0 to 100; None for any other: 85/100, Score: 85, prose.

    Guessing a number out of prose would take one of the question for the score.
    """
    found = re.fullmatch(r"\s*([0-9]{1,3})\s*", reply)
    return int(found[1]) if found and int(found[1]) <= 100 else None


def letter_of(reply: str) -> str | None:
    """A reply that is just A or B."""
    found = re.fullmatch(r"\s*([AB])\.?\s*", reply)
    return found[1] if found else None


class _Server:
    """A judge that answers, and what it cost."""

    def __init__(self, http: Transport, path: str, model: str, ledger: Ledger) -> None:
        self.http, self.path, self.model, self.ledger = http, path, model, ledger
        self.asked = self.tokens = self.replies = 0
        self.seconds = 0.0

    def reply(self, prompt: str, repeat: int) -> str:
        """The reply to a prompt, from the file if it is there."""
        self.replies += 1
        asked = {"judge": self.model, "url": self.http.url, "prompt": prompt, "repeat": repeat}
        known = self.ledger.find(asked)
        if known is None:
            started = time.monotonic()
            reply, tokens = self._ask(prompt, repeat)
            seconds = time.monotonic() - started
            self.asked, self.tokens = self.asked + 1, self.tokens + tokens
            self.seconds += seconds
            known = self.ledger.add(asked, {**asked, "reply": reply, "seconds": seconds})
        return str(known["reply"])

    def _ask(self, prompt: str, repeat: int) -> tuple[str, int]:
        content = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0 if repeat == 0 else 1,
            "seed": repeat,
            "max_tokens": MAX_TOKENS,
        }
        answer = self.http.ask("POST", self.path, content, wait=self.http.patience.compute)
        try:
            reply = answer["choices"][0]["message"]["content"] or ""
        except (LookupError, TypeError) as error:
            raise OllamaError(
                f"{self.http.url}{self.path} is not an OpenAI-compatible server"
            ) from error
        return str(reply), int((answer.get("usage") or {}).get("total_tokens") or 0)


@contextmanager
def _open(judge: str, url: str | None, ledger: Ledger) -> Iterator[_Server]:
    """A server with the judge. Raises ConfigError where it does not fit into memory."""
    if url is not None:
        http = Transport(url, key=os.environ.get(KEY_VARIABLE))
        try:
            yield _Server(http, "/chat/completions", judge, ledger)
        finally:
            http.close()
        return
    with OllamaServer() as server:
        check = judge_check(server, judge)
        if not check.passed:
            raise ConfigError(f"the judge does not fit: {check.detail}; {check.advice}")
        yield _Server(server.http, "/v1/chat/completions", judge, ledger)


class _Work:
    """Prompts to the judge, and its replies as outcomes."""

    def __init__(
        self, server: _Server, template: str, repeats: int, done: Callable[[], None]
    ) -> None:
        self.server, self.template, self.repeats, self.done = server, template, repeats, done
        self.invalid = 0
        self.agreed: list[bool] = []

    def scored(
        self, questions: Sequence[Question], answers: Sequence[str]
    ) -> list[list[Outcome] | None]:
        """The mean of the valid scores of each answer; None where there is none."""
        found: list[list[Outcome] | None] = []
        for question, answer in zip(questions, answers, strict=True):
            prompt = _filled(self.template, question, answer=answer)
            scores = [score_of(self._reply(prompt, repeat)) for repeat in range(self.repeats)]
            valid = [score for score in scores if score is not None]
            self.invalid += len(scores) - len(valid)
            if self.repeats > 1 and valid:
                self.agreed.append(len(set(scores)) == 1)
            found.append([Outcome({SCORE: sum(valid) / len(valid)})] if valid else None)
        return found

    def compared(
        self, questions: Sequence[Question], first: Sequence[str], own: Sequence[str]
    ) -> list[list[Outcome] | None]:
        """1 where an answer is better than the first model's in both orders, 0.5 where in one."""
        found: list[list[Outcome] | None] = []
        for question, theirs, ours in zip(questions, first, own, strict=True):
            orders = [
                _filled(self.template, question, answer_a=theirs, answer_b=ours),
                _filled(self.template, question, answer_a=ours, answer_b=theirs),
            ]
            wins = []
            for repeat in range(self.repeats):
                letters = [letter_of(self._reply(prompt, repeat)) for prompt in orders]
                self.invalid += letters.count(None)
                if None not in letters:
                    wins.append(((letters[0] == "B") + (letters[1] == "A")) / 2)
                    self.agreed.append(wins[-1] != 0.5)
            value = sum(wins) / len(wins) if wins else 0.0
            found.append([Outcome({WINS: value}, is_tie=value == 0.5)] if wins else None)
        return found

    def _reply(self, prompt: str, repeat: int) -> str:
        reply = self.server.reply(prompt, repeat)
        self.done()
        return reply


def _template(path: Path | None, pairwise: bool) -> str:
    """The prompt. Raises ConfigError for one without the answers."""
    names = ("answer_a", "answer_b") if pairwise else ("answer",)
    if path is None:
        return PAIR_PROMPT if pairwise else SCORE_PROMPT
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(cannot_read(path, error)) from error
    for name in names:
        if f"{{{name}}}" not in text:
            raise ConfigError(f"{path}: the judge's prompt has no {{{name}}}")
    return text


def _filled(template: str, question: Question, **answers: str) -> str:
    """The prompt with its fields, in one pass: braces in an answer are text."""
    fields = {"question": question.question, "reference": question.answer, **answers}
    pattern = "|".join(fields)
    return re.sub(rf"\{{({pattern})\}}", lambda found: fields[found[1]], template)
