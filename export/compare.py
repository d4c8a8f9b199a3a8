"""`compare`: what each GGUF file costs in bytes and in quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from llmkit.checkpoint.checkpoint import Checkpoint
from llmkit.console import progress, say
from llmkit.errors import ConfigError
from llmkit.export.evaluation.divergence import (
    Divergence,
    joined,
    kl_ratio,
    kl_ratio_interval,
    mean_interval,
)
from llmkit.export.evaluation.eval_data import TextSequence, compared_sequences, file_sequences
from llmkit.export.evaluation.file_divergence import (
    DEFAULT_MAX_TOKENS,
    divergences,
    divergences_from_file,
)
from llmkit.export.gguf.adapter import adapter_of
from llmkit.export.gguf.bits import bits_by_group
from llmkit.export.gguf.reader import GGUFFile, is_gguf, load_folder, read_gguf
from llmkit.export.llamacpp.benchmark import Speed, measure_speed
from llmkit.export.llamacpp.devices import Backend, uses_gpu
from llmkit.export.quantization.calibration import calibration_of
from llmkit.export.quantization.imatrix import collect_importance
from llmkit.export.quantization.llama_quantize import PeerFile, write_peers
from llmkit.export.results import keep_result
from llmkit.files import StrPath, optional_path

Against = Literal["llama.cpp"]
SPEED_TOKENS = 128


@dataclass(frozen=True)
class ComparisonRow:
    """One GGUF file against the reference. KL in nats per token."""

    file: str  # its path; of llama-quantize's "PATH by llama-quantize", PATH one of the same types
    quant: str
    method: str  # how the blocks were chosen: rtn, gptq, qat, llama.cpp, llama.cpp imatrix
    bytes: int
    bits_per_weight: float
    mean_kl: float
    mean_kl_ci: tuple[float, float] | None
    p999_kl: float
    top1: float
    perplexity: float
    perplexity_ratio: float
    prompt_tokens_per_s: float
    generate_tokens_per_s: float
    peak_rss_bytes: int | None
    median_kl: float
    max_kl: float
    bits_by_group: dict[str, float]
    against: str | None = None  # `file` of the row that this one is measured by
    kl_ratio: float | None = None  # of the mean KL to that row's
    kl_ratio_ci: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """All files on the same tokens."""

    reference: str
    tokens: int
    rows: list[ComparisonRow]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `--json` prints them."""
        return asdict(self)


@dataclass(frozen=True)
class _Measured:
    """A file and its divergence in each sequence."""

    name: str
    method: str
    file: GGUFFile
    parts: list[Divergence]

    @property
    def mean_kl(self) -> float:
        return joined(self.parts).mean_kl


def compare(
    reference: StrPath,
    ggufs: StrPath | Sequence[StrPath],
    *,
    data: StrPath | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    against: Against | None = None,
    calibration: StrPath | None = None,
    backend: Backend = "cpu",
) -> Comparison:
    """Measure GGUF files against a checkpoint in PyTorch, or another GGUF file in llama.cpp.

    `data`: a text file, folder or JSONL file; by default what training held out, of a GGUF file
    built-in tales. A file may be of any architecture; the others need its vocabulary. A
    classifier's checkpoint is compared among its labels, where one follows. With `against` there is
    a row more for each choice of types among the files: the better, by mean KL, of the two files
    that llama-quantize makes with those types, without and with an importance matrix. That is of
    the text `calibration`, or of the text that the model was trained on. It needs a checkpoint.
    `backend`: where llama.cpp runs, "cpu", "gpu" or "auto", which is a GPU if there is one.

    The result is also kept in `results.json` beside the reference, for `llmkit report`.

    Raises LlmkitError for files of another vocabulary than the reference's, and for text in which
    nothing is to be compared.
    """
    paths = [ggufs] if isinstance(ggufs, str | Path) else ggufs
    data, calibration = optional_path(data), optional_path(calibration)
    if calibration is not None and against is None:
        raise ConfigError("--calibration needs --against; give both")
    found = _compare(Path(reference), paths, data, max_tokens, against, calibration, backend)
    names = [str(path) for path in paths]
    about = {"files": names, "data": None if data is None else str(data)}
    keep_result("comparisons", about, [str(reference), *names], found.to_dict())
    return found


