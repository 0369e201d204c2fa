"""A pytest plugin that runs the tests marked `cuda` on a stand-in for a GPU: copies on the CPU.

Tensors that are put on the GPU, and all that torch makes of them, are marked. They say that
their device is cuda, and neither become NumPy arrays nor meet others in a call of torch's. The
engine takes them for what they are, tensors of the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import fastrcnn_engine
from fastrcnn_engine.training import device

MAY_MEET_OTHERS = {torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__,
                   torch._has_compatible_shallow_copy_type}  # fmt: skip
ABOUT_DEVICES = {torch.device, torch._C._nn._parse_to}
TO_NUMPY = {torch.Tensor.numpy, torch.Tensor.__array__}


def is_there(x: Any) -> bool:
    return getattr(x, "is_there", False)


def device_type(x: Any) -> str | None:
    """cpu or cuda, where an argument names a device."""
    named = isinstance(x, torch.device) or (isinstance(x, str) and x.startswith(("cpu", "cuda")))
    return torch.device(x).type if named else None


class CudaOnTheCpu(TorchFunctionMode):
    """Is asked instead of every function of torch, methods and attributes of tensors included."""

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Any:
        if function in (torch.Tensor.cpu, torch.Tensor.cuda):
            function, args = torch.Tensor.to, (args[0], function.__name__)
        copies = function == torch.Tensor.__deepcopy__  # the other argument: all copies so far
        given = [args[0]] if copies else tree_leaves((args, kwargs))
        there = any(map(is_there, given))
        if function == torch.Tensor.device.__get__:
            return torch.device("cuda", 0) if there else torch.device("cpu")
        if there and function in TO_NUMPY:
            raise TypeError("a tensor on the GPU is no NumPy array: .cpu() first")
        if function == torch.Tensor.data.__set__:  # how a module is moved
            function(*args)
            args[0].is_there = is_there(args[1])
            return None
        others = [x for x in given if isinstance(x, torch.Tensor) and x.dim() and not is_there(x)]
        if there and others and function not in MAY_MEET_OTHERS:
            raise RuntimeError(f"{function.__name__} of tensors on the GPU and on the CPU")

        named = next(filter(None, map(device_type, given)), None)
        if named and function not in ABOUT_DEVICES:
            there = named == "cuda"
            args, kwargs = tree_map(lambda x: "cpu" if device_type(x) else x, (args, kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if args and result is args[0]:
            if not named or there == is_there(result):
                return result  # changed in place, or there already
            result = result.clone()
        if there:
            for x in tree_leaves(result):
                if isinstance(x, torch.Tensor):
                    x.is_there = True
        return result


new_parameter = torch.nn.Parameter.__new__


def parameter(cls: type, data: Any = None, requires_grad: bool = True) -> Any:
    """Made of a tensor without asking whoever is asked instead of torch."""
    made = new_parameter(cls, data, requires_grad)
    made.is_there = is_there(data)
    return made


def pytest_configure() -> None:
    """What tests/conftest.py asks, what a test may wait for, and what a training asks.

    In 16 bits nothing is computed here: torch has no CUDA.
    """
    fastrcnn_engine.build_info = lambda: {"cuda": True}
    device.build_info = lambda: {"cuda_device": "available"}
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.is_bf16_supported = lambda: True
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, device=None: torch.set_rng_state(state)
    torch.nn.Parameter.__new__ = parameter


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    with CudaOnTheCpu():
        return (yield)
