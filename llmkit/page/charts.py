"""The charts of the page, which Streamlit draws in its theme's colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from llmkit.page.style import visible

if TYPE_CHECKING:
    from llmkit.export.compare import Comparison
    from llmkit.export.evaluation.along import TokenDivergence
    from llmkit.export.llamacpp.inside import Inside
    from llmkit.training.run_state import Metrics

Chart = alt.Chart | alt.LayerChart | alt.FacetChart
CURVES = {  # what of Metrics is drawn, by its title
    "Loss": ("val_loss", "train_loss"),
    "Bits per byte": ("val_bits_per_byte",),
    "Learning rate": ("lr",),
    "Gradient norm": ("grad_norm",),
    "Tokens per second": ("tokens_per_s",),
}
_ALL_LABELS = 24  # tokens whose labels all fit beside a heat map


def size_quality_chart(comparison: Comparison) -> Chart:
    """Mean KL over file size: each file a point with its type's name and its interval."""
    points: list[dict[str, Any]] = [
        {
            "MB": row.bytes / 1e6,
            "KL": row.mean_kl,
            "low": max((row.mean_kl_ci or (row.mean_kl,))[0], row.mean_kl / 10),  # a log axis
            "high": (row.mean_kl_ci or (row.mean_kl,))[-1],
            "type": row.quant,
            "method": row.method,
            "top-1": row.top1,
        }
        for row in comparison.rows
        if row.mean_kl > 0  # 0 has no place on a log axis
    ]
    largest = max((point["MB"] for point in points), default=1)
    sizes = alt.Scale(domain=[0, 1.2 * largest], nice=False)  # with room for the last name
    base = alt.Chart(_data(points)).encode(
        x=alt.X("MB:Q", title="file size (MB)", scale=sizes, axis=alt.Axis(tickCount=8)),
        color=alt.Color("method:N", title=None, legend=alt.Legend(orient="top")),
    )
    powers = alt.Axis(values=[10.0**power for power in range(-12, 3)], format=".0e")
    kl = alt.Y("KL:Q", title="mean KL (nats per token)", scale=alt.Scale(type="log"), axis=powers)
    marks = base.mark_point(filled=True, size=90).encode(
        y=kl, tooltip=["type:N", "method:N", "MB:Q", "KL:Q", "top-1:Q"]
    )
    intervals = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q"), y2="high:Q")
    names = base.mark_text(align="left", dx=9, fontSize=13).encode(y=kl, text="type:N")
    return alt.layer(intervals, marks, names).properties(height=340)


def preferred(token: TokenDivergence) -> str:
    """What both models find most probable at a place."""
    return (
        f"original: {token.original.token!r} {token.original.probability:.1%}, "
        f"here: {token.other.token!r} {token.other.probability:.1%}"
    )


def divergence_chart(found: Mapping[str, Sequence[TokenDivergence]]) -> Chart:
    """KL at each token, a line for each model."""
    values = [
        {
            "place": place,
            "token": token.text,
            "KL": token.kl,
            "model": name,
            "most likely": preferred(token),
        }
        for name, tokens in found.items()
        for place, token in enumerate(tokens, start=1)
    ]
    drawn: Chart = (
        alt.Chart(_data(values))
        .mark_line(point=True)
        .encode(
            x=alt.X("place:Q", title="token"),
            y=alt.Y("KL:Q", title="KL (nats)"),
            color=alt.Color("model:N", title=None, legend=alt.Legend(orient="top", columns=1)),
            tooltip=["token:N", "KL:Q", "most likely:N", "model:N"],
        )
        .properties(height=380)
    )
    return drawn


def curve_chart(runs: Mapping[str, Sequence[Metrics]], title: str) -> Chart:
    """One of CURVES over the steps, a colour for each run."""
    values = [
        {"run": run, "step": one.step, "value": value, "of": name.removesuffix("_loss")}
        for run, metrics in runs.items()
        for one in metrics
        for name in CURVES[title]
        if (value := getattr(one, name)) is not None
    ]
    chart = alt.Chart(_data(values)).mark_line(point=True)
    encoding: dict[str, Any] = {
        "x": alt.X("step:Q", axis=alt.Axis(tickCount=8)),
        "y": alt.Y("value:Q", title=title.lower(), scale=alt.Scale(zero=False)),
        "color": alt.Color("run:N", title=None, legend=alt.Legend(orient="top", columns=1)),
        "tooltip": ["run:N", "of:N", "step:Q", "value:Q"],
    }
    if len(CURVES[title]) > 1:
        dashes = alt.Scale(domain=["train", "val"], range=[[1, 0], [4, 3]])
        encoding["strokeDash"] = alt.StrokeDash("of:N", scale=dashes, legend=None)
    drawn: Chart = chart.encode(**encoding).properties(height=340)
    return drawn


def attention_chart(found: Inside, layer: int, head: int) -> Chart:
    """The weights of a head: rows look at columns."""
    labels = [f"{place} {visible(token)}" for place, token in enumerate(found.tokens, start=1)]
    weights = found.attention[layer, head]
    values = [
        {"from": labels[t], "to": labels[s], "weight": round(float(weights[t, s]), 4)}
        for t in range(len(labels))
        for s in range(t + 1)
    ]
    # "12 ␣cook" is a place and a token: without the place, equal tokens would be one row.
    axis = alt.Axis(
        labelExpr="slice(datum.label, indexof(datum.label, ' ') + 1)",
        labelOverlap=len(labels) > _ALL_LABELS,
        title=None,
    )
    drawn: Chart = (
        alt.Chart(_data(values))
        .mark_rect()
        .encode(
            x=alt.X("to:O", sort=labels, axis=axis),
            y=alt.Y("from:O", sort=labels, axis=axis),
            color=alt.Color(
                "weight:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=None
            ),
            tooltip=["from:N", "to:N", "weight:Q"],
        )
        .properties(title=f"Head {head + 1}", height=420)
    )
    return drawn


def _data(values: list[dict[str, Any]]) -> alt.Data:
    return alt.Data(values=values)  # type: ignore[no-untyped-call]
