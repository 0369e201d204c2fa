"""Networks: Fast R-CNN around any backbone, the paper's S, M and L, and ``tiny``."""

from __future__ import annotations

from collections.abc import Sequence

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.models.caffemodel import read_caffemodel
from fastrcnn_engine.models.compress import (
    RANKS,
    CompressedLayer,
    compress,
    described,
    ranks_of,
    split_layers,
    truncated_svd,
)
from fastrcnn_engine.models.network import FastRCNN, FullyConnectedHead
from fastrcnn_engine.models.paper import (
    PAPER_NETWORKS,
    FreezeTo,
    build_caffenet,
    build_vgg16,
    build_vgg_cnn_m_1024,
)
from fastrcnn_engine.models.pretrained import LayerChange, transform_pretrained
from fastrcnn_engine.models.tiny import build_tiny

NETWORKS = ("tiny", *PAPER_NETWORKS)


def build_network(
    name: str,
    classes: Sequence[str],
    *,
    preprocessing: Preprocessing | None = None,
    freeze_to: FreezeTo | None = None,
) -> FastRCNN:
    """Build a network by name, randomly initialised, for K foreground ``classes``.

    Args:
        name: "caffenet", "vgg_cnn_m_1024", "vgg16" (S, M and L of the paper) or "tiny".
        classes: K names, without the background.
        preprocessing: None takes the network's own.
        freeze_to: the last stage that does not learn, see ``paper.frozen_layers``, or "none"; None
            takes the network's own. ``tiny`` starts from random weights, all of which must learn.

    Raises:
        ValueError: unknown name, no classes, or a stage the network does not have.
    """
    if name not in NETWORKS:
        raise ValueError(
            f"network {name!r} is not known: it is one of {', '.join(NETWORKS)}; "
            "build your own with FastRCNN(backbone, ...)"
        )
    if name == "tiny":
        if freeze_to not in (None, "none"):
            raise ValueError(f"freeze_to is {freeze_to!r}; for tiny it must be none")
        return build_tiny(classes, preprocessing)
    build = PAPER_NETWORKS[name]
    if freeze_to is None:
        return build(classes, preprocessing)
    return build(classes, preprocessing, freeze_to)


__all__ = [
    "CompressedLayer",
    "FastRCNN",
    "FreezeTo",
    "FullyConnectedHead",
    "LayerChange",
    "NETWORKS",
    "RANKS",
    "build_caffenet",
    "build_network",
    "build_tiny",
    "build_vgg16",
    "build_vgg_cnn_m_1024",
    "compress",
    "described",
    "ranks_of",
    "read_caffemodel",
    "split_layers",
    "transform_pretrained",
    "truncated_svd",
]
