"""How many images are worked on at once. Needs nothing: `fastrcnn-engine env` tells it too."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """A container or a batch system may lend fewer cores than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
