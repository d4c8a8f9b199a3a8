"""A real browser walks through the tabs."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="the extra page is not installed")
pytest.importorskip("playwright", reason="playwright is not installed")

from playwright.sync_api import Browser, Page, expect
from served_page import browser_path, open_browser, served

SECONDS = 30
QUESTION, ANSWER = "When does the bakery open?", "At nine."


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if browser_path() is None:
        pytest.skip("no Chromium on this machine")
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def address(
    browser: Browser, page_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The page over the test models."""
    faq = tmp_path_factory.mktemp("faq") / "faq.csv"
    faq.write_text(f"question,answer\n{QUESTION},{ANSWER}\nWhere is the mill?,Over there.\n")
    with served(page_folder, "--faq", faq) as page:
        yield page.address
    assert page.process.returncode == 130


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A new session, with no traceback in it at its end."""
    opened = browser.new_page()
    opened.set_default_timeout(SECONDS * 1000)
    expect.set_options(timeout=SECONDS * 1000)
    opened.goto(address)
    yield opened
    expect(opened.locator("[data-testid=stException]")).to_have_count(0)
    opened.close()


def go(page: Page, tab: str) -> None:
    page.get_by_role("link", name=tab).click()
    expect(page.get_by_role("heading", name=tab, exact=True)).to_be_visible()


def click(page: Page, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


def set_temperature(page: Page, key: str, value: int) -> None:
    """Move the slider to one of its ends, as a key does."""
    slider = page.locator("input[type=range][aria-label=Temperature]")
    slider.press(key)
    expect(slider).to_have_value(str(value))


def test_find_opens_a_proof(page: Page) -> None:
    expect(page.get_by_text("export/answers-q4_0.gguf")).to_be_visible()
    click(page, "Show the proof")
    expect(page.get_by_role("dialog").get_by_text("28 tensors are equal")).to_be_visible()


def test_write_takes_the_settings(page: Page) -> None:
    go(page, "Write")
    page.get_by_label("Prompt").fill("Once there")
    set_temperature(page, "End", 2)
    click(page, "Write")
    expect(page.get_by_text("prefers another token").first).to_be_visible()
    first, second = page.locator(".tokens").all()
    hot = second.inner_text()
    token = first.locator(".token").nth(2)
    token.click()
    expect(token.locator(".row")).to_have_count(10)
    expect(token.locator(".row").first).to_be_visible()
    set_temperature(page, "Home", 0)
    click(page, "Write")
    expect(page.locator(".tokens").nth(1)).not_to_have_text(hot)


def test_a_long_text_grows_and_can_be_stopped(page: Page) -> None:
    go(page, "Write")
    click(page, "Clear all")
    models = page.get_by_role("combobox", name="Models, side by side")
    models.fill("long")
    models.press("Enter")
    set_temperature(page, "Home", 0)
    page.get_by_label("Length in tokens").fill("4000")
    page.evaluate(
        """() => {
            window.lengths = new Set();
            new MutationObserver(() => {
                const first = document.querySelector('.tokens');
                if (first) window.lengths.add(first.querySelectorAll('.token').length);
            }).observe(document.body, {childList: true, subtree: true});
        }"""
    )
    click(page, "Write")
    page.wait_for_function("window.lengths.size > 2")
    page.locator(".st-key-write_stop button").click()  # the header has another "Stop"
    expect(page.locator(".tokens .token[tabindex]").first).to_be_attached()
    assert 0 < page.locator(".tokens .token").count() < 4000


def test_ask_answers_from_the_faq_and_from_the_model(page: Page) -> None:
    go(page, "Ask")
    box = page.get_by_placeholder("Your question")
    box.fill(QUESTION)
    box.press("Enter")
    expect(page.get_by_text(ANSWER)).to_be_visible()
    expect(page.get_by_text("FAQ, similarity")).to_be_visible()
    box.fill("Who is Anton?")
    box.press("Enter")
    expect(page.get_by_test_id("stChatMessage").nth(3)).to_have_text(re.compile(r"\w"))
    expect(page.get_by_text("FAQ, similarity")).to_have_count(1)


def test_label_takes_a_csv_and_gives_one(page: Page, tmp_path: Path) -> None:
    go(page, "Label")
    page.get_by_text("A file", exact=True).click()
    table = tmp_path / "texts.csv"
    table.write_text("text,label\nOnce there was a baker,he\nAnton the cook,and\n")
    page.locator("input[type=file]").set_input_files(table)
    expect(page.get_by_text("Column of labels")).to_be_visible()
    click(page, "Label")
    expect(page.get_by_role("heading", name="Against the file's labels")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_test_id("stDownloadButton").get_by_role("button").click()
    with Path(download.value.path()).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["he", "and"]
    assert all(row["labels-1"] in ("he", "and") for row in rows)


def test_compare_measures_a_file_and_shows_where_it_differs(page: Page) -> None:
    go(page, "Compare")
    click(page, "Measure")
    expect(page.get_by_text("Types in each file")).to_be_visible()
    expect(page.locator("[data-testid=stVegaLiteChart]")).to_be_visible()
    page.get_by_text("Along a text").click()
    click(page, "Compare")
    expect(page.locator(".tokens .token").first).to_be_visible()
    page.get_by_text("Proofs").click()
    expect(page.frame_locator("iframe").get_by_text("28 tensors are equal")).to_be_visible()
    page.get_by_text("Training", exact=True).click()
    expect(page.get_by_text("Solid: training")).to_be_visible()


def test_look_inside_shows_heads_layers_and_neighbours(page: Page) -> None:
    go(page, "Look inside")
    expect(page.locator("[data-testid=stVegaLiteChart]")).to_have_count(2)
    page.get_by_label("Text", exact=True).fill("The cook")
    page.get_by_text("After each layer").click()
    expect(page.locator(".lens th", has_text="layer 2")).to_be_visible()
    page.get_by_text("Neighbours of a token").click()
    expect(page.get_by_role("combobox", name="Token of the text")).to_be_visible()
