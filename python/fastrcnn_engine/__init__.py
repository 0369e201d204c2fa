"""Fast R-CNN: its operators for any detector, and the detector itself.

The operators live in `fastrcnn_engine.ops` and are all reachable from here. They take torch
tensors, NumPy arrays or anything else with DLPack, and importing them needs NumPy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrcnn_engine import ops
from fastrcnn_engine.ops import *  # noqa: F403  ops.__all__ names them
from fastrcnn_engine.ops.build_info import VERSION

# Not from build_info(): that asks the driver, which must not wake up because of an import.
__version__ = VERSION

__all__ = ["ops"]
__all__ += ops.__all__


if TYPE_CHECKING:
    from fastrcnn_engine.ops.autograd import RoIPool as RoIPool
    from fastrcnn_engine.ops.onnx_ops import onnx_translations as onnx_translations
else:

    def __getattr__(name: str) -> object:
        if name in ("RoIPool", "onnx_translations"):  # they need torch: looked up when asked for
            return getattr(ops, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:  # what tab completion shows, and help() asks for
        from importlib.util import find_spec

        need_torch = {"RoIPool", "onnx_translations"} if find_spec("torch") else set()
        return sorted(need_torch.union(globals()))
