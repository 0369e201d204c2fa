"""The three transformations of a network that was trained on ImageNet (paper, section 2.2)."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.models.caffemodel import read_caffemodel
from fastrcnn_engine.models.network import FastRCNN
from fastrcnn_engine.models.paper import pretrained_layers

Style = Literal["torchvision", "caffe", "caffe-rgb"]

# Position of each convolution of VGG16 in torchvision's `features`, and of the two hidden layers in
# its `classifier`.
TORCHVISION_LAYERS = {
    "features.0": "backbone.conv1_1",
    "features.2": "backbone.conv1_2",
    "features.5": "backbone.conv2_1",
    "features.7": "backbone.conv2_2",
    "features.10": "backbone.conv3_1",
    "features.12": "backbone.conv3_2",
    "features.14": "backbone.conv3_3",
    "features.17": "backbone.conv4_1",
    "features.19": "backbone.conv4_2",
    "features.21": "backbone.conv4_3",
    "features.24": "backbone.conv5_1",
    "features.26": "backbone.conv5_2",
    "features.28": "backbone.conv5_3",
    "classifier.0": "head.fc6",
    "classifier.3": "head.fc7",
}
# VGG16 was published with three ways of preparing images. A wrong one costs accuracy without any
# error. Caffe's own files hold filters that look at BGR; they are copied as they are. caffe-rgb is
# of torchvision's IMAGENET1K_FEATURES, which are Caffe's filters turned to RGB.
PREPROCESSING: dict[Style, Preprocessing] = {
    "caffe": Preprocessing(channel_order="BGR", mean=(102.9801, 115.9465, 122.7717)),
    "torchvision": Preprocessing(
        channel_order="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    ),
    "caffe-rgb": Preprocessing(channel_order="RGB", mean=(122.99925, 116.9991, 103.9992)),
}


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer when a classification network turned into a detector."""

    layer: str
    action: Literal["copied", "replaced", "new", "missing"]
    detail: str


def transform_pretrained(
    model: FastRCNN, path: Path, style: Style | None = None
) -> list[LayerChange]:
    """Turn an ImageNet network into the detector ``model`` (paper 2.2), in place.

    The three transformations: the last max-pool becomes RoI pooling; the last fully connected
    layer and its softmax become the two sibling layers; the input becomes images and RoIs. All
    other layers are copied.

    Args:
        model: one of the paper's networks, from ``build_network``.
        path: a `.caffemodel` of the same network, or for vgg16 also a state dict with
            torchvision's names (``features.N.*``, ``classifier.{0,3}.*``); the content tells which,
            not the name. A file without fc6 or fc7, or with numbers there that are not finite, is
            accepted: they stay random, which the report says.
        style: how images were prepared when the weights were trained; ``model.preprocessing`` is
            set to it. "torchvision": RGB, mean and standard deviation of its own recipe. "caffe":
            BGR 0..255 minus the means. "caffe-rgb": RGB 0..255 minus means. None is the style of
            who made the file's format; a caffemodel has no other, a state dict with torchvision's
            names may hold Caffe's weights. Where fc6 of one is not finite, None is "caffe-rgb":
            so is the file of torchvision's IMAGENET1K_FEATURES.

    Returns:
        One row for each layer, in network order.

    Raises:
        ValueError: no such file, neither kind of file, not that network (missing convolution or
            other shape, layer named), a convolution that is not finite, a style that is unknown or
            not the file's.
    """
    path = Path(path)
    if style is not None and style not in PREPROCESSING:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(PREPROCESSING)}")
    layers = pretrained_layers(model)
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    if _written_by_torch(path):
        if model.name != "vgg16":
            raise ValueError(f"{path} is a torch file; network {model.name!r} takes a caffemodel")
        source, own_style = _read_state_dict(path), "torchvision"
        names = {ours: theirs for theirs, ours in TORCHVISION_LAYERS.items()}
        last_pool, last_layer = "features.30", "classifier.6"
    else:
        if style not in (None, "caffe"):
            raise ValueError(
                f"style is {style!r}, but {path} is no torch file; a caffemodel has style 'caffe'"
            )
        source, own_style = _read_caffemodel(path), "caffe"
        names = {ours: ours.split(".")[1] for ours in layers}
        last_pool, last_layer = "pool5", "fc8"

    report = [LayerChange("input", "replaced", "one image -> a batch of images and a list of RoIs")]
    for ours in layers:
        theirs = names[ours]
        layer: Any = model.get_submodule(ours)  # a Conv2d or a Linear
        if ours == "head.fc6":
            pooling = f"RoI pooling {model.pooled_size}x{model.pooled_size}, 1/{model.stride}"
            report.append(LayerChange(last_pool, "replaced", f"last max-pool -> {pooling}"))
        keys = {kind: f"{theirs}.{kind}" for kind in ("weight", "bias")}
        broken = [key for key in keys.values() if key in source and not _is_finite(source[key])]
        if ours.startswith("head."):
            why = None
            if keys["weight"] not in source:
                why = "not in the file"
            elif broken:
                why = "not finite in the file"
                if ours == "head.fc6" and own_style == "torchvision":
                    own_style = "caffe-rgb"
            if why is not None:
                report.append(LayerChange(ours, "missing", f"{theirs} {why}; stays random"))
                continue
        elif broken:
            raise ValueError(
                f"{path} for {model.name}: {broken[0]} holds numbers that are not finite; the file "
                "is damaged or was never trained. Take another"
            )
        for kind, key in keys.items():
            _copy(source, key, getattr(layer, kind), f"{path} for {model.name}")
        shape = "x".join(map(str, layer.weight.shape))
        frozen = "" if layer.weight.requires_grad else ", frozen"
        report.append(LayerChange(ours, "copied", f"from {theirs}, {shape}{frozen}"))
    report.append(
        LayerChange(last_layer, "replaced", "last layer and softmax -> the two sibling layers")
    )
    for name, std in (("cls_score", 0.01), ("bbox_pred", 0.001)):
        shape = "x".join(map(str, getattr(model, name).weight.shape))
        report.append(LayerChange(name, "new", f"{shape}, Gaussian of std {std}"))
    model.preprocessing = PREPROCESSING[style or own_style]
    return report


