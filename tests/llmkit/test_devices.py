"""Training and fine-tuning on devices that this machine lacks: a fake CUDA GPU and a fake MPS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training_runs
from fake_device import FAKES, OnDevice, fake_device
from finetune_runs import KINDS, TRAINING, instruct
from numpy.typing import NDArray
from torch.nn import functional as F

from llmkit.architectures.base import LanguageModel
from llmkit.batch_generation import ModelBatch, generate_batch
from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.device import choose_device
from llmkit.errors import ConfigError
from llmkit.export.convert import export
from llmkit.export.doctor.machine import torch_check
from llmkit.export.llamacpp.checkpoint_runner import CheckpointRunner
from llmkit.export.llamacpp.inside import inside
from llmkit.export.quantization.config import QuantConfig
from llmkit.export.quantization.imatrix import collect_importance
from llmkit.finetuning import instruct as finetuning_instruct
from llmkit.finetuning.classify import finetune_classify
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.distill import finetune_distill
from llmkit.finetuning.prefer import finetune_prefer
from llmkit.generation import generate_ids
from llmkit.interpret import nearest_embeddings
from llmkit.sampling import Sampling
from llmkit.training import pretraining
from llmkit.training.loop import TrainingLoop

step = TrainingLoop.step


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda x: x + torch.ones(2), RuntimeError),
        (lambda x: torch.stack([x, torch.ones(2)]), RuntimeError),
        (lambda x: F.embedding(torch.tensor([0]), x[:, None]), RuntimeError),
        (lambda x: x.numpy(), TypeError),
        (lambda x: torch.rand(2, generator=torch.Generator(), device=x.device), RuntimeError),
        (lambda x: x.double(), TypeError),
    ],
)
def test_the_fake_device_refuses_what_a_real_one_refuses(spoil: Any, error: type) -> None:
    with fake_device("mps"):
        x = torch.zeros(2, device="mps")
        assert x.device.type == "mps"
        torch.testing.assert_close(x.cpu(), torch.zeros(2))
        with pytest.raises(error):
            spoil(x)


@pytest.mark.parametrize(
    ("read", "n"),
    [
        (lambda x: float(x[0]), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.tolist(), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: torch.ones(2).to(x.device, non_blocking=True), 1),
        (lambda x: torch.tensor([1.0], device=x.device), 1),
        (lambda x: torch.ones(2).pin_memory().to(x.device, non_blocking=True), 0),
        (lambda x: x.sum() + x.softmax(0), 0),
    ],
)
def test_the_fake_device_counts_what_waits_for_it(read: Any, n: int) -> None:
    with fake_device("cuda"):
        x = torch.zeros(2, device="cuda")
        before = OnDevice.waits
        read(x)
        assert OnDevice.waits - before == n


SHORT: dict[str, Any] = {"steps": 4, "eval_interval": 2, "micro_batch": 3, "optimizer": "muon"}


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 on the CPU, with samples and answers of a few tokens."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(pretraining, "SAMPLE_TOKENS", 2)
    monkeypatch.setattr(finetuning_instruct, "SAMPLE_TOKENS", 2)
    of = finetuning_instruct.answers
    short = {"max_tokens": 2}
    monkeypatch.setattr(finetuning_instruct, "answers", lambda *a, **k: of(*a[:4], **k | short))


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("name", FAKES)
def test_an_interrupted_training_is_what_it_is_on_the_cpu(
    name: str, short_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {**SHORT, "activation_checkpointing": True}
    training_runs.run(short_text, tmp_path / "cpu", training=training)

    def interrupted(loop: TrainingLoop, number: int) -> torch.Tensor:
        if number == 3:
            raise KeyboardInterrupt
        return step(loop, number)

    with fake_device(name) as device:
        monkeypatch.setattr(TrainingLoop, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            training_runs.run(short_text, tmp_path / "out", training=training, device=device)
        monkeypatch.setattr(TrainingLoop, "step", step)
        training_runs.run(
            short_text, tmp_path / "out", training=training, device=device, resume=True
        )
    tolerance = 5e-3 if "bfloat16" in name else 1e-4
    runs = (training_runs.metrics(tmp_path / run) for run in ("out", "cpu"))
    for found, wanted in zip(*runs, strict=True):
        for number in ("train_loss", "val_loss", "grad_norm"):
            assert found[number] == pytest.approx(wanted[number], rel=tolerance)
    saved, wanted = (load_checkpoint(tmp_path / run).load_model() for run in ("out", "cpu"))
    ids = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(saved(ids), wanted(ids), rtol=0, atol=100 * tolerance)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labelled") / "texts.jsonl"
    records = [{"text": f"the {'fox' * (n % 3)} of {n}", "label": "ab"[n % 2]} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def preferred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preferred") / "pairs.jsonl"
    records = [
        {"prompt": f"Where is {n}?", "chosen": " Here." * (1 + n % 2), "rejected": " There."}
        for n in range(20)
    ]
    path.write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return path


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize(
    ("task", "name"),
    [
        *((task, FAKES[0]) for task in ("train", *KINDS, "classify", "prefer", "distill")),
        *((task, "mps") for task in ("lora", "classify", "prefer", "distill")),
    ],
)
def test_a_step_does_not_wait_for_the_device(
    task: str,
    name: str,
    small_base: Path,
    short_text: Path,
    questions: Path,
    labelled: Path,
    preferred: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is every loss read. The losses are those of the CPU."""
    waits: list[int] = []
    losses: list[torch.Tensor] = []

    def watched(loop: TrainingLoop, number: int) -> torch.Tensor:
        waits.append(OnDevice.waits)
        losses.append(step(loop, number))
        waits.append(OnDevice.waits)
        return losses[-1]

    monkeypatch.setattr(TrainingLoop, "step", watched)
    training = {**TRAINING, "steps": 3}  # with one evaluation, at the end
    pretrained = {**SHORT, "eval_interval": 4}

    def run(device: str) -> Any:
        out = tmp_path / device
        same: dict[str, Any] = {"training": training, "device": device}
        if task == "train":
            return training_runs.run(short_text, out, training=pretrained, device=device)
        if task == "classify":
            config = FinetuneConfig(add_tokens=True)
            return finetune_classify(small_base, labelled, out, config=config, **same)
        if task == "prefer":
            return finetune_prefer(small_base, preferred, out, **same)
        if task == "distill":
            return finetune_distill(small_base, out, qat="q4_0", **same)
        return instruct(small_base, questions, out, config=KINDS[task], **same)

    run("cpu")
    on_cpu = [float(loss) for loss in losses]
    waits.clear()
    losses.clear()
    with fake_device(name) as device:
        result = run(device)
        assert {loss.device.type for loss in losses} == {device}
        tolerance = 2e-2 if "bfloat16" in name else 1e-4
        assert [float(loss) for loss in losses] == pytest.approx(on_cpu, rel=tolerance, abs=1e-6)
    load_checkpoint(result.checkpoint).load_model()
    if device == "cuda" and task != "qlora":  # whose blocks NumPy unpacks
        # The loss and norm of the first step are shown at once.
        assert waits[1] + 2 == waits[2] == waits[-1]


