"""Files of torch.save, in all of its formats."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from llmkit.errors import CheckpointError
from llmkit.importing.source.pickles import Storage, Unpickler, checked_dtype, read_legacy

MAX_PICKLE_BYTES = 1 << 28  # of the part without weights; a vocabulary takes megabytes


def read_pickle(path: Path) -> Any:
    """What a PyTorch or pickle file holds: plain data, tensors and `Bag`s.

    Tensors of a zip archive, as torch.save writes them, are mapped, not read. Raises
    CheckpointError for a file that is damaged, compressed or would run code.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with path.open("rb") as file:
            if file.peek(4).startswith(b"PK"):
                raise EOFError("a zip archive without its end")
            return read_legacy(file, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path} was not loaded: {error}") from error
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError,
        RuntimeError, OverflowError, MemoryError, RecursionError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        with path.open("rb") as file:
            is_pickle = file.read(2)[:1] in (b"\x80", b"P")  # a protocol, or a zip archive
        if not is_pickle:
            raise CheckpointError(
                f"{path} is not a file of weights; give a PyTorch, safetensors or GGUF file"
            ) from error
        why = str(error) or type(error).__name__
        raise CheckpointError(
            f"{path} is damaged or not a PyTorch file ({why}); copy it again"
        ) from error


def _read_zip(path: Path) -> Any:
    """torch.save's archive: NAME/data.pkl and the numbers in NAME/data/KEY, uncompressed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("the zip archive has no data.pkl")
        if packed := [e.filename for e in entries.values() if e.compress_type]:
            raise CheckpointError(f"{packed[0]} in it is compressed, which torch.save never does")
        if entries[pickles[0]].file_size > MAX_PICKLE_BYTES:
            raise ValueError(f"data.pkl has {entries[pickles[0]].file_size:,} bytes")
        folder = pickles[0].removesuffix("data.pkl")
        with path.open("rb") as file:
            # Where an entry's bytes begin is written before them, not in the index.
            def start(entry: zipfile.ZipInfo) -> int:
                file.seek(entry.header_offset + 26)
                name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
                return entry.header_offset + 30 + int(name_bytes) + int(extra_bytes)

            n_bytes = path.stat().st_size
            storages: dict[str, Storage] = {}
            mapped = torch.UntypedStorage.from_file(str(path), False, n_bytes)

            def persistent(key: Any) -> Storage:
                _, dtype, name, *_ = key
                if name not in storages:
                    entry = entries.get(f"{folder}data/{name}")
                    if entry is None:
                        raise EOFError(f"data/{name} is missing in it")
                    begin = start(entry)
                    if begin + entry.file_size > n_bytes:
                        raise EOFError("the file is truncated")
                    part = mapped[begin : begin + entry.file_size]
                    storages[name] = Storage(part, checked_dtype(dtype))
                return storages[name]

            with archive.open(pickles[0]) as data:
                return Unpickler(io.BytesIO(data.read()), persistent).load()
