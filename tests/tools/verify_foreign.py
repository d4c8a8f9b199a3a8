"""Import the foreign checkpoints of the tests, export them and print what `verify` says of each.

    python tests/tools/verify_foreign.py [TYPE...]

Needs the folder shared/ beside the checkout.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from pathlib import Path

from llmkit.export.convert import export
from llmkit.export.quantization.config import QuantConfig
from llmkit.importing.importer import import_checkpoint

ROOT = Path(__file__).parents[2]


def main(quants: list[str]) -> None:
    """Print a line per checkpoint: failed checks by type, or that all are green."""
    cases = runpy.run_path(str(ROOT / "tests" / "importing" / "test_foreign.py"))
    data, foreign = (ROOT.parent / "shared" / name for name in ("data", "foreign"))
    for name in cases["IMPORTED"]:
        with tempfile.TemporaryDirectory() as folder:
            options = cases["options_of"](name, foreign, data, Path(folder))
            import_checkpoint(foreign / name, Path(folder) / "own", options)
            proofs = export(f"{folder}/own", f"{folder}/gguf", QuantConfig(quants)).proofs
        failed = [
            f"{proof.quant} {check.name}: {check.detail}"
            for proof in proofs
            for check in proof.checks
            if not check.passed
        ]
        print(name, *(failed or [f"green in {', '.join(p.quant for p in proofs)}"]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["f16", "q8_0", "q4_0"])
