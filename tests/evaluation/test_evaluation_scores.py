"""Log-probabilities and scores against independent computations."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.cli.main import main
from llmkit.data.tales_items import village_choices, village_pairs
from llmkit.errors import ConfigError, DataError
from llmkit.evaluation import evaluate as evaluate_module
from llmkit.evaluation.evaluate import evaluate
from llmkit.evaluation.items import Document
from llmkit.evaluation.models import Continuation, Model, open_model
from llmkit.evaluation.tasks import BLOCK, f1, score_document, words
from llmkit.export.convert import Export
from llmkit.export.llamacpp.checkpoint_runner import CheckpointRunner
from llmkit.export.llamacpp.runners import answer_text
from llmkit.export.to_hf import export_to_hf
from llmkit.sampling import Sampling
from llmkit.training import train


class Transformers:
    """The exported folder in Hugging Face's library."""

    def __init__(self, folder: Path) -> None:
        self.model = GPT2LMHeadModel.from_pretrained(folder).eval()
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    @torch.inference_mode()
    def log_probabilities(self, prefix: list[int], ids: list[int]) -> torch.Tensor:
        logits = self.model(torch.tensor([[*prefix, *ids[:-1]]])).logits[0, len(prefix) - 1 :]
        return logits.double().log_softmax(-1)[range(len(ids)), ids]

    def continuation(self, context: str, option: str) -> float:
        ids = self.tokenizer(context)["input_ids"]
        whole = self.tokenizer(f"{context} {option}" if context else option)["input_ids"]
        prefix = ids or [self.tokenizer.eos_token_id]
        return float(self.log_probabilities(prefix, whole[len(ids) :]).sum())


