"""The doctor's lines, on a machine and servers in every state."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from deployable import answering_checkpoint, exported
from gguf_surgery import make_checkpoint
from ollama_servers import real_ollama, stand_in
from ollama_stand_in import StandIn, Trouble

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.cli.main import main
from llmkit.errors import ConfigError, GGUFError
from llmkit.export.check import Check
from llmkit.export.convert import export
from llmkit.export.doctor import examine, machine, port
from llmkit.export.doctor import ollama_server as server
from llmkit.export.doctor.examine import doctor
from llmkit.export.doctor.fit import fit_check
from llmkit.export.doctor.ollama_server import server_checks, version_check
from llmkit.export.gguf.memory_need import memory_needed, memory_needed_as
from llmkit.export.gguf.reader import read_gguf
from llmkit.export.llamacpp.devices import Device
from llmkit.export.ollama.transport import Patience
from llmkit.export.quantization.config import QuantConfig
from llmkit.quantization.tensor_types import quantization

QUICK = Patience(connect=5, answer=1, pause=0.01)
DOCS = Path(__file__).parents[2] / "docs" / "ollama.md"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with stand_in(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return answering_checkpoint(tmp_path_factory.mktemp("doctor") / "my c")


@pytest.fixture(scope="module")
def gguf(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = exported(checkpoint, tmp_path_factory.mktemp("doctor") / "out", "f16")
    return next(folder.glob("*.gguf"))


@contextmanager
def listening(answer: bytes | None) -> Iterator[int]:
    """A program of another kind on a port: it answers so, or takes a connection and is silent."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as found:
        found.settimeout(0.05)

        def serve() -> None:
            kept = []
            while not stop.is_set():
                try:
                    connection, _ = found.accept()
                except TimeoutError:
                    continue
                kept.append(connection)
                if answer is not None:
                    connection.recv(4096)
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(found.getsockname()[1])
        finally:
            stop.set()
            thread.join()


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# Ollama


def test_a_server_that_runs_is_fine(running: StandIn) -> None:
    found = server_checks(running.url)
    assert [check.name for check in found.checks if check.passed] == ["host", "server", "version"]
    assert found.answers
    assert "ollama serve" in by_name(found.checks)["server"].advice


def test_a_real_server_is_fine(tmp_path: Path) -> None:
    with real_ollama(tmp_path) as url:
        assert all(check.passed for check in server_checks(url).checks)


def test_no_server_is_to_be_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    check = by_name(server_checks(f"127.0.0.1:{free}", QUICK).checks)["server"]
    assert check.detail.endswith(f"http://127.0.0.1:{free}")
    assert f"OLLAMA_HOST=127.0.0.1:{free}" in check.advice
    assert "ollama serve" in check.advice


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is not Ollama"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", "is not Ollama"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", "is not Ollama"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"version": 12}', "is not Ollama"),
        (b'HTTP/1.1 404 X\r\nContent-Length: 15\r\n\r\n{"error": "no"}', "is not Ollama"),
        (b"", "is not Ollama"),
        (None, "does not answer"),
    ],
)
def test_a_port_that_another_program_holds(answer: bytes | None, says: str) -> None:
    with listening(answer) as taken:
        check = by_name(server_checks(f"127.0.0.1:{taken}", QUICK).checks)["server"]
    assert not check.passed
    assert check.detail.startswith(f"port {taken} ")
    assert check.detail.endswith(says)
    assert "ollama serve" in check.advice
    assert "--host 127.0.0.1:" in check.advice


def test_the_holder_of_a_port_is_named_where_the_system_tells() -> None:
    with listening(None) as taken:
        name = port.holder(taken)
        assert port.free_port(taken - 1) != taken
    if name is not None:  # macOS tells only an administrator
        assert name.endswith(f"(process {psutil.Process().pid})")


def test_without_leave_to_look_the_holder_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(kind: str) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", denied)
    assert port.holder(80) is None


@pytest.mark.parametrize(
    ("version", "passed"),
    [
        ("0.12.10", False), ("0.12.11", True), ("0.13.0-rc1", True), ("1.0.0", True),
        ("0.1.33", False), ("0.0.0", True), ("unknown", False),
    ],
)  # fmt: skip
def test_an_old_version_is_a_cross(version: str, passed: bool) -> None:
    check = version_check(version)
    assert check.passed is passed
    assert passed or "0.12.11" in check.advice


def test_an_old_server_is_found(running: StandIn) -> None:
    running.trouble = Trouble(version="0.5.7")
    checks = by_name(server_checks(running.url).checks)
    running.trouble = Trouble()
    assert not checks["version"].passed
    assert checks["server"].passed


def test_an_address_that_is_none_is_a_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "ftp://example.com")
    (check,) = server_checks().checks
    assert (check.name, check.passed) == ("host", False)


def test_a_server_on_another_machine_is_not_told_to_start_here() -> None:
    assert "example.com with OLLAMA_HOST=0.0.0.0:99" in server._start_advice(
        "http://example.com:99"
    )


