"""`llmkit train`: options win over --config, and --config over the preset."""

from __future__ import annotations

import json
from pathlib import Path

from llmkit.cli.main import main

CONFIG = """
[model]
n_layer = 2
n_embd = 32
dropout = 0.1

[training]
steps = 9
eval_interval = 9
eval_tokens = 64
warmup_steps = 1
"""
OPTIONS = {
    "training": {
        "steps": 2,
        "batch_size": 3,
        "learning_rate": 1e-5,
        "eval_interval": 1,
        "seed": 7,
    },
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 48, "context_length": 16},
}


def test_options_win_over_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text(CONFIG, encoding="utf-8")
    text = tmp_path / "text.txt"
    text.write_text("abcdefgh" * 500, encoding="utf-8")
    out = tmp_path / "run"
    words = ["train", "--data", str(text), "--out", str(out), "--tokenizer", "char"]
    words += ["--config", str(config), "--device", "cpu"]
    for options in OPTIONS.values():
        for name, value in options.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
    assert main(words) == 0
    settings = json.loads((out / "training" / "state.json").read_text(encoding="utf-8"))["settings"]
    for table, options in OPTIONS.items():
        assert {name: settings[table][name] for name in options} == options
    assert settings["model"]["dropout"] == 0.1
    assert settings["training"]["warmup_steps"] == 1
