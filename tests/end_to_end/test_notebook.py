"""The notebook of the docs runs in the root of a clone, and shows what it is kept with."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "notebook.ipynb"


def shown(cell: nbformat.NotebookNode) -> list[list[str]]:
    """The kinds of a cell's outputs. Notes on stderr are left out: slow work prints more."""
    return [
        sorted(output.get("data", {"text": ""}))
        for output in cell.outputs
        if output.get("name") != "stderr"
    ]


@pytest.mark.slow
def test_the_notebook_runs_in_the_root_of_a_clone(tmp_path: Path) -> None:
    notebook = nbformat.read(PAGE, as_version=4)
    kept = [shown(cell) for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.source = cell.source.replace('"runs/notebook"', repr(str(tmp_path)))
    asks = nbformat.v4.new_code_cell("import llmkit; print(llmkit.__file__)")
    notebook.cells.append(asks)
    run = runpy.run_path(str(ROOT / "docs" / "run_notebook.py"))["run"]
    *cells, last = [cell for cell in run(notebook).cells if cell.cell_type == "code"]
    assert Path(last.outputs[0].text.strip()) == ROOT / "llmkit" / "__init__.py"
    assert (tmp_path / "export" / "Modelfile").exists()
    assert [shown(cell) for cell in cells] == kept
    streams = [output.text for cell in cells for output in cell.outputs if "text" in output]
    assert "\x1b" not in "".join(streams)  # lines, and no bars that are drawn again and again
    assert any("image/png" in kinds for outputs in kept for kinds in outputs)


def test_its_outputs_name_no_machine() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "runs/notebook/base" in text
    assert str(ROOT) not in text
    assert not re.findall(r"(?<![\w.<])/(?:home|root|tmp|Users|var)/", text)
    assert not re.findall(r"iopub|[A-Z]:\\\\", text)
