from __future__ import annotations

import io
import sys

import pytest

import llmkit.cli
import llmkit.cli.main
from llmkit.console import results, say
from llmkit.export.check import Check


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437", "utf-8"])
def test_output_that_the_encoding_has_not_is_replaced(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))

    def main(arguments: list[str]) -> int:
        results.print(str(Check("a", True, "日本", "do")))
        print(Check("b", False, "\udcff", ""))
        say("…✘")
        return 3

    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(llmkit.cli.main, "main", main)
    with pytest.raises(SystemExit) as ended:
        llmkit.cli.run()
    assert ended.value.code == 3
    for stream in (out, err):
        stream.flush()
    first, second = out.buffer.getvalue().decode(encoding).split("\n")[:2]  # type: ignore[attr-defined]
    if encoding == "utf-8":
        assert (first, second) == ("✔ a: 日本 → do", "✘ b: ?")
    else:
        assert (first, second) == ("+ a: ?? -> do", "x b: ?")
        assert err.buffer.getvalue().decode(encoding).strip() in ("...x", "…x")  # type: ignore[attr-defined]
