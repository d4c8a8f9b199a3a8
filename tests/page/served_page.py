"""The page served by the command in a process of its own, and a browser for it.

The tests, docs/write_page.py and tests/benchmarks/bench_page.py share it.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from llmkit.export.doctor.port import free_port

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SECONDS = 60


@dataclass(frozen=True)
class ServedPage:
    """Where the page is, and the process that serves it."""

    address: str
    process: subprocess.Popen[bytes]


def browser_path() -> str | None:
    """Path of a Chromium; None where there is none."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def served(folder: Path, *arguments: str | Path) -> Iterator[ServedPage]:
    """A page over a folder that answers already."""
    port = free_port(8600)
    command = [Path(sys.executable).with_name("llmkit"), "page", folder, "--no-browser"]
    with subprocess.Popen([*command, "--port", str(port), *arguments]) as process:
        try:
            end = time.monotonic() + _SECONDS
            while not _answers(port):
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            yield ServedPage(f"http://127.0.0.1:{port}", process)
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
