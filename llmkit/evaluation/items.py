"""What tasks ask, and what comes out of one question."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Way:
    """A context and what may follow it: the most probable option is the model's choice.

    `normalised` names the measure in which log-probabilities are divided by the options'
    characters.
    """

    context: str  # empty: the options are whole texts
    options: tuple[str, ...]  # without the space before them
    measure: str = "accuracy"
    normalised: str | None = None
    is_question: bool = False  # asked in the model's own prompt format
    heading: str = ""  # before the examples
    examples: tuple[str, ...] = ()  # questions with answers, between the heading and the context

    def after_examples(self, n: int) -> str:
        """The context after the heading and the first `n` examples; without both for 0."""
        return "".join((self.heading, *self.examples[:n], self.context)) if n else self.context


@dataclass(frozen=True)
class Choice:
    """A question with one right option, asked in one way or more."""

    where: str
    ways: tuple[Way, ...]
    answer: int
    groups: tuple[str, ...] = ()  # subject, category, ...


@dataclass(frozen=True)
class LastWord:
    """A text whose last word is to be foretold."""

    where: str
    context: str
    word: str


@dataclass(frozen=True)
class Question:
    """A question and its right answer."""

    where: str
    question: str
    answer: str


@dataclass(frozen=True)
class Labelled:
    """A text, its label, and all labels of its file."""

    where: str
    text: str
    label: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """A text whose every token is to be foretold."""

    where: str
    text: str


Item = Choice | LastWord | Question | Labelled | Document


@dataclass(frozen=True)
class Outcome:
    """What one model got in one item.

    `values` by measure count for 1, or for `weight` (bits of `weight` bytes).
    """

    values: dict[str, float]
    weight: float = 1.0
    chance: float | None = None  # accuracy of a random choice
    is_cut: bool = False  # not all examples fit the context
    is_tie: bool = False  # two options are as probable within llama.cpp's accuracy
    groups: tuple[str, ...] = ()
    labels: tuple[str, str] | None = field(default=None)  # the true one, the predicted one