@pytest.mark.parametrize("name", FAKES)
def test_answers_are_those_of_the_cpu(name: str, small_base: Path) -> None:
    checkpoint = load_checkpoint(small_base)
    prompts, sampling = [[5, 6, 7], [8], [9, 10]], Sampling(temperature=0, max_tokens=4)

    def answers(model: LanguageModel) -> Any:
        runner = CheckpointRunner(checkpoint, model)
        return (
            list(generate_ids(model, prompts[0], sampling, ())),
            generate_batch(ModelBatch(model), prompts, sampling, lambda _: False),
            [logits.argmax(-1).tolist() for logits in runner.branches([5, 6], [[7, 8], [9]])],
            inside(runner, model, [5, 6, 7], 2).attention.shape,
            [near for near, _ in nearest_embeddings(model, 5, 3)],
        )

    on_cpu = answers(checkpoint.load_model())
    with fake_device(name):
        model = checkpoint.load_model(choose_device())
        assert model.device.type in name
        assert answers(model) == on_cpu


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_an_export_with_what_text_calibrates_is_that_of_the_cpu(
    name: str, small_base: Path, tmp_path: Path
) -> None:
    """MPS has no float64, so the CPU computes there."""

    def made(out: Path) -> tuple[bytes, NDArray[np.float32]]:
        config = QuantConfig(("q4_0",), method="gptq", calibration=text)
        done = export(small_base, out, config, prove=False)
        sums = collect_importance(load_checkpoint(small_base).load_model(choose_device()), ids, "")
        return done.files[0].path.read_bytes(), sums.statistics["blk.0.ffn_down.weight"].in_sum2

    text = tmp_path / "text.txt"
    text.write_text("Once there was a hen. " * 20)
    ids = torch.arange(128).view(2, 64)
    blocks, importances = made(tmp_path / "cpu")
    with fake_device(name):
        on_device = made(tmp_path / name)
    assert on_device[0] == blocks
    np.testing.assert_allclose(on_device[1], importances, rtol=1e-4)


def test_doctor_names_the_gpu() -> None:
    with fake_device("cuda"):
        assert "a fake GPU" in torch_check().detail
    with fake_device("mps"):
        assert "mps" in torch_check().detail


def test_a_device_that_is_not_there_is_refused() -> None:
    with fake_device("mps"), pytest.raises(ConfigError):
        choose_device("cuda")
