from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from llmkit.errors import ConfigError
from llmkit.export.check import Check, Proof
from llmkit.export.compare import Comparison, ComparisonRow
from llmkit.export.convert import Export
from llmkit.export.inspection import inspect
from llmkit.export.report.page import write_report
from llmkit.export.report.plots import check_plot_path, save_figure, size_quality_figure
from llmkit.export.report.tables import (
    comparison_measures,
    comparison_table,
    export_table,
    inspection_tables,
    megabytes,
    proof_table,
)

HOSTILE = '<script>alert("x")</script> & [red]markup[/red] [/] \'"'


def row(quant: str, n_bytes: int, mean_kl: float) -> ComparisonRow:
    return ComparisonRow(
        file=f"/models/m-{quant}.gguf", quant=quant, method="rtn", bytes=n_bytes,
        bits_per_weight=4.5, mean_kl=mean_kl, mean_kl_ci=(mean_kl / 2, mean_kl * 1.5),
        p999_kl=3 * mean_kl, top1=0.9321, perplexity=12.345, perplexity_ratio=1.0123,
        prompt_tokens_per_s=4321.0, generate_tokens_per_s=987.0, peak_rss_bytes=56_000_000,
        median_kl=mean_kl / 3, max_kl=30 * mean_kl,
        bits_by_group={"embedding": 8.5, "attention": 4.25},
    )  # fmt: skip


COMPARISON = Comparison(
    "runs/fox", 2048, [row("f16", 11_800_000, 7e-8), row("q8_0", 6_300_000, 4e-5)]
)
PROOF = Proof(
    passed=False, checkpoint="runs/fox", gguf="m-q8_0.gguf", sha256="ab" * 32, quant="q8_0",
    checks=[
        Check("logits", True, "fine", value=4e-5, limit=5e-4),
        Check("tensors", False, HOSTILE, value=1),
    ],
    checkpoint_sha256="cd" * 32, distances={}, texts="t", sha256_of={}, versions={},
)  # fmt: skip


