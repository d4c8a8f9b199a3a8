"""Seconds of `llmkit evaluate` for 2,000 four-way items of about 60 tokens.

python tests/benchmarks/bench_evaluation.py MODEL... [--items N]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

from llmkit.threads import let_waiting_threads_sleep, n_cores

let_waiting_threads_sleep()

from llmkit.data.tales import tales  # noqa: E402
from llmkit.evaluation.evaluate import evaluate  # noqa: E402
from llmkit.export.results import RESULTS_FILE  # noqa: E402

CONTEXT, OPTION = 180, 60  # characters: about 45 and 15 tokens of the demo's tokenizer


def write_items(path: Path, n: int) -> None:
    """Contexts of tales, with their own continuation and three of other tales."""
    parts = [
        (tale[:CONTEXT].rpartition(" ")[0], tale[CONTEXT : CONTEXT + OPTION].partition(" ")[2])
        for tale in islice(tales(11), n)
    ]
    with path.open("w", encoding="utf-8") as file:
        for number, (context, _) in enumerate(parts):
            endings = [parts[(number + step) % n][1] for step in (0, 1, 2, 3)]
            record = {"ctx": f"{number}. {context}", "endings": endings, "label": 0}
            file.write(json.dumps(record) + "\n")


def link(model: Path, folder: Path) -> Path:
    """The model by links in another folder, so that no result is kept beside it."""
    folder.mkdir()
    for file in (model if model.is_dir() else model.parent).iterdir():
        if file.name != RESULTS_FILE:
            (folder / file.name).symlink_to(file.resolve())
    return folder if model.is_dir() else folder / model.name


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="+")
    parser.add_argument("--items", type=int, default=2000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "items.jsonl"
        write_items(data, arguments.items)
        for number, model in enumerate(arguments.models):
            linked = link(Path(model), Path(folder) / str(number))
            started, cpu = time.perf_counter(), time.process_time()
            found = evaluate(linked, "hellaswag", data=data)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
            accuracy = found.models[0].scores["accuracy"].value
            print(
                f"{model}: {found.items:,} items in {seconds:.0f} s, {cpu:.0f} s of processors, "
                f"{n_cores()} cores; accuracy {accuracy:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
