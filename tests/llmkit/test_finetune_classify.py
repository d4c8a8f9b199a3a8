"""Classifiers: what is trained, what is kept, and what the checkpoint's model says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_runs import ANIMALS, KINDS, PLACES
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from llmkit.architectures.gpt2 import GPT
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError, DataError
from llmkit.finetuning.classify import ClassifyResult, blocks_to_train, finetune_classify
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.held_out import held_out_examples
from llmkit.finetuning.label_head import expanded_head, label_head, label_logits, last_states
from llmkit.finetuning.scores import accuracy, confusion_matrix, label_scores
from llmkit.generation import generate_ids
from llmkit.sampling import Sampling

LEARNT: dict[str, Any] = {
    "steps": 60,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "eval_interval": 30,
    "warmup_steps": 5,
}
SHORT: dict[str, Any] = {"steps": 4, "batch_size": 4, "eval_interval": 2, "warmup_steps": 1}
SPLIT = (0.6, 0.2, 0.2)


def config(**changes: Any) -> FinetuneConfig:
    return FinetuneConfig(**{"split": SPLIT, "add_tokens": True, **changes})


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty texts: those that end in a question mark ask."""
    path = tmp_path_factory.mktemp("texts") / "texts.tsv"
    lines = [
        f"{label}\t{text} the {animal} of the {place}{end}"
        for place in PLACES
        for animal in ANIMALS
        for label, text, end in (("asks", "Where is", "?"), ("says", "Here is", "."))
    ]
    path.write_text("label\ttext\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def classify(base: Path, data: Path, out: Path, **changes: Any) -> ClassifyResult:
    options = {"config": config(), "training": SHORT, "device": "cpu", **changes}
    return finetune_classify(base, data, out, **options)


@pytest.fixture(scope="module")
def results(
    small_base: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], ClassifyResult]:
    """A run of each kind that is long enough to learn. Tests must not write into it."""
    made: dict[str, ClassifyResult] = {}

    def of(kind: str) -> ClassifyResult:
        if kind not in made:
            out = tmp_path_factory.mktemp(kind) / "out"
            settings = config(lora=KINDS[kind].lora, qlora=KINDS[kind].qlora, qat=KINDS[kind].qat)
            made[kind] = classify(small_base, texts, out, config=settings, training=LEARNT)
        return made[kind]

    return of


# --- what is learnt -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_learnt_and_said_as_one_token(
    kind: str, results: Callable[[str], ClassifyResult]
) -> None:
    result = results(kind)
    assert result.labels == ("asks", "says")
    assert result.accuracy == 1
    assert result.confusion == [[4, 0], [0, 4]]
    assert result.metrics[-1].accuracy == 1
    checkpoint = load_checkpoint(result.checkpoint)
    model = checkpoint.load_model()
    for example in held_out_examples(checkpoint):
        *text, label_id = example.ids
        sampling = Sampling(temperature=0, max_tokens=1)
        assert list(generate_ids(model, text, sampling, frozenset())) == [label_id]


def test_label_log_probabilities_are_the_classifiers(
    results: Callable[[str], ClassifyResult],
) -> None:
    checkpoint = load_checkpoint(results("full").checkpoint)
    model = checkpoint.load_model()
    ids = list(held_out_examples(checkpoint)[0].ids[:-1])
    head = label_head(model)[list(checkpoint.label_ids)]
    said = label_logits(model, head, [ids])[0].log_softmax(dim=0)
    with torch.inference_mode():
        whole = model(torch.tensor([ids]))[0, -1].log_softmax(-1)  # (V,)
    among_labels = whole[checkpoint.label_ids].log_softmax(-1)
    torch.testing.assert_close(said, among_labels, rtol=1e-4, atol=1e-5)


@given(
    st.integers(2, 6).flatmap(
        lambda n: st.tuples(
            st.lists(
                st.lists(st.floats(-10, 10, width=16), min_size=n, max_size=n),
                min_size=2,
                max_size=4,
            ),
            st.lists(st.floats(-10, 10, width=16), min_size=n, max_size=n),
        )
    )
)
def test_no_other_token_is_likelier_than_every_label(
    case: tuple[list[list[float]], list[float]],
) -> None:
    rows, state = case
    head = torch.tensor(rows, dtype=torch.float64)
    label_ids = list(range(1, 2 * len(rows), 2))
    logits = expanded_head(head, label_ids, 12) @ torch.tensor(state, dtype=torch.float64)
    assert logits[label_ids].max() >= logits.max() - 1e-9
    torch.testing.assert_close(logits[label_ids], head @ torch.tensor(state, dtype=torch.float64))


def test_the_last_token_is_the_texts_own_whatever_it_is_filled_up_with(small_base: Path) -> None:
    model = load_checkpoint(small_base).load_model()
    short, long = [5, 9, 7], [5, 9, 7, 3, 2, 8, 40]
    with torch.inference_mode():
        together = last_states(model, [short, long])
        alone = torch.cat([last_states(model, [short]), last_states(model, [long])])
        by_hand = model.hidden_states(torch.tensor([short]))[0, 2]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[0], by_hand, rtol=1e-4, atol=1e-5)


# --- what is trained ------------------------------------------------------------------------


