"""The paper's networks: S (CaffeNet), M (VGG_CNN_M_1024) and L (VGG16), layer for layer.

Layers have the names they have in the original prototxts (original code, models/), so a prototxt, a
`.caffemodel` and a state dict of ours can be laid side by side. Caffe's pooling rounds up, hence
`ceil_mode`; its response normalisation divides alpha by the size, as torch's does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.models.network import FastRCNN, FullyConnectedHead

# The last stage that does not learn; a stage of VGG16 is all its convolutions.
FreezeTo = Literal["none", "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
STAGES = get_args(FreezeTo)[1:]
# Convolutions in each stage of VGG16 and their width; a 2x2 max-pool separates the stages.
VGG16_STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def relu() -> nn.ReLU:
    return nn.ReLU(inplace=True)


class ResponseNorm(nn.LocalResponseNorm):
    """torch's normalisation across channels, of operators with the same gradient on every run.

    torch's own pools in 3-d, whose gradient on a GPU is summed in any order. Adding shifted maps
    is faster on a CPU, too. 16-bit maps are squared in float32: float16 ends at
    256 squared.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        channels, before = input.shape[1], self.size // 2
        squares = F.pad(wide * wide, (0, 0, 0, 0, before, self.size - 1 - before))
        around = squares[:, :channels]
        for first in range(1, self.size):
            around = around + squares[:, first : first + channels]
        scale = (self.k + self.alpha / self.size * around) ** -self.beta
        return (wide * scale).to(input.dtype)


def build_caffenet(
    classes: Sequence[str],
    preprocessing: Preprocessing | None = None,
    freeze_to: FreezeTo = "conv1",
) -> FastRCNN:
    """Model S for ``classes`` (K names without background), randomly initialised.

    Unlike in the CaffeNet of ImageNet, conv1 and the pools are padded, so that the map reaches to
    the image's edge. ``preprocessing`` None means Caffe's, as in the paper; for ``freeze_to`` see
    ``frozen_layers``.
    """

    def norm() -> ResponseNorm:
        return ResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 96, 11, stride=4, padding=5),
        relu1=relu(),
        pool1=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        norm1=norm(),
        conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
        relu2=relu(),
        pool2=nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
        norm2=norm(),
        conv3=nn.Conv2d(256, 384, 3, padding=1),
        relu3=relu(),
        conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
        relu4=relu(),
        conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
        relu5=relu(),
    )
    head = FullyConnectedHead(256, 6, 4096)
    return _detector("caffenet", layers, head, 6, classes, preprocessing, freeze_to)


def build_vgg_cnn_m_1024(
    classes: Sequence[str],
    preprocessing: Preprocessing | None = None,
    freeze_to: FreezeTo = "conv1",
) -> FastRCNN:
    """Model M for ``classes`` (K names without background), randomly initialised.

    The first layers are hardly padded: the map ends before the image does, and bins beyond it are
    empty, as in the original. ``preprocessing`` None means Caffe's, as in the paper; for
    ``freeze_to`` see ``frozen_layers``.
    """

    def norm() -> ResponseNorm:
        return ResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)

    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 96, 7, stride=2),
        relu1=relu(),
        norm1=norm(),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=nn.Conv2d(96, 256, 5, stride=2, padding=1),
        relu2=relu(),
        norm2=norm(),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv3=nn.Conv2d(256, 512, 3, padding=1),
        relu3=relu(),
        conv4=nn.Conv2d(512, 512, 3, padding=1),
        relu4=relu(),
        conv5=nn.Conv2d(512, 512, 3, padding=1),
        relu5=relu(),
    )
    head = FullyConnectedHead(512, 6, 4096, 1024)
    return _detector("vgg_cnn_m_1024", layers, head, 6, classes, preprocessing, freeze_to)


def build_vgg16(
    classes: Sequence[str],
    preprocessing: Preprocessing | None = None,
    freeze_to: FreezeTo = "conv2",
) -> FastRCNN:
    """Model L for ``classes`` (K names without background), randomly initialised.

    Below conv3_1 there is little to gain, and it costs memory and time (paper 4.5); for
    ``freeze_to`` see ``frozen_layers``. ``preprocessing`` None means Caffe's, as in the paper.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for stage, (depth, width) in enumerate(VGG16_STAGES, start=1):
        for index in range(1, depth + 1):
            layers[f"conv{stage}_{index}"] = nn.Conv2d(channels, width, 3, padding=1)
            layers[f"relu{stage}_{index}"] = relu()
            channels = width
        if stage < len(VGG16_STAGES):
            layers[f"pool{stage}"] = nn.MaxPool2d(2, 2, ceil_mode=True)
    head = FullyConnectedHead(512, 7, 4096)
    return _detector("vgg16", layers, head, 7, classes, preprocessing, freeze_to)


PAPER_NETWORKS = {
    "caffenet": build_caffenet,
    "vgg_cnn_m_1024": build_vgg_cnn_m_1024,
    "vgg16": build_vgg16,
}


def _detector(
    name: str,
    layers: OrderedDict[str, nn.Module],
    head: FullyConnectedHead,
    pooled_size: int,
    classes: Sequence[str],
    preprocessing: Preprocessing | None,
    freeze_to: FreezeTo,
) -> FastRCNN:
    for layer in layers.values():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in (head.fc6, head.fc7):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    model = FastRCNN(
        nn.Sequential(layers),
        stride=16,
        head=head,
        head_features=head.fc7.out_features,
        classes=classes,
        pooled_size=pooled_size,
        preprocessing=preprocessing,  # the class's own default is Caffe's
        name=name,
    )
    model.freeze(frozen_layers(model, freeze_to))
    return model


def pretrained_layers(model: FastRCNN) -> list[str]:
    """Names of the submodules an ImageNet network has too: conv1 ... fc7, in network order.

    Raises ValueError when the model is none of the paper's networks.
    """
    if model.name not in PAPER_NETWORKS:
        known = ", ".join(PAPER_NETWORKS)
        raise ValueError(f"network is {model.name!r}; it must be one of {known}")
    convolutions = [
        f"backbone.{name}"
        for name, layer in model.backbone.named_children()
        if isinstance(layer, nn.Conv2d)
    ]
    return [*convolutions, "head.fc6", "head.fc7"]


def frozen_layers(model: FastRCNN, freeze_to: FreezeTo) -> list[str]:
    """The submodules of one of the paper's networks that do not learn.

    ``freeze_to`` is the last stage that does not: conv2 stands for conv1_1 ... conv2_2 of VGG16,
    conv5 leaves fc6 and what follows to learn (paper, table 5), "none" everything. Raises
    ValueError for another word.
    """
    if freeze_to not in ("none", *STAGES):
        raise ValueError(f"freeze_to is {freeze_to!r}; it must be none, {', '.join(STAGES)}")
    frozen = () if freeze_to == "none" else STAGES[: STAGES.index(freeze_to) + 1]
    return [name for name in pretrained_layers(model) if name.split(".")[1].split("_")[0] in frozen]
