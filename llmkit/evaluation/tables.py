"""What evaluations look like: tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from matplotlib.figure import Figure
from rich.table import Table

from llmkit.evaluation.evaluate import Evaluation, Score
from llmkit.evaluation.intervals import Interval
from llmkit.evaluation.judge import SCORE, Judged
from llmkit.evaluation.models import OLLAMA
from llmkit.evaluation.tasks import BITS
from llmkit.export.report.confusion import draw_confusion, label_table
from llmkit.export.report.plots import ShownFigure
from llmkit.export.report.tables import UNKNOWN, plain_table

_FORMATS = {BITS: ".4f", SCORE: ".1f"}  # others are shares


def judged_text(judged: Judged) -> str:
    """What a judge was asked, how sure it was, and what it cost."""
    lines = [f"The prompt of the judge {judged.judge}:", "", judged.prompt.strip(), ""]
    if judged.agreement is not None:
        lines.append(
            f"The judge agreed with itself in {judged.agreement:.1%} of repeats or orders."
        )
    if judged.invalid:
        lines.append(f"Replies that are not just a number or letter, not counted: {judged.invalid}")
    cost = f"{judged.asked} questions asked in {judged.seconds:.0f} s"
    return "\n".join([*lines, f"{cost}, {judged.tokens:,} tokens"])


def evaluation_tables(evaluation: Evaluation) -> list[Table]:
    """All models; then by group, and of classifiers by label."""
    return [
        _summary(evaluation),
        *_by_group(evaluation),
        *(
            label_table(
                f"{_names(evaluation)[model.model]} (row: the true label)",
                model.confusion.labels,
                model.confusion.per_label,
                model.confusion.counts,
            )
            for model in evaluation.models
            if model.confusion
        ),
    ]


def _summary(evaluation: Evaluation) -> Table:
    models, names = evaluation.models, _names(evaluation)
    columns = ["model"]
    for measure in models[0].scores:
        columns += [f"{measure} (95 % interval)"]
        if len(models) > 1:
            columns += ["difference to the first"]
    has_ties = any(model.ties for model in models)
    rows = []
    for model in models:
        cells = [names[model.model]]
        for measure, score in model.scores.items():
            cells.append(score_text(measure, score))
            if len(models) > 1:
                cells.append(difference_text(measure, score))
        rows.append(cells + [f"{model.ties}"] * has_ties)
    chance = "" if evaluation.chance is None else f", chance {evaluation.chance:.1%}"
    of = "" if evaluation.source == evaluation.task else f" of {evaluation.source}"
    shots = f", {evaluation.shots}-shot" if evaluation.shots else ""
    against = "" if evaluation.against is None else f", against {names[evaluation.against]}"
    title = f"{evaluation.task}: {evaluation.items:,} items{of}{shots}{chance}{against}"
    return plain_table(title, columns + ["ties"] * has_ties, rows)


def _by_group(evaluation: Evaluation) -> Iterator[Table]:
    models, names = evaluation.models, _names(evaluation)
    if not models[0].groups:
        return
    for measure in models[0].scores:
        rows = [
            (group, *(_cell(measure, model.groups[group][measure]) for model in models))
            for group in models[0].groups
        ]
        yield plain_table(measure, ("group", *(names[model.model] for model in models)), rows)


def evaluation_figure(evaluation: Evaluation) -> Figure:
    """Each model's first measure with its interval; of classifiers their confusion matrices."""
    models = evaluation.models
    if models[0].confusion:
        return _confusion_figure(evaluation)
    figure = ShownFigure(figsize=(7, 1.4 + 0.45 * len(models)), layout="constrained")
    axes = figure.subplots()
    measure, names = next(iter(models[0].scores)), _names(evaluation)
    for place, model in enumerate(reversed(models)):
        score = model.scores[measure]
        low, high = score.interval or (score.value, score.value)
        errors = [[max(0, score.value - low)], [max(0, high - score.value)]]
        axes.errorbar(score.value, place, xerr=errors, fmt="o", capsize=3, color="C0")
    axes.set_yticks(range(len(models)), [names[model.model] for model in reversed(models)])
    axes.set_ylim(-0.6, len(models) - 0.4)
    if evaluation.chance is not None:
        axes.axvline(evaluation.chance, color="grey", linestyle=":", label="chance")
        axes.legend(fontsize=9)
    axes.set_xlabel(f"{measure} (with 95 % interval)")
    axes.set_title(f"{evaluation.task}, {evaluation.items:,} items", fontsize=11)
    axes.grid(visible=True, axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _confusion_figure(evaluation: Evaluation) -> Figure:
    models = evaluation.models
    figure = ShownFigure(figsize=(4.4 * len(models), 4.2), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        if model.confusion:
            draw_confusion(axes, model.confusion.labels, model.confusion.counts)
            accuracy = model.scores["accuracy"].value
            axes.set_title(f"{_names(evaluation)[model.model]}: {accuracy:.1%}", fontsize=11)
    return figure


def _names(evaluation: Evaluation) -> dict[str, str]:
    against = [] if evaluation.against is None else [evaluation.against]
    return short_names([*against, *(model.model for model in evaluation.models)])


def short_names(models: Iterable[str]) -> dict[str, str]:
    """For each model the end of its path, as much of it as tells it from the others."""
    models, found = list(dict.fromkeys(models)), {}
    for model in models:
        parts = model.split("/")
        for n in range(1, len(parts) + 1):
            end = "/".join(parts[-n:])
            if sum(f"/{other}".endswith(f"/{end}") for other in models) == 1:
                break
        found[model] = model if model.startswith(OLLAMA) else end
    return found


def _value(measure: str, value: float) -> str:
    return format(value, _FORMATS.get(measure, ".1%"))


def _signed(measure: str, value: float) -> str:
    return format(value, "+" + _FORMATS.get(measure, ".1%"))


def score_text(measure: str, score: Score) -> str:
    """A score with its interval."""
    return _shown(_value, measure, score.value, score.interval)


def difference_text(measure: str, score: Score) -> str:
    """The difference to the first model with its interval; a dash for the first one itself."""
    if score.difference is None:
        return UNKNOWN
    return _shown(_signed, measure, score.difference, score.difference_interval)


def _cell(measure: str, score: Score) -> str:
    """For tables with a column for each model: shares of few items need no digits."""
    if measure in _FORMATS or score.interval is None:
        return score_text(measure, score)
    return f"{score.value:.1%} ({score.interval[0]:.0%} to {score.interval[1]:.0%})"


def _shown(
    show: Callable[[str, float], str], measure: str, value: float, interval: Interval | None
) -> str:
    """A number with its interval."""
    if interval is None:
        return show(measure, value)
    low, high = (show(measure, end) for end in interval)
    return f"{show(measure, value)} ({low} to {high})"