class Page(HTMLParser):
    """Everything that a browser would fetch, the tags, and the text of each cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def shown(table: Table) -> str:
    console = Console(width=400)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# --- pictures -------------------------------------------------------------------------------


def test_png_and_svg_are_written_by_suffix(tmp_path: Path) -> None:
    figure = size_quality_figure(COMPARISON)
    save_figure(figure, tmp_path / "p.png")
    save_figure(figure, tmp_path / "p.SVG")
    png = (tmp_path / "p.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    assert ElementTree.parse(tmp_path / "p.SVG").getroot().tag.endswith("svg")


def test_the_picture_has_a_point_for_each_file() -> None:
    axes = size_quality_figure(COMPARISON).axes[0]
    points = {
        (float(x), float(y))
        for container in axes.containers
        for x, y in zip(*container[0].get_data(), strict=True)
    }
    assert points == {(6.3, 4e-5), (11.8, 7e-8)}
    assert [text.get_text().split("\n")[0] for text in axes.texts] == ["q8_0", "f16"]
    assert axes.get_yscale() == "log"


@pytest.mark.filterwarnings("ignore:Data has no positive values")
@pytest.mark.parametrize(
    "changes",
    [
        {"mean_kl_ci": None},
        {"mean_kl": 0.0, "mean_kl_ci": (0.0, 0.0)},
        {"mean_kl": 1e-9, "mean_kl_ci": (-1e-9, 3e-9)},
        {"quant": "unknown (None)"},
    ],
)
def test_any_row_can_be_drawn(changes: dict[str, object], tmp_path: Path) -> None:
    rows = [replace(COMPARISON.rows[0], **changes), COMPARISON.rows[1]]
    save_figure(size_quality_figure(replace(COMPARISON, rows=rows)), tmp_path / "p.png")
    write_report(tmp_path / "r.html", replace(COMPARISON, rows=rows[:1]))


@pytest.mark.parametrize("name", ["p.pdf", "p.jpg", "p", "p.", ".png"])
def test_another_suffix_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png"):
        check_plot_path(tmp_path / name)
    with pytest.raises(ConfigError):
        save_figure(size_quality_figure(COMPARISON), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused_before_any_work(tmp_path: Path) -> None:
    from llmkit.cli.main import main

    missing = str(tmp_path / "none")  # the suffix is refused before the checkpoint is missed
    assert main(["compare", missing, missing, "--plot", str(tmp_path / "p.pdf")]) == 2


def test_another_suffix_names_the_suffix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmkit.cli.main import main

    main(["compare", str(tmp_path), str(tmp_path), "--plot", str(tmp_path / "p.pdf")])
    assert "picture format '.pdf'" in capsys.readouterr().err


# --- the page -------------------------------------------------------------------------------


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", COMPARISON, [PROOF])
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"https?:|url\(|@import|<script|<link", html)


def test_the_page_names_each_file_and_each_check(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", COMPARISON, [PROOF], title="about a fox")
    texts = Page((tmp_path / "r.html").read_text(encoding="utf-8")).texts
    for expected in ("about a fox", "m-f16.gguf", "m-q8_0.gguf", "tensors", "logits", "failed"):
        assert expected in texts
    assert "93.21%" in texts
    assert any("ab" * 32 in text for text in texts)


def test_on_a_phone_each_number_names_its_file_and_details_stand_below(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", COMPARISON, [PROOF])
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    files = re.findall(r'<td data-column="(.*?)">', html)
    measures = len(comparison_measures(COMPARISON)) - 1  # the first row has the files' names
    assert files == [Path(row.file).name for row in COMPARISON.rows] * measures
    assert html.count('<td class="detail">') == len(PROOF.checks)


def test_names_from_outside_are_text_in_the_page(tmp_path: Path) -> None:
    hostile = replace(COMPARISON, reference=HOSTILE, rows=[replace(r, file=HOSTILE) for r in
                                                           COMPARISON.rows])  # fmt: skip
    proof = replace(PROOF, gguf=HOSTILE, checkpoint=HOSTILE)
    write_report(tmp_path / "r.html", hostile, [proof], title=HOSTILE)
    page = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert HOSTILE in page.texts


# --- tables ---------------------------------------------------------------------------------


def test_the_comparison_table_has_each_row() -> None:
    text = shown(comparison_table(COMPARISON))
    for expected in (
        "2,048 tokens", "m-f16.gguf", "m-q8_0.gguf", "11.80", "6.30",
        "4.00e-05", "± 2.0e-05", "1.33e-05", "1.20e-04", "1.20e-03", "8.50", "4.25", "93.21%",
        "12.35 (x1.0123)", "4,321 / 987", "56",
    ):  # fmt: skip
        assert expected in text


def test_what_is_unknown_is_a_dash_and_what_no_file_has_is_left_out() -> None:
    unknown = replace(COMPARISON.rows[0], mean_kl_ci=None, peak_rss_bytes=None)
    known = COMPARISON.rows[1]
    both = shown(comparison_table(replace(COMPARISON, rows=[unknown, known])))
    assert both.count(" - ") == 2
    alone = shown(comparison_table(replace(COMPARISON, rows=[unknown])))
    assert " - " not in alone
    for absent in ("95 % interval", "peak MB", "llama.cpp", "head"):
        assert absent not in alone


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    hostile = replace(COMPARISON.rows[0], file="[bold]a[b] [red]")
    assert "[bold]a[b] [red]" in shown(comparison_table(replace(COMPARISON, rows=[hostile])))
    assert "x[/y]" in shown(comparison_table(replace(COMPARISON, reference="x[/y]")))
    text = shown(proof_table([PROOF]))
    assert HOSTILE in text
    assert "✔" in text
    assert "✘" in text


def test_the_export_table_names_files_and_what_did_not_fit(tiny_export: Export) -> None:
    narrow = replace(
        tiny_export.files[-1], fallbacks=("a.weight: f16", "b", "c", "d"), fallback_bytes=1_250_000
    )
    text = shown(export_table([*tiny_export.files, narrow]))
    for file in tiny_export.files:
        assert file.path.name in text
    assert "4 (a.weight: f16, b, c ...): +1.25 MB" in text


def test_the_inspection_tables_have_every_key(files: dict[str, Path]) -> None:
    found = inspect(files["q4_0"])
    text = "".join(shown(table) for table in inspection_tables(found))
    for key in found.metadata:
        assert key in text
    assert "q4_0" in text
    assert f"{found.parameters:,} parameters" in text


def test_megabytes_are_of_a_million_bytes() -> None:
    assert megabytes(1_234_567) == "1.23"
    assert megabytes(99_999_999) == "100.00"
    assert megabytes(1_234_567_890) == "1,235"
