"""What text a quantization is calibrated with, and what it must have nothing in common with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from finetuned import as_classifier
from gguf_surgery import make_checkpoint
from numpy.typing import NDArray

from llmkit.checkpoint.checkpoint import Checkpoint, load_checkpoint
from llmkit.data.tokens import open_token_file, token_dtype
from llmkit.errors import DataError
from llmkit.export.quantization.calibration import (
    COPIED_TOKENS,
    DEFAULT_TOKENS,
    Calibration,
    calibration_of,
)
from llmkit.finetuning.held_out import trained_examples

CONTEXT = 64
Ids = NDArray[np.integer]


@pytest.fixture(scope="module")
def trained(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Without any text of a training."""
    return make_checkpoint(tmp_path / "model", context_length=CONTEXT)


def random_ids(n: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, 270, n)


def write_ids(path: Path, ids: Ids, checkpoint: Checkpoint) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(ids.astype(token_dtype(checkpoint.config.vocab_size)).tobytes())


def with_texts(checkpoint: Checkpoint, train: Ids, held_out: Ids) -> Checkpoint:
    write_ids(checkpoint.train_tokens_file, train, checkpoint)
    write_ids(checkpoint.validation_tokens_file, held_out, checkpoint)
    return checkpoint


def with_records(checkpoint: Checkpoint, records: list[str], held_out: list[str]) -> Checkpoint:
    for path, answers in (
        (checkpoint.trained_file, records),
        (checkpoint.held_out_file, held_out),
    ):
        path.parent.mkdir(exist_ok=True)
        lines = [json.dumps({"messages": conversation(answer)}) for answer in answers]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return checkpoint


