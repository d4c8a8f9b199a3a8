"""The command line: one small file per command; it parses, calls and prints."""

import os
import sys

from llmkit.threads import wait_without_spinning


def run() -> None:
    """Run the command of this process's arguments and exit with its code."""
    wait_without_spinning()
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
