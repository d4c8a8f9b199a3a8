"""What results look like in a table, on a screen as in a report."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llmkit.console import WIDTH_OF_FILES
from llmkit.export.check import Check, Proof
from llmkit.export.compare import Comparison, ComparisonRow
from llmkit.export.gguf.bits import GROUPS
from llmkit.export.gguf.writer import ExportedFile
from llmkit.export.inspection import Inspection
from llmkit.export.quantization.budget import TypePlan
from llmkit.files import write_text

COMPARISON_COLUMNS = (
    "file", "method", "MB", "bits per weight",
    *(f"bits: {group.replace('_', '-')}" for group in GROUPS),
    "mean KL", "95 % interval", "mean KL / llama.cpp's", "median KL", "99.9 % KL", "maximum KL",
    "top-1", "perplexity", "prompt / generate t/s", "peak MB",
)  # fmt: skip
UNKNOWN = "-"
PROOF_COLUMNS = ("", "check", "value", "limit", "result")
EXPORT_COLUMNS = ("file", "MB", "bits per weight", "fallbacks")


def comparison_measures(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row for each measure that some file has: its name, then a cell for each file."""
    files = [_comparison_cells(row) for row in comparison.rows]
    measures = zip(COMPARISON_COLUMNS, *files, strict=True)
    return [measure for measure in measures if set(measure[1:]) != {UNKNOWN}]


def _comparison_cells(row: ComparisonRow) -> list[str]:
    interval = UNKNOWN
    if row.mean_kl_ci is not None:
        interval = f"± {(row.mean_kl_ci[1] - row.mean_kl_ci[0]) / 2:.1e}"
    bits = [row.bits_by_group.get(group) for group in GROUPS]
    return [
        Path(row.file).name,
        row.method,
        megabytes(row.bytes),
        f"{row.bits_per_weight:.2f}",
        *(UNKNOWN if value is None else f"{value:.2f}" for value in bits),
        f"{row.mean_kl:.2e}",
        interval,
        _ratio(row),
        f"{row.median_kl:.2e}",
        f"{row.p999_kl:.2e}",
        f"{row.max_kl:.2e}",
        f"{row.top1:.2%}",
        f"{row.perplexity:.4g} (x{row.perplexity_ratio:.4f})",
        f"{row.prompt_tokens_per_s:,.0f} / {row.generate_tokens_per_s:,.0f}",
        UNKNOWN if row.peak_rss_bytes is None else f"{row.peak_rss_bytes / 1e6:,.0f}",
    ]


def _ratio(row: ComparisonRow) -> str:
    """The mean KL divided by that of llama.cpp's file, with its interval."""
    if row.kl_ratio is None:
        return UNKNOWN
    if row.kl_ratio_ci is None:
        return f"{row.kl_ratio:.3f}"
    return f"{row.kl_ratio:.3f} ({row.kl_ratio_ci[0]:.3f} to {row.kl_ratio_ci[1]:.3f})"


def comparison_table(comparison: Comparison) -> Table:
    """All files of a comparison: a column each, so that it can be read on a narrow terminal."""
    title = f"Compared with {comparison.reference} on {comparison.tokens:,} tokens"
    header, *measures = comparison_measures(comparison)
    return plain_table(title, header, measures)


def proof_cells(check: Check) -> list[str]:
    """One check's cells."""
    return [check.mark, check.name, f"{check.value:.2g}", f"{check.limit:.2g}", check.detail]


def proof_table(proofs: Proof | Sequence[Proof]) -> Table:
    """The checks of one file or more, a section each."""
    proofs = (proofs,) if isinstance(proofs, Proof) else proofs
    title = "llama.cpp against PyTorch"
    table = Table(title=title, title_justify="left")
    for column in ("file", *PROOF_COLUMNS):
        table.add_column(column, overflow="fold")
    for proof in proofs:
        for check in proof.checks:
            style = "green" if check.passed else "red"
            cells = (Path(proof.gguf).name, *proof_cells(check))
            table.add_row(*map(Text, cells), style=style)
        table.add_section()
    return table


def save_table_picture(table: Table, path: Path) -> None:
    """Draw a table as it looks on a terminal, as SVG."""
    width = Console(width=WIDTH_OF_FILES).measure(table).maximum
    console = Console(record=True, file=io.StringIO(), width=width)
    console.print(table)
    svg = console.export_svg(title="llmkit")
    # rich asks a web server for its font; the reader's own monospace font will do.
    write_text(path, re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL))


def export_table(files: Iterable[ExportedFile]) -> Table:
    """Files written, and what did not fit their type."""
    return plain_table("Exported", EXPORT_COLUMNS, (_export_cells(file) for file in files))


def plan_table(plan: TypePlan, measured_kl: float | None) -> Table:
    """The type of each matrix, and the KL that it is predicted to cost."""
    title = f"Types for {plan.budget}: predicted mean KL {plan.predicted_kl:.2e}"
    if measured_kl is not None:
        title += f", measured {measured_kl:.2e} on held-out text"
    rows = [(name, option.type, f"{option.kl:.1e}") for name, option in plan.matrices.items()]
    return plain_table(title, ("matrix", "type", "predicted KL"), rows)


def megabytes(n_bytes: int) -> str:
    """Bytes as MB (10^6), two digits after the point below 100."""
    return f"{n_bytes / 1e6:,.2f}" if n_bytes < 100e6 else f"{n_bytes / 1e6:,.0f}"


def _export_cells(file: ExportedFile) -> list[str]:
    fallbacks = "-"
    if file.fallbacks:
        names = ", ".join(file.fallbacks[:3]) + " ..." * (len(file.fallbacks) > 3)
        fallbacks = f"{len(file.fallbacks)} ({names}): +{megabytes(file.fallback_bytes)} MB"
    return [file.path.name, megabytes(file.n_bytes), f"{file.bits_per_weight:.2f}", fallbacks]


def plain_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of plain text, whatever its cells hold."""
    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for cells in rows:
        table.add_row(*map(Text, cells))  # a file's name may look like rich's markup
    return table


def inspection_tables(inspection: Inspection) -> list[Table]:
    """Metadata, and tensors by type."""
    title = (
        f"{inspection.path}: {inspection.kind}, {inspection.parameters:,} parameters, "
        f"{megabytes(inspection.bytes)} MB, {inspection.bits_per_weight:.2f} bits per weight"
    )
    metadata = [(key, str(value)) for key, value in inspection.metadata.items()]
    groups = [
        (group.type, str(group.tensors), f"{group.parameters:,}", megabytes(group.bytes))
        for group in inspection.groups
    ]
    return [
        plain_table(title, ("metadata", "value"), metadata),
        plain_table("Tensors", ("type", "tensors", "parameters", "MB"), groups),
    ]