def test_ollama_that_is_not_installed_is_a_cross_only_where_it_is_needed(
    running: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(server, "_PROGRAMS", ())
    nobody = server.installed_check(server_checks("127.0.0.1:9", QUICK))
    assert not nobody.passed
    assert "https://ollama.com/download" in nobody.advice
    assert server.installed_check(server_checks(running.url)).passed


# The machine


def test_llama_cpp_runs_here() -> None:
    check = machine.llama_cpp_check()
    assert check.passed
    assert "CPU (" in check.detail


def test_a_llama_cpp_that_crashes_is_a_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise GGUFError("cannot measure the speed of tiny.gguf: Illegal instruction")

    monkeypatch.setattr(machine, "measure_speed", crash)
    check = machine.llama_cpp_check()
    assert not check.passed
    assert "Illegal instruction" in check.detail
    assert "--no-binary llama-cpp-python" in check.advice


@pytest.mark.parametrize(
    ("cuda", "renderer", "option"),
    [(True, False, "-DGGML_CUDA=on"), (False, True, "-DGGML_VULKAN=on"), (False, False, "")],
)
def test_a_gpu_that_llama_cpp_does_not_see_needs_another_build(
    cuda: bool, renderer: bool, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "measure_speed", lambda *_: None)
    monkeypatch.setattr(machine, "devices", lambda: (Device("CPU", "a CPU", is_gpu=False),))
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    monkeypatch.setattr(machine, "_RENDERERS", tmp_path)
    if renderer:
        (tmp_path / "renderD128").touch()
    check = machine.llama_cpp_check()
    assert check.passed
    assert (option in check.advice) if option else not check.advice


def test_an_old_python_is_a_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.python_check().passed
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert "3.11" in machine.python_check().advice


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    everything = psutil.virtual_memory().total
    assert machine.free_memory() <= everything
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert machine.free_memory() == 3000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory() > 3000


def test_a_disk_is_asked_where_ollama_keeps_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "not" / "there"))
    assert machine.models_folder()[0] == tmp_path / "not" / "there"
    assert machine.disk_check(1000).passed
    assert "OLLAMA_MODELS" in machine.disk_check().detail
    full = machine.disk_check(1 << 60)
    assert not full.passed
    assert "OLLAMA_MODELS" in full.advice
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    folder, source = machine.models_folder()
    assert folder in (tmp_path / ".ollama/models", Path("/usr/share/ollama/.ollama/models"))
    assert "OLLAMA_MODELS" in source


# A file


def free_bytes(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: n_bytes)
    monkeypatch.setattr(machine, "free_gpu_memory", lambda: 0)


def test_a_file_that_fits_is_told_with_its_parts(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = memory_needed(read_gguf(gguf), 256).total
    free_bytes(monkeypatch, need)
    check = fit_check(read_gguf(gguf), 1000)
    assert check.passed
    for part in ("at a context of 256", "weights ", "KV cache ", "compute buffer "):
        assert part in check.detail
    free_bytes(monkeypatch, need - 1)
    assert not fit_check(read_gguf(gguf), 1000).passed


def test_the_largest_type_that_fits_is_named_with_a_command_that_works(
    gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = read_gguf(gguf)
    free_bytes(monkeypatch, memory_needed_as(file, quantization("q8_0"), 256).total)
    check = fit_check(file, 256)
    assert not check.passed
    said, _, command = check.advice.partition(" fits: ")
    assert said == "q8_0"
    _, *words = shlex.split(command)
    assert main([*words, "--no-verify"]) == 0
    assert list(Path(f"{gguf.parent}-q8_0").glob("*-q8_0.gguf"))


def test_the_largest_context_that_fits_is_named_with_a_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_checkpoint(tmp_path / "long", context_length=1024, n_embd=256, n_layer=4)
    done = export(made.folder, tmp_path / "out", QuantConfig(["q4_0"]), prove=False)
    file = read_gguf(done.files[0].path)
    free_bytes(monkeypatch, memory_needed(file, 512).total)
    check = fit_check(file, 1024)
    assert not check.passed
    _, _, command = check.advice.partition("; or a context of 512 fits: ")
    assert main(shlex.split(command)[1:]) == 0
    written = tmp_path / "out" / "Modelfile-512"
    assert "PARAMETER num_ctx 512" in written.read_text(encoding="utf-8")


def test_where_nothing_fits_there_is_something_else_to_do(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes(monkeypatch, 10)
    check = fit_check(read_gguf(gguf), 256)
    assert not check.passed
    assert check.advice


def test_a_file_that_is_none_is_a_cross(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"no")
    check = by_name(doctor(path, host="127.0.0.1:9").checks)["file"]
    assert not check.passed


def test_another_machines_memory_is_not_known(gguf: Path) -> None:
    (check,) = examine.room_checks(read_gguf(gguf), 256, is_here=False)
    assert check.passed
    assert "another machine" in check.detail


def test_another_machines_disk_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    found = server.Found((), "http://ollama.example:11434", answers=True)
    monkeypatch.setattr(examine, "server_checks", lambda _host: found)
    monkeypatch.setattr(examine, "llama_cpp_check", lambda: Check("llama.cpp", True, ""))
    checks = by_name(doctor(host="ollama.example").checks)
    assert "another machine" in checks["memory"].detail
    assert "disk" not in checks


@pytest.mark.parametrize(("given", "context"), [(False, 10), (True, 0)])
def test_a_context_needs_a_file_and_is_positive(given: bool, context: int, gguf: Path) -> None:
    with pytest.raises(ConfigError):
        doctor(gguf if given else None, context=context)


# The command


def test_a_cross_is_exit_code_1(
    running: StandIn, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["doctor", str(gguf), "--context", "999", "--host"]
    assert main([*words, running.url]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("✔ ") for line in lines)
    assert any(" file: " in line and " 256 tokens" in line for line in lines)
    assert main([*words, "127.0.0.1:9", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in said["checks"] if not c["passed"]][-1:] == ["server"]
    assert {tuple(c) for c in said["checks"]} == {("name", "passed", "found", "advice")}


def test_every_line_has_its_place_in_the_docs(running: StandIn, gguf: Path) -> None:
    docs = DOCS.read_text(encoding="utf-8")
    for check in (*doctor(gguf, host=running.url).checks, *doctor(host=running.url).checks):
        assert f"`{check.name}`" in docs
