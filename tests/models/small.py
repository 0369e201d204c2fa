"""The paper's networks with a few channels: their names and stages, built in no time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.models import FastRCNN, FullyConnectedHead
from fastrcnn_engine.models.paper import frozen_layers

CONVOLUTIONS = {
    "caffenet": [f"conv{i}" for i in range(1, 6)],
    "vgg_cnn_m_1024": [f"conv{i}" for i in range(1, 6)],
    "vgg16": [f"conv{s}_{i}" for s, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)],
}
CHANNELS, POOLED, HIDDEN, OUTPUTS = 4, 2, 8, 6


def small_network(
    name: str,
    classes: Sequence[str] = ("a", "b"),
    preprocessing: Preprocessing | None = None,
    freeze_to: str = "none",
) -> FastRCNN:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for convolution in CONVOLUTIONS[name]:
        stride = 2 if not layers else 1
        layers[convolution] = nn.Conv2d(inputs, CHANNELS, 3, stride=stride, padding=1)
        nn.init.kaiming_normal_(layers[convolution].weight, nonlinearity="relu")
        layers[convolution.replace("conv", "relu")] = nn.ReLU(inplace=True)
        inputs = CHANNELS
    model = FastRCNN(
        nn.Sequential(layers),
        stride=2,
        head=FullyConnectedHead(CHANNELS, POOLED, HIDDEN, OUTPUTS),
        head_features=OUTPUTS,
        classes=classes,
        pooled_size=POOLED,
        preprocessing=preprocessing,
        name=name,
    )
    model.freeze(frozen_layers(model, freeze_to))
    return model
