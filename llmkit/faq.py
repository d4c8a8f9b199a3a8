"""Frequently asked questions: the answer of a file where a question is near one of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError, DataError
from llmkit.files import StrPath
from llmkit.modelfiles.prompt_format import ALPACA
from llmkit.records.conversations import conversations_of
from llmkit.records.json_records import Record
from llmkit.records.user_files import read_records

FORMATS = "a table, JSON or JSONL with question and answer"
QUESTION_NAMES = ("question", "questions", "q", "patterns")
ANSWER_NAMES = ("answer", "answers", "a", "responses")

# Measured on the village's questions, which differ in a name and little else: half of the facts
# in a file with one phrasing each. The file answers 26% of their other phrasings rightly and 3%
# wrongly, and 1% of the questions about the other half. At 0.7 these are 34%, 8% and 10%, at 0.8
# 16%, 0% and 1%; the model can still answer what the file does not. Pairs of words and pieces of
# words were worse: names weigh less in them. tests/llmkit/test_faq.py measures it again.
THRESHOLD = 0.75


@dataclass(frozen=True)
class FaqAnswer:
    """What the file answers, the question that it answers, and the cosine similarity to it."""

    question: str
    answer: str
    similarity: float


class Faq:
    """Questions with their answers, found by TF-IDF."""

    def __init__(self, entries: Sequence[tuple[str, str]]) -> None:
        """Weigh the words of (question, answer) pairs. Raises ConfigError without scikit-learn."""
        try:
            from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
            from sklearn.pipeline import make_pipeline
        except ImportError as error:
            raise ConfigError("an FAQ needs scikit-learn: pip install 'llmkit[faq]'") from error
        self.entries = tuple(entries)
        # Hashed, so that a word that no question of the file has counts as a rare one:
        # TfidfVectorizer would drop it, and "the trade of Caesar" would be "the trade of".
        self._weigh: Any = make_pipeline(
            HashingVectorizer(
                token_pattern=r"\w+", norm=None, alternate_sign=False, n_features=1 << 18
            ),
            TfidfTransformer(),
        )
        self._questions = self._weigh.fit_transform([question for question, _ in self.entries])

    @classmethod
    def load(cls, path: StrPath) -> Faq:
        """Read a file of questions and answers. Raises DataError naming the line of a fault."""
        return cls(list(_entries(Path(path))))

    def answer(self, question: str) -> FaqAnswer | None:
        """The answer to the nearest question; None where none is near enough."""
        similarities = (self._questions @ self._weigh.transform([question]).T).toarray()[:, 0]
        nearest = int(similarities.argmax())
        similarity = float(similarities[nearest])
        return FaqAnswer(*self.entries[nearest], similarity) if similarity >= THRESHOLD else None


def _entries(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of question and answer; a record with several questions gives one pair for each."""
    as_written = read_records(path, FORMATS)
    records = [
        Record({name.strip().lower(): value for name, value in record.fields.items()}, record.where)
        for record in as_written
    ]
    asked, answered = (
        next((name for name in names if name in records[0].fields), None)
        for names in (QUESTION_NAMES, ANSWER_NAMES)
    )
    if asked and answered:
        for record in records:
            answer = _texts(record, answered)[0]
            yield from ((question, answer) for question in _texts(record, asked))
    elif len(records) == 1 and all(name.rstrip().endswith("?") for name in records[0].fields):
        for question in as_written[0].fields:  # {"Where is it?": "Here.", ...}
            yield question, as_written[0].text(question)
    else:
        for conversation in conversations_of(records, ALPACA, FORMATS):
            turns = [message for message in conversation.messages if message.role != "system"]
            if len(turns) != 2:
                raise DataError(
                    f"{conversation.where}: expected one question and its answer, "
                    f"found {len(turns)} messages"
                )
            yield turns[0].content, turns[1].content


def _texts(record: Record, name: str) -> list[str]:
    """The text of a field, or the texts of a list in it."""
    value = record.value(name)
    if not isinstance(value, list):
        return [record.text(name).strip()]
    if not value:
        raise record.fault(f'"{name}" is empty')
    return [
        record.filled(text, f'text {number} of "{name}"').strip()
        for number, text in enumerate(value, start=1)
    ]
