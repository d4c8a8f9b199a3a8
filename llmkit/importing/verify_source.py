"""A GGUF file that another program made, against the checkpoint that it was made of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from llmkit.export.check import Proof
from llmkit.export.verify.verify import verify
from llmkit.files import StrPath
from llmkit.importing.importer import import_checkpoint
from llmkit.importing.locate import is_llmkit_checkpoint


def verify_source(source: StrPath, gguf: StrPath, **given: Any) -> Proof:
    """`verify` for a checkpoint of llmkit, or for whatever `import_checkpoint` takes.

    `given`: the other arguments of `verify`. Raises LlmkitError as both do.
    """
    if is_llmkit_checkpoint(Path(source)):
        return verify(source, gguf, **given)
    with tempfile.TemporaryDirectory(prefix="llmkit-") as folder:
        checkpoint = Path(folder) / "imported"
        import_checkpoint(source, checkpoint)
        return verify(checkpoint, gguf, imported_from=source, **given)