def conversation(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Say."}, {"role": "assistant", "content": answer}]


def in_both(calibration: Calibration, held_out: Ids) -> bool:
    """Whether COPIED_TOKENS in a row are in a sequence and in the text, looked up one by one."""

    def pieces(ids: Ids) -> set[tuple[int, ...]]:
        found = ids.tolist()
        return {
            tuple(found[start : start + COPIED_TOKENS])
            for start in range(len(found) - COPIED_TOKENS + 1)
        }

    known = pieces(held_out)
    return any(pieces(row.numpy()) & known for row in calibration.tokens)


def test_the_default_is_text_that_the_model_was_trained_on(trained: Checkpoint) -> None:
    found = calibration_of(trained)
    assert found.source == str(trained.train_tokens_file)
    assert found.tokens.dtype == torch.int64
    assert found.tokens.shape[1] == trained.config.context_length
    assert 0.5 * DEFAULT_TOKENS < found.tokens.numel() <= DEFAULT_TOKENS
    ids = open_token_file(trained.train_tokens_file, trained.config.vocab_size)
    everything = ids.astype("<u2").tobytes()
    for row in found.tokens.numpy().astype("<u2"):
        assert row.tobytes() in everything
    held_out = open_token_file(trained.validation_tokens_file, trained.config.vocab_size)
    assert not in_both(found, held_out)


@pytest.mark.parametrize("max_tokens", [1, CONTEXT, 1000, 4096])
def test_there_are_at_most_so_many_tokens_from_all_over_the_text(
    checkpoint: Checkpoint, max_tokens: int
) -> None:
    ids = random_ids(9000)
    found = calibration_of(with_texts(checkpoint, ids, random_ids(500, 1)), max_tokens=max_tokens)
    assert found.tokens.shape == (max(1, max_tokens // CONTEXT), CONTEXT)
    if max_tokens >= 1000:
        assert torch.equal(found.tokens[0], torch.from_numpy(ids[:CONTEXT]))
        last = (len(ids) - 1) // CONTEXT * CONTEXT
        assert torch.equal(found.tokens[-1], torch.from_numpy(ids[last - CONTEXT : last]))


def test_training_text_that_repeats_the_held_out_text_is_left_out(checkpoint: Checkpoint) -> None:
    train, held_out = random_ids(20 * CONTEXT + 1), random_ids(300, 1)
    clean = calibration_of(with_texts(checkpoint, train, held_out)).tokens
    assert len(clean) == 20
    train[5 * CONTEXT + 7 :][:COPIED_TOKENS] = held_out[100:][:COPIED_TOKENS]
    train[9 * CONTEXT :][:COPIED_TOKENS] = held_out[-COPIED_TOKENS:]
    train[12 * CONTEXT - COPIED_TOKENS :][:COPIED_TOKENS] = held_out[:COPIED_TOKENS]
    train[15 * CONTEXT :][: COPIED_TOKENS - 1] = held_out[30:][: COPIED_TOKENS - 1]  # one too few
    found = calibration_of(with_texts(checkpoint, train, held_out))
    expected = torch.from_numpy(train[:-1].reshape(20, CONTEXT))
    left = [row for row in range(20) if row not in (5, 9, 11)]
    assert torch.equal(found.tokens, expected[left])
    assert not in_both(found, held_out)


def test_training_text_that_is_all_held_out_is_refused(checkpoint: Checkpoint) -> None:
    ids = random_ids(1000)
    with pytest.raises(DataError, match=r"train\.tokens .*held-out.*--calibration"):
        calibration_of(with_texts(checkpoint, ids, ids))


def test_without_training_text_some_has_to_be_given(checkpoint: Checkpoint) -> None:
    with pytest.raises(DataError, match=r"model has no training text.*--calibration"):
        calibration_of(checkpoint)


def test_a_file_is_taken_in_place_of_the_training_text(trained: Checkpoint, tmp_path: Path) -> None:
    text = "Once there was another text.<|endoftext|>And a second document of it, " * 20
    path = tmp_path / "other.txt"
    path.write_text(text, encoding="utf-8")
    found = calibration_of(trained, path)
    assert found.source == str(path)
    ids: list[int] = []
    for document in text.split("<|endoftext|>"):
        ids += [*trained.tokenizer.encode(document), trained.tokenizer.end_of_text_id]
    n = (len(ids) - 1) // CONTEXT
    assert found.tokens.flatten().tolist() == ids[: n * CONTEXT]


def test_a_short_file_gives_one_short_sequence(trained: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("A short text.", encoding="utf-8")
    found = calibration_of(trained, path).tokens
    assert found.tolist() == [trained.tokenizer.encode("A short text.")]


def test_a_file_that_has_held_out_text_in_it_is_refused(
    trained: Checkpoint, tmp_path: Path
) -> None:
    ids = open_token_file(trained.validation_tokens_file, trained.config.vocab_size)
    copied = trained.tokenizer.decode(ids[40:130].tolist())
    path = tmp_path / "copied.txt"
    path.write_text("Words before it. " * 9 + copied + " And after. " * 9, encoding="utf-8")
    with pytest.raises(DataError, match=rf"copied\.txt .*\b{COPIED_TOKENS}\b.*held-out"):
        calibration_of(trained, path)


@pytest.mark.parametrize("context", [16, CONTEXT])
def test_a_copy_is_found_wherever_it_lies(tmp_path: Path, context: int) -> None:
    """Across two sequences too, in a part that is not taken, and where sequences are short."""
    checkpoint = make_checkpoint(tmp_path / "model", context_length=context)
    generator = np.random.default_rng(2)
    letters = np.array(list("abcdefghij"))
    text = "".join(generator.choice(letters, 4000))
    held_out = np.array(checkpoint.tokenizer.encode("".join(generator.choice(letters, 500))))
    with_texts(checkpoint, random_ids(1000), held_out)
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    assert calibration_of(checkpoint, path, max_tokens=256).tokens.numel() == 256
    copied = checkpoint.tokenizer.decode(held_out[200 : 200 + COPIED_TOKENS].tolist())
    path.write_text(text[:1990] + copied + text[1990:], encoding="utf-8")
    with pytest.raises(DataError, match=rf"text\.txt .*\b{COPIED_TOKENS}\b.*held-out"):
        calibration_of(checkpoint, path, max_tokens=256)


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_a_file_without_text_is_refused(trained: Checkpoint, tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="two tokens"):
        calibration_of(trained, path)


def test_a_file_that_is_not_there_is_refused(trained: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt does not exist"):
        calibration_of(trained, tmp_path / "absent.txt")


def test_tokens_of_another_vocabulary_are_refused(checkpoint: Checkpoint) -> None:
    ids = random_ids(1000)
    ids[500] = checkpoint.config.vocab_size
    with pytest.raises(DataError, match=rf"train\.tokens .*\b{ids[500]}\b.*--calibration"):
        calibration_of(with_texts(checkpoint, ids, random_ids(100, 1)))


def test_records_of_fine_tuning_come_before_the_text_of_pretraining(
    checkpoint: Checkpoint,
) -> None:
    """Each sequence begins with a record."""
    with_texts(checkpoint, random_ids(1000), random_ids(100, 1))
    answers = [f"Answer number {n}, " + "and more of it, " * (n % 3) for n in range(40)]
    with_records(checkpoint, answers, ["Held out."])
    found = calibration_of(checkpoint)
    assert found.source == str(checkpoint.trained_file)
    examples = [list(example.ids) for example in trained_examples(checkpoint)]
    expected, row = [], []
    for ids in examples:
        row = row + ids
        if len(row) >= CONTEXT:
            expected.append(row[:CONTEXT])
            row = []
    assert found.tokens.tolist() == expected
    assert len(expected) > 5


@pytest.mark.parametrize("max_tokens", [1, CONTEXT, 3 * CONTEXT])
def test_of_records_at_most_so_many_tokens_are_taken(
    checkpoint: Checkpoint, max_tokens: int
) -> None:
    with_records(checkpoint, [f"A long answer, number {n}. " * 3 for n in range(40)], ["Other."])
    found = calibration_of(checkpoint, max_tokens=max_tokens)
    assert found.tokens.shape == (max(1, max_tokens // CONTEXT), CONTEXT)


def test_a_few_records_give_one_short_sequence(checkpoint: Checkpoint) -> None:
    with_records(checkpoint, ["Yes.", "No."], ["Perhaps."])
    ids = [token for example in trained_examples(checkpoint) for token in example.ids]
    assert len(ids) < CONTEXT
    assert calibration_of(checkpoint).tokens.tolist() == [ids]


def test_no_records_are_refused(checkpoint: Checkpoint) -> None:
    with_records(checkpoint, [], ["Held out."])
    with pytest.raises(DataError, match=r"trained\.jsonl has no records; .*--calibration"):
        calibration_of(checkpoint)


def test_records_of_a_classifier(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", tie_embeddings=False, context_length=16)
    checkpoint = as_classifier(base, tmp_path / "classifier", ("a", "b"))
    checkpoint.trained_file.parent.mkdir()
    lines = [json.dumps({"text": "some words to merge", "label": label}) for label in "abab"]
    checkpoint.trained_file.write_text("\n".join(lines), encoding="utf-8")
    found = calibration_of(checkpoint).tokens
    examples = trained_examples(checkpoint)
    assert found[0, : len(examples[0].ids)].tolist() == list(examples[0].ids)


def test_a_file_that_has_records_in_it_that_fine_tuning_held_out_is_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    answers = ["It was a bright cold day, and " + f"{n} " * 40 for n in range(3)]
    with_records(checkpoint, ["Something else altogether."] * 20, answers)
    path = tmp_path / "mine.txt"
    path.write_text("Nothing that is known. " * 20, encoding="utf-8")
    calibration_of(checkpoint, path)
    path.write_text("Before it. " * 9 + answers[1] + " After it. " * 9, encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.txt .*\b50\b.*held-out"):
        calibration_of(checkpoint, path)


def test_the_hash_tells_texts_and_layouts_apart(trained: Checkpoint, tmp_path: Path) -> None:
    found = calibration_of(trained, max_tokens=512)
    assert found.sha256 == calibration_of(trained, max_tokens=512).sha256
    assert found.sha256 == Calibration("elsewhere", found.tokens.clone()).sha256
    others = [
        calibration_of(trained, max_tokens=256).tokens,
        found.tokens.reshape(-1, 32),
        found.tokens.flip(0),
        found.tokens + (torch.arange(CONTEXT) == 9),
    ]
    hashes = {Calibration("", tokens).sha256 for tokens in others}
    assert len(hashes | {found.sha256}) == 5
    assert len(found.sha256) == 64
