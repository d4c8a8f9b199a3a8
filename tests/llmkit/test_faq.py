from __future__ import annotations

import json
from collections import defaultdict
from random import Random

import pytest
from record_files import Write, names, refused

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install 'llmkit[faq]'")

from llmkit.data.tales import questions
from llmkit.export.llamacpp.chat import chat
from llmkit.faq import Faq
from llmkit.modelfiles.prompt_format import Message

PAIRS = [("Where does Paul live?", "By the inn."), ("Who is Maggie?", "A magpie.")]
RECORDS = [{"question": question, "answer": answer} for question, answer in PAIRS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "question,answer\n" + "\n".join(map(",".join, PAIRS))),
        ("a.csv", "Id;Answers;Questions\n" + "\n".join(f"1;{a};{q}" for q, a in PAIRS)),
        ("a.json", RECORDS),
        ("a.jsonl", RECORDS),
        ("a.json", json.dumps({"questions": RECORDS})),
        ("a.json", json.dumps(dict(PAIRS))),
        ("a.json", [{"Q": question, "A": answer} for question, answer in PAIRS]),
        ("a.json", [{"instruction": q, "input": "", "output": a} for q, a in PAIRS]),
        (
            "a.json",
            json.dumps(
                {"intents": [{"tag": "t", "patterns": [q], "responses": [a]} for q, a in PAIRS]}
            ),
        ),
        (
            "a.jsonl",
            [
                {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
                for q, a in PAIRS
            ],
        ),
    ],
)
def test_pairs_are_read_from_each_shape(write: Write, name: str, content: object) -> None:
    assert Faq.load(write(name, content)).entries == tuple(PAIRS)


def test_each_phrasing_of_a_record_leads_to_its_first_answer(write: Write) -> None:
    record = {"patterns": ["Where does Paul live?", "Paul's home?"], "responses": ["There.", "x"]}
    faq = Faq.load(write("a.json", [record]))
    assert faq.entries == (("Where does Paul live?", "There."), ("Paul's home?", "There."))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.csv", "question,answer\na?,b\nc?,\n", 'line 3 ... "answer"'),
        ("a.csv", "question,answer\na?,b\nc?,d,e\n", "line 3 ... 2 ... 3"),
        ("a.csv", "question,reply\na?,b\n", 'line 2 ... "answer" ... question, reply'),
        ("a.json", [*RECORDS, {"question": "a?"}], 'record 3 ... "answer"'),
        ("a.json", [{"patterns": ["a?", ""], "responses": ["b"]}], 'line 1 ... text 2 ... "patt'),
        ("a.json", [{"patterns": ["a?"], "responses": []}], '"responses"'),
        (
            "a.jsonl",
            [{"messages": [{"role": role, "content": "x"} for role in ("user", "assistant") * 2]}],
            "line 1 ... 4 messages",
        ),
        ("a.jsonl", '{"question": "a?", "answer": "b"}\n{"question"\n', "line 2"),
    ],
)
def test_a_fault_is_named_with_its_line(
    write: Write, name: str, content: object, fault: str
) -> None:
    path = write(name, content)
    assert names(f"{path} ... {fault}", refused(lambda: Faq.load(path)))


def test_the_nearest_question_answers() -> None:
    found = Faq(PAIRS).answer("where does paul live")
    assert found is not None
    assert (found.question, found.answer) == PAIRS[0]
    assert found.similarity == pytest.approx(1)
    assert Faq(PAIRS).answer("") is None


def test_the_threshold_on_paraphrases_of_the_village() -> None:
    """The shares that llmkit/faq.py gives as the reason for its threshold."""
    phrasings: dict[str, set[str]] = defaultdict(set)
    right: dict[str, set[str]] = defaultdict(set)
    for record in questions(0):
        if not record.instruction.startswith("Tell"):
            phrasings[record.output].add(record.instruction)
            right[record.instruction].add(record.output)
    rng = Random(0)
    facts = sorted(answer for answer, asked in phrasings.items() if len(asked) > 1)
    rng.shuffle(facts)
    inside, outside = facts[: len(facts) // 2], facts[len(facts) // 2 :]
    faq = Faq([(rng.choice(sorted(phrasings[answer])), answer) for answer in inside])
    listed = {question for question, _ in faq.entries}
    others = {q for answer in inside for q in phrasings[answer]} - listed
    strangers = {q for answer in outside for q in phrasings[answer] if not right[q] & set(inside)}
    found = {question: faq.answer(question) for question in others | strangers}
    n_answered = sum(found[q] is not None for q in others)
    n_right = sum(f is not None and f.answer in right[q] for q, f in found.items() if q in others)
    n_false = sum(found[q] is not None for q in strangers)
    n = len(others)
    shares = [n_right / n, (n_answered - n_right) / n, n_false / len(strangers)]
    assert shares == pytest.approx([0.257, 0.033, 0.011], abs=0.005)
    # All words but one are in the file; TfidfVectorizer alone would not see that one at all.
    assert faq.answer("What is the trade of Caesar?") is None


def test_a_conversation_asks_the_file_first_and_the_model_reads_its_answer() -> None:
    heard: list[list[Message]] = []

    def reply(messages: list[Message]):
        heard.append(messages)
        return iter(["said the model"])

    asked = ["who is maggie", "Where does she live?"]
    said = "".join(chat(reply, asked, "", print, Faq(PAIRS)))
    assert said == "[FAQ: Who is Maggie?] A magpie.\nsaid the model\n"
    assert heard == [
        [
            Message("user", asked[0]),
            Message("assistant", "A magpie."),
            Message("user", asked[1]),
        ]
    ]
