"""What this build of the engine is and what it can use here."""

from __future__ import annotations

from fastrcnn_engine import _core

VERSION: str = _core.build_info()["version"]


def build_info() -> dict[str, object]:
    """Facts for a bug report.

    Returns:
        version, compiler, cuda (compiled with CUDA kernels), cuda_reason (which toolkit, or why
        CUDA was left out), cuda_architectures, instruction_sets, and cuda_device: "available", or
        why the CUDA kernels cannot run on this machine.
    """
    info = dict(_core.build_info())
    info["cuda_device"] = _core.why_no_cuda_device() or "available"
    return info
