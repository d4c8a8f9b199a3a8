"""Starting the server: where it listens, what it sends nowhere, and what it refuses."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the extra page is not installed")

from streamlit.web import bootstrap

from llmkit.cli.main import main
from llmkit.export.doctor.port import free_port
from llmkit.page import serve


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What Streamlit is started with, in the place of starting it."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(bootstrap, "load_config_options", lambda options: None)
    monkeypatch.setattr(bootstrap, "run", lambda *arguments: calls.append(arguments))
    return calls


def test_it_listens_on_this_machine_only_and_reports_to_nobody(
    started: list[tuple[Any, ...]], tmp_path: Path
) -> None:
    port = free_port(8700)
    assert main(["page", str(tmp_path), "--port", str(port), "--no-browser"]) == 130
    ((script, _, arguments, options),) = started
    assert Path(script).is_file()
    assert arguments == [str(tmp_path)]
    assert options["server.address"] == "127.0.0.1"
    assert options["server.port"] == port
    assert options["browser.gatherUsageStats"] is False
    assert options["server.headless"] is True


def test_a_busy_port_is_named(
    started: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["page", str(tmp_path), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert not started


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--faq", "nowhere.csv"]])
def test_what_is_missing_is_named(
    started: list[tuple[Any, ...]], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["page", *arguments]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert not started


def test_a_wrong_faq_is_refused_before_the_start(
    started: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faq = tmp_path / "empty.csv"
    faq.touch()
    assert main(["page", str(tmp_path), "--faq", str(faq)]) == 2
    assert str(faq) in capsys.readouterr().err
    assert not started


def test_without_streamlit_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["page", str(tmp_path)]) == 2
    assert "llmkit[page]" in capsys.readouterr().err