@pytest.mark.parametrize(("unfreeze", "moved"), [("head", 0), ("1", 1), ("all", 2)])
def test_only_what_is_unfrozen_moves(
    unfreeze: str, moved: int, small_base: Path, texts: Path, tmp_path: Path
) -> None:
    result = classify(small_base, texts, tmp_path / "out", unfreeze=unfreeze)
    before = load_file(small_base / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    changed = {
        name
        for name, tensor in before.items()
        if name != "lm_head.weight" and not torch.equal(tensor, after[name][: len(tensor)])
    }
    of_blocks = {name for name in before if name.startswith(("h.", "ln_f"))}
    if moved == 0:
        assert changed == set()
        assert result.n_trained == 2 * load_checkpoint(small_base).config.n_embd
    elif moved == 1:
        assert changed
        assert changed <= of_blocks
    else:
        assert {"wte.weight", "wpe.weight"} <= changed


def test_with_lora_only_adapter_and_head_move(
    results: Callable[[str], ClassifyResult], small_base: Path
) -> None:
    before = load_file(small_base / "model.safetensors")
    after = load_file(results("lora").checkpoint / "model.safetensors")
    for name, tensor in before.items():
        if name != "lm_head.weight":
            assert torch.equal(tensor, after[name][: len(tensor)])


def test_what_cannot_be_unfrozen_is_refused() -> None:
    assert [blocks_to_train(said, 4) for said in ("head", "1", "4", "all")] == [0, 1, 4, None]
    for wrong in ("0", "5", "-1", "none", "1.5", ""):
        with pytest.raises(ConfigError, match=rf"unfreeze {wrong!r}; .*1 to 4"):
            blocks_to_train(wrong, 4)


# --- records --------------------------------------------------------------------------------


def test_balance_takes_as_many_of_each_and_the_split_keeps_their_shares(
    small_base: Path, texts: Path, tmp_path: Path
) -> None:
    more = "".join(f"says\tHere is number {number}.\n" for number in range(40))
    data = tmp_path / "more.tsv"
    data.write_text(texts.read_text(encoding="utf-8") + more, encoding="utf-8")
    assert classify(small_base, data, tmp_path / "all").n_records == (48, 16, 16)
    balanced = classify(small_base, data, tmp_path / "balanced", balance=True)
    assert balanced.n_records == (24, 8, 8)
    assert [sum(row) for row in balanced.confusion] == [4, 4]


def test_test_data_of_ones_own_is_the_test_part(
    small_base: Path, texts: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test.tsv"
    test.write_text("asks\tWhere is it?\nsays\tThere.\nsays\tHere.\n", encoding="utf-8")
    result = classify(small_base, texts, tmp_path / "out", test_data=test)
    assert result.n_records == (32, 8, 3)
    assert [sum(row) for row in result.confusion] == [1, 2]
    kept = (tmp_path / "out" / "training" / "held_out.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["text"] for line in kept.splitlines()] == [
        "Where is it?",
        "There.",
        "Here.",
    ]


def test_an_unknown_label_in_the_test_part_is_named_by_its_line(
    small_base: Path, texts: Path, tmp_path: Path
) -> None:
    test = tmp_path / "test.tsv"
    lines = ("label\ttext", "asks\tWhere is it?", "sings\tLa la.", "asks\tWhere?")
    test.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"test\.tsv, line 3: the label 'sings'"):
        classify(small_base, texts, tmp_path / "out", test_data=test)
    assert not (tmp_path / "out").exists()


def test_labels_that_are_no_tokens_are_found_before_training(
    small_base: Path, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'asks', 'says'.*--add-tokens"):
        classify(small_base, texts, tmp_path / "out", config=config(add_tokens=False))
    assert not (tmp_path / "out").exists()


def test_new_label_tokens_have_rows_of_their_own(
    results: Callable[[str], ClassifyResult], small_base: Path
) -> None:
    base = load_checkpoint(small_base)
    made = load_checkpoint(results("full").checkpoint)
    assert made.config.vocab_size == base.config.vocab_size + 2
    assert not made.config.tie_embeddings
    assert [made.tokenizer.tokens[i] for i in made.label_ids] == ["asks", "says"]
    model: GPT = made.load_model()
    assert model.wte.weight.shape[0] == made.config.vocab_size


# --- resuming -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_ends_where_a_whole_one_does(
    kind: str, small_base: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llmkit.finetuning.classify as module

    settings = config(lora=KINDS[kind].lora, qlora=KINDS[kind].qlora, qat=KINDS[kind].qat)
    classify(small_base, texts, tmp_path / "whole", config=settings)
    loss = module.Classify.loss

    def stop(self: module.Classify, model: GPT, step: int, part: int) -> torch.Tensor:
        if step == 3:
            raise KeyboardInterrupt
        return loss(self, model, step, part)

    monkeypatch.setattr(module.Classify, "loss", stop)
    with pytest.raises(KeyboardInterrupt):
        classify(small_base, texts, tmp_path / "stopped", config=settings)
    monkeypatch.setattr(module.Classify, "loss", loss)
    classify(small_base, texts, tmp_path / "stopped", config=settings, resume=True)
    for name in ("model.safetensors", "adapter_model.safetensors"):
        whole, stopped = (tmp_path / run / name for run in ("whole", "stopped"))
        assert whole.exists() == stopped.exists()
        if whole.exists():
            assert whole.read_bytes() == stopped.read_bytes()


# --- scores ---------------------------------------------------------------------------------


def test_scores_are_what_their_names_say() -> None:
    truth, said = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 0, 1]
    confusion = confusion_matrix(truth, said, 3)
    assert confusion == [[2, 1, 0], [1, 1, 0], [0, 1, 0]]
    assert accuracy(confusion) == 0.5
    first, second, third = label_scores(("a", "b", "c"), confusion)
    assert (first.precision, first.recall) == (2 / 3, 2 / 3)
    assert (second.precision, second.recall) == (1 / 3, 1 / 2)
    assert third.recall == 0
