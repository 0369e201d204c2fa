"""Model L of the paper: Fast R-CNN on VGG16, and the transformation of a pre-trained VGG16."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fastrcnn_engine.data.images import Preprocessing
from fastrcnn_engine.models.network import FastRCNN, FullyConnectedHead

# Convolutions per stage and their width (original code, models/VGG16); a 2x2 max-pool separates
# the stages.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
# Paper 4.5: below conv3_1 there is nothing to gain, and it costs memory and time.
FROZEN = ("conv1_1", "conv1_2", "conv2_1", "conv2_2")
# Position of each convolution in torchvision's `features`, and of the two hidden layers in its
# `classifier`.
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
# The same network was published with two ways of preparing images. A wrong one costs accuracy
# without any error, so it is never guessed.
PREPROCESSING = {
    "caffe": Preprocessing(channel_order="BGR", mean=(102.9801, 115.9465, 122.7717)),
    "torchvision": Preprocessing(
        channel_order="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
    ),
}


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer when a classification network turned into a detector."""

    layer: str
    action: Literal["copied", "replaced", "new", "missing"]
    detail: str


def build_vgg16(classes: Sequence[str], preprocessing: Preprocessing | None = None) -> FastRCNN:
    """Fast R-CNN model L for ``classes`` (K names without background), randomly initialised.

    conv1_1 .. conv5_3 at stride 16 (no last max-pool), RoI pooling 7x7, fc6 and fc7 of 4096 with
    dropout, cls_score, bbox_pred. conv1 and conv2 are frozen. ``preprocessing`` None means
    Caffe's, as in the paper.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (depth, width) in enumerate(STAGES, start=1):
        for index in range(1, depth + 1):
            conv = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
            layers[f"conv{stage}_{index}"] = conv
            layers[f"relu{stage}_{index}"] = nn.ReLU(inplace=True)
            channels = width
        if stage < len(STAGES):
            # Caffe's pooling rounds up.
            layers[f"pool{stage}"] = nn.MaxPool2d(2, 2, ceil_mode=True)
    head = FullyConnectedHead(channels, 7, 4096, dropout=0.5)
    for layer in (head.fc6, head.fc7):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return FastRCNN(
        nn.Sequential(layers),
        stride=16,
        head=head,
        head_features=4096,
        classes=classes,
        pooled_size=7,
        preprocessing=preprocessing or PREPROCESSING["caffe"],
        frozen=[f"backbone.{name}" for name in FROZEN],
        name="vgg16",
    )


def transform_vgg16(
    model: FastRCNN, path: Path, style: Literal["torchvision", "caffe"]
) -> list[LayerChange]:
    """Turn a pre-trained ImageNet VGG16 into the detector ``model`` (paper 2.2), in place.

    The three transformations: the last max-pool becomes RoI pooling; the last fully connected
    layer and its softmax become the two sibling layers; the input becomes images and RoIs. All
    other layers are copied.

    Args:
        model: from ``build_vgg16``.
        path: a state dict with torchvision's names (``features.N.*``, ``classifier.{0,3}.*``).
            A file with the convolutions only is accepted: fc6 and fc7 then stay random, which the
            report says.
        style: how images were prepared when the weights were trained; ``model.preprocessing`` is
            set to it. "torchvision": RGB, mean and standard deviation of its own recipe. "caffe":
            BGR 0..255 minus the means.

    Returns:
        One row for each layer, in network order.

    Raises:
        ValueError: no such file, not a VGG16 (missing convolution or other shape, layer named),
            or an unknown style.
    """
    if style not in PREPROCESSING:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(PREPROCESSING)}")
    source = _read_state_dict(Path(path))
    report = [
        LayerChange("input", "replaced", "one image -> a batch of images and a list of RoIs")
    ]
    for theirs, ours in TORCHVISION_LAYERS.items():
        if ours == "head.fc6":
            report.append(
                LayerChange("features.30", "replaced", "last max-pool -> RoI pooling 7x7, 1/16")
            )
        layer = model.get_submodule(ours)
        if f"{theirs}.weight" not in source and ours.startswith("head."):
            report.append(LayerChange(ours, "missing", f"{theirs} not in the file; stays random"))
            continue
        for kind in ("weight", "bias"):
            _copy(source, f"{theirs}.{kind}", getattr(layer, kind), path)
        shape = "x".join(map(str, layer.weight.shape))
        frozen = "" if layer.weight.requires_grad else ", frozen"
        report.append(LayerChange(ours, "copied", f"from {theirs}, {shape}{frozen}"))
    report.append(
        LayerChange("classifier.6", "replaced", "last layer and softmax -> the two sibling layers")
    )
    for name, std in (("cls_score", 0.01), ("bbox_pred", 0.001)):
        shape = "x".join(map(str, model.get_submodule(name).weight.shape))
        report.append(LayerChange(name, "new", f"{shape}, Gaussian of std {std}"))
    model.preprocessing = PREPROCESSING[style]
    return report


def _read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    try:
        source = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is not a readable state dict: {error}") from error
    if not isinstance(source, dict) or "features.0.weight" not in source:
        raise ValueError(
            f"{path} is not a VGG16 state dict with torchvision's names: "
            "features.0.weight is not in it"
        )
    return source


def _copy(source: dict[str, torch.Tensor], key: str, target: torch.Tensor, path: Path) -> None:
    if key not in source:
        raise ValueError(f"{path} has no {key}: it is not a VGG16, or the file is incomplete")
    if source[key].shape != target.shape:
        raise ValueError(
            f"{path}: {key} has shape {tuple(source[key].shape)}, VGG16 needs "
            f"{tuple(target.shape)} (batch-normalised or other VGG variants do not fit)"
        )
    with torch.no_grad():
        target.copy_(source[key])
