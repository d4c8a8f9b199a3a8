"""The command line: one small file per command; it parses, calls and prints."""

import codecs
import io
import os
import sys

from llmkit.threads import let_waiting_threads_sleep

# What a console of another encoding than UTF-8 shows instead, such as Windows' cp1252 in a pipe.
_IN_ASCII = {"✔": "+", "✘": "x", "→": "->", "…": "...", "–": "-", "—": "-", "×": "x", "≥": ">="}


def run() -> None:
    """Run the command of this process's arguments and exit with its code."""
    let_waiting_threads_sleep()
    replace_what_cannot_be_written()
    try:
        # Imported here, so that Ctrl-C while it loads ends as quietly as later.
        from llmkit.cli.main import main

        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        print("llmkit: interrupted", file=sys.stderr)
        code = 130
    if code > 128:  # ended by a signal
        # At once: Python's own end would wait for native code that still runs in a thread.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def replace_what_cannot_be_written() -> None:
    """Let no character be an error that the encoding of stdout or stderr has not."""
    codecs.register_error("llmkit", _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="llmkit")


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(character, "?") for character in text), error.end
