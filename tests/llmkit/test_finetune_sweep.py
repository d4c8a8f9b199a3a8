from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetune_runs import TRAINING
from rich.console import Console
from training_runs import snapshot

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.errors import ConfigError, DataError, LlmkitError
from llmkit.export.report.plots import save_figure
from llmkit.export.report.sweep import sweep_figure, sweep_table
from llmkit.finetuning import sweep as module
from llmkit.finetuning.config import FinetuneConfig
from llmkit.finetuning.instruct import finetune_instruct
from llmkit.finetuning.sweep import Sweep, SweepRow, sweep, variants
from llmkit.lora import LoRAConfig
from llmkit.modelfiles.prompt_format import USER_ASSISTANT

# --- variants -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["lora=8,16,full"], ["lora-8", "lora-16", "lora-full"]),
        (["lora=8, 16,8"], ["lora-8", "lora-16"]),
        (["qlora=q8_0,q4_0"], ["qlora-q8_0", "qlora-q4_0"]),
        (["mask-prompt"], ["mask-prompt-on", "mask-prompt-off"]),
        (["mask-prompt=off"], ["mask-prompt-off"]),
        (["unfreeze=head,1,all"], ["unfreeze-head", "unfreeze-1", "unfreeze-all"]),
        (["lora=4", "mask-prompt"], ["lora-4", "mask-prompt-on", "mask-prompt-off"]),
        ([], []),
    ],
)
def test_variants_are_read_in_order_and_each_once(texts: list[str], names: list[str]) -> None:
    assert [variant.name for variant in variants(texts)] == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lorra=8", "--sweep lorra=8: .*'lorra'.*'lora'"),
        ("", "unknown setting ''"),
        ("lora", "--sweep lora: .* lora=8,16"),
        ("lora=", "--sweep lora=: .*lora=8"),
        ("qlora", "--sweep qlora: .*qlora=q8_0,q4_0"),
        ("mask-prompt=yes", "mask-prompt=.*on.*off"),
        ("mask-prompt=on,,off", "mask-prompt=.*on.*off"),
    ],
)
def test_variants_that_cannot_be_read_are_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        variants([text])


def applied(text: str, **arguments: Any) -> dict[str, Any]:
    (variant,) = variants([text])
    return variant.applied(arguments)


def test_a_variant_changes_one_thing() -> None:
    given = FinetuneConfig(lora=LoRAConfig(rank=4, dropout=0.1, targets=("mlp.c_fc",)), epochs=2)
    other = {"data": Path("x"), "config": given}
    assert applied("mask-prompt=off", **other) == {**other, "mask_prompt": False}
    assert applied("mask-prompt=on", **other) == {**other, "mask_prompt": True}
    assert applied("unfreeze=2", **other) == {**other, "unfreeze": "2"}
    assert applied("lora=full", **other) == {**other, "config": replace(given, lora=None)}
    lora = LoRAConfig(rank=32, dropout=0.1, targets=("mlp.c_fc",))
    assert applied("lora=32", **other) == {**other, "config": replace(given, lora=lora)}
    assert lora.scale == LoRAConfig(rank=4).scale  # the ranks are compared, not the scales
    qlora = applied("qlora=int8", **other)["config"]
    assert (qlora.qlora, qlora.lora) == ("q8_0", given.lora)


def test_a_variant_of_no_settings_changes_the_usual_ones() -> None:
    assert applied("lora=8")["config"] == FinetuneConfig(lora=LoRAConfig(rank=8))
    expected = FinetuneConfig(lora=LoRAConfig(rank=16), qlora="q4_0")
    assert applied("qlora=q4_0")["config"] == expected


