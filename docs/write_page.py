"""Make the screenshots of docs/page.md: each tab, light and dark, 1280 and 390 pixels wide.

Needs the models of `make demo` in runs/demo, and a Chromium. Classifiers are trained beside a copy
of them in runs/page: they tell which part of a tale a sentence is from.
"""

from __future__ import annotations

import csv
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from llmkit.api import (
    FinetuneConfig,
    LoRAConfig,
    QuantConfig,
    export,
    finetune_classify,
)
from llmkit.export.doctor.port import free_port
from llmkit.page.tabs import TABS

ROOT = Path(__file__).parents[1]
DEMO, FOLDER, SCREENSHOTS = ROOT / "runs/demo", ROOT / "runs/page", ROOT / "docs/page"
SENTENCES = FOLDER / "sentences.csv"
PARTS = ("beginning", "middle", "end")
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
COLOURS = 64


def make_models() -> None:
    """Copy the demo and train classifiers of sentences, if that is not done yet."""
    shutil.copytree(DEMO, FOLDER, dirs_exist_ok=True)
    tales = (FOLDER / "tales.txt").read_text(encoding="utf-8").split("<|endoftext|>")[:60]
    with SENTENCES.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for tale in tales:
            sentences = tale.strip().split(". ")
            for at, sentence in enumerate(sentences):
                writer.writerow((sentence, PARTS[len(PARTS) * at // len(sentences)]))
    ways = {
        "labels-full": ("all", FinetuneConfig(add_tokens=True, epochs=1)),
        "labels-head": ("head", FinetuneConfig(add_tokens=True, epochs=1)),
        "labels-lora": ("all", FinetuneConfig(add_tokens=True, epochs=1, lora=LoRAConfig(rank=8))),
    }
    for name, (unfreeze, config) in ways.items():
        if not (FOLDER / name).exists():
            finetune_classify(
                FOLDER / "base", SENTENCES, FOLDER / name, unfreeze=unfreeze, config=config
            )
    if not (FOLDER / "labels-export").exists():
        export(FOLDER / "labels-full", FOLDER / "labels-export", QuantConfig("q4_0"))


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a page over a folder."""
    port = free_port(8600)
    command = [str(Path(sys.executable).with_name("llmkit")), "page", str(folder), "--no-browser"]
    server = subprocess.Popen([*command, "--port", str(port), *arguments])
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def write(page: Page) -> None:
    """Let two models write, and open the panel of a token."""
    page.get_by_role("button", name="Write", exact=True).click()
    page.get_by_text("prefers another token").first.wait_for()
    tokens = page.locator(".tokens").first.locator(".token")
    tokens.nth(1).click()


def ask(page: Page) -> None:
    """Ask a question that the model answers."""
    box = page.get_by_placeholder("Your question")
    box.fill("Where does Paul the shoemaker live?")
    box.press("Enter")
    page.get_by_text("below the town hall").wait_for()


def label(page: Page) -> None:
    """Label a file."""
    page.get_by_text("A file", exact=True).click()
    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "sentences.csv"
        lines = SENTENCES.read_text(encoding="utf-8").splitlines()
        few.write_text("\n".join(lines[:61]), encoding="utf-8")
        page.locator("input[type=file]").set_input_files(few)
        page.get_by_text("Column of labels").wait_for()
    page.get_by_role("button", name="Label", exact=True).click()
    page.get_by_text("Against the file's labels").wait_for()


def find(page: Page) -> None:
    """Open a proof."""
    page.get_by_text("Show the proof").first.click()


PREPARED: dict[str, Callable[[Page], None]] = {
    "find": find,
    "write": write,
    "ask": ask,
    "label": label,
}


def settled(page: Page) -> None:
    """Wait until the script has run and the page has stopped moving."""
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()
    page.wait_for_timeout(700)


def take(page: Page, address: str, module: str, path: Path) -> None:
    """Open a tab, prepare it, and keep a picture of the whole of it."""
    page.goto(f"{address}/{'' if module == TABS[0].module else module}")
    page.locator("h2").first.wait_for()
    settled(page)
    if prepare := PREPARED.get(module):
        prepare(page)
        settled(page)
    # Streamlit scrolls inside the page: the window is made as high as what it holds.
    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
    page.set_viewport_size({"width": page.viewport_size["width"], "height": min(height, 2400)})
    page.wait_for_timeout(500)
    page.screenshot(path=path)
    picture = Image.open(path).convert("RGB")
    picture.quantize(COLOURS).save(path, optimize=True)


def main(chosen: list[str]) -> None:
    """Take the pictures of some tabs, or of all."""
    make_models()
    SCREENSHOTS.mkdir(exist_ok=True)
    with served(FOLDER) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("chromium-browser"),
            args=["--no-sandbox"],
        )
        for scheme in SCHEMES:
            for width in WIDTHS:
                for module in chosen or [tab.module for tab in TABS]:
                    page = browser.new_page(
                        viewport={"width": width, "height": 900}, color_scheme=scheme
                    )
                    page.set_default_timeout(60_000)
                    take(page, address, module, SCREENSHOTS / f"{module}-{scheme}-{width}.png")
                    page.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
