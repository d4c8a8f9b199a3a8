from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_runs import KINDS, instruct, records, write_questions
from safetensors.torch import load_file
from training_runs import metrics, snapshot

from llmkit.architectures.gpt2 import GPT
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.checkpoint.config import CheckpointConfig, save_config
from llmkit.errors import CheckpointError, ConfigError, DataError
from llmkit.finetuning.classify import finetune_classify
from llmkit.finetuning.config import FinetuneConfig, seed_of
from llmkit.finetuning.distill import finetune_distill
from llmkit.finetuning.examples import Example, encode_conversation, encode_prompt
from llmkit.finetuning.held_out import held_out_examples
from llmkit.finetuning.instruct import InstructResult, answer_loss, answers, finetune_instruct
from llmkit.finetuning.prefer import finetune_prefer
from llmkit.finetuning.vocabulary import note_unseen_tokens
from llmkit.lora import LoRAConfig
from llmkit.modelfiles.prompt_format import (
    ALPACA,
    CHATML,
    USER_ASSISTANT,
    Message,
    PromptFormat,
    Turn,
)
from llmkit.quantization.qat import on_grid
from llmkit.training import TrainingConfig

LEARNT: dict[str, Any] = {
    "steps": 120,
    "batch_size": 8,
    "learning_rate": 5e-3,
    "eval_interval": 60,
    "warmup_steps": 10,
}


@pytest.fixture(scope="module")
def results(
    small_base: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], InstructResult]:
    """A short run of each kind. Tests must not write into its checkpoint."""
    made: dict[str, InstructResult] = {}

    def of(kind: str) -> InstructResult:
        if kind not in made:
            out = tmp_path_factory.mktemp(kind) / "out"
            made[kind] = instruct(small_base, questions, out, config=KINDS[kind])
        return made[kind]

    return of