@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5", "", "²"])
def test_rank_that_is_none_is_refused_before_any_run(
    value: str, small_base: Path, questions: Path, tmp_path: Path
) -> None:
    chosen = variants([f"lora=2,{value},4"])
    with pytest.raises(ConfigError, match=f"--sweep lora={value}: "):
        sweep(finetune_instruct, chosen, tmp_path / "out", checkpoint=small_base, data=questions)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unfreeze=head", "--sweep unfreeze: .* qlora"),
        ("qlora=q4_O", "did you mean 'q4_0'"),
    ],
)
def test_variant_that_cannot_run_is_refused_before_any_run(
    text: str, words: str, small_base: Path, questions: Path, tmp_path: Path
) -> None:
    chosen = variants(["lora=2", text])
    with pytest.raises(LlmkitError, match=words):
        sweep(finetune_instruct, chosen, tmp_path / "out", checkpoint=small_base, data=questions)
    assert not (tmp_path / "out").exists()


# --- runs ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sweep_of_ranks_trains_each_and_a_second_one_only_reads(
    small_base: Path,
    questions: Path,
    tmp_path: Path,
    processes: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "get_context", lambda method: processes)
    arguments: dict[str, Any] = {
        "checkpoint": small_base,
        "data": questions,
        "prompt_format": USER_ASSISTANT,
        "training": TRAINING,
        "device": "cpu",
    }
    chosen = variants(["lora=1,4", "lora=full"])
    first = sweep(finetune_instruct, chosen, tmp_path / "out", **arguments)
    assert first.quality_name == "test loss (nats per token of the answers)"
    assert not first.higher_is_better
    assert [row.variant for row in first.rows] == ["lora-1", "lora-4", "lora-full"]
    one, four, full = first.rows
    assert one.n_trained * 4 == four.n_trained < full.n_trained == full.n_parameters
    assert all(row.peak_rss_bytes > 50e6 and row.elapsed_s > 0 for row in first.rows)
    for row, rank in zip(first.rows, (1, 4, None), strict=True):
        lora = load_checkpoint(Path(row.checkpoint)).lora
        assert (lora and lora.rank) == rank
    before = snapshot(tmp_path)
    second = sweep(finetune_instruct, chosen[:1], tmp_path / "out", **arguments)
    assert snapshot(tmp_path) == before
    assert second.rows == [replace(one, peak_rss_bytes=second.rows[0].peak_rss_bytes)]


@pytest.mark.slow
def test_error_of_a_variants_process_is_the_users(small_base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        sweep(
            finetune_instruct,
            variants(["mask-prompt"]),
            tmp_path / "out",
            checkpoint=small_base,
            data=tmp_path / "none.jsonl",
        )
    assert not (tmp_path / "out").exists()


# --- table and picture --------------------------------------------------------------------------

ROWS = [
    SweepRow("lora-8", 1.23456, 1000, 50_000, 123_000_000, 4.56, "out/lora-8"),
    SweepRow("lora-full", 0.98765, 50_000, 50_000, 456_000_000, 7.89, "out/lora-full"),
]


def shown(compared: Sweep) -> dict[str, list[str]]:
    """The table's cells by variant."""
    console = Console(file=io.StringIO(), width=200)
    console.print(sweep_table(compared))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert compared.quality_name in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    return {cells[0]: cells for cells in rows if cells}


def test_table_shows_every_variant_and_marks_the_best() -> None:
    cells = shown(Sweep("test loss", False, ROWS))
    assert list(cells) == ["lora-8", "lora-full"]
    assert cells["lora-8"] == ["lora-8", "1.2346", "1,000", "2.0%", "123", "4.6"]
    assert cells["lora-full"] == ["lora-full", "0.9877 *", "50,000", "100.0%", "456", "7.9"]
    higher = shown(Sweep("accuracy", True, ROWS))
    assert [higher[name][1] for name in higher] == ["1.2346 *", "0.9877"]


def test_figure_has_a_bar_for_every_number(tmp_path: Path) -> None:
    figure = sweep_figure(Sweep("test loss", False, ROWS))
    names = [axes.get_title() for axes in figure.axes]
    assert names == ["test loss", "trained parameters", "peak memory (MB)", "time (s)"]
    expected = [[1.23456, 0.98765], [1000, 50_000], [123.0, 456.0], [4.56, 7.89]]
    for axes, values in zip(figure.axes, expected, strict=True):
        assert [bar.get_width() for bar in axes.patches] == pytest.approx(values)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["lora-8", "lora-full"]
    assert figure.axes[1].get_xscale() == "log"
    save_figure(figure, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
