"""Items from files, and what is wrong in them, by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.data.tales import questions
from llmkit.data.tales_items import village_choices, village_pairs
from llmkit.errors import DataError
from llmkit.evaluation import formats, mmlu
from llmkit.evaluation.mmlu_groups import GROUPS

PAIR = {"sentence_good": "He eats.", "sentence_bad": "He eat.", "UID": "agreement"}
HELLASWAG = {
    "activity_label": "Baking",
    "ctx_a": "She takes [title] flour.",
    "ctx_b": "then she",
    "ctx": "She takes [title] flour. then she",
    "endings": ["bakes.", "sings [step] loud.", "sleeps.", "runs."],
    "label": "2",
}
ARC = {
    "question": "Which?",
    "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},
    "answerKey": "3",
}
AI2 = {
    "question": {"stem": "Which?", "choices": [{"text": t, "label": t.upper()} for t in "abc"]},
    "answerKey": "C",
}
PIQA = {"goal": "Eat", "sol1": "with a fork", "sol2": "with a cloud", "label": 0}


def jsonl(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_each_format_is_read_as_its_harness_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    (pair,) = formats.pairs(jsonl(path, PAIR))
    assert (pair.ways[0].context, pair.ways[0].options) == ("", ("He eats.", "He eat."))
    assert (pair.answer, pair.groups) == (0, ("agreement",))
    (ending,) = formats.hellaswag(jsonl(path, HELLASWAG))
    assert ending.ways[0].context == "Baking: She takes. flour. Then she"
    assert ending.ways[0].options == ("bakes.", "sings loud.", "sleeps.", "runs.")
    assert ending.answer == 2
    for record in (ARC, AI2):
        (science,) = formats.arc(jsonl(path, record))
        assert science.ways[0].context == "Question: Which?\nAnswer:"
        assert (science.ways[0].options, science.answer) == (("a", "b", "c"), 2)
    (solution,) = formats.piqa(jsonl(path, PIQA))
    assert (solution.ways[0].options, solution.answer) == (("with a fork", "with a cloud"), 0)
    (word,) = formats.lambada(jsonl(path, {"text": "He saw the red door"}))
    assert (word.context, word.word) == ("He saw the red", "door")
    (question,) = formats.answers(jsonl(path, {"instruction": "Say", "input": "x", "output": "y"}))
    assert (question.question, question.answer) == ("Say\n\n### Input:\nx", "y")


def test_long_documents_are_read_in_pieces_that_end_with_a_line(tmp_path: Path) -> None:
    text = "".join(f"{'word ' * (n % 40)}{n}\n" for n in range(1500)) + "x" * 2 * formats.PIECE
    path = tmp_path / "text.txt"
    path.write_text(f"{text}<|endoftext|>short")
    *pieces, last = [document.text for document in formats.documents(path)]
    assert "".join(pieces) == text
    assert last == "short"
    assert max(map(len, pieces)) == formats.PIECE
    assert pieces[0].endswith("\n")
    assert len(pieces[0]) > formats.PIECE * 0.9


def test_piqas_labels_may_lie_beside_it(tmp_path: Path) -> None:
    without = [{**PIQA, "goal": goal} for goal in ("Eat", "Drink")]
    for record in without:
        del record["label"]
    path = jsonl(tmp_path / "valid.jsonl", *without)
    (tmp_path / "valid-labels.lst").write_text("1\n0\n")
    assert [item.answer for item in formats.piqa(path)] == [1, 0]


def test_mmlu_has_subjects_groups_letters_and_texts(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "astronomy_test.csv").write_text('"Where, now?",Here,There,Up,Down,C\n')
    (tmp_path / "test" / "virology_test.csv").write_text("Who?,I,You,She,We,A\n")
    where, who = mmlu.mmlu(tmp_path)
    by_letter, by_text = where.ways
    assert by_letter.context == "Where, now?\nA. Here\nB. There\nC. Up\nD. Down\nAnswer:"
    assert (by_letter.options, by_text.options) == (tuple("ABCD"), ("Here", "There", "Up", "Down"))
    assert (where.answer, where.groups, who.groups[1]) == (2, ("astronomy", "STEM"), "other")
    assert formats.kind_of(tmp_path) == "mmlu"
    counts = [list(GROUPS.values()).count(g) for g in dict.fromkeys(GROUPS.values())]
    assert counts == [18, 13, 12, 14]


def test_mmlus_examples_are_those_of_the_original(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "us_law_dev.csv").write_text("Who?,I,You,She,We,B\nOne?,1,2,3,4,A\n")
    (tmp_path / "us_law_test.csv").write_text("Where?,Here,There,Up,Down,C\n")
    (item,) = mmlu.mmlu(tmp_path, 2)
    by_letter, by_text = item.ways
    # gen_prompt and format_example of Hendrycks et al.'s evaluate.py, with one space before the
    # subject, as in lm-evaluation-harness.
    heading = "The following are multiple choice questions (with answers) about us law.\n\n"
    first = "Who?\nA. I\nB. You\nC. She\nD. We\nAnswer: B\n\n"
    second = "One?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: A\n\n"
    question = "Where?\nA. Here\nB. There\nC. Up\nD. Down\nAnswer:"
    assert by_letter.after_examples(2) == heading + first + second + question
    assert by_letter.after_examples(1) == heading + first + question
    assert by_letter.after_examples(0) == question
    assert by_text.examples[0] == "Question: Who?\nAnswer: You\n\n"
    (bare,) = mmlu.mmlu(tmp_path)
    assert bare.ways[0].after_examples(0) == question
    with pytest.raises(DataError, match=r"us_law_dev.csv.* 2 .* 3"):
        mmlu.mmlu(tmp_path, 3)
    (tmp_path / "tax_test.csv").write_text("Where?,Here,There,Up,Down,C\n")
    with pytest.raises(DataError, match=r"tax_dev.csv"):
        mmlu.mmlu(tmp_path, 1)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (PAIR, "pairs"),
        (HELLASWAG, "hellaswag"),
        (ARC, "arc"),
        (AI2, "arc"),
        (PIQA, "piqa"),
        ({"text": "a b c"}, "perplexity"),
        ({"text": "a", "label": "b"}, "classify"),
        ({"instruction": "a", "output": "b"}, "answers"),
    ],
)
def test_a_file_tells_its_task(record: dict[str, Any], kind: str, tmp_path: Path) -> None:
    assert formats.kind_of(jsonl(tmp_path / "file.jsonl", record, record)) == kind


@pytest.mark.parametrize(
    ("kind", "good", "change", "named"),
    [
        ("pairs", PAIR, {"sentence_bad": None}, "sentence_bad"),
        ("pairs", PAIR, {"sentence_good": ...}, "sentence_good"),
        ("pairs", PAIR, {"sentence_bad": "He eats."}, "sentence_bad"),
        ("hellaswag", HELLASWAG, {"label": "4"}, "4"),
        ("hellaswag", HELLASWAG, {"label": ...}, "label"),
        ("hellaswag", HELLASWAG, {"endings": ["one"]}, "endings"),
        ("hellaswag", HELLASWAG, {"endings": ...}, "endings"),
        ("hellaswag", HELLASWAG, {"ctx": ..., "ctx_a": ..., "ctx_b": ...}, "ctx"),
        ("arc", ARC, {"answerKey": "D"}, "'D'"),
        ("arc", ARC, {"answerKey": ...}, "answerKey"),
        ("arc", ARC, {"question": ...}, "question"),
        ("arc", ARC, {"choices": ...}, "choices"),
        ("arc", AI2, {"question": {"stem": "Which?"}}, "choices"),
        ("piqa", PIQA, {"label": -1}, "-1"),
        ("piqa", PIQA, {"sol2": ...}, "sol2"),
        ("piqa", PIQA, {"label": ...}, "label"),
        ("lambada", {"text": "a b"}, {"text": "word"}, "text"),
        ("lambada", {"text": "a b"}, {"text": ...}, "text"),
        ("answers", {"instruction": "a", "output": "b"}, {"output": ...}, "output"),
        ("labelled", {"text": "a", "label": "b"}, {"label": ...}, "label"),
    ],
)
def test_a_fault_is_named_with_its_line(
    kind: str, good: dict[str, Any], change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    changed = {name: value for name, value in {**good, **change}.items() if value is not ...}
    path = jsonl(tmp_path / "items.jsonl", good, changed)
    with pytest.raises(DataError, match="line 2") as caught:
        getattr(formats, kind)(path)
    assert named in str(caught.value)


def test_mmlu_faults_are_named_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "virology_test.csv"
    file.write_text("Who?,I,You,She,We,A\nWhat?,I,You,She,We,E\n")
    with pytest.raises(DataError, match=r"virology_test.csv, line 2.*'E'"):
        mmlu.mmlu(tmp_path)


@pytest.mark.parametrize(
    ("kind", "record", "change"),
    [
        ("pairs", PAIR, {"UID": "other"}),
        ("hellaswag", HELLASWAG, {"label": "1"}),
        ("arc", ARC, {"answerKey": "1"}),
        ("piqa", PIQA, {"goal": "Drink"}),
        ("lambada", {"text": "a b"}, {"text": "a c"}),
        ("answers", {"instruction": "a", "output": "b"}, {"output": "c"}),
        ("labelled", {"text": "a", "label": "b"}, {"label": "c"}),
    ],
)
def test_duplicates_are_left_out_and_named(
    kind: str,
    record: dict[str, Any],
    change: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = jsonl(tmp_path / "items.jsonl", record, {**record, **change}, record)
    assert len(getattr(formats, kind)(path)) == 2
    said = capsys.readouterr().err
    assert "line 3" in said
    assert "line 1" in said


def test_the_villages_answers_are_those_of_the_demos_questions() -> None:
    answers = {question.instruction: question.output for question in questions(0)}
    true = set(answers.values())
    items = village_choices()
    assert len(items) == len({item.question for item in items}) == 200
    for item in items:
        assert item.options[item.answer] == answers[item.question]
        wrong = [option for option in item.options if option not in true]
        assert len(set(item.options)) == 4
        assert len(wrong) == 3
    assert {item.answer for item in items} == {0, 1, 2, 3}
    assert items == village_choices()
    assert items != village_choices(seed=1)


def test_only_the_good_sentence_of_a_village_pair_is_true() -> None:
    true = {question.output for question in questions(0)}
    pairs = village_pairs()
    assert len(pairs) == len(set(pairs)) == 200
    for pair in pairs:
        assert pair.good != pair.bad
        if pair.category not in ("pronoun", "article"):
            assert pair.good in true, pair
            assert pair.bad not in true, pair
