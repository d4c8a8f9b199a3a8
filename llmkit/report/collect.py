"""What is known about a run: training, files, scores, proofs, samples, and what is missing."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ParamSpec, TypeVar

import gguf

from llmkit.architectures.base import LanguageModel
from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.checkpoint.layout import CONFIG_FILE, run_of_kept
from llmkit.console import command, progress
from llmkit.device import choose_device
from llmkit.errors import CheckpointError, LlmkitError
from llmkit.evaluation.evaluate import Evaluation
from llmkit.evaluation.tables import short_names
from llmkit.evaluation.tasks import TASKS
from llmkit.export.compare import Comparison, ComparisonRow
from llmkit.export.evaluation.eval_data import proof_prompts
from llmkit.export.gguf.adapter import adapter_of, is_adapter
from llmkit.export.gguf.reader import GGUFFile, is_gguf, load_folder, read_gguf
from llmkit.export.llamacpp.benchmark import measure_speed
from llmkit.export.llamacpp.checkpoint_runner import CheckpointRunner
from llmkit.export.model_card import model_facts
from llmkit.export.results import KeptResult, Kind, kept_results
from llmkit.export.verify.proof_store import PROOF_FILE, kept_proof
from llmkit.finetuning.held_out import held_out_questions
from llmkit.report.facts import (
    CHECKPOINT,
    FileFacts,
    Missing,
    RunReport,
    Sample,
    Stage,
    TaskScores,
)
from llmkit.report.scores import task_scores
from llmkit.sampling import Sampling
from llmkit.training.run_folder import RunFolder
from llmkit.training.run_state import RunState

SPEED_TOKENS = 64
N_SAMPLES, SAMPLE_TOKENS = 3, 96
TEXT_SAMPLING = Sampling(temperature=0.8, top_k=40, max_tokens=SAMPLE_TOKENS)
ANSWER_SAMPLING = Sampling(temperature=0, max_tokens=SAMPLE_TOKENS)
T = TypeVar("T")
P = ParamSpec("P")


def collect(checkpoint: Checkpoint, ggufs: Sequence[Path] = ()) -> RunReport:
    """Collect what is known about a checkpoint's run; measure speed and generate samples.

    `ggufs`: its files; by default those in its folder and in FOLDER-export, and verified ones in
    folders beside it.

    Raises LlmkitError for damaged weights and for damaged files in `ggufs`. Other parts that are
    missing or damaged are named in `missing`.
    """
    files = [read_gguf(path) for path in dict.fromkeys(ggufs)]
    return _Collector(checkpoint).report(files)


def open_run(folder: Path) -> Checkpoint:
    """The checkpoint. For a GGUF file or the folder above it, the error names the checkpoint."""
    if is_gguf(folder):
        run = (kept_proof(folder) or {}).get("checkpoint", "RUN")
        raise CheckpointError(
            f"{folder} is a GGUF file; give the checkpoint it was exported from: "
            f"{command('report', run, folder)}"
        )
    if folder.is_dir() and not (folder / CONFIG_FILE).exists():
        proofs = [kept_proof(path) or {} for path in folder.glob("*.gguf")]
        made_of = {str(proof["checkpoint"]) for proof in proofs if "checkpoint" in proof}
        if made_of:
            found = " or ".join(sorted(made_of))
            raise CheckpointError(f"{folder} is not a checkpoint; give {found}")
    return load_folder(folder)


class _Collector:
    """Collects the parts, and what is missing."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.folder = checkpoint, checkpoint.folder
        self.missing: list[Missing] = []
        kept_by = run_of_kept(self.folder)  # exports of a kept checkpoint stand beside its run
        name = self.folder.resolve().name
        self.run = kept_by.with_name(f"{kept_by.name}-{name}") if kept_by else self.folder

    def report(self, ggufs: Sequence[GGUFFile]) -> RunReport:
        """All parts."""
        model = self.checkpoint.load_model(choose_device())
        stages = self._stages(self.checkpoint)
        if not ggufs:
            read = [self._try(read_gguf, path) for path in self._own_ggufs()]
            ggufs = [file for file in read if file is not None]
        folders = dict.fromkeys([self.folder, *(file.path.parent for file in ggufs)])
        comparisons = [
            kept
            for kept in self._kept(folders, "comparisons", Comparison)
            if kept.sha256.get(kept.result.reference) == self.checkpoint.sha256
        ]
        rows = {
            kept.sha256.get(row.file, ""): row for kept in comparisons for row in kept.result.rows
        }
        files = list(self._files(ggufs, rows))
        own_rows = [file.comparison for file in files if file.comparison]
        names = {file.sha256: file.name for file in files} | {self.checkpoint.sha256: CHECKPOINT}
        scores = task_scores(self._kept(folders, "evaluations", Evaluation), names)
        sampling = ANSWER_SAMPLING if self.checkpoint.held_out_file.exists() else TEXT_SAMPLING
        samples = self._try(self._samples, model, sampling) or []
        self._note_missing(files, scores)
        titles = {file.model_name for file in files}
        return RunReport(
            (titles.pop() if len(titles) == 1 else None) or self.run.resolve().name,
            model_facts(self.checkpoint),
            bool(self.checkpoint.labels),
            stages,
            scores,
            files,
            replace(comparisons[-1].result, rows=own_rows) if own_rows else None,
            samples,
            sampling,
            list(dict.fromkeys(self.missing)),
        )

    def _try(self, part: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """A part of the report; None and a note where it cannot be read."""
        try:
            return part(*args, **kwargs)
        except LlmkitError as error:
            self.missing.append(Missing(str(error)))
            return None

    def _stages(self, checkpoint: Checkpoint) -> list[Stage]:
        """The run of a checkpoint, after those that it started from."""
        run = RunFolder(checkpoint.folder)
        if not run.state_file.exists():
            what = f"no training log: {checkpoint.folder} was not trained by llmkit"
            self.missing.append(Missing(what))
            return []
        state = self._try(run.read_state)
        if state is None:
            return []
        if kept_by := run_of_kept(checkpoint.folder):
            name, metrics = kept_by.name, RunFolder(kept_by).metrics.up_to(state.step)
        else:
            name, metrics = checkpoint.folder.resolve().name, self._try(run.metrics.read) or []
        stage = Stage(name, state, metrics)
        if "base" not in state.settings:
            return [stage]
        base = _base_of(checkpoint.folder, state)
        if base is None:
            at = state.sources.get("base", "unknown path")
            self.missing.append(Missing(f"the base checkpoint ({at}) is missing or has changed"))
            return [stage]
        return [*self._stages(base), stage]

    def _own_ggufs(self) -> list[Path]:
        """Those of this folder and its export, and proved ones beside it."""
        parent = self.run.parent if self.run.name else self.run.resolve().parent
        export = parent / f"{self.run.resolve().name}-export"
        found: dict[Path, Path] = {}
        for folder in dict.fromkeys([self.folder, *_folders(self.folder), *_folders(parent)]):
            is_own = folder.is_relative_to(self.folder) or folder == export
            for path in sorted(folder.glob("*.gguf")):
                proof = kept_proof(path) or {}
                if is_own or proof.get("checkpoint_sha256") == self.checkpoint.sha256:
                    found.setdefault(path.resolve(), path)
        return list(found.values())

    def _kept(self, folders: Iterable[Path], kind: Kind, of: type[T]) -> list[KeptResult[T]]:
        return [
            kept for folder in folders for kept in self._try(kept_results, folder, kind, of) or []
        ]

    def _files(
        self, files: Sequence[GGUFFile], rows: dict[str, ComparisonRow]
    ) -> Iterator[FileFacts]:
        """The largest first, copies once; without adapters, which belong to another file."""
        own = {file.sha256(): file for file in reversed(files) if not is_adapter(file)}
        models = sorted(own.values(), key=lambda file: -file.path.stat().st_size)
        names = short_names(str(file.path) for file in models)
        with progress("measure speed", len(models), "files") as bar:
            for number, file in enumerate(models, start=1):
                facts = self._try(self._facts, file, names[str(file.path)], rows)
                bar.update(number)
                if facts is not None:
                    yield facts

    def _facts(self, file: GGUFFile, name: str, rows: dict[str, ComparisonRow]) -> FileFacts:
        sha256, path = file.sha256(), file.path
        proof = kept_proof(path) or {}
        if (proof.get("sha256"), proof.get("checkpoint_sha256")) != (
            sha256,
            self.checkpoint.sha256,
        ):
            proof = {}  # of an earlier file or checkpoint
        adapter, row = adapter_of(file), rows.get(sha256)
        n_tokens = min(SPEED_TOKENS, self.checkpoint.config.context_length // 2)
        cost = proof.get("distances", {}).get("quantization", {})
        return FileFacts(
            name,
            str(path),
            sha256,
            path.stat().st_size + (adapter.path.stat().st_size if adapter else 0),
            file.bits_per_weight,
            measure_speed(path, n_tokens, n_tokens),
            row,
            row.mean_kl if row else cost.get("mean_kl"),
            row.top1 if row else cost.get("top1"),
            {check["name"]: check["passed"] for check in proof.get("checks", [])},
            str(path.parent / PROOF_FILE) if proof else None,
            file.metadata.get(gguf.Keys.General.NAME),
        )

    def _samples(self, model: LanguageModel, sampling: Sampling) -> list[Sample]:
        """Answers to questions that fine-tuning held out; or what follows held-out text."""
        checkpoint = self.checkpoint
        runner = CheckpointRunner(checkpoint, model)
        asked = [
            (question[-1].content, runner.prompt(question))
            for question in held_out_questions(checkpoint)
        ] or [(checkpoint.tokenizer.decode(ids), ids) for ids in proof_prompts(checkpoint, None)]
        room = checkpoint.config.context_length
        fitting = [(text, ids) for text, ids in asked if len(ids) < room]
        chosen = fitting[:: max(1, len(fitting) // N_SAMPLES)][:N_SAMPLES]
        texts = runner.answers([ids for _, ids in chosen], sampling)
        return [Sample(text, said) for (text, _), said in zip(chosen, texts, strict=True)]

    def _note_missing(self, files: Sequence[FileFacts], scores: Sequence[TaskScores]) -> None:
        """Commands for what has not been done."""
        run, paths = self.folder, [file.path for file in files]
        if not files:
            words = command(
                "export", run, "--out", f"{self.run}-export", "--quant", "f16,q8_0,q4_0"
            )
            self.missing.append(Missing("no GGUF files", words))
        for file in files:
            if not file.checks:
                words = command("verify", run, file.path)
                self.missing.append(Missing(f"{file.name} is not verified", words))
        if any(file.comparison is None for file in files):
            self.missing.append(Missing("no perplexity", command("compare", run, *paths)))
        if not scores:
            self.missing.append(Missing("no scores", self._evaluate_command(paths)))
        for task in {(task.task, task.source): task for task in scores}.values():
            models = (CHECKPOINT, *(file.name for file in files))
            if task.task in TASKS and any(name not in task.scores for name in models):
                data = () if task.source == task.task else ("--data", task.source)
                words = command("evaluate", run, *paths, "--task", task.task, *data)
                self.missing.append(Missing(f"{task.task} was not run for all files", words))

    def _evaluate_command(self, paths: Sequence[str]) -> str:
        words = command("evaluate", self.folder, *paths, "--task")
        if not self.checkpoint.held_out_file.exists():
            return f"{words} perplexity --data FILE"
        task = "classify" if self.checkpoint.labels else "answers"
        return f"{words} {task} --data {shlex.quote(str(self.checkpoint.held_out_file))}"


def _base_of(folder: Path, state: RunState) -> Checkpoint | None:
    """The checkpoint that a run started from, if it is still there and has the same weights."""
    if "base" not in state.sources:
        return None
    base = Path(state.sources["base"])
    for path in (base, folder.resolve().parent / base.name):
        with suppress(LlmkitError):
            checkpoint = load_folder(path)
            is_same = checkpoint.sha256 == state.settings["base"]
            if is_same and path.resolve() != folder.resolve():
                return checkpoint
    return None


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())