@pytest.fixture(scope="module")
def hf(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Transformers:
    folder = tmp_path_factory.mktemp("hf") / "hf"
    export_to_hf(tiny_checkpoint, folder)
    return Transformers(folder)


@pytest.fixture(scope="module")
def models(tiny_checkpoint: Path, tiny_export: Export) -> Iterator[list[Model]]:
    """The checkpoint and its f32 file."""
    with (
        open_model(str(tiny_checkpoint)) as checkpoint,
        open_model(str(tiny_export.files[0].path)) as file,
    ):
        assert isinstance(checkpoint, Model)
        assert isinstance(file, Model)
        yield [checkpoint, file]


ASKED: list[tuple[str, Sequence[str]]] = [
    *((item.question, item.options) for item in village_choices()[:30]),
    *(("", (pair.good, pair.bad)) for pair in village_pairs()[:30]),
    ("Question: where?\nAnswer:", "ABCD"),
    ("Once there was", [str(number) for number in range(70)]),  # more than llama.cpp's sequences
    ("a " * 62, ["b"]),
]


def test_checkpoint_file_and_transformers_agree(models: list[Model], hf: Transformers) -> None:
    for context, options in ASKED:
        wanted = [hf.continuation(context.strip(), option) for option in options]
        for model in models:
            found = model.continuations(context.strip(), options)
            assert found is not None
            assert [one.log_probability for one in found] == pytest.approx(wanted, abs=1e-3)


def test_options_that_fill_the_context_together_are_computed_all(
    models: list[Model], hf: Transformers
) -> None:
    context, options = "the cat " * 5 + "the", [f"{'dog ' * n}end" for n in (4, 9, 2, 7, 8, 9, 10)]
    wanted = [hf.continuation(context, option) for option in options]
    for model in models:
        found = model.continuations(context, options) or []
        assert [one.log_probability for one in found] == pytest.approx(wanted, abs=1e-3)


def test_what_does_not_fit_the_context_has_no_score(models: list[Model]) -> None:
    for model in models:
        length = model.runner.context_length
        assert model.continuations(" ".join("a" * length), ["b"]) is not None
        assert model.continuations(" ".join("a" * (length + 1)), ["b"]) is None


def test_greedy_means_each_token_is_the_most_probable(models: list[Model]) -> None:
    for model in models:
        prompt = model.runner.begun(model.runner.encode("Once there was"))
        ids: list[int] = []
        for _ in range(3):
            (logits,) = model.runner.branches([*prompt, *ids], [[0]])
            ids.append(int(logits.argmax()))
        for last, is_greedy in ((ids[-1], True), ((ids[-1] + 1) % 512, False)):
            found = evaluate_greedy(model, prompt, [*ids[:-1], last])
            assert found is is_greedy


def test_prompts_together_are_continued_as_each_alone(models: list[Model]) -> None:
    texts = [
        "Once",
        "Once there was a cat who",
        "Berta",
        "the cat " * 6,
        "a" * 50,
    ]  # not all at once
    for model in models:
        runner = model.runner
        prompts = [runner.encode(text) for text in texts]
        for sampling in (
            Sampling(temperature=0, max_tokens=9),
            Sampling(temperature=0, max_tokens=9, stop=(" ", "a")),
            Sampling(temperature=1.0, max_tokens=9, seed=4, repeat_penalty=1.3),
            Sampling(temperature=0),
        ):
            wanted = ["".join(answer_text(runner, prompt, sampling)) for prompt in prompts]
            assert runner.answers(prompts, sampling) == wanted
            assert len(set(wanted)) > 1


def evaluate_greedy(model: Model, prompt: list[int], ids: list[int]) -> bool:
    from llmkit.evaluation.models import _continuation

    (logits,) = model.runner.branches(prompt, [ids])
    return _continuation(logits, ids).is_greedy


def test_bits_of_a_long_text_are_those_of_its_windows(
    models: list[Model], hf: Transformers, corpus: Path
) -> None:
    text = corpus.read_text()[:3000].replace("<|endoftext|>", "\n")
    ids, length = hf.tokenizer(text)["input_ids"], 64
    starts = range(0, len(ids), length)
    windows = [ids[start : start + length] for start in starts]
    before = [[hf.tokenizer.eos_token_id], *([window[-1]] for window in windows[:-1])]
    nats = torch.cat(
        [hf.log_probabilities(*one) for one in zip(before, windows, strict=True)]
    ).sum()
    for model in models:
        found = model.bits(text)
        assert sum(bits for _, bits in found) == pytest.approx(-float(nats) / math.log(2), abs=1e-2)
        pieces = [hf.tokenizer.decode([token]) for token in ids]
        assert [start for start, _ in found][:5] == [len("".join(pieces[:n])) for n in range(5)]


def test_bits_per_byte_is_over_all_bytes(
    tiny_checkpoint: Path, models: list[Model], tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once there was a baker. " * 100 + "é")
    found = evaluate(tiny_checkpoint, text)
    assert found.task == "perplexity"
    n_bytes = len(text.read_bytes())
    assert found.items == -(-n_bytes // BLOCK) == 3
    tokens = models[0].bits(text.read_text())
    bits = sum(bits for _, bits in tokens)
    blocks = score_document(models[0], Document("", text.read_text()))
    assert [block.weight for block in blocks] == [1024, 1024, n_bytes - 2048]
    for number, block in enumerate(blocks):
        own = [bits for start, bits in tokens if number * 1024 <= start < (number + 1) * 1024]
        assert block.values["bits per byte"] == pytest.approx(sum(own))
    score = found.models[0].scores["bits per byte"]
    assert score.value == pytest.approx(bits / n_bytes, rel=1e-6)
    assert score.interval is not None
    assert score.interval[0] < score.value < score.interval[1]


class Scripted(Model):
    """A model that finds texts with one word most probable."""

    def __init__(self, favourite: str) -> None:
        super().__init__(favourite, None)  # type: ignore[arg-type]

    @property
    def is_classifier(self) -> bool:
        return False

    def continuations(
        self, context: str, options: Sequence[str], *, is_question: bool = False
    ) -> list[Continuation] | None:
        if "too long" in context:
            return None
        return [
            Continuation(-1.0 if self.name in option.split() else -2.0, self.name in option.split())
            for option in options
        ]

    def answers(self, questions: Sequence[str], max_tokens: int = 0) -> list[str | None]:
        return [f"It is the {self.name}."] * len(questions)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(name: str, _backend: str) -> Iterator[Model]:
        yield Scripted(name)

    monkeypatch.setattr(evaluate_module, "open_model", opened)


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.mark.usefixtures("scripted")
def test_hand_made_pairs_score_as_counted(tmp_path: Path) -> None:
    goods = ["x one", "x two", "y three", "z four"]
    path = jsonl(
        tmp_path / "pairs.jsonl",
        [
            {"sentence_good": good, "sentence_bad": f"y {number}", "UID": f"g{number % 2}"}
            for number, good in enumerate(goods)
        ],
    )
    found = evaluate(["x", "y", "z"], path)
    assert (found.task, found.items, found.chance) == ("pairs", 4, 0.5)
    accuracies = [model.scores["accuracy"] for model in found.models]
    # Equal options are a tie, and the first one is taken.
    assert [score.value for score in accuracies] == [1.0, 0.25, 1.0]
    assert [score.difference for score in accuracies] == [None, -0.75, 0.0]
    assert [model.ties for model in found.models] == [2, 1, 3]
    assert {g: s["accuracy"].value for g, s in found.models[1].groups.items()} == {
        "g0": 0.5,
        "g1": 0.0,
    }


@pytest.mark.usefixtures("scripted")
def test_normalised_is_per_character(tmp_path: Path) -> None:
    record = {"goal": "eat", "sol1": "x", "sol2": "a much longer way of eating", "label": 1}
    found = evaluate("x", jsonl(tmp_path / "p.jsonl", [record])).models[0].scores
    assert {name: score.value for name, score in found.items()} == {
        "accuracy": 0.0,
        "normalised": 1.0,
    }


@pytest.mark.usefixtures("scripted")
def test_too_long_items_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"text": "the too long x"}, {"text": "the end x"}, {"text": "the end y"}]
    path = jsonl(tmp_path / "lambada.jsonl", records)
    found = evaluate("x", "lambada", data=path)
    assert (found.items, found.left_out) == (2, 1)
    assert found.models[0].scores["accuracy"].value == 0.5
    assert "line 1" in capsys.readouterr().err
    with pytest.raises(DataError, match="line 1"):
        evaluate("x", "lambada", data=jsonl(path, records[:1]))


def test_examples_are_cut_where_the_context_is_short(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x_dev.csv").write_text("1?,a,b,c,d,A\n2?,e,f,g,h,B\n")
    (tmp_path / "x_test.csv").write_text(f"3?,i,j,k,l,C\n{'4 ' * 40}?,m,n,o,p,D\n")
    evaluate(tiny_checkpoint, "mmlu", data=tmp_path)
    # The second question does not even fit without examples.
    assert capsys.readouterr().err.count("1 of 2") == 1
    found = evaluate(tiny_checkpoint, "mmlu", data=tmp_path, shots=2)
    assert (found.items, found.shots) == (1, 2)
    said = capsys.readouterr().err
    assert said.count("1 of 2") == 2
    assert "x_test.csv, line 2" in said
    with pytest.raises(ConfigError, match=r"mmlu.*--shots.*pairs"):
        evaluate(tiny_checkpoint, "village-pairs", shots=2)


def test_a_prefix_that_is_shared_changes_no_score(models: list[Model], hf: Transformers) -> None:
    asked = [("Once there was a cat", ["who", "in"]), ("Once there was a dog", ["who sat"])]
    asked += [("Once there", ["was"]), ("Once there was a dog", ["who sat", "in"]), ("Who", ["a"])]
    for model in models:
        for context, options in asked:
            wanted = [hf.continuation(context, option) for option in options]
            found = model.continuations(context, options) or []
            assert [one.log_probability for one in found] == pytest.approx(wanted, abs=1e-3)


@pytest.mark.usefixtures("scripted")
def test_classification_counts_what_was_taken_for_what(tmp_path: Path) -> None:
    path = tmp_path / "spam.tsv"
    path.write_text("label\ttext\nham\ta\nham\tb\nspam\tc\nham\td\n")
    found = evaluate("spam", path)
    assert found.task == "classify"
    confusion = found.models[0].confusion
    assert confusion is not None
    assert (confusion.labels, confusion.counts) == (("ham", "spam"), [[0, 3], [0, 1]])
    ham, spam = confusion.per_label
    assert (ham.precision, ham.recall, spam.precision, spam.recall) == (None, 0.0, 0.25, 1.0)


@pytest.mark.usefixtures("scripted")
def test_answers_are_compared_word_by_word(tmp_path: Path) -> None:
    records = [
        {"instruction": "what?", "output": "It is a cat!"},
        {"instruction": "which?", "output": "cat and dog"},
    ]
    path = jsonl(tmp_path / "answers.jsonl", records)
    scores = evaluate("cat", path).models[0].scores
    assert scores["exact match"].value == 0.5
    assert scores["F1"].value == pytest.approx((1 + 2 / 6) / 2)


def test_words_and_f1_are_squads() -> None:
    assert words("The  Cat's, a hat!") == ["cats", "hat"]
    assert f1(["a", "b", "b"], ["b", "b", "c"]) == pytest.approx(2 / 3)
    assert (f1([], []), f1(["a"], []), f1(["a"], ["b"])) == (1.0, 0.0, 0.0)


def test_a_limit_draws_the_same_items_for_all(tiny_checkpoint: Path) -> None:
    found = evaluate([tiny_checkpoint, tiny_checkpoint], "village-choices", limit=20)
    score = found.models[1].scores["accuracy"]
    assert (found.items, found.chance, score.difference) == (20, 0.25, 0.0)


def test_planted_knowledge_is_found_and_the_rest_is_at_chance(tmp_path: Path) -> None:
    """Trained on the answers of half of the items."""
    rng, names = Random(0), [a + b for a in "BDFGKLMN" for b in "aeiou"]
    facts = [(name, *rng.sample(["red", "blue"], 2)) for name in names]
    known, unknown = facts[::2], facts[1::2]
    text = tmp_path / "text.txt"
    text.write_text(
        "<|endoftext|>".join([f"{name} likes {good}." for name, good, _ in known] * 200)
    )
    model = {"n_layer": 2, "n_head": 2, "n_embd": 64, "context_length": 16}
    steps = {"steps": 60, "batch_size": 32, "eval_interval": 60, "learning_rate": 0.02}
    train(text, tmp_path / "run", vocab_size=320, model=model, training=steps)
    scores = []
    for part in (known, unknown):
        records = [
            {"sentence_good": f"{name} likes {good}.", "sentence_bad": f"{name} likes {bad}."}
            for name, good, bad in part
        ]
        found = evaluate(tmp_path / "run", jsonl(tmp_path / "pairs.jsonl", records))
        scores.append(found.models[0].scores["accuracy"])
    assert scores[0].value >= 0.9
    assert scores[1].interval is not None
    assert scores[1].interval[0] < 0.5 < scores[1].interval[1]


def test_random_weights_are_at_chance(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    weights = checkpoint.load_model()
    torch.manual_seed(0)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model = Model("random", CheckpointRunner(checkpoint, weights))
    monkeypatch.setattr(evaluate_module, "open_model", lambda *_: nullcontext(model))
    found = evaluate("random", "village-choices")
    interval = found.models[0].scores["accuracy"].interval
    assert found.chance is not None
    assert interval is not None
    assert interval[0] < found.chance < interval[1]


def test_ollama_is_refused_where_log_probabilities_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llmkit.evaluation.models import OllamaModel

    @contextmanager
    def opened(name: str, _backend: str) -> Iterator[OllamaModel]:
        yield OllamaModel(name, None)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate_module, "open_model", opened)
    with pytest.raises(ConfigError, match="ollama:tales"):
        evaluate("ollama:tales", "village-pairs")


def test_the_command_prints_tables_plots_and_json(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.svg"
    asked = ["evaluate", str(tiny_checkpoint), "--task", "village-pairs", "--limit", "12"]
    assert main([*asked, "--plot", str(plot)]) == 0
    assert "12 items" in capsys.readouterr().out
    assert "chance" in plot.read_text()
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["items"] == 12
    assert main(["evaluate", str(tiny_checkpoint), "--task", "hellaswagg"]) == 2
    assert "hellaswag" in capsys.readouterr().err
