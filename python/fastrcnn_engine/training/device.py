"""The device of a run: whether it is there, and how it computes the same on every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastrcnn_engine.ops import build_info


def checked_device(name: str) -> torch.device:
    """The torch device of that name: cpu, cuda or cuda:N.

    Raises:
        ValueError: another name, a CUDA device that torch does not find, or CUDA where this build
            of the engine cannot use it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; it must be cpu, cuda or cuda:N")
    if device.type == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= found:
            raise ValueError(f"device is {name!r}, but torch finds {found or 'no'} CUDA devices")
        reason = build_info()["cuda_device"]
        if reason != "available":
            raise ValueError(
                f"device is {name!r}, but fastrcnn_engine cannot use CUDA here: {reason}; "
                "fastrcnn-engine env tells more, docs/install.md how to build it for a GPU"
            )
    return device


@contextmanager
def the_same_on_every_run(device: torch.device) -> Iterator[None]:
    """Within it convolutions on a GPU are of cuDNN's algorithms that sum in one order.

    Nothing on a CPU, where all do. RoI pooling, the losses and the other layers of the four
    networks are operators of one order on either.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    if device.type == "cuda":
        cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        if device.type == "cuda":
            cudnn.deterministic, cudnn.benchmark = before
