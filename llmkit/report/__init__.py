"""The report of a run: what is known about it, on one page."""
