"""A GPU that is not there: tensors on the CPU that say they are on another device.

An operation that mixes devices fails, as do `numpy()` on the device and, on MPS, float64. It is
counted what makes the host wait for the device: reading a number, and copies that are not pinned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

FAKES = ("cuda with bfloat16", "cuda", "mps")
# Their result's size depends on numbers on the device, or they return a number.
READING = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2"),
    *("repeat_interleave", "bincount", "histc"),
}


# What autocast casts on CUDA and MPS, of what models here call.
CAST_DOWN = {
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"),
    "scaled_dot_product_attention",
}
CAST_UP = {"softmax", "log_softmax", "layer_norm", "cross_entropy", "kl_div", "logsumexp"}


class OnDevice(Tensor):
    """A tensor whose numbers are `held` on the CPU."""

    held: Tensor
    place: torch.device
    waits = 0  # of all

    @staticmethod
    def __new__(cls, held: Tensor, place: torch.device) -> OnDevice:
        if place.type == "mps" and held.dtype == torch.float64:
            raise TypeError("the MPS framework does not support float64")
        with torch.inference_mode(False):  # of whose tensors C++ cannot make views
            made = Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device="meta",
            )
        made.held, made.place = held, place
        return made

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: OnDevice) -> None:
        self.held = other.held

    def numpy(self, *_: object, **__: object) -> Any:
        raise TypeError(f"cannot convert a tensor on {self.place} to NumPy; use .cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        OnDevice.waits += 1
        return self.held.tolist()

    def __repr__(self) -> str:
        return f"OnDevice({self.held!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        places = {tensor.place for tensor in tensors if isinstance(tensor, OnDevice)}
        apart = [t for t in tensors if not isinstance(t, OnDevice) and t.dim()]
        name = func.overloadpacket.__name__
        if len(places) > 1 or (apart and name != "copy_"):
            raise RuntimeError(f"{name}: tensors are on {places} and on {apart}")
        _check_generators(places, args, kwargs)
        by_mask = name in ("index", "index_put", "index_put_") and any(
            tensor.dtype == torch.bool for tensor in tree_leaves(args[1]) if tensor is not None
        )
        OnDevice.waits += name in READING or by_mask or bool(apart)
        on_cpu = tree_map_only(OnDevice, lambda tensor: tensor.held, (args, kwargs or {}))
        if "device" in on_cpu[1]:  # as C++ sees it
            on_cpu[1]["device"] = torch.device("cpu")
        (place,) = places
        found = tree_map_only(Tensor, lambda x: OnDevice(x, place), func(*on_cpu[0], **on_cpu[1]))
        return return_and_correct_aliasing(func, args, kwargs or {}, found)


class _Moved(torch.autograd.Function):
    """A copy on another device; its gradient goes back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: torch.device) -> Tensor:
        ctx.back = x.device
        held = (x.held if isinstance(x, OnDevice) else x).clone()
        return held if place.type == "cpu" else OnDevice(held, place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _moved(gradient, ctx.back), None


def _moved(x: Tensor, place: torch.device, *, waits: bool = True) -> Tensor:
    if x.device == place:
        return x
    OnDevice.waits += waits
    return _Moved.apply(x, place)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> Tensor:
    """From its definition; torch's makes masks in C++, where the device has no name."""
    if is_causal:
        causal = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        attn_mask = _moved(causal, q.device, waits=False)
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    return F.dropout(scores.softmax(-1), dropout_p) @ v


class _Generator(torch.Generator):
    """A generator that draws on the CPU for tensors of one device."""

    def __new__(cls, device: str | torch.device = "cpu") -> _Generator:
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made


def _check_generators(places: set[torch.device], *arguments: object) -> None:
    for leaf in tree_leaves(arguments):
        if isinstance(leaf, torch.Generator) and {leaf.place} != places:
            raise RuntimeError(f"the generator is on {leaf.place}, not on {places}")


class _Api(TorchFunctionMode):
    """Answers what names the device, before torch sees a device that it does not have."""

    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self.place = place
        self.autocast: torch.dtype | None = None

    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.cpu:
            return _moved(args[0], torch.device("cpu"))
        if func is Tensor.pin_memory:
            assert not isinstance(args[0], OnDevice)
            copy = args[0].clone()
            copy.is_pinned_copy = True
            return copy
        if self.autocast and func.__name__ in CAST_DOWN | CAST_UP:
            wanted = self.autocast if func.__name__ in CAST_DOWN else torch.float32

            def cast(x: OnDevice) -> Tensor:
                return x.to(wanted) if x.is_floating_point() else x

            args, kwargs = tree_map_only(OnDevice, cast, (args, kwargs))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[1], list):
            args = (args[0], _moved(torch.tensor(args[1]), args[0].device), *args[2:])
        if func in (torch.where, Tensor.__setitem__):  # C++ would move a number to the device
            typed = args[2 if func is torch.where else 0]
            args = [torch.tensor(x, dtype=typed.dtype) if isinstance(x, float) else x for x in args]
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if kwargs.get("device") is None or torch.device(kwargs["device"]).type != self.place.type:
            return func(*args, **kwargs)
        _check_generators({self.place}, args, kwargs)
        found = func(*args, **{**kwargs, "device": None})
        OnDevice.waits += func is torch.tensor
        return found if isinstance(found, OnDevice) else OnDevice(found, self.place)

    def _to(self, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            place, dtype, non_blocking = args[0].device, args[0].dtype, False
        else:
            place, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if place is not None and place.type == "meta" and isinstance(x, OnDevice):
            place = x.device  # what it is to C++, which grouped gradients by device
        if place is not None and place.type != x.device.type:
            pinned = non_blocking and getattr(x, "is_pinned_copy", False)
            x = _moved(x, place, waits=not pinned)
        return x.to(x.dtype if dtype is None else dtype, copy=copy)


@contextmanager
def fake_device(name: str) -> Iterator[str]:
    """A machine whose best device is the named one of FAKES; its name in PyTorch."""
    kind, _, bfloat16 = name.partition(" with ")
    api = _Api(torch.device(kind))

    @contextmanager
    def autocast(
        device_type: str, dtype: torch.dtype | None = None, *, enabled: bool = True, **_: object
    ) -> Iterator[None]:
        before = api.autocast
        if device_type == kind:  # another has no effect here
            api.autocast = (dtype or torch.bfloat16) if enabled else None
        yield
        api.autocast = before

    backward = torch.autograd._engine_run_backward

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with api:  # in which functions in Python may be called
            return backward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        if kind == "cuda":
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "device_count", lambda: 1)
            patch.setattr(torch.cuda, "get_device_name", lambda _: "a fake GPU")
            patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bool(bfloat16))
            patch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1 << 30)
            patch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 30, 1 << 31))
        else:
            patch.setattr(torch.backends.mps, "is_available", lambda: True)
            patch.setattr(torch.mps, "manual_seed", lambda _: None)
        for module in (torch, torch.amp):
            patch.setattr(module, "autocast", autocast)
        patch.setattr(torch, "is_autocast_enabled", lambda of: of == kind and bool(api.autocast))
        patch.setattr(torch, "get_autocast_dtype", lambda _: api.autocast)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.autograd, "_engine_run_backward", run_backward)
        with api:
            yield kind
