"""A simulated GPU: tensors report that they are on a GPU, and the CPU computes their values.

Code takes the same branches as on a GPU, except that `filters.mask_measure` uses the CPU kernels; calls of it arrive
through `__torch_function__`, like the operators of PyTorch. As on a GPU, tensors of two devices do not mix. The
simulation counts how often the host reads a value and so waits for the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("cuda:0")
_autocast = torch.autocast

# What they return, or the size of that, is in the data.
_WAITS = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "equal"}
_WAITS |= {"item", "tolist", "__bool__", "__int__", "__float__"}
_MOVES = {"to", "cpu", "cuda"}


class OnGpu(Tensor):
    """A tensor on the pretended device."""


@contextmanager
def pretend_gpu(monkeypatch: pytest.MonkeyPatch, fault: str | None = None) -> Iterator[Counter[str]]:
    """While it is entered there is such a device, for this thread. Yields how often the host waited for it, and why.

    Every operation on a device with a `fault` raises it.
    """
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=2**34))
    monkeypatch.setattr(torch, "autocast", lambda device_type, *args, **kwargs: _autocast("cpu", *args, **kwargs))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with torch.no_grad(), _PretendGpu(fault) as device:
        yield device.waits


class _PretendGpu(TorchFunctionMode):
    def __init__(self, fault: str | None) -> None:
        super().__init__()
        self._fault = fault
        self.waits: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        on_gpu = any(isinstance(x, OnGpu) for x in tensors)
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute
            name = getattr(func.__self__, "__name__", "")
            if on_gpu and name in ("device", "is_cuda"):
                return DEVICE if name == "device" else True
        if name == "pin_memory":
            return args[0]
        if name == "_has_compatible_shallow_copy_type":
            return False  # so that `Module.to` makes new parameters
        if name in _MOVES:
            return self._move(name, args, kwargs)
        if on_gpu:
            assert name != "numpy", "a GPU's tensor has no NumPy array"
            others = [tuple(x.shape) for x in tensors if not isinstance(x, OnGpu) and x.dim() > 0]
            assert not others, f"{name} mixes a GPU's tensors with a CPU's of {others}"
            by_mask = name in ("__getitem__", "__setitem__") and _has_mask(args[1])
            self.waits[name] += name in _WAITS or by_mask
        wanted = kwargs.get("device")
        to_gpu = on_gpu if wanted is None else torch.device(wanted).type == "cuda"
        if wanted is not None:
            kwargs["device"] = "cpu"
        if to_gpu and self._fault:
            raise RuntimeError(self._fault)
        self.waits["copy to the device"] += to_gpu and name in ("tensor", "as_tensor", "new_tensor")
        result = func(*tree_map(_plain, args), **tree_map(_plain, kwargs))
        return tree_map(_on_gpu, result) if to_gpu else result

    def _move(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """`to`, `cpu` or `cuda`."""
        was_there = isinstance(args[0], OnGpu)
        targets = [*args[1:], *kwargs.values()]
        devices = [torch.device(target) for target in targets if isinstance(target, str | torch.device)]
        devices += [target.device for target in targets if isinstance(target, Tensor)]
        to_gpu = devices[0].type == "cuda" if devices else name == "cuda" or (name == "to" and was_there)
        self.waits["copy to the host"] += was_there and not to_gpu
        self.waits["copy to the device"] += to_gpu and not was_there and not kwargs.get("non_blocking")
        dtypes = [target for target in targets if isinstance(target, torch.dtype)]
        moved = _plain(args[0]).to(*dtypes, copy=was_there != to_gpu)
        return _on_gpu(moved) if to_gpu else moved


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype == torch.bool for part in parts)


def _plain(x: Any) -> Any:
    return x.as_subclass(Tensor) if isinstance(x, OnGpu) else x


def _on_gpu(x: Any) -> Any:
    return x.as_subclass(OnGpu) if isinstance(x, Tensor) else x
