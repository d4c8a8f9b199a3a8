"""Run docs/notebook.ipynb in the root of the clone and keep its outputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).with_name("notebook.ipynb")
ROOT = PAGE.parents[1]


def run(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Run every cell; an error in one is raised. Nothing is kept that names this machine."""
    metadata = notebook.metadata.copy()
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(ROOT)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata = metadata  # without the version of this Python
    return notebook


if __name__ == "__main__":
    shutil.rmtree(ROOT / "runs" / "notebook", ignore_errors=True)  # trained there, it stays so
    nbformat.write(run(nbformat.read(PAGE, as_version=4)), PAGE)
