"""The report of a run, against the files and results that it is made of."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from llmkit.checkpoint.checkpoint import load_checkpoint
from llmkit.cli.main import main
from llmkit.errors import CheckpointError, ConfigError, GGUFError
from llmkit.evaluation.evaluate import Evaluation, ModelScores, Score, evaluate, keep_evaluation
from llmkit.evaluation.judge import WINS
from llmkit.export import compare as comparing
from llmkit.export.check import Check, Proof
from llmkit.export.compare import Comparison, compare
from llmkit.export.convert import Export
from llmkit.export.llamacpp.benchmark import Speed
from llmkit.export.report.markdown import code_block, markdown_table
from llmkit.export.results import RESULTS_FILE, kept_results
from llmkit.export.verify.proof_store import keep
from llmkit.report import collect as collecting
from llmkit.report.facts import RunReport
from llmkit.report.write import MARK, report

SPEED = Speed(1234.5, 67.8, 9_000_000)


@dataclass(frozen=True)
class Made:
    """A run with results of `evaluate` and `compare`, and a failed proof of one file."""

    run: Path
    files: list[Path]
    evaluation: Evaluation
    comparison: Comparison


@pytest.fixture(scope="module", autouse=True)
def no_benchmark() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (comparing, collecting):
            patch.setattr(module, "measure_speed", lambda path, n_prompt, n_generate, gpu=0: SPEED)
        yield


@pytest.fixture(scope="module")
def once(
    tiny_checkpoint: Path, tiny_export: Export, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    run = tmp_path_factory.mktemp("report") / "tiny"
    shutil.copytree(tiny_checkpoint, run, ignore=shutil.ignore_patterns(RESULTS_FILE))
    folder = run.with_name("tiny-export")
    folder.mkdir()
    files = [Path(shutil.copy(file.path, folder)) for file in tiny_export.files[-2:]]
    comparison = compare(run, files, max_tokens=128)
    evaluation = evaluate([run, files[1]], "village-pairs", limit=8)
    prove(run, files[0], passed=False)
    return Made(run, files, evaluation, comparison)


@pytest.fixture
def made(once: Made, tmp_path: Path) -> Made:
    """The same in other folders, where a test may change it."""
    shutil.copytree(once.run.parent, tmp_path, dirs_exist_ok=True)
    files = [tmp_path / "tiny-export" / file.name for file in once.files]
    return replace(once, run=tmp_path / "tiny", files=files)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prove(run: Path, file: Path, passed: bool) -> None:
    checks = [Check("metadata", True, ""), Check("logits", passed, "")]
    hashes = (sha256(file), "q8_0", checks, {}, sha256(run / "model.safetensors"))
    keep(Proof(passed, str(run), str(file), *hashes, "texts", {}, {}))


def test_the_report_has_what_the_commands_found(made: Made) -> None:
    run, files, evaluation, comparison = made.run, made.files, made.evaluation, made.comparison
    found, written = report(run)
    assert written == [run / "report.html", run / "report.md"]
    (stage,) = found.stages
    lines = (run / "training" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [m.val_loss for m in stage.metrics] == [json.loads(line)["val_loss"] for line in lines]
    assert Path(stage.state.sources["data"]).name == "tales.txt"
    assert [file.path for file in found.files] == list(map(str, files))
    assert [file.bytes for file in found.files] == [path.stat().st_size for path in files]
    assert [file.comparison for file in found.files] == comparison.rows
    assert found.comparison == comparison
    assert [file.checks for file in found.files] == [{"metadata": True, "logits": False}, {}]
    checkpoint, q4_0 = (model.scores["accuracy"] for model in evaluation.models)
    (scores,) = found.scores
    assert scores.scores == {"checkpoint": checkpoint, files[1].name: q4_0}
    assert len(found.samples) == 3
    missing = {one.command.split()[1] for one in found.missing if one.command}
    assert missing == {"verify", "evaluate"}  # of q4_0; of q8_0


def test_the_page_is_whole_and_the_card_is_one_for_hugging_face(made: Made) -> None:
    run, files, evaluation, comparison = made.run, made.files, made.evaluation, made.comparison
    report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    links = [source for source in sources if not source.startswith("data:image/png;base64,")]
    assert len(sources) - len(links) == 2  # the curves; size and quality
    assert [(run / link).resolve() for link in links] == [files[0].parent / "parity.json"]
    text = (run / "report.md").read_text(encoding="utf-8")
    for shown in (page, text):
        assert f"{comparison.rows[1].mean_kl:.2e}" in shown
        assert "✘ failed: logits" in shown
        assert "67.8" not in shown
        assert "68" in shown
    assert str(run.parent) not in text  # it may be published
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-generation"
    (result,) = card.data.eval_results
    assert result.metric_value == evaluation.models[0].scores["accuracy"].value


def change(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    content[-4] ^= 1
    weights.write_bytes(content)


def collected(run: Path, files: Sequence[Path] = ()) -> RunReport:
    return collecting.collect(load_checkpoint(run), files)


def test_results_and_proofs_of_other_weights_are_left_out(made: Made) -> None:
    run, files = made.run, made.files
    change(run / "model.safetensors")
    found = collected(run)
    assert all(file.comparison is None and not file.checks for file in found.files)
    (scores,) = found.scores  # the file is the same, but not what it was compared with
    assert set(scores.scores) == {files[1].name}
    assert scores.scores[files[1].name].difference is None


def test_win_rates_are_shown_from_the_side_of_the_run(made: Made, tmp_path: Path) -> None:
    def keep_win_rate(model: Path, against: Path) -> None:
        models = [ModelScores(str(model), {WINS: Score(0.75, (0.4, 0.9))}, {}, 0, None)]
        one = Evaluation("human", "q.json", 8, 0, None, False, models, against=str(against))
        keep_evaluation(one)

    run, q4_0, other = made.run, made.files[1], tmp_path / "polite"
    shutil.copytree(run, other)
    change(other / "model.safetensors")
    keep_win_rate(q4_0, run)
    keep_win_rate(other, run)
    rates = {one.measure: one.scores for one in collected(run).scores if one.task == "human"}
    assert list(rates) == [f"{WINS} against checkpoint", f"{WINS} against polite"]
    assert rates[f"{WINS} against checkpoint"] == {q4_0.name: Score(0.75, (0.4, 0.9))}
    (rate,) = rates[f"{WINS} against polite"].values()
    assert (rate.value, rate.interval) == (0.25, pytest.approx((0.1, 0.6)))
    (other / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes())
    left = [one.measure for one in collected(run).scores if one.task == "human"]
    assert left == [f"{WINS} against checkpoint"]


def test_results_are_kept_once_with_the_hashes_of_their_models(made: Made) -> None:
    (made.run / RESULTS_FILE).write_text("{", encoding="utf-8")  # is replaced
    for limit in (1, 2):
        evaluation = evaluate([made.run, made.files[1]], "village-pairs", limit=limit)
    (kept,) = kept_results(made.run, "evaluations", Evaluation)
    assert kept.result == evaluation
    assert kept.sha256 == {
        str(made.run): sha256(made.run / "model.safetensors"),
        str(made.files[1]): sha256(made.files[1]),
    }


def test_a_fine_tuned_run_shows_its_base(made: Made, tmp_path: Path) -> None:
    run = made.run
    state = json.loads((run / "training" / "state.json").read_text(encoding="utf-8"))
    tuned = tmp_path / "tuned"
    shutil.copytree(run, tuned)
    settings = state["settings"] | {"base": sha256(run / "model.safetensors"), "kind": "instruct"}
    changed = state | {"settings": settings, "sources": {"data": "q.json", "base": "moved/tiny"}}
    (tuned / "training" / "state.json").write_text(json.dumps(changed), encoding="utf-8")
    record = {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant"}]}
    (tuned / "training" / "held_out.jsonl").write_text(json.dumps(record), encoding="utf-8")
    found = collected(tuned)
    assert [stage.name for stage in found.stages] == ["tiny", "tuned"]
    assert [sample.prompt for sample in found.samples] == ["Who?"]
    shutil.rmtree(run)
    found = collected(tuned)
    assert [stage.name for stage in found.stages] == ["tuned"]
    assert "moved/tiny" in " ".join(one.what for one in found.missing)


def test_a_kept_checkpoint_is_told_as_a_part_of_its_run(made: Made) -> None:
    kept = made.run / "training" / "saves" / "20"
    found = collected(kept)
    (stage,) = found.stages
    assert (stage.name, stage.metrics[-1].step) == ("tiny", 20)
    assert found.name == "tiny-20"
    (export,) = [one.command for one in found.missing if "no GGUF" in one.what]
    assert f"export {kept} --out {made.run}-20-export" in str(export)
    files = made.run.with_name("tiny-20-export")
    files.mkdir()
    shutil.copy(made.files[0], files)
    assert [file.path for file in collected(kept).files] == [str(files / made.files[0].name)]


def test_files_of_the_same_name_are_told_apart_and_copies_shown_once(made: Made) -> None:
    other = made.run / "other"
    other.mkdir()
    shutil.copy(made.files[1], other / "copy.gguf")
    shutil.copy(made.files[0], other / made.files[1].name)
    given = [*made.files, *other.iterdir(), made.files[0]]
    found = collected(made.run, given)
    assert [file.name for file in found.files] == [path.name for path in made.files]
    found = collected(made.run, [other / made.files[1].name, made.files[1]])
    assert {file.name for file in found.files} == {
        f"{path.parent.name}/{path.name}" for path in (other / made.files[1].name, made.files[1])
    }


def test_damaged_and_missing_parts_are_named(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    run, files = made.run, made.files
    (run / "training" / "metrics.jsonl").write_text('{"step": 1}\n', encoding="utf-8")
    (run / RESULTS_FILE).write_text('{"evaluations": [{"sha256": 3}]}', encoding="utf-8")
    (run / "training" / "validation.tokens").unlink()
    files[0].write_bytes(files[0].read_bytes()[:1000])
    assert main(["report", str(run), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [file["name"] for file in found["files"]] == [files[1].name]
    said = " ".join(one["what"] for one in found["missing"])
    for name in ("metrics.jsonl", RESULTS_FILE, files[0].name, files[1].name):
        assert name in said
    assert len(found["samples"]) == 3  # from tales


def test_what_is_no_run_is_an_error_that_names_the_run(made: Made, tmp_path: Path) -> None:
    run, files = made.run, made.files
    prove(run, files[0], passed=True)
    for path in (files[0], files[0].parent, tmp_path):
        with pytest.raises(CheckpointError, match=re.escape(str(run))):
            report(path)
    with pytest.raises(GGUFError, match=r"none\.gguf"):
        report(run, "none.gguf")
    (run / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        report(run)


def test_only_a_report_is_replaced(made: Made, tmp_path: Path) -> None:
    run = made.run
    notes = tmp_path / "notes.md"
    notes.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"notes\.md"):
        report(run, out=notes)
    assert notes.read_text(encoding="utf-8") == "mine"
    with pytest.raises(ConfigError, match=r"x\.pdf"):
        report(run, out=tmp_path / "x.pdf")
    page = tmp_path / "new" / "page.html"
    page.parent.mkdir()
    page.write_text(f"old {MARK}", encoding="utf-8")
    assert report(run, out=page)[1] == [page]
    assert "old" not in page.read_text(encoding="utf-8")[:4]
    assert not (run / "report.md").exists()


def test_text_in_markdown_stays_text() -> None:
    assert markdown_table(("a|b",), [("<b>`x`\n",)]) == "| a\\|b |\n| --- |\n| \\<b>\\`x\\`  |"
    assert code_block("text", "~~~~").splitlines() == ["~~~~~text", "~~~~", "~~~~~"]
