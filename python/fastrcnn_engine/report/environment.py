"""What this machine and installation are: for reports and bug reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from fastrcnn_engine.data.cores import usable_cores

PACKAGES = (
    "numpy", "torch", "torchvision", "opencv-contrib-python-headless", "opencv-contrib-python",
    "opencv-python", "opencv-python-headless", "pillow", "scipy", "matplotlib", "rich", "tyro",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of this package, Python and the packages it works with; absent ones are left out."""
    found = {"fastrcnn_engine": _version("fastrcnn_engine") or "not installed"}
    found["python"] = platform.python_version()
    for package in PACKAGES:
        version = _version(package)
        if version is not None:
            found[package] = version
    return found


def environment() -> dict[str, dict[str, Any]]:
    """Everything a bug report needs, in groups. Imports torch and OpenCV where they are there."""
    return {
        "versions": versions(),
        "engine": _engine(),
        "machine": {
            "system": platform.platform(),
            "processor": _processor(),
            "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        },
        "torch": _torch(),
        "opencv": _opencv(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _engine() -> dict[str, Any]:
    from fastrcnn_engine import build_info

    return build_info()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        return {"importable": f"no: {error}"}
    facts: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "built for CUDA": torch.version.cuda or "no",
        "CUDA available": torch.cuda.is_available(),
    }
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            facts[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {major}.{minor}"
    return facts


def _opencv() -> dict[str, Any]:
    try:
        import cv2
    except ImportError as error:
        return {"importable": f"no: {error}", "selective search": "no"}
    # Of two installed over each other, or one taken away again, parts are left.
    contrib = hasattr(getattr(cv2, "ximgproc", None), "segmentation")
    return {
        "version": getattr(cv2, "__version__", "broken"),
        "contrib modules": contrib,
        "selective search": "yes" if contrib else "no: uninstall every OpenCV named above, then "
        "pip install --force-reinstall opencv-contrib-python-headless",
    }


def print_environment() -> None:
    """The command `env`, which works without what the other commands need."""
    for group, facts in environment().items():
        print(f"{group}:")
        for name, value in facts.items():
            shown = ("yes" if value else "no") if isinstance(value, bool) else value
            print(f"  {name}: {shown}")
