"""Make the screenshots of docs/page.md: each tab, light and dark, 1280 and 390 pixels wide.

Needs the models of `make demo` in runs/demo, and a Chromium. Classifiers are trained beside a copy
of them in runs/page: they tell which part of a tale a sentence is from.
"""

from __future__ import annotations

import csv
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page

from llmkit.api import (
    FinetuneConfig,
    LoRAConfig,
    QuantConfig,
    export,
    finetune_classify,
)
from llmkit.page.tabs import TABS

ROOT = Path(__file__).parents[1]
DEMO, FOLDER, SCREENSHOTS = ROOT / "runs/demo", ROOT / "runs/page", ROOT / "docs/page"
SENTENCES = FOLDER / "sentences.csv"
PARTS = ("beginning", "middle", "end")
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
COLOURS = 256  # fewer tint the text where a picture has a colour map
TALLEST = 2400  # pixels
# Of the page itself, not of a table in it that scrolls.
HEIGHT = """Math.max(...[...document.querySelectorAll("*")]
    .filter(e => !e.closest("[data-testid=stDataFrame]")).map(e => e.scrollHeight))"""
SERVED = runpy.run_path(str(ROOT / "tests/page/served_page.py"))


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


def proof(page: Page) -> None:
    """Open a proof."""
    page.get_by_role("button", name="Show the proof").nth(1).click()
    page.get_by_role("dialog").get_by_text("tokenizer").wait_for()


def compare(page: Page) -> None:
    """Measure the demo's files, unless that is done."""
    page.get_by_text("Measure", exact=True).first.wait_for()
    if page.get_by_text("Nothing is measured yet").count():
        page.get_by_role("button", name="Measure", exact=True).click()
    page.get_by_text("Types in each file").wait_for()


def text(page: Page) -> None:
    """Compare the files along a text."""
    page.get_by_text("Along a text").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("mean KL").first.wait_for()


def layers(page: Page) -> None:
    """Show the prediction after each layer."""
    page.get_by_text("After each layer").click()
    page.get_by_text("logit lens").wait_for()


# By the name of the picture: the tab, and what is done before it is taken.
PREPARED: dict[str, tuple[str, Callable[[Page], None]]] = {
    "proof": ("find", proof),
    "write": ("write", write),
    "ask": ("ask", ask),
    "label": ("label", label),
    "compare": ("compare", compare),
    "text": ("compare", text),
    "layers": ("inside", layers),
}


def settle(page: Page) -> None:
    """Wait until the script has run and the page has stopped moving."""
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()
    page.wait_for_timeout(1000)


def take(page: Page, width: int, path: Path) -> None:
    """Keep a picture of the whole tab, in few colours."""
    height = 0
    while (found := min(page.evaluate(HEIGHT), TALLEST)) != height:
        height = found  # Streamlit scrolls inside the page: the window becomes as high as that
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(1000)
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def main(chosen: list[str]) -> None:
    """Take the pictures of some names, or of all."""
    make_models()
    SCREENSHOTS.mkdir(exist_ok=True)
    pictures = {tab.module: (tab.module, lambda page: None) for tab in TABS} | PREPARED
    pictures = {name: how for name, how in pictures.items() if not chosen or name in chosen}
    with SERVED["served"](FOLDER) as server, SERVED["open_browser"]() as browser:
        for scheme, width in product(SCHEMES, WIDTHS):
            for name, (module, prepare) in pictures.items():
                page = browser.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                page.set_default_timeout(60_000)
                page.goto(f"{server.address}/{'' if module == TABS[0].module else module}")
                page.locator("h2").first.wait_for()
                settle(page)
                prepare(page)
                settle(page)
                take(page, width, SCREENSHOTS / f"{name}-{scheme}-{width}.png")
                page.close()


if __name__ == "__main__":
    main(sys.argv[1:])