def _compare(
    reference: Path,
    paths: Sequence[StrPath],
    data: Path | None,
    max_tokens: int,
    against: Against | None,
    calibration: Path | None,
    backend: Backend,
) -> Comparison:
    gpu = uses_gpu(backend)
    files = [read_gguf(Path(path)) for path in paths]
    if is_gguf(reference):
        if against is not None:
            raise ConfigError(
                f"--against needs a checkpoint, and {reference} is a GGUF file; compare it with "
                f"files of llmkit quantize {reference} --method llama.cpp"
            )
        return _compared_with_file(read_gguf(reference), files, data, max_tokens, gpu)
    source = load_folder(reference)
    sequences = compared_sequences(source, data, max_tokens)
    # Windows removes no file that is mapped: none of the peers is held here, and an error, which
    # holds them, is not to be hidden by one of the removal.
    with TemporaryDirectory(prefix="llmkit-", ignore_cleanup_errors=True) as folder:
        peers = [] if against is None else _peers(source, files, calibration, Path(folder))
        every = [*files, *(peer.file for peer in peers)]
        found = divergences(source, every, sequences, among=source.label_ids or None, gpu=gpu)
        return _comparison(reference, files, peers, sequences, found, gpu)


def _compared_with_file(
    reference: GGUFFile,
    files: Sequence[GGUFFile],
    data: Path | None,
    max_tokens: int,
    gpu: bool,
) -> Comparison:
    if data is None:
        say("comparing on built-in tales; pass text of the model's own kind with --data")
    sequences = file_sequences(reference, data, max_tokens)
    found = divergences_from_file(reference, files, sequences, gpu=gpu)
    return _comparison(reference.path, files, [], sequences, found, gpu)


def _comparison(
    reference: Path,
    files: Sequence[GGUFFile],
    peers: Sequence[PeerFile],
    sequences: Sequence[TextSequence],
    found: Sequence[list[Divergence]],
    gpu: bool,
) -> Comparison:
    """`found`: of each file and then of each peer the divergence in each sequence."""
    ours = [
        _Measured(str(file.path), file.method, file, parts)
        for file, parts in zip(files, found[: len(files)], strict=True)
    ]
    theirs = _better_peers(peers, found[len(files) :])
    length = max(len(sequence.inputs) for sequence in sequences)
    tokens = sum(int(sequence.counts.sum()) for sequence in sequences)
    return Comparison(str(reference), tokens, _rows(ours, theirs, length, gpu))


def _peers(
    source: Checkpoint, files: Sequence[GGUFFile], data: Path | None, folder: Path
) -> list[PeerFile]:
    text = calibration_of(source, data)
    imatrix = collect_importance(source.load_model(), text.tokens, text.source)
    return write_peers(source, files, imatrix, folder)


def _better_peers(
    peers: Sequence[PeerFile], found: Sequence[list[Divergence]]
) -> dict[Path, _Measured]:
    """For each file with peers the one of least mean KL."""
    best: dict[Path, _Measured] = {}
    for peer, parts in zip(peers, found, strict=True):
        first = peer.like[0].path
        peer_measured = _Measured(f"{first} by llama-quantize", peer.method, peer.file, parts)
        if first not in best or peer_measured.mean_kl < best[first].mean_kl:
            best.update((file.path, peer_measured) for file in peer.like)
    return best


def _rows(
    ours: Sequence[_Measured], theirs: dict[Path, _Measured], length: int, gpu: bool
) -> list[ComparisonRow]:
    """The given files' rows, then llama.cpp's. Speed is measured on half of `length` tokens."""
    peers = list({peer.name: peer for peer in theirs.values()}.values())
    pairs = [(own, theirs.get(own.file.path)) for own in ours] + [(peer, None) for peer in peers]
    rows = []
    with progress("measure speed", len(pairs), "files") as bar:
        for number, (measured, peer) in enumerate(pairs, start=1):
            n_prompt = max(1, length // 2)
            n_generate = min(SPEED_TOKENS, length // 2)
            speed = measure_speed(measured.file.path, n_prompt, n_generate, gpu=gpu)
            rows.append(_row(measured, peer, speed))
            bar.update(number)
    return rows


def _row(measured: _Measured, peer: _Measured | None, speed: Speed) -> ComparisonRow:
    file, parts = measured.file, measured.parts
    whole = joined(parts)
    adapter = adapter_of(file)
    return ComparisonRow(
        file=measured.name,
        quant=file.quant,
        method=measured.method,
        bytes=file.path.stat().st_size + (adapter.path.stat().st_size if adapter else 0),
        bits_per_weight=file.bits_per_weight,
        mean_kl=whole.mean_kl,
        mean_kl_ci=mean_interval(parts),
        p999_kl=whole.p999_kl,
        top1=whole.top1,
        perplexity=whole.perplexity,
        perplexity_ratio=whole.perplexity_ratio,
        **asdict(speed),
        median_kl=whole.median_kl,
        max_kl=whole.max_kl,
        bits_by_group=bits_by_group(file),
        against=peer.name if peer else None,
        kl_ratio=kl_ratio(parts, peer.parts) if peer else None,
        kl_ratio_ci=kl_ratio_interval(parts, peer.parts) if peer else None,
    )
