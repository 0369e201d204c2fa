"""``tiny``: a small residual network that trains from scratch on a CPU in minutes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.models.network import FastRCNN


def norm(channels: int) -> nn.GroupNorm:
    # Group normalisation: with two images in a batch, batch statistics are too noisy.
    return nn.GroupNorm(8, channels)


class Block(nn.Module):
    """Residual block of two 3x3 convolutions; the first may halve the map and change the width."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
        # The block starts as the identity, which lets a deep net learn at once from scratch.
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.skip(x), inplace=True)


class TinyBackbone(nn.Module):
    """(N, 3, H, W) -> (N, 128, H/8, W/8), seeing as far as a net of stride 16.

    Small objects need the fine map, large ones the wide view: the last stage works at stride 16,
    where it is cheap, and is added back to the stride-8 map.
    """

    channels = 128

    def __init__(self):
        super().__init__()
        # At full resolution every pass over memory counts: few channels and no normalisation.
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2), nn.ReLU(inplace=True),
            nn.Conv2d(16, 64, 3, stride=2, padding=1, bias=False), norm(64), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.stage8 = nn.Sequential(Block(64, 128, stride=2), Block(128, 128))
        self.stage16 = nn.Sequential(Block(128, 192, stride=2), Block(192, 192))
        self.lateral = nn.Conv2d(192, 128, 1, bias=False)
        self.merge = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1, bias=False), norm(128))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Channels-last is what the CPU's convolutions and RoI pooling read fastest.
        x = self.stem(images.contiguous(memory_format=torch.channels_last))
        fine = self.stage8(x)
        wide = self.lateral(self.stage16(fine))
        wide = F.interpolate(wide, size=fine.shape[-2:], mode="nearest")
        return self.merge(fine + wide)


def tiny_head(channels: int, pooled_size: int, hidden: int) -> nn.Sequential:
    """Two normalised layers: (R, channels, P, P) -> (R, hidden).

    Maxima of a window are nearly all positive, so every RoI looks much like the mean RoI. Taking
    that mean away over the RoIs of the batch is what makes training from scratch start at once:
    on the drawn set the classification loss of plain layers stays at chance at first.

    Training needs at least two RoIs in a batch.
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc6=nn.Linear(channels * pooled_size**2, hidden, bias=False),
            norm6=nn.BatchNorm1d(hidden),
            relu6=nn.ReLU(inplace=True),
            fc7=nn.Linear(hidden, hidden, bias=False),
            norm7=nn.BatchNorm1d(hidden),
            relu7=nn.ReLU(inplace=True),
        )
    )


# RGB, brought to about zero mean and unit variance; sizes as in the recipe of training/config.py.
PREPROCESSING = Preprocessing(
    channel_order="RGB",
    mean=(127.5, 127.5, 127.5),
    std=(64.0, 64.0, 64.0),
    short_side=480,
    max_side=800,
)


def build_tiny(classes: Sequence[str], preprocessing: Preprocessing | None = None) -> FastRCNN:
    """The small network for ``classes`` (K names without background), randomly initialised."""
    backbone = TinyBackbone()
    head = tiny_head(TinyBackbone.channels, 7, 256)
    for module in (*backbone.modules(), *head.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return FastRCNN(
        backbone.to(memory_format=torch.channels_last),  # pyright: ignore[reportCallIssue]
        stride=8,
        head=head,
        head_features=256,
        classes=classes,
        pooled_size=7,
        preprocessing=preprocessing or PREPROCESSING,
        name="tiny",
    )