@pytest.fixture(scope="module")
def learnt(
    small_base: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> InstructResult:
    """A run that is long enough to learn the answers' form."""
    out = tmp_path_factory.mktemp("learnt") / "out"
    return instruct(small_base, questions, out, training=LEARNT)


def asked(checkpoint: Path) -> list[tuple[str, str]]:
    """Questions and answers that were held out."""
    lines = (checkpoint / "training" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [[m["content"] for m in json.loads(line)["messages"]] for line in lines]
    return [(question, wanted) for question, wanted in messages]


# --- what is learnt -----------------------------------------------------------------------------


def test_loss_falls_and_answers_end(learnt: InstructResult, small_base: Path) -> None:
    tokenizer = load_checkpoint(small_base).tokenizer
    held_out = [
        encode_conversation(
            [Message("user", question), Message("assistant", wanted)], USER_ASSISTANT, tokenizer
        )
        for question, wanted in asked(learnt.checkpoint)
    ]
    before = answer_loss(load_checkpoint(small_base).load_model(), held_out, 4)
    assert learnt.test_loss < before / 5
    assert learnt.quality == learnt.test_loss
    assert learnt.end_rate == 1
    assert len(learnt.answers) == learnt.n_records[2] == len(held_out)
    for given, (question, wanted) in zip(learnt.answers, asked(learnt.checkpoint), strict=True):
        assert (given.question, given.wanted) == (question, wanted)
        assert given.answer.startswith("At the ")


def test_an_answer_that_runs_on_has_not_ended(small_base: Path) -> None:
    opened = load_checkpoint(small_base)
    model = opened.load_model()
    for tensor in model.state_dict().values():
        tensor.zero_()
    model.ln_f.bias.data[0] = 1.0
    model.wte.weight.data[7, 0] = 1.0  # says token 7 for ever
    from llmkit.records.conversations import Conversation

    chat = Conversation((Message("user", "Where?"), Message("assistant", "There.")), "x")
    (given,) = answers(model, [chat], USER_ASSISTANT, opened.tokenizer, 5)
    assert (given.answer, given.ended) == (opened.tokenizer.decode([7] * 5), False)
    model.wte.weight.data[opened.tokenizer.end_of_text_id, 0] = 2.0
    (given,) = answers(model, [chat], USER_ASSISTANT, opened.tokenizer, 5)
    assert (given.answer, given.ended) == ("", True)


def test_result_says_what_the_records_and_metrics_say(
    results: Callable[[str], InstructResult], questions: Path
) -> None:
    result = results("full")
    assert result.n_records == (17, 1, 2)
    assert result.steps == 6
    lines = metrics(result.checkpoint)
    assert [line["step"] for line in lines] == [3, 6]
    assert result.last.val_loss == lines[-1]["val_loss"]
    assert set(asked(result.checkpoint)) <= {(r["prompt"], r["completion"]) for r in records()}


def test_samples_are_shown_at_each_evaluation(
    small_base: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    instruct(small_base, questions, tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("'Where is the ") == 2
    assert "step 6: train loss" in printed.err


def test_test_part_is_kept_in_the_checkpoint_as_it_was_read(
    small_base: Path, tmp_path: Path
) -> None:
    content = [{"prompt": f"é\u2028\x85 <|endoftext|> {n}?", "completion": "😀"} for n in range(9)]
    instruct(small_base, write_questions(tmp_path / "q.jsonl", content), tmp_path / "out")
    opened = load_checkpoint(tmp_path / "out")
    held_out = held_out_examples(opened)
    assert 0 < len(held_out) < 5
    expected = [
        encode_conversation(
            [Message("user", record["prompt"]), Message("assistant", record["completion"])],
            USER_ASSISTANT,
            opened.tokenizer,
        )
        for record in content
    ]
    assert {each.ids for each in held_out} <= {each.ids for each in expected}
    assert {each.is_answer for each in held_out} <= {each.is_answer for each in expected}


def test_masked_and_whole_prompts_are_learnt_differently(
    small_base: Path, questions: Path, tmp_path: Path, results: Callable[[str], InstructResult]
) -> None:
    whole = instruct(small_base, questions, tmp_path / "whole", mask_prompt=False)
    masked = results("full")
    assert whole.metrics[0].train_loss != masked.metrics[0].train_loss
    # Both are measured on the same thing, the answers; the prompt makes the loss of training.
    opened = load_checkpoint(tmp_path / "whole")
    examples = []
    for question, wanted in asked(tmp_path / "whole"):
        chat = [Message("user", question), Message("assistant", wanted)]
        examples.append(encode_conversation(chat, USER_ASSISTANT, opened.tokenizer))
    expected = _answers_by_hand(opened.load_model(), examples)
    assert whole.test_loss == pytest.approx(expected, rel=1e-4)


def _answers_by_hand(model: GPT, examples: list[Example]) -> float:
    nats = []
    for example in examples:
        probabilities = model(torch.tensor([example.ids]))[0].log_softmax(-1)
        nats += [
            -probabilities[place - 1, example.ids[place]].item()
            for place in range(len(example.ids))
            if example.is_answer[place]
        ]
    return sum(nats) / len(nats)


def test_packed_rows_are_fewer_and_teach_as_well(small_base: Path, tmp_path: Path) -> None:
    content = [{"prompt": f"{n}?", "completion": f"{n}."} for n in range(20)]
    questions = write_questions(tmp_path / "short.jsonl", content)
    config = FinetuneConfig(epochs=2)
    training = {"steps": None, "eval_interval": None, "batch_size": 2}
    made = {
        packing: instruct(
            small_base,
            questions,
            tmp_path / str(packing),
            config=config,
            training=training,
            packing=packing,
        )
        for packing in (False, True)
    }
    assert made[False].steps == 17  # two passes over 17 records
    assert made[True].steps < 17
    assert made[True].n_records == made[False].n_records
    assert made[True].last.tokens == pytest.approx(made[False].last.tokens, rel=0.15)
    taught = instruct(
        small_base, questions, tmp_path / "taught", training=LEARNT | {"steps": 60}, packing=True
    )
    assert taught.end_rate == 1


# --- what changes and what stays ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_base_is_not_touched_and_holds_its_numbers_in_the_new_folder(
    kind: str, small_base: Path, questions: Path, tmp_path: Path
) -> None:
    before = snapshot(small_base)
    instruct(small_base, questions, tmp_path / "out", config=KINDS[kind])
    assert snapshot(small_base) == before
    there = load_file(small_base / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == there.keys()
    same = {name for name in there if torch.equal(found[name], there[name])}
    assert same == (set() if kind in ("full", "qat") else set(there))


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_only_the_adapter_learns(kind: str, results: Callable[[str], InstructResult]) -> None:
    result = results(kind)
    opened = load_checkpoint(result.checkpoint)
    assert opened.lora == KINDS[kind].lora
    assert opened.base_quant == KINDS[kind].qlora
    adapter = load_file(opened.adapter_file)
    assert result.n_trained == sum(tensor.numel() for tensor in adapter.values())
    assert len(adapter) == 2 * 4  # of one layer
    assert all(tensor.any() for tensor in adapter.values())  # B began at zero
    whole = load_checkpoint(results("full").checkpoint).load_model().n_parameters()
    assert results("full").n_trained == results("full").n_parameters == whole
    assert result.n_trained < result.n_parameters


@pytest.mark.parametrize("kind", KINDS)
def test_reloaded_model_is_the_trained_one(
    kind: str,
    small_base: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llmkit.training.loop import TrainingLoop

    loops: list[TrainingLoop] = []
    original = TrainingLoop.train

    def train(self: TrainingLoop) -> None:
        original(self)
        loops.append(self)

    monkeypatch.setattr(TrainingLoop, "train", train)
    instruct(small_base, questions, tmp_path / "out", config=KINDS[kind])
    opened = load_checkpoint(tmp_path / "out")
    tokens = torch.arange(40)[None] * 7
    trained = loops[0].model.eval()
    assert torch.equal(opened.load_model(for_training=True)(tokens), trained(tokens))
    with on_grid(trained, loops[0].grid):
        expected = trained(tokens)
    assert torch.equal(opened.load_model()(tokens), expected)
    assert not torch.equal(load_checkpoint(small_base).load_model()(tokens), expected)


@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_tuning_an_adapted_checkpoint_merges_it_first(
    kind: str, questions: Path, tmp_path: Path, results: Callable[[str], InstructResult]
) -> None:
    first = load_checkpoint(results(kind).checkpoint)
    with first.open_merged() as file:
        merged = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    config = FinetuneConfig(lora=LoRAConfig(rank=3, targets=("mlp.c_fc",)))
    instruct(first.folder, questions, tmp_path / "out", config=config)
    second = load_checkpoint(tmp_path / "out")
    found = load_file(second.model_file)
    assert all(torch.equal(found[name], tensor) for name, tensor in merged.items())
    assert (second.lora, second.base_quant) == (config.lora, None)
    tokens = torch.arange(40)[None]
    merged_model = GPT(first.config).eval()
    merged_model.load_state_dict(merged)
    torch.testing.assert_close(merged_model(tokens), first.load_model()(tokens), rtol=0, atol=1e-4)


def test_base_itself_is_no_place_for_the_result(small_base: Path, questions: Path) -> None:
    before = snapshot(small_base)
    with pytest.raises(CheckpointError, match=rf"{small_base.name} .*base.*--out"):
        instruct(small_base, questions, small_base)
    assert snapshot(small_base) == before


@pytest.mark.parametrize("kind", ["instruct", "prefer", "distill"])
def test_classifier_is_no_base_of_what_answers(kind: str, small_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    opened = load_checkpoint(base)
    label = next(token for token in opened.tokenizer.tokens if token.isalpha())
    save_config(base, CheckpointConfig(opened.config, opened.prompt_format, (label,)))
    none = tmp_path / "none.jsonl"
    tune: dict[str, Callable[[], object]] = {
        "instruct": lambda: finetune_instruct(base, none, tmp_path / "out"),
        "prefer": lambda: finetune_prefer(base, none, tmp_path / "out"),
        "distill": lambda: finetune_distill(base, tmp_path / "out", qat="q4_0"),
    }
    with pytest.raises(ConfigError, match=r"is a classifier; .* (base|answers)$"):
        tune[kind]()
    assert not (tmp_path / "out").exists()


# --- formats and tokens -------------------------------------------------------------------------


def test_format_of_a_base_without_one_is_alpaca(
    small_base: Path, questions: Path, tmp_path: Path
) -> None:
    short = PromptFormat("short", Turn("", "\n"), Turn("Q: ", "\n"), Turn("A:\n", "\n"))
    for name, given, expected in (("own", short, short), ("same", None, short)):
        base = small_base if name == "own" else tmp_path / "own"
        instruct(base, questions, tmp_path / name, prompt_format=given)
        assert load_checkpoint(tmp_path / name).prompt_format == expected
    wide = write_questions(tmp_path / "q.jsonl", [{"prompt": p, "completion": p} for p in "abcde"])
    tokens = load_checkpoint(small_base).tokenizer
    n_alpaca = len(encode_prompt([Message("user", "a")], ALPACA, tokens))
    with pytest.raises(DataError, match=r"5 records .* 64 tokens"):
        instruct(small_base, wide, tmp_path / "alpaca", prompt_format=None)
    assert n_alpaca > 64  # which is why
    assert not (tmp_path / "alpaca").exists()


def test_stored_format_is_the_one_that_is_asked_in(learnt: InstructResult) -> None:
    from llmkit.export.llamacpp.runners import generate
    from llmkit.sampling import Sampling

    opened = load_checkpoint(learnt.checkpoint)
    assert opened.prompt_format == USER_ASSISTANT
    said = "".join(generate(learnt.checkpoint, learnt.answers[0].question, Sampling(temperature=0)))
    assert said == learnt.answers[0].answer


def test_tokens_that_a_format_needs_are_not_added_unasked(
    small_base: Path, questions: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no single token for '<\|im_end\|>'.*--add-tokens"):
        instruct(small_base, questions, tmp_path / "out", prompt_format=CHATML)
    assert not (tmp_path / "out").exists()


def test_new_tokens_get_new_rows_and_the_old_rows_stay(
    small_base: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmkit.training.loop import TrainingLoop

    old = load_checkpoint(small_base)
    out = tmp_path / "out"
    config = FinetuneConfig(add_tokens=True)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "train", _stop)
        with pytest.raises(KeyboardInterrupt):
            instruct(small_base, questions, out, prompt_format=CHATML, config=config)
    begun = load_checkpoint(out)
    assert begun.config.vocab_size == old.config.vocab_size + 2 == begun.tokenizer.vocab_size
    assert begun.end_id == begun.tokenizer.special_id("<|im_end|>")
    before, after = load_file(old.model_file), load_file(begun.model_file)
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor)
    new = after["wte.weight"][-2:]
    mean, spread = before["wte.weight"].mean(0), before["wte.weight"].std(0)
    assert ((new - mean).abs() < spread).all()
    assert not torch.equal(new[0], new[1])
    instruct(small_base, questions, out, prompt_format=CHATML, config=config, resume=True)
    trained = load_checkpoint(out)
    assert trained.prompt_format == CHATML
    assert not torch.equal(load_file(trained.model_file)["wte.weight"][-2:], new)
    text = trained.tokenizer.encode("<|im_end|>")
    assert trained.end_id not in text
    again = tmp_path / "again"  # the tokens are there now: nothing to add, LoRA may train
    instruct(out, questions, again, prompt_format=None, config=KINDS["lora"])
    assert load_checkpoint(again).tokenizer.tokens == trained.tokenizer.tokens


def _stop(_: object) -> None:
    raise KeyboardInterrupt


def test_adapters_alone_cannot_learn_new_tokens(
    small_base: Path, questions: Path, tmp_path: Path
) -> None:
    config = FinetuneConfig(lora=LoRAConfig(rank=2), add_tokens=True)
    with pytest.raises(ConfigError, match="LoRA"):
        instruct(small_base, questions, tmp_path / "out", prompt_format=CHATML, config=config)
    assert not (tmp_path / "out").exists()


def test_tokens_that_the_base_never_saw_are_noted(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = [{"prompt": f"¿{n}?", "completion": "ž"} for n in range(5)]
    instruct(small_base, write_questions(tmp_path / "q.jsonl", content), tmp_path / "out")
    assert "of the tokens" in capsys.readouterr().err


def test_every_token_of_the_base_s_text_counts_as_seen(
    small_base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.finetuning.vocabulary.TOKENS_AT_ONCE", 16)
    base = load_checkpoint(small_base)
    text = np.fromfile(small_base / "training" / "train.tokens", "<u2")
    note_unseen_tokens(base, [[int(token)] for token in text])
    assert capsys.readouterr().err == ""
    size = base.config.vocab_size
    note_unseen_tokens(base, [[*range(size)]])
    assert f"{1 - len(np.unique(text)) / size:.1%} of the tokens" in capsys.readouterr().err


# --- records that do not fit --------------------------------------------------------------------


def test_too_long_records_are_named_once_and_left_out(
    small_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = records()
    content[4]["completion"] = content[11]["prompt"] = "word " * 70
    data = write_questions(tmp_path / "q.jsonl", content)
    result = instruct(small_base, data, tmp_path / "out")
    note = capsys.readouterr().err
    assert note.count("are longer than the context of 64 tokens") == 1
    assert f"2 of 20 records of {data}" in note
    assert "(line 5; line 12)" in note
    assert sum(result.n_records) == 18
    assert (tmp_path / "out").exists()


def test_several_turns_are_learnt(small_base: Path, tmp_path: Path) -> None:
    chat = [
        {
            "messages": [
                {"role": "user", "content": f"Hi {n}"},
                {"role": "assistant", "content": "Yes"},
                {"role": "user", "content": "So?"},
                {"role": "assistant", "content": "No"},
            ]
        }
        for n in range(6)
    ]
    data = write_questions(tmp_path / "chat.jsonl", chat)
    result = instruct(small_base, data, tmp_path / "out")
    assert [given.wanted for given in result.answers] == ["No"]
    assert [given.question for given in result.answers] == ["So?"]


@pytest.mark.parametrize("tune", [finetune_instruct, finetune_classify, finetune_prefer])
def test_seed_of_none_is_the_default(
    tune: Callable[..., object], small_base: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="none"):  # the seed is taken before the records are read
        tune(small_base, tmp_path / "none", tmp_path / "out", training={"seed": None})
    assert seed_of({"seed": None}) == seed_of(None) == TrainingConfig().seed
    assert seed_of({"seed": 5}) == 5


@pytest.mark.parametrize(
    ("config", "training", "words"),
    [
        ({"qlora": "q4_0"}, {}, "qlora .*LoRA rank"),
        ({"split": (0.5, 0.2, 0.2)}, {}, r"split .*\(0\.5, 0\.2, 0\.2\)"),
        ({"split": (1.0, 0.0, 0.0)}, {}, "parts 1, 0, 0 .*positive"),
        ({}, {"batch_size": 0}, "batch_size .* 0$"),
        ({}, {"learning_rate": -1.0}, "learning_rate"),
        ({}, {"seed": -1}, "seed"),
        ({}, {"seed": "many"}, "training: seed .*integer"),
        ({}, {"stops": 3}, "stops"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_written(
    small_base: Path,
    questions: Path,
    tmp_path: Path,
    config: dict[str, Any],
    training: dict[str, Any],
    words: str,
) -> None:
    def run() -> None:
        changed = FinetuneConfig(**config)
        instruct(small_base, questions, tmp_path / "out", config=changed, training=training)

    with pytest.raises(ConfigError, match=words) as caught:
        run()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_damaged_base_is_refused_before_anything_is_written(
    small_base: Path, questions: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_base, base)
    (base / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json .*`model`.*`prompt_format`"):
        instruct(base, questions, tmp_path / "out")
    assert not (tmp_path / "out").exists()
