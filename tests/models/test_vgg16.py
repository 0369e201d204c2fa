"""Model L: layers, sizes, and the three transformations of a pre-trained VGG16."""

from __future__ import annotations

import pytest
import torch

from fastrcnn_engine.models import build_vgg16, transform_vgg16
from fastrcnn_engine.models.vgg16 import TORCHVISION_LAYERS

WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
CLASSES = [f"class{i}" for i in range(20)]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_vgg16(CLASSES)


def convolutions() -> dict[str, torch.Tensor]:
    """A state dict with torchvision's names and VGG16's shapes; every layer its own constant."""
    state, inputs = {}, 3
    names = [name for name in TORCHVISION_LAYERS if name.startswith("features")]
    for number, (name, width) in enumerate(zip(names, WIDTHS, strict=True), start=1):
        state[f"{name}.weight"] = torch.full((width, inputs, 3, 3), number / 100)
        state[f"{name}.bias"] = torch.full((width,), -number / 100)
        inputs = width
    return state


def constant(value: float, *shape: int) -> torch.Tensor:
    return torch.full((1,), value).expand(shape)  # one number in memory and in the file


def hidden_layers() -> dict[str, torch.Tensor]:
    return {
        "classifier.0.weight": constant(0.6, 4096, 25088),
        "classifier.0.bias": constant(0.61, 4096),
        "classifier.3.weight": constant(0.7, 4096, 4096),
        "classifier.3.bias": constant(0.71, 4096),
    }


def test_layers_and_parameter_counts(model):
    count = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in (("conv", model.backbone), ("fc6", model.head.fc6),
                             ("fc7", model.head.fc7), ("cls", model.cls_score),
                             ("box", model.bbox_pred))
    }  # fmt: skip
    assert count == {
        "conv": 14_714_688,
        "fc6": 25_088 * 4096 + 4096,
        "fc7": 4096 * 4096 + 4096,
        "cls": 4096 * 21 + 21,
        "box": 4096 * 84 + 84,
    }
    assert (model.stride, model.pooled_size) == (16, 7)


def test_map_of_a_600_by_1000_image_is_38_by_63(model):
    # On the meta device only shapes are computed.
    with torch.device("meta"):
        backbone = build_vgg16(["a"]).backbone
        assert backbone(torch.empty(1, 3, 600, 1000)).shape == (1, 512, 38, 63)


def test_conv1_and_conv2_are_frozen(model):
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    layers = ("conv1_1", "conv1_2", "conv2_1", "conv2_2")
    assert frozen == {f"backbone.{x}.{kind}" for x in layers for kind in ("weight", "bias")}


def test_three_transformations_of_a_whole_network(model, tmp_path):
    state = convolutions() | hidden_layers()
    state |= {"classifier.6.weight": torch.zeros(1000, 4096), "classifier.6.bias": torch.ones(1000)}
    torch.save(state, tmp_path / "vgg16.pt")
    score = model.cls_score.weight.clone()
    report = transform_vgg16(model, tmp_path / "vgg16.pt", "torchvision")

    for theirs, ours in TORCHVISION_LAYERS.items():
        layer = model.get_submodule(ours)
        assert torch.equal(layer.weight, state[f"{theirs}.weight"]), ours
        assert torch.equal(layer.bias, state[f"{theirs}.bias"]), ours
    assert torch.equal(model.cls_score.weight, score)
    assert model.preprocessing.channel_order == "RGB"
    assert model.preprocessing.std == (58.395, 57.12, 57.375)

    rows = [(change.layer, change.action) for change in report]
    assert rows[0] == ("input", "replaced")
    assert rows[1:14] == [(ours, "copied") for ours in list(TORCHVISION_LAYERS.values())[:13]]
    assert rows[14:] == [
        ("features.30", "replaced"), ("head.fc6", "copied"), ("head.fc7", "copied"),
        ("classifier.6", "replaced"), ("cls_score", "new"), ("bbox_pred", "new"),
    ]  # fmt: skip
    assert report[1].detail == "from features.0, 64x3x3x3, frozen"
    assert report[5].detail == "from features.10, 256x128x3x3"


def test_a_file_of_convolutions_only_is_accepted_and_said(model, tmp_path):
    torch.save(convolutions(), tmp_path / "convs.pt")
    before = model.head.fc6.weight[0].clone()
    report = transform_vgg16(model, tmp_path / "convs.pt", "caffe")
    missing = [change for change in report if change.action == "missing"]
    assert [change.layer for change in missing] == ["head.fc6", "head.fc7"]
    assert "stays random" in missing[0].detail
    assert torch.equal(model.head.fc6.weight[0], before)
    assert model.preprocessing.channel_order == "BGR"
    assert model.preprocessing.mean == (102.9801, 115.9465, 122.7717)


def test_unfit_files_name_the_layer(model, tmp_path):
    path = tmp_path / "weights.pt"
    with pytest.raises(ValueError, match="weights.pt does not exist"):
        transform_vgg16(model, path, "caffe")
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="features.0.weight is not in it"):
        transform_vgg16(model, path, "caffe")
    state = convolutions()
    del state["features.17.bias"]
    torch.save(state, path)
    with pytest.raises(ValueError, match="has no features.17.bias"):
        transform_vgg16(model, path, "caffe")
    state = convolutions() | {"features.2.weight": torch.zeros(128, 64, 3, 3)}
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"features.2.weight has shape \(128, 64, 3, 3\)"):
        transform_vgg16(model, path, "caffe")
    with pytest.raises(ValueError, match="style is 'keras'"):
        transform_vgg16(model, path, "keras")
