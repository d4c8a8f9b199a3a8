"""The parts of a report, for the page and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from llmkit.evaluation.evaluate import Score
from llmkit.evaluation.tables import difference_text, score_text
from llmkit.export.report.plots import size_quality_figure
from llmkit.export.report.runs import loss_figure
from llmkit.export.report.tables import UNKNOWN, megabytes
from llmkit.report.collect import ANSWER_SAMPLING, TEXT_SAMPLING
from llmkit.report.facts import CHECKPOINT, FileFacts, Missing, RunReport, Stage, TaskScores


@dataclass(frozen=True)
class Section:
    """A heading with what stands below it, in this order."""

    heading: str
    note: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()  # a name, then a cell for each column
    files: Sequence[str] = ()  # links below the table
    figures: Mapping[str, Figure] = field(default_factory=dict)  # by what they show
    quotes: Sequence[tuple[str, str]] = ()  # a prompt, and what follows
    missing: Sequence[Missing] = ()


def sections(report: RunReport) -> list[Section]:
    """All that have something to show."""
    found = [
        Section("Model", columns=("", report.name), rows=list(report.model.items())),
        _training(report.stages),
        _scores(report),
        _quantization(report),
        Section("Samples", _sampling_note(report), quotes=_quotes(report)),
        Section("Not in this report", missing=report.missing),
    ]
    return [one for one in found if one.rows or one.quotes or one.missing]


def summary(report: RunReport) -> str:
    """One sentence or two."""
    text = f"A model of {report.model['parameters']} parameters"
    if report.stages:
        tokens = sum(stage.metrics[-1].tokens for stage in report.stages if stage.metrics)
        seconds = sum(stage.state.elapsed_s for stage in report.stages)
        text += f", trained on {tokens:,} tokens in {_duration(seconds)}"
    if report.files:
        least = min(report.files, key=lambda file: file.bytes)
        text += f". Its smallest GGUF file has {megabytes(least.bytes)} MB"
    return f"{text}."


def _training(stages: Sequence[Stage]) -> Section:
    facts = [_stage_facts(stage) for stage in stages]
    names = list(dict.fromkeys(name for one in facts for name in one))
    return Section(
        "Training",
        columns=("", *(stage.name for stage in stages)),
        rows=[(name, *(one.get(name, UNKNOWN) for one in facts)) for name in names],
        figures={f"Loss of {stage.name}": _losses(stage) for stage in stages if stage.metrics},
    )


def _stage_facts(stage: Stage) -> dict[str, str]:
    """What a run was trained on, with which settings, and how it ended."""
    state, settings = stage.state, stage.state.settings["training"]
    n_bytes = sum(state.data_bytes.values())
    source = state.sources.get("data")  # without its folder: the report may be published
    data = Path(source).name if source else f"SHA-256 {state.settings['data'][:12]}..."
    facts = {
        "kind": str(state.settings.get("kind", "pretraining")),
        "data": f"{data} ({megabytes(n_bytes)} MB)" if n_bytes else data,
        "steps": f"{state.step:,} of " + (f"{state.steps:,}" if state.steps else "?"),
        "batch": f"{settings['batch_size']:,} sequences",
        "optimizer": f"{settings['optimizer']}, {settings['schedule']} schedule",
        "learning rate": f"{settings['learning_rate']:g}",
        "seed": f"{settings['seed']}",
        "time": _duration(state.elapsed_s),
    }
    if stage.metrics:
        last = stage.metrics[-1]
        facts |= {
            "tokens": f"{last.tokens:,}",
            "tokens per second": f"{last.tokens / max(last.elapsed_s, 1e-9):,.0f}",
            "training loss": f"{last.train_loss:.4f}",
            "validation loss": f"{last.val_loss:.4f}",
        }
        if last.val_bits_per_byte is not None:
            facts["bits per byte (validation)"] = f"{last.val_bits_per_byte:.4f}"
        if last.accuracy is not None:
            facts["accuracy (validation)"] = f"{last.accuracy:.1%}"
    return facts


def _losses(stage: Stage) -> Figure:
    figure = loss_figure({stage.name: stage.metrics})
    figure.suptitle(stage.name)
    return figure


def _scores(report: RunReport) -> Section:
    models = [CHECKPOINT, *(file.name for file in report.files)]
    return Section(
        "Scores",
        "With 95 % confidence intervals.",
        columns=("", *models),
        rows=[
            (_task_name(task), *(_score(task, model, score_text) for model in models))
            for task in report.scores
        ],
    )


def _quantization(report: RunReport) -> Section:
    """Size, speed and cost of each file."""
    files = report.files
    rows: list[tuple[str, ...]] = [
        (name, *(cell(file) for file in files)) for name, cell in _FILE_CELLS.items()
    ]
    for task in report.scores:
        cells = [_score(task, file.name, difference_text) for file in files]
        rows.append((f"{task.task}, {task.measure}: difference", *cells))
    rows.append(("verified", *(_proof(file) for file in files)))
    return Section(
        "Quantization",
        "Compared with the checkpoint in PyTorch. KL divergence in nats per token. Tokens per "
        "second were measured with llama.cpp on the machine that wrote this report. The file "
        "below the table has all checks of verify.",
        columns=("", *(file.name for file in files)),
        rows=[row for row in rows if files and set(row[1:]) != {UNKNOWN}],
        files=list(dict.fromkeys(file.proof for file in files if file.proof)),
        figures={"Mean KL divergence by file size": size_quality_figure(report.comparison)}
        if report.comparison
        else {},
    )


def _kl(file: FileFacts) -> str:
    if file.mean_kl is None:
        return UNKNOWN
    interval = file.comparison.mean_kl_ci if file.comparison else None
    half = f" ± {(interval[1] - interval[0]) / 2:.1e}" if interval else ""
    return f"{file.mean_kl:.2e}{half}"


def _perplexity(file: FileFacts) -> str:
    row = file.comparison
    return UNKNOWN if row is None else f"{row.perplexity:.4g} (x{row.perplexity_ratio:.4f})"


def _proof(file: FileFacts) -> str:
    if not file.checks:
        return "no"
    failed = [name for name, passed in file.checks.items() if not passed]
    return f"✘ failed: {', '.join(failed)}" if failed else f"✔ {len(file.checks)} checks passed"


_FILE_CELLS = {
    "MB": lambda file: megabytes(file.bytes),
    "bits per weight": lambda file: f"{file.bits_per_weight:.2f}",
    "prompt tokens per second": lambda file: f"{file.speed.prompt_tokens_per_s:,.0f}",
    "generated tokens per second": lambda file: f"{file.speed.generate_tokens_per_s:,.0f}",
    "peak memory (MB)": lambda file: f"{file.speed.peak_rss_bytes / 1e6:,.0f}",
    "KL divergence": _kl,
    "same most probable token": lambda file: UNKNOWN if file.top1 is None else f"{file.top1:.1%}",
    "perplexity": _perplexity,
}


def _score(task: TaskScores, model: str, show: Callable[[str, Score], str]) -> str:
    score = task.scores.get(model)
    return UNKNOWN if score is None else show(task.measure, score)


def _task_name(task: TaskScores) -> str:
    chance = "" if task.chance is None else f", chance {task.chance:.0%}"
    source = "" if task.source == task.task else f" of {Path(task.source).name}"
    return f"{task.task}, {task.measure} ({task.items:,} items{source}{chance})"


def _sampling_note(report: RunReport) -> str:
    if report.is_classifier:
        return "Labels of held-out texts."
    if report.sampling is ANSWER_SAMPLING:
        return "Greedy answers to held-out questions."
    return (
        f"What the checkpoint writes after a piece of held-out text, at temperature "
        f"{report.sampling.temperature} with top-k {report.sampling.top_k}."
    )


def _quotes(report: RunReport) -> list[tuple[str, str]]:
    """An answer stands below its question; other text goes on where the prompt ends."""
    continues = report.sampling is TEXT_SAMPLING
    return [
        (sample.prompt.lstrip(), sample.text.rstrip() if continues else f"\n{sample.text.strip()}")
        for sample in report.samples
    ]


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
