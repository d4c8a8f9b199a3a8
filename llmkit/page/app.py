"""The script that Streamlit runs for each session and after each click."""

from __future__ import annotations

import sys
from pathlib import Path

# Streamlit adds this folder, in which modules have names that others may have too.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from llmkit.page.tabs import show_page

show_page(*map(Path, sys.argv[1:]))
