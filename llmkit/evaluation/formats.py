"""Items of tasks from files in the formats that people have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from llmkit.console import say
from llmkit.data.sources import read_documents
from llmkit.errors import DataError
from llmkit.evaluation.items import Choice, Document, Item, Labelled, LastWord, Question, Way
from llmkit.modelfiles.prompt_format import ALPACA
from llmkit.records.conversations import read_conversations
from llmkit.records.csv_tables import is_table
from llmkit.records.json_records import Record, is_json, json_records
from llmkit.records.labelled import LABEL_NAMES, TEXT_NAMES, read_labelled
from llmkit.records.text_files import read_text

PIECE = 32768  # characters of a document that are read at once
SHOWN = 5
AnItem = TypeVar("AnItem", bound=Item)

# Fields by which a file is told, in this order.
_FIELDS = {
    "pairs": ("sentence_good", "sentence_bad"),
    "hellaswag": ("ctx", "endings"),
    "piqa": ("goal", "sol1", "sol2"),
    "arc": ("question", "answerKey"),
}


def kind_of(path: Path) -> str:
    """The name of the task that a file or folder is of: by the fields of its first record."""
    if path.is_dir():
        return "mmlu" if list(path.glob("**/*.csv")) else "perplexity"
    text = read_text(path, "the data of a task")
    if not is_json(text, path):
        return "classify" if is_table(text, path) else "perplexity"
    first = json_records(text, path, "the data of a task")[0]
    for name, fields in _FIELDS.items():
        if all(field in first.fields for field in fields):
            return name
    if any(name in first.fields for name in LABEL_NAMES):
        return "classify"
    return "perplexity" if set(first.fields) & set(TEXT_NAMES) == {"text"} else "answers"


def documents(path: Path) -> list[Document]:
    """The documents of a text file, a folder, JSON or JSONL with a field `text`, in pieces."""
    found = [
        Document(f"{path}, document {number}", piece)
        for number, text in enumerate(read_documents(path), start=1)
        for piece in _pieces(text)
    ]
    if not found:
        raise DataError(f"{path} has no text")
    return found


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces of at most PIECE characters that end with a line, if one does there."""
    start = 0
    while start < len(text):
        end = text.rfind("\n", start + PIECE // 2, start + PIECE) + 1 or start + PIECE
        if len(text) - start <= PIECE:
            end = len(text)
        yield text[start:end]
        start = end


def pairs(path: Path) -> list[Choice]:
    """BLiMP: sentence_good is to be more probable than sentence_bad."""
    return _unique(path, _pair)


def hellaswag(path: Path) -> list[Choice]:
    """HellaSwag: a context and four endings, read as lm-evaluation-harness reads them."""
    return _unique(path, _ending)


def arc(path: Path) -> list[Choice]:
    """ARC: a question with labelled choices, AI2's files as well as Hugging Face's."""
    return _unique(path, _science_question)


def piqa(path: Path) -> list[Choice]:
    """PIQA: a goal and two solutions; labels in the record, or in NAME-labels.lst beside it."""
    beside = path.with_name(f"{path.stem}-labels.lst")
    labels = read_text(beside, "a label in each line").split() if beside.exists() else None

    def item(record: Record) -> Choice:
        options = record.text("sol1"), record.text("sol2")
        if "label" in record.fields or labels is None:
            label = record.value("label")
        else:
            number = int(record.where.rpartition(" ")[2])
            label = labels[number - 1] if number <= len(labels) else None
        return _plain(record, record.text("goal"), options, _place(record, label, 2))

    return _unique(path, item)


def lambada(path: Path) -> list[LastWord]:
    """LAMBADA: the last word of `text` is to be foretold."""

    def item(record: Record) -> LastWord:
        context, _, word = record.text("text").strip().rpartition(" ")
        if not context:
            raise record.fault('"text" has only one word')
        return LastWord(record.where, context, word)

    return _unique(path, item)


def answers(path: Path) -> list[Question]:
    """Questions with their answers, in the formats of `finetune instruct`; only first turns."""
    found = []
    for conversation in read_conversations(path, ALPACA):
        question = [message for message in conversation.messages if message.role == "user"][-1]
        found.append(
            Question(conversation.where, question.content, conversation.messages[-1].content)
        )
    return without_duplicates(found)


def labelled(path: Path) -> list[Labelled]:
    """Texts with labels, in the formats of `finetune classify`."""
    records = read_labelled(path)
    labels = tuple(sorted({record.label for record in records}))
    found = [Labelled(r.where, r.text, r.label, labels) for r in records]
    return without_duplicates(found)


def without_duplicates(items: Sequence[AnItem]) -> list[AnItem]:
    """The items without those that came before, of which a line says where they are."""
    seen: dict[object, str] = {}
    unique, again = [], []
    for item in items:
        content = tuple((name, value) for name, value in vars(item).items() if name != "where")
        if content in seen:
            again.append(f"{item.where} as {seen[content].rpartition(', ')[2]}")
        else:
            seen[content] = item.where
            unique.append(item)
    if again:
        more = "; ..." * (len(again) > SHOWN)
        say(f"skipped {len(again)} duplicate items: {'; '.join(again[:SHOWN])}{more}")
    return unique


def _unique(path: Path, item: Callable[[Record], AnItem]) -> list[AnItem]:
    formats = "JSON or JSONL records"
    records = json_records(read_text(path, formats), path, formats)
    return without_duplicates([item(record) for record in records])


def _pair(record: Record) -> Choice:
    options = record.text("sentence_good"), record.text("sentence_bad")
    if options[0] == options[1]:
        raise record.fault('"sentence_good" and "sentence_bad" are equal')
    names = ("UID", "category", "linguistics_term")
    name = next((name for name in names if record.text_or_empty(name)), None)
    groups = (record.text(name),) if name else ()
    return Choice(record.where, (Way("", options),), 0, groups)


def _ending(record: Record) -> Choice:
    endings = _texts(record, "endings", record.value("endings"))
    if "ctx_a" in record.fields:
        ctx_b = record.text_or_empty("ctx_b")
        context = f"{record.text('ctx_a')} {ctx_b[:1].upper()}{ctx_b[1:].lower()}"
    else:
        context = record.text("ctx")
    label = record.text_or_empty("activity_label")
    context = _cleaned(f"{label}: {context}" if label else context)
    answer = _place(record, record.value("label"), len(endings))
    way = Way(context, tuple(map(_cleaned, endings)), normalised="normalised")
    return Choice(record.where, (way,), answer)


def _cleaned(text: str) -> str:
    """Without the marks of WikiHow, which HellaSwag's texts have."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ").strip()


def _science_question(record: Record) -> Choice:
    question, choices = record.value("question"), record.fields.get("choices")
    if isinstance(question, dict):  # AI2's own files
        choices, question = question.get("choices"), question.get("stem")
    if isinstance(choices, list):
        objects = [choice for choice in choices if isinstance(choice, dict)]
        choices = {name: [one.get(name) for one in objects] for name in ("text", "label")}
    if not isinstance(choices, dict):
        raise record.lacks('field "choices"')
    options = _texts(record, "choices.text", choices.get("text"))
    labels = _texts(record, "choices.label", choices.get("label"))
    key = record.text("answerKey").strip()
    if key not in labels:
        raise record.fault(f'"answerKey" {key!r} is not among {", ".join(labels)}')
    return _plain(record, record.filled(question, '"question"'), options, labels.index(key))


def _plain(record: Record, question: str, options: Sequence[str], answer: int) -> Choice:
    context = f"Question: {question.strip()}\nAnswer:"
    texts = tuple(option.strip() for option in options)
    return Choice(record.where, (Way(context, texts, normalised="normalised"),), answer)


def _texts(record: Record, name: str, value: object) -> list[str]:
    if not isinstance(value, list) or len(value) < 2:
        raise record.fault(f'"{name}": expected a list of at least two texts')
    return [record.filled(text, f'"{name}"') for text in value]


def _place(record: Record, label: object, n: int) -> int:
    """A label as the place of an option."""
    text = "" if label is None else record.checked(label, '"label"').strip()
    if not text.isdecimal() or int(text) >= n:
        raise record.fault(f'"label" {text!r} is not among 0 to {n - 1}')
    return int(text)
