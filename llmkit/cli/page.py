"""`llmkit page`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("page")(_page)


def _page(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder with checkpoints and GGUF files.")
    ] = Path(),
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is all.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", min=1, max=65535, help="Port to listen on.")
    ] = 8501,
    faq: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of questions and answers, as for `llmkit chat --faq`.",
            show_default=False,
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")
    ] = True,
) -> None:
    """Open a page to try, compare and understand your models."""
    from llmkit.page.serve import serve

    serve(folder, faq, host, port, opens_browser=browser)
    raise KeyboardInterrupt  # only a signal ends the server