def _written_by_torch(path: Path) -> bool:
    """torch.save writes a zip archive, formerly a pickle; no caffemodel begins with either."""
    with open(path, "rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def load_plain(path: Path, kind: str, *, mapped: bool = False) -> Any:
    """What torch.save wrote, on the CPU: tensors and plain values, so that no file can run code.

    mapped: tensors stay on the disk until one is looked at.

    Raises ValueError, which calls it a ``kind``, for any other file.
    """
    try:
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:  # torch's words advise to let the file run its code
        reason = "it is no file of torch.save, or holds more than tensors and plain values"
        raise ValueError(f"{path} is not a readable {kind}: {reason}") from error
    except Exception as error:  # of a broken file torch, pickle and zip raise much
        reason = str(error).partition("\n")[0] or type(error).__name__
        good = isinstance(error, (OSError, MemoryError)) or "allocate memory" in reason  # it may be
        if not good:
            reason = (
                f"it is no file that torch.save made, or is cut off, or of a newer torch ({reason})"
            )
        raise ValueError(f"{path} is not a readable {kind}: {reason}") from error


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    source = load_plain(path, "state dict")
    if not isinstance(source, dict) or "features.0.weight" not in source:
        raise ValueError(
            f"{path} is not a VGG16 state dict with torchvision's names: "
            "features.0.weight is not in it"
        )
    for key, value in source.items():
        if str(key).rpartition(".")[0] in TORCHVISION_LAYERS and not _is_plain(value):
            got = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"{path}: {key} must be a dense tensor of floating-point numbers of its own, got "
                f"{got}; take another file"
            )
    return source


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor of real numbers that are all in the file, each once."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_meta:
        return False
    known = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return value.dtype in known and value.nbytes <= value.untyped_storage().nbytes()


def _read_caffemodel(path: Path) -> dict[str, np.ndarray]:
    return {
        f"{layer}.{kind}": blob
        for layer, blobs in read_caffemodel(path).items()
        for kind, blob in zip(("weight", "bias"), blobs, strict=False)
    }


def _is_finite(values: torch.Tensor | np.ndarray) -> bool:
    finite = np.isfinite(values) if isinstance(values, np.ndarray) else torch.isfinite(values)
    return bool(finite.all())


def _copy(
    source: Mapping[str, torch.Tensor | np.ndarray], key: str, target: torch.Tensor, what: str
) -> None:
    if key not in source:
        raise ValueError(f"{what}: no {key} in it; it is another network, or incomplete")
    found = source[key]
    shape = tuple(found.shape)
    # Caffe gave every blob four axes once: (1, 1, 1, N) for a bias.
    while len(shape) > target.ndim and shape[0] == 1:
        shape = shape[1:]
    if shape != tuple(target.shape):
        raise ValueError(
            f"{what}: {key} has shape {tuple(found.shape)}, expected {tuple(target.shape)} "
            "(batch-normalised or other variants of the network do not fit)"
        )
    if isinstance(found, np.ndarray):
        found = torch.from_numpy(np.array(found))  # a copy of one layer at a time, aligned
    with torch.no_grad():
        target.copy_(found.reshape(shape))
