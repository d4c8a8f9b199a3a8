"""The tabs, and what happens around each: navigation, style, errors as sentences."""

from __future__ import annotations

import threading
import traceback
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import streamlit as st

from llmkit.errors import LlmkitError
from llmkit.page.context import open_context
from llmkit.page.style import STYLE


@dataclass(frozen=True)
class Tab:
    """A tab: `llmkit.page.MODULE`, imported when it is first shown, has `show(context)`."""

    module: str
    title: str
    icon: str


# Drawn here: Streamlit's own icons for the browser's tab come from a server of Google.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="#c83b4d">'
    '<path d="M11 6h2v6l5 5-1.4 1.4L12 13.8l-4.6 4.6L6 17l5-5z"/>'
    '<circle cx="12" cy="5" r="3.5"/><circle cx="6" cy="18" r="3.5"/>'
    '<circle cx="18" cy="18" r="3.5"/></svg>'
)
TABS = (
    Tab("find", "Find", ":material/search:"),
    Tab("write", "Write", ":material/edit:"),
    Tab("ask", "Ask", ":material/chat:"),
    Tab("label", "Label", ":material/label:"),
    Tab("compare", "Compare", ":material/balance:"),
    Tab("inside", "Look inside", ":material/visibility:"),
)


def show_page(folder: Path, faq: Path | None = None) -> None:
    """Show the tab that the address names."""
    st.set_page_config(page_title="llmkit", page_icon=ICON, layout="wide")
    st.html(STYLE)
    pages = [
        st.Page(
            partial(open_tab, tab.module, folder, faq),
            title=tab.title,
            icon=tab.icon,
            url_path=tab.module,
            default=tab is TABS[0],
        )
        for tab in TABS
    ]
    st.navigation(pages, position="top").run()
    _warm_up()


def open_tab(module: str, folder: Path, faq: Path | None = None) -> None:
    """Show one tab; an error becomes a sentence."""
    try:
        import_module(f"llmkit.page.{module}").show(open_context(folder, faq))
    except LlmkitError as error:
        st.error(str(error))
    except Exception as error:
        traceback.print_exc()
        st.error(f"Unexpected {type(error).__name__}: {error}. The terminal shows where.")


@st.cache_resource(show_spinner=False)
def _warm_up() -> None:
    """Load what models need while the user reads the first page."""
    threading.Thread(target=lambda: import_module("llmkit.api"), daemon=True).start()
