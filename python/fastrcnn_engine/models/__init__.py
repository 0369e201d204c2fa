"""Networks: Fast R-CNN around any backbone, VGG16 (the paper's L) and ``tiny``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastrcnn_engine.data.images import Preprocessing
from fastrcnn_engine.models.network import FastRCNN, FullyConnectedHead
from fastrcnn_engine.models.tiny import build_tiny
from fastrcnn_engine.models.vgg16 import LayerChange, build_vgg16, transform_vgg16

NETWORKS: dict[str, Callable[..., FastRCNN]] = {"tiny": build_tiny, "vgg16": build_vgg16}


def build_network(
    name: str, classes: Sequence[str], *, preprocessing: Preprocessing | None = None
) -> FastRCNN:
    """Build "tiny" or "vgg16", randomly initialised, for K foreground ``classes``.

    ``preprocessing`` None takes the network's own. Raises ValueError for an unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(
            f"network {name!r} is not known: it is one of {', '.join(NETWORKS)}; "
            "build your own with FastRCNN(backbone, ...)"
        )
    return NETWORKS[name](classes, preprocessing)


__all__ = [
    "FastRCNN",
    "FullyConnectedHead",
    "LayerChange",
    "build_network",
    "build_tiny",
    "build_vgg16",
    "transform_vgg16",
]
