"""llmkit: from a GPT built from scratch to a verified GGUF file that runs in Ollama."""

import os

_folder = os.path.dirname(__file__)  # noqa: PTH120  (pathlib would slow down `llmkit --help`)
if not os.path.isdir(os.path.join(_folder, "export")):  # noqa: PTH112, PTH118
    # Python was started in a clone, where export/, quant/ and modelfiles/ lie beside this folder.
    __path__.append(os.path.dirname(_folder))  # noqa: PTH120
