from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llmkit.memory import peak_rss_bytes

SHOW = "from llmkit.memory import peak_rss_bytes; print(peak_rss_bytes())"


def peak_of_child(code: str) -> int:
    command = [sys.executable, "-P", "-c", f"{code}; {SHOW}"]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


def test_peak_of_a_child_is_its_own_and_not_its_parents() -> None:
    torch.ones(100_000_000)
    assert peak_rss_bytes() > 400e6
    alone = peak_of_child("pass")
    assert 1e6 < alone < 100e6
    freed = peak_of_child("b'x' * 200_000_000")
    assert alone + 190e6 < freed < alone + 210e6


def test_peak_where_the_system_does_not_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(Path, "read_text", lambda self: "VmSize:\t5 kB\n")
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=7))
    assert peak_rss_bytes() == (7 if sys.platform == "darwin" else 7 * 1024)


@pytest.mark.slow
def test_sweeps_need_nothing_that_windows_lacks() -> None:
    code = "import sys; sys.modules['resource'] = None; import llmkit.finetuning.sweep"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
