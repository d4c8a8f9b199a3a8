"""Several processes train one model: PyTorch's DDP, or FSDP2 where they divide the model.

torchrun starts the processes. Each takes its part of every batch; rank 0 prepares the data, shows
progress and writes the checkpoints. ALONE is a single process: nothing here communicates then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from llmkit.architectures.base import LanguageModel
from llmkit.architectures.registry import model_without_weights
from llmkit.console import notes
from llmkit.device import choose_device
from llmkit.errors import ConfigError, LlmkitError, OtherProcessError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Rank 0 prepares the text and writes checkpoints while the others wait.
TIMEOUT = timedelta(hours=2)

T = TypeVar("T")
_joins = count()  # keys of a group must not be those of the group before it


class Called(nn.Module):
    """Calls functions of a model inside `forward`, where DDP and FSDP2 have their hooks."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What `function` makes of the model."""
        return function(self.model, *arguments)


@dataclass(frozen=True)
class Processes:
    """This process among those that train the same model."""

    rank: int = 0
    world: int = 1
    joined: bool = False  # started by torchrun, be it as the only one
    shard: bool = False  # divide weights, gradients and optimizer states (FSDP2)

    def share(self, batch_size: int) -> int:
        """Sequences of a batch for each process. Raises ConfigError where it does not divide."""
        if batch_size % self.world:
            raise ConfigError(
                f"the batch size {batch_size} is not a multiple of the {self.world} processes"
            )
        return batch_size // self.world

    def place(
        self, load: Callable[[torch.device], LanguageModel], device: torch.device
    ) -> tuple[LanguageModel, nn.Module]:
        """A model on the device, and the module that calls functions of it."""
        if self.shard:
            return self._sharded(load, device)
        model = load(device)
        if not self.joined:
            return model, Called(model)
        devices = [device] if device.type == "cuda" else None
        called = Called(model)
        return model, DistributedDataParallel(called, devices, gradient_as_bucket_view=True)

    def _sharded(
        self, load: Callable[[torch.device], LanguageModel], device: torch.device
    ) -> tuple[LanguageModel, nn.Module]:
        """Only rank 0 loads the whole model, into the CPU's memory."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        weights: dict[str, Tensor] = {}

        def load_whole() -> Any:
            whole = load(torch.device("cpu"))
            weights.update(whole.state_dict())
            return whole.config

        model = model_without_weights(self.first(load_whole))
        called = Called(model)
        mesh = init_device_mesh(device.type, (self.world,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(called, mesh=mesh, reshard_after_forward=True)
        model.to_empty(device=device)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                empty = torch.empty(parameter.shape, device=device)
                whole = weights.pop(name).to(device) if self.rank == 0 else empty
                dist.broadcast(whole, 0)
                parameter.copy_(divided(whole, parameter))
        return model, called

    def without_sync(self, called: nn.Module) -> AbstractContextManager[None]:
        """Let gradients add up in each process: not under FSDP2, whose gradients are divided."""
        return called.no_sync() if isinstance(called, DistributedDataParallel) else nullcontext()

    def first(self, function: Callable[[], T]) -> T:
        """What the function returns in rank 0, which alone calls it.

        Where it raises in rank 0, the others raise OtherProcessError.
        """
        if not self.joined:
            return function()
        result: list[Any] = [None, True]
        try:
            if self.rank == 0:
                result = [function(), False]
        finally:
            dist.broadcast_object_list(result, 0, device=torch.device("cpu"))
        if self.rank and result[1]:
            raise OtherProcessError
        return result[0]  # type: ignore[no-any-return]

    def any(self, is_so: bool) -> bool:
        """Whether it is so in any process."""
        return self.total(is_so) > 0

    def total(self, number: float) -> float:
        """The sum over all processes, the same in each."""
        if not self.joined:
            return number
        total = torch.tensor(number, dtype=torch.float64)
        dist.all_reduce(total)
        return float(total)

    def add_up(self, tensor: Tensor) -> Tensor:
        """The tensor, now the sum over all processes."""
        if self.joined:
            dist.all_reduce(tensor)
        return tensor

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors in rank 0, where they are divided; else as they are."""
        if not self.shard:
            return dict(tensors)
        found = {}
        for name, tensor in tensors.items():
            whole = full(tensor)
            if self.rank == 0:
                found[name] = whole.cpu()
        return found


ALONE = Processes()


def is_divided(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether each process has only a part of it (a DTensor, whose module is slow to import)."""
    return hasattr(tensor, "full_tensor")


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor that processes may have divided. All of them call it."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def divided(whole: Tensor, like: Tensor) -> Tensor:
    """Of a tensor that every process has, the part that this one has of `like`."""
    if not is_divided(like):
        return whole
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = DTensor.from_local(whole, like.device_mesh, [Replicate()], run_check=False)
    return everywhere.redistribute(placements=like.placements)


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first() -> bool:
    """Whether this process is the one that prints: rank 0 of those that torchrun started."""
    return not is_launched() or os.environ["RANK"] == "0"


def refuse_several() -> None:
    """Raise ConfigError where torchrun started this process."""
    if is_launched():
        raise ConfigError("only `llmkit train` trains in several processes; start without torchrun")


@contextmanager
def joined(device: str | None, shard: bool) -> Iterator[tuple[Processes, torch.device]]:
    """This process among those that torchrun started, and its device; ALONE without torchrun.

    If one fails, all end, and only the first that fails says why: the others raise
    OtherProcessError. Raises ConfigError for devices that cannot be used together.
    """
    if not is_launched():
        if shard:
            raise ConfigError("shard divides a model among processes; start them with torchrun")
        yield ALONE, choose_device(device)
        return
    common, rank, world = _rendezvous()
    store = PrefixStore(f"llmkit-{next(_joins)}", common)
    notes.quiet = rank > 0
    try:
        where = _own_device(device)
        backend = "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
        yield Processes(rank, world, True, shard), where
    except OtherProcessError:
        raise
    except BaseException as error:
        if not _fails_first(store):
            raise OtherProcessError from error
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise LlmkitError(
                "the connection to another process is lost; continue with --resume "
                f"({str(error).splitlines()[0]})"
            ) from error
        raise
    finally:
        notes.quiet = False
        if dist.is_initialized():
            dist.destroy_process_group()


@cache
def _rendezvous() -> tuple[Store, int, int]:
    """The store that all processes share, this one's rank, and their number."""
    store, rank, world = next(rendezvous("env://"))
    return store, rank, world


def _own_device(name: str | None) -> torch.device:
    """The GPU of this process, or the CPU."""
    device = choose_device(name)
    if device.type == "mps":
        raise ConfigError("several processes cannot share mps; add --device cpu")
    if device.type == "cpu":
        return device
    index, n = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= n:
        raise ConfigError(f"more processes than GPUs; use --nproc-per-node {n}, or --device cpu")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _fails_first(store: Store) -> bool:
    try:
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:  # its process has ended
        return False
