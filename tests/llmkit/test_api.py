from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import llmkit.api as api
from llmkit.api import LoRAConfig, Recipe, compare, export, generate
from llmkit.files import taking_strings

FUNCTIONS = [name for name in api.__all__ if inspect.isfunction(getattr(api, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wherever_a_function_takes_a_path_it_takes_a_string(name: str) -> None:
    parameters = inspect.signature(getattr(api, name)).parameters.values()
    for parameter in parameters:
        kind = str(parameter.annotation)
        assert "Path" not in kind or "str | Path" in kind, parameter


def test_strings_become_paths_and_one_path_a_list() -> None:
    @taking_strings
    def function(a: Path, many: Sequence[Path], *, b: Path | None = None, c: str = "") -> object:  # noqa: F821
        return a, many, b, c

    assert function("x", "y", b="z", c="w") == (Path("x"), [Path("y")], Path("z"), "w")  # type: ignore[arg-type]
    assert function(Path("x"), ["y", Path("z")]) == (Path("x"), [Path("y"), Path("z")], None, "")  # type: ignore[list-item]


def test_strings_do_for_a_model_and_its_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = export(str(tiny_checkpoint), str(tmp_path / "out"), Recipe("q8_0"), prove=False)  # type: ignore[arg-type]
    assert [file.quant for file in made.files] == ["q8_0"]
    assert Recipe("q8_0, q4_0").quants == ["q8_0", "q4_0"]
    assert Recipe(imatrix="a.gguf").imatrix == Path("a.gguf")  # type: ignore[arg-type]
    assert "".join(generate(str(tiny_checkpoint), "Once"))  # type: ignore[arg-type]
    assert LoRAConfig(rank=1, targets="attn.c_attn").targets == ("attn.c_attn",)  # type: ignore[arg-type]
    compared = compare(str(tiny_checkpoint), str(made.files[0].path))  # type: ignore[arg-type]
    assert len(compared.rows) == 1
