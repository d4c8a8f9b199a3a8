"""How fast the page is, and how much memory ten sessions take.

    python tests/benchmarks/bench_page.py [FOLDER]

Measured in a Chromium, with the models of `make demo` unless another folder is given: from the
start of the command to the cards of all models; from a click on Write to the first token, with
the models not loaded yet and loaded; the memory of the server while ten sessions write at once.
"""

from __future__ import annotations

import runpy
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
SERVED = runpy.run_path(str(ROOT / "tests/page/served_page.py"))
SESSIONS = 10
TOKEN = ".tokens .token"


def write(page: Page) -> float:
    """Seconds from a click to the first token."""
    page.get_by_role("button", name="Write", exact=True).click()
    start = time.perf_counter()
    page.locator(TOKEN).first.wait_for()
    return time.perf_counter() - start


def ready(page: Page) -> None:
    """Wait for what Write says at its end."""
    page.get_by_text("prefers another token").first.wait_for()


def opened(browser: Browser, address: str) -> Page:
    """A session on the tab Write."""
    page = browser.new_context().new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{address}/write")
    page.get_by_role("button", name="Write", exact=True).wait_for()
    return page


def measure(folder: Path) -> dict[str, Any]:
    """All figures."""
    found: dict[str, Any] = {}
    with SERVED["open_browser"]() as browser:
        start = time.perf_counter()
        with SERVED["served"](folder) as server:
            process = psutil.Process(server.process.pid)
            page = browser.new_page()
            page.goto(server.address)
            page.get_by_text("parameters").last.wait_for()
            found["first page, seconds"] = time.perf_counter() - start
            used = process.cpu_times()
            found["first page, CPU seconds of the server"] = used.user + used.system
            time.sleep(10)  # what the server loads while a person reads
            page = opened(browser, server.address)
            found["first token, models not loaded, seconds"] = write(page)
            ready(page)
            page.reload()
            page.get_by_role("button", name="Write", exact=True).wait_for()
            found["first token, models loaded, seconds"] = write(page)
            ready(page)
            sessions = [opened(browser, server.address) for _ in range(SESSIONS)]
            for page in sessions:
                page.get_by_role("button", name="Write", exact=True).click()
            peak = 0
            for page in sessions:
                ready(page)
                peak = max(peak, process.memory_info().rss)
            found[f"memory with {SESSIONS} sessions, MB"] = peak / 1e6
    return found


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs/demo"
    for name, value in measure(where).items():
        print(f"{name}: {value:.2f}")
