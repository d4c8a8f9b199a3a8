"""The `llmkit` command: all commands, and errors as one line with the promised exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Annotated

import typer
from typer.exceptions import TyperException

from llmkit.cli import (
    chat,
    compare,
    demo,
    deploy,
    doctor,
    export,
    finetune,
    generate,
    imatrix,
    inspect,
    modelfile,
    quantize,
    train,
    verify,
)
from llmkit.errors import LlmkitError

BAD_INPUT, INTERRUPTED = 2, 130
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")  # PyTorch's on the CPU; CUDA and MPS

app = typer.Typer(
    name="llmkit",
    help="From a GPT built from scratch to a proved GGUF that runs in Ollama.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help; drawing it with rich doubles the time it takes
    epilog="Every command takes --debug, which shows the traceback of an error.",
)
for _module in (
    demo, train, finetune, generate, chat, export, imatrix, quantize, verify, compare,
    inspect, modelfile, deploy, doctor,
):  # fmt: skip
    _module.register(app)

_interrupted = threading.Event()


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"llmkit {version('llmkit')}")
        raise typer.Exit


@app.callback()
def _of_llmkit(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Options of no command: what they do is their callbacks'."""


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit code. Errors become one line on stderr."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    _interrupted.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _on_interrupt)
    try:
        return int(app(arguments, standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        _interrupted.set()
        return _fail("interrupted", debug)
    except LlmkitError as error:
        return _fail(str(error), debug)
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # the help, where a command is missing
            print(message)
            return BAD_INPUT
        return _fail(f"{message.rstrip('.')}; see llmkit COMMAND --help", debug)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone, and nobody reads an error either
        return BAD_INPUT
    except Exception as error:
        if _is_out_of_memory(error):
            return _fail("out of memory; use a smaller model, batch or context", debug)
        return _fail(f"unexpected {type(error).__name__}: {error}; --debug shows where", debug)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or PyTorch on any device, got no more memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    _interrupted.set()
    if _is_importing(frame):
        # Libraries swallow an interrupt while they load, and go on or fail later of what is
        # missing then. Nothing is being written yet, so there is nothing to clean up.
        print("llmkit: interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)
    signal.default_int_handler(number, frame)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _fail(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    message, code = ("interrupted", INTERRUPTED) if _interrupted.is_set() else (message, BAD_INPUT)
    print(f"llmkit: {' '.join(message.split())}", file=sys.stderr)
    return code
