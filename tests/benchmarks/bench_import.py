"""Seconds and anonymous memory of `llmkit import` and `export` of Hugging Face's layout.

    python tests/benchmarks/bench_import.py [PRESET] [QUANT]

gpt2-xl takes 6.2 GB of disk for the source and as much for the checkpoint, in a temporary folder.
Anonymous memory is what mapped files do not count in: RssAnon, the largest of 20 a second.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench_export import write_checkpoint

from llmkit.export.to_hf import export_to_hf

IMPORT = """
import sys
from llmkit.importing.importer import import_checkpoint
import_checkpoint(sys.argv[1], sys.argv[2])
"""
EXPORT = """
import sys
from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
export(sys.argv[1], sys.argv[2], QuantConfig([sys.argv[3]]), prove=False)
"""
COPY = """
import sys
with open(sys.argv[1], "rb") as source, open(sys.argv[2], "wb") as target:
    while part := source.read(1 << 24):
        target.write(part)
"""


def measured(program: str, *arguments: str) -> tuple[float, float]:
    """Seconds, and the most anonymous memory in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-P", "-c", program, *arguments])
    most = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                most = max(most, int(line.split()[1]))
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"failed: {program}")
    return time.perf_counter() - started, most / 1000


def main(preset: str, quant: str) -> None:
    """Print import, export, and a plain copy of the same bytes."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        n_bytes = write_checkpoint(folder / "made", preset)
        export_to_hf(folder / "made", folder / "hf")
        (folder / "made" / "model.safetensors").unlink()
        source = folder / "hf" / "model.safetensors"
        for work, program, arguments in (
            ("plain read and write", COPY, (str(source), str(folder / "copy"))),
            ("import", IMPORT, (str(folder / "hf"), str(folder / "own"))),
            (f"export to {quant}", EXPORT, (str(folder / "own"), str(folder / "gguf"), quant)),
        ):
            seconds, anonymous = measured(program, *arguments)
            print(f"{preset}, {n_bytes / 1e9:.2f} GB, {work}: {seconds:.1f} s, {anonymous:.0f} MB")
            (folder / "copy").unlink(missing_ok=True)


if __name__ == "__main__":
    main(
        sys.argv[1] if len(sys.argv) > 1 else "gpt2-xl",
        sys.argv[2] if len(sys.argv) > 2 else "q4_0",
    )
