from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import llmkit.api as api
from llmkit.api import LoRAConfig, QuantConfig, compare, export, generate, prompt_format

FUNCTIONS = [name for name in api.__all__ if inspect.isfunction(getattr(api, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_wherever_a_function_takes_a_path_it_takes_a_string(name: str) -> None:
    for parameter in inspect.signature(getattr(api, name)).parameters.values():
        assert not re.search(r"\bPath\b", str(parameter.annotation)), parameter


def test_strings_do_for_a_model_and_its_files(tiny_checkpoint: Path, tmp_path: Path) -> None:
    made = export(str(tiny_checkpoint), str(tmp_path / "out"), QuantConfig("q8_0"), prove=False)
    assert [file.quant for file in made.files] == ["q8_0"]
    assert QuantConfig("q8_0, q4_0").quants == ["q8_0", "q4_0"]
    assert "".join(generate(str(tiny_checkpoint), "Once"))
    assert prompt_format(Path("chatml")) == prompt_format("chatml")
    assert LoRAConfig(rank=1, targets="attn.c_attn").targets == ("attn.c_attn",)
    compared = compare(str(tiny_checkpoint), str(made.files[0].path))
    assert len(compared.rows) == 1
