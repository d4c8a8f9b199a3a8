"""`python -m llmkit`, the form that torchrun starts."""

from llmkit.cli import run

run()
