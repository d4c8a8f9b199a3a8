"""llmkit's model in lm-evaluation-harness against the exported folder in the harness's own `hf`."""

from __future__ import annotations

import json
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

from llmkit.data.tales import tales  # noqa: E402
from llmkit.data.tales_items import village_choices  # noqa: E402
from llmkit.errors import ConfigError  # noqa: E402
from llmkit.evaluation import harness  # noqa: E402
from llmkit.evaluation.harness import HarnessModel  # noqa: E402
from llmkit.export.convert import Export  # noqa: E402
from llmkit.export.to_hf import export_to_hf  # noqa: E402

CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ANSWERS = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["b", "."], "max_gen_toks": 12},
    "metric_list": [{"metric": "exact_match"}, {"metric": "bleu"}],
}
TEXTS = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("huggingface_hub.constants", "datasets.config"):
        monkeypatch.setattr(f"{name}.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    """Three of the harness's kinds of tasks, with data on disk."""
    folder = tmp_path_factory.mktemp("tasks")
    choices = [dict(vars(item)) for item in village_choices()[:20]]
    for number, choice in enumerate(choices[:5]):  # some lose their beginning
        choice["question"] = "the cat " * (6 + 4 * number) + choice["question"]
    records: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
        "choices": (CHOICES, choices),
        "answers": (
            ANSWERS,
            [
                {"question": tale[: 30 * n], "answer": tale[30 * n : 30 * n + 40]}
                for n, tale in enumerate(islice(tales(7), 12), start=1)
            ],
        ),
        "texts": (TEXTS, [{"text": text} for _, text in enumerate(islice(tales(3), 3))]),
    }
    for name, (task, documents) in records.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(map(json.dumps, documents)))
        files = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        dataset = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **dataset, **task}))
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "cli_evaluate", lambda: None)
    harness.main()


class Results:
    """The harness's scores and the model's responses, by task."""

    def __init__(self, tasks: TaskManager, model: str, **model_args: Any) -> None:
        names = ["choices", "answers", "texts"]
        found = lm_eval.simple_evaluate(
            model, model_args, names, task_manager=tasks, bootstrap_iters=0
        )
        self.scores = {
            task: {name: score for name, score in own.items() if isinstance(score, float)}
            for task, own in found["results"].items()
        }
        responses = {
            task: [response for sample in samples for response in sample["filtered_resps"]]
            for task, samples in found["samples"].items()
        }
        self.answers = responses["answers"]
        self.nats = [nats for nats, _ in responses["choices"]] + responses["texts"]
        self.greedy = [is_greedy for _, is_greedy in responses["choices"]]


@pytest.mark.usefixtures("_registered")
def test_scores_are_those_of_the_exported_folder(
    tasks: TaskManager, tiny_checkpoint: Path, tiny_export: Export, tmp_path: Path
) -> None:
    export_to_hf(tiny_checkpoint, tmp_path / "hf")
    folder = str(tmp_path / "hf")
    wanted = Results(tasks, "hf", pretrained=folder, device="cpu", dtype="float32", batch_size=8)
    assert {task: len(scores) for task, scores in wanted.scores.items()} == {
        "choices": 2, "answers": 2, "texts": 2,
    }  # fmt: skip
    assert len(set(wanted.answers)) > 3
    assert len(wanted.nats) == 83
    checkpoint = Results(tasks, "llmkit", path=str(tiny_checkpoint))
    f32 = Results(tasks, "llmkit", gguf=str(tiny_export.files[0].path))
    for found in (checkpoint, f32):
        assert found.answers == wanted.answers
        assert found.nats == pytest.approx(wanted.nats, abs=1e-2)
        assert found.greedy == wanted.greedy
        for task, scores in wanted.scores.items():
            assert found.scores[task] == pytest.approx(scores, rel=1e-4)


def asked(*args: object) -> Instance:
    return Instance("generate_until", {}, args, 0, metadata=("task", 0, 1))


def test_what_llmkit_cannot_do_is_refused(tiny_checkpoint: Path) -> None:
    model = HarnessModel(path=str(tiny_checkpoint))
    with pytest.raises(ConfigError, match=r"task.*do_sample"):
        model.generate_until([asked("Once", {"do_sample": True, "temperature": 0.8})])
    with pytest.raises(ConfigError, match=r"256.*64.*max_gen_toks"):
        model.generate_until([asked("Once", {"until": ["."]})])
    with pytest.raises(ConfigError, match="70"):
        model.loglikelihood([asked("Once", " a" * 70)])
    for arguments in ({}, {"path": "a", "gguf": "b"}):
        with pytest.raises(ConfigError, match=r"path=.*gguf="):
            HarnessModel(**arguments)


def test_lm_eval_finds_the_model_by_its_entry_point() -> None:
    (found,) = (one for one in entry_points(group="lm_eval.models") if one.name == "llmkit")
    assert found.load() is HarnessModel
