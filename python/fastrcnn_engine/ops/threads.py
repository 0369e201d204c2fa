"""How many threads RoI pooling and its gradient may use on the CPU. Results never depend on it."""

from __future__ import annotations

from fastrcnn_engine import _core
from fastrcnn_engine.ops._arrays import count_of


def get_num_threads() -> int:
    """Threads that one call on NumPy (or other host) arrays may use; at first every core.

    Calls on torch tensors use `torch.get_num_threads()` instead.
    """
    return _core.num_threads()


def set_num_threads(threads: int) -> None:
    """Sets it for the whole process.

    Raises:
        ValueError: threads < 1.
    """
    _core.set_num_threads(min(count_of(threads, "threads", least=1), 2**31 - 1))
