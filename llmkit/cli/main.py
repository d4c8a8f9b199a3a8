"""The `llmkit` command: all commands, and errors as one line with the promised exit codes."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from llmkit.cli import (
    chat,
    compare,
    data,
    demo,
    deploy,
    doctor,
    evaluate,
    export,
    finetune,
    generate,
    imatrix,
    import_checkpoint,
    inspect,
    modelfile,
    page,
    quantize,
    report,
    runs,
    tokenizer,
    train,
    verify,
)
from llmkit.errors import LlmkitError, OtherProcessError

BAD_INPUT = 2
# Ctrl-C, kill or docker stop, a terminal that closes: all end a command in the same way.
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_INTERRUPTED = 128  # and the signal's number, as in a shell
_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory")  # PyTorch's on the CPU; CUDA and MPS

app = typer.Typer(
    name="llmkit",
    help="Train a GPT from scratch and run it in Ollama as a verified GGUF file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help; drawing it with rich doubles the time it takes
)
for _module in (
    demo, data, tokenizer, train, runs, import_checkpoint, finetune, generate, chat, export,
    imatrix, quantize, verify, compare, evaluate, report, page, inspect, modelfile, deploy, doctor,
):  # fmt: skip
    _module.register(app)

_signal = 0  # that interrupted the command
_debug = threading.Event()


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"llmkit {version('llmkit')}")
        raise typer.Exit


def _note_debug(asked: bool) -> None:
    if asked:
        _debug.set()


@app.callback()
def _of_llmkit(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            expose_value=False,
            callback=_note_debug,
            help="Show the Python traceback of an error.",
        ),
    ] = False,
) -> None:
    """Options of no command: what they do is their callbacks'."""


def main(arguments: list[str]) -> int:
    """Run a command; returns its exit code. Errors become one line on stderr."""
    global _signal
    _signal = 0
    _debug.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
                signal.signal(number, _on_interrupt)
    try:
        code = int(whole_command()(arguments, prog_name=app.info.name, standalone_mode=False) or 0)
        if code == _INTERRUPTED + signal.SIGINT:  # what Typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return code
    except (KeyboardInterrupt, typer.Abort):
        _signal = _signal or signal.SIGINT
        return _fail("interrupted")
    except OtherProcessError:
        return _INTERRUPTED + _signal if _signal else BAD_INPUT
    except LlmkitError as error:
        return _fail(str(error))
    except TyperException as error:
        message = error.format_message()
        if message.startswith("Usage:"):  # the help, where a command is missing
            print(message)
            return BAD_INPUT
        return _fail(f"{_reworded(message)}; see {_command_path(arguments)} --help")
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output is gone, and nobody reads an error either
        return BAD_INPUT
    except Exception as error:
        if isinstance(error, OSError) and error.filename:  # such as a name that is too long
            return _fail(f"cannot use {error.filename}: {error.strerror}")
        if _is_out_of_memory(error):
            return _fail("out of memory; use a smaller model, batch or context")
        return _fail(f"unexpected {type(error).__name__}: {error}; --debug shows where")


def _reworded(message: str) -> str:
    """A usage error of Typer's in the form of our own: lower case, no stop at its end."""
    message = re.sub(r"^No such option: (\S+)", r"unknown option '\1'", message)
    message = message.replace("No such command", "unknown command")
    message = re.sub(r" \(Possible options: (.*)\)$", r" (did you mean \1?)", message)
    message = re.sub(r"\. (Did you mean .*)$", lambda found: f" (d{found[1][1:]})", message)
    message = re.sub(r": Value error, (.*) is not one of (.*)$", r" \1: choose one of: \2", message)
    message = re.sub(r": Input should be ([^,]*).*$", r": expected \1", message)
    return message[:1].lower() + message[1:].rstrip(".")


def _command_path(arguments: list[str]) -> str:
    """The command that the arguments name, such as `llmkit finetune classify`."""
    path, command = "llmkit", get_command(app)
    for word in arguments:
        inner = getattr(command, "commands", {}).get(word)
        if inner is not None:
            path, command = f"{path} {word}", inner
    return path


def whole_command() -> Any:
    """All commands, each with llmkit's own --debug, and help without Python's types."""
    whole = get_command(app)
    debug = next(option for option in whole.params if option.name == "debug")
    inner = [*getattr(whole, "commands", {}).values()]
    for command in inner:  # grows by the commands of groups
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                parameter.display_type_rich = _no_type
        command.params.append(debug)
        inner += getattr(command, "commands", {}).values()
    return whole


def _no_type(ctx: object) -> None:
    """Instead of <path> or <list[Path]> behind an argument's own name."""


def _is_out_of_memory(error: Exception) -> bool:
    """Whether Python, or PyTorch on any device, got no more memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    global _signal
    _signal = number
    if _is_importing(frame):
        # Libraries swallow an interrupt while they load, and go on or fail later of what is
        # missing then. Nothing is being written yet, so there is nothing to clean up.
        print("llmkit: interrupted", file=sys.stderr, flush=True)
        os._exit(_INTERRUPTED + number)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _fail(message: str) -> int:
    if _debug.is_set():
        traceback.print_exc()
    message, code = ("interrupted", _INTERRUPTED + _signal) if _signal else (message, BAD_INPUT)
    print(f"llmkit: {' '.join(message.split())}", file=sys.stderr)
    return code
