"""Networks S, M and L: layers, sizes and what is frozen, against the original prototxts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn_engine.data.preparation import batch_images
from fastrcnn_engine.models import build_network
from fastrcnn_engine.models.paper import STAGES, ResponseNorm

CLASSES = [f"class{i}" for i in range(20)]
NAMES = ("caffenet", "vgg_cnn_m_1024", "vgg16")

# name: (inputs of a filter, filters, side), then fc6 and fc7 (inputs, outputs)
CONVOLUTIONS = {
    "caffenet": {
        "conv1": (3, 96, 11), "conv2": (96 // 2, 256, 5), "conv3": (256, 384, 3),
        "conv4": (384 // 2, 384, 3), "conv5": (384 // 2, 256, 3),
    },
    "vgg_cnn_m_1024": {
        "conv1": (3, 96, 7), "conv2": (96, 256, 5), "conv3": (256, 512, 3),
        "conv4": (512, 512, 3), "conv5": (512, 512, 3),
    },
    "vgg16": {
        "conv1_1": (3, 64, 3), "conv1_2": (64, 64, 3),
        "conv2_1": (64, 128, 3), "conv2_2": (128, 128, 3),
        "conv3_1": (128, 256, 3), "conv3_2": (256, 256, 3), "conv3_3": (256, 256, 3),
        "conv4_1": (256, 512, 3), "conv4_2": (512, 512, 3), "conv4_3": (512, 512, 3),
        "conv5_1": (512, 512, 3), "conv5_2": (512, 512, 3), "conv5_3": (512, 512, 3),
    },
}  # fmt: skip
HIDDEN = {
    "caffenet": ((9216, 4096), (4096, 4096)),
    "vgg_cnn_m_1024": ((18432, 4096), (4096, 1024)),
    "vgg16": ((25088, 4096), (4096, 4096)),
}


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    with torch.device("meta"):  # shapes only: VGG16 has 138 million numbers
        return build_network(request.param, CLASSES)


def test_every_layer_has_the_parameters_of_the_prototxt(model):
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    expected = {}
    for name, (inputs, outputs, side) in CONVOLUTIONS[model.name].items():
        expected[f"backbone.{name}.weight"] = (outputs, inputs, side, side)
        expected[f"backbone.{name}.bias"] = (outputs,)
    for name, (inputs, outputs) in zip(("fc6", "fc7"), HIDDEN[model.name], strict=True):
        expected[f"head.{name}.weight"] = (outputs, inputs)
        expected[f"head.{name}.bias"] = (outputs,)
    for name, outputs in (("cls_score", 21), ("bbox_pred", 84)):
        expected[f"{name}.weight"] = (outputs, HIDDEN[model.name][1][1])
        expected[f"{name}.bias"] = (outputs,)
    assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Sums of the table above, 20 classes.
    [("caffenet", 57_298_409), ("vgg_cnn_m_1024", 86_333_161), ("vgg16", 134_690_729)],
)
def test_number_of_parameters(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build_network(name, CLASSES).parameters()) == parameters


def test_order_of_the_layers():
    with torch.device("meta"):
        names = {
            name: " ".join(key for key, _ in build_network(name, ["a"]).backbone.named_children())
            for name in NAMES
        }
    rest = "conv3 relu3 conv4 relu4 conv5 relu5"
    assert names["caffenet"] == f"conv1 relu1 pool1 norm1 conv2 relu2 pool2 norm2 {rest}"
    assert names["vgg_cnn_m_1024"] == f"conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 {rest}"
    assert names["vgg16"].startswith("conv1_1 relu1_1 conv1_2 relu1_2 pool1 conv2_1")
    assert names["vgg16"].endswith("pool4 conv5_1 relu5_1 conv5_2 relu5_2 conv5_3 relu5_3")


@pytest.mark.parametrize(
    ("name", "size"),
    [("caffenet", (256, 39, 64)), ("vgg_cnn_m_1024", (512, 36, 61)), ("vgg16", (512, 38, 63))],
)
def test_map_of_a_600_by_1000_image(name, size):
    with torch.device("meta"):
        assert build_network(name, ["a"]).backbone(torch.empty(1, 3, 600, 1000)).shape[1:] == size


def caffe_pool(rows: int, kernel: int, stride: int, pad: int) -> int:
    """Caffe rounds up, and leaves a window out that would begin beyond the padded image."""
    outputs = -(-(rows + 2 * pad - kernel) // stride) + 1
    return outputs - (pad > 0 and (outputs - 1) * stride >= rows + pad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [*range(200, 233), 600, 601, 999])
def test_height_of_the_map_for_other_images(name, rows):
    expected = rows
    if name == "caffenet":
        expected = caffe_pool((expected + 10 - 11) // 4 + 1, 3, 2, 1)
        expected = caffe_pool(expected, 3, 2, 1)
    elif name == "vgg_cnn_m_1024":
        expected = caffe_pool((expected - 7) // 2 + 1, 3, 2, 0)
        expected = caffe_pool((expected + 2 - 5) // 2 + 1, 3, 2, 0)
    else:
        for _ in range(4):
            expected = caffe_pool(expected, 2, 2, 0)
    with torch.device("meta"):
        assert (
            build_network(name, ["a"]).backbone(torch.empty(1, 3, rows, 224)).shape[2] == expected
        )


@pytest.mark.parametrize(
    ("name", "alpha", "k"), [("caffenet", 1e-4, 1.0), ("vgg_cnn_m_1024", 5e-4, 2.0)]
)
def test_response_normalisation_is_caffes(name, alpha, k):
    x = np.random.default_rng(0).normal(0, 60, (1, 9, 2, 3))
    expected = np.empty_like(x)
    for channel in range(9):
        around = x[:, max(channel - 2, 0) : channel + 3]
        scale = k + alpha / 5 * np.square(around).sum(axis=1)
        expected[:, channel] = x[:, channel] * scale**-0.75
    with torch.device("meta"):
        backbone = build_network(name, ["a"]).backbone
    for layer in (backbone.norm1, backbone.norm2):
        np.testing.assert_allclose(layer(torch.from_numpy(x)).numpy(), expected, rtol=1e-12)


def test_response_normalisation_has_torchs_gradient_by_operators_of_one_order():
    plain, ours = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0), ResponseNorm(5, 1e-4, 0.75, 2.0)
    gradients = []
    for layer in (plain, ours):
        x = 60 * torch.randn(2, 9, 4, 5, dtype=torch.float64, generator=torch.manual_seed(0))
        y = layer(x.requires_grad_())
        (y * torch.arange(5.0)).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    # What torch.use_deterministic_algorithms refuses on a GPU.
    seen, coming = set(), [y.grad_fn]
    while coming:
        node = coming.pop()
        seen.add(node.name())
        coming += [following for following, _ in node.next_functions if following is not None]
    assert "MulBackward0" in seen and not any("Pool" in name or "Cumsum" in name for name in seen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_response_normalisation_of_16_bit_maps_neither_overflows_nor_loses_digits(dtype):
    x = torch.full((1, 9, 2, 3), 300.0, dtype=dtype)  # 300 squared is above float16's largest
    layer = ResponseNorm(5, 5e-4, 0.75, 2.0)
    assert torch.equal(layer(x), layer(x.float()).to(dtype)) and (layer(x) > 8).all()


def test_groups_strides_and_padding():
    with torch.device("meta"):
        caffenet, vgg_m, vgg16 = (build_network(name, ["a"]).backbone for name in NAMES)

    def settings(backbone):
        layers = [layer for layer in backbone if isinstance(layer, nn.Conv2d)]
        return [(x.stride[0], x.padding[0], x.groups) for x in layers]

    assert settings(caffenet) == [(4, 5, 1), (1, 2, 2), (1, 1, 1), (1, 1, 2), (1, 1, 2)]
    assert settings(vgg_m) == [(2, 0, 1), (2, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    assert settings(vgg16) == [(1, 1, 1)] * 13


def test_pooling_head_and_images(model):
    assert model.stride == 16
    assert model.pooled_size == (7 if model.name == "vgg16" else 6)
    assert [type(layer).__name__ for layer in model.head] == [
        "Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout",
    ]  # fmt: skip
    assert model.head.drop6.p == model.head.drop7.p == 0.5
    assert model.preprocessing.channel_order == "BGR"
    assert model.preprocessing.mean == (102.9801, 115.9465, 122.7717)


@pytest.mark.parametrize(
    ("name", "freeze_to", "first"),
    [
        ("caffenet", None, "backbone.conv2"),
        ("vgg_cnn_m_1024", None, "backbone.conv2"),
        ("vgg16", None, "backbone.conv3_1"),
        ("caffenet", "none", "backbone.conv1"),
        ("vgg16", "none", "backbone.conv1_1"),
        ("vgg16", "conv1", "backbone.conv2_1"),
        ("vgg16", "conv2", "backbone.conv3_1"),
        ("vgg16", "conv4", "backbone.conv5_1"),
        ("vgg16", "conv5", "head.fc6"),
        ("vgg_cnn_m_1024", "fc6", "head.fc7"),
        ("caffenet", "fc7", "cls_score"),
    ],
)
def test_frozen_up_to_a_stage(name, freeze_to, first):
    with torch.device("meta"):
        model = build_network(name, ["a"], freeze_to=freeze_to)
    names = [name for name, _ in model.named_parameters()]
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learns == names[names.index(f"{first}.weight") :]


def test_stages_that_are_not_there():
    with pytest.raises(ValueError, match="freeze_to is 'conv3'; for tiny it must be none"):
        build_network("tiny", ["a"], freeze_to="conv3")
    assert build_network("tiny", ["a"], freeze_to="none").frozen == ()
    words = "'conv2_2'; it must be none, conv1, conv2, conv3, conv4, conv5, fc6, fc7"
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        build_network("vgg16", ["a"], freeze_to="conv2_2")
    assert STAGES[0] == "conv1" and STAGES[-1] == "fc7"


@pytest.mark.parametrize("name", NAMES)
def test_a_thin_image_has_a_map(name):
    """Of 16 x 1600 pixels 10 x 1000 are left. They are padded; M has no cell for fewer than 25."""
    with torch.device("meta"):
        model = build_network(name, CLASSES)
    for height, width in ((10, 1000), (1000, 10), (1, 1)):
        images = batch_images([torch.zeros(3, height, width, device="meta")])
        assert min(model.backbone(images).shape) >= 1
        if name == "vgg_cnn_m_1024":
            with pytest.raises(RuntimeError, match="size"):
                model.backbone(images[:, :, :24])


def test_rois_at_the_edge_that_the_map_of_m_does_not_reach():
    # 1000 pixels are 61 columns; x = 984 is column 62, and its bins are empty.
    torch.manual_seed(0)
    with torch.device("meta"):
        model = build_network("vgg_cnn_m_1024", ["a"])
    pooled = model.pool(torch.rand(1, 2, 36, 61) + 1, torch.tensor([[0, 984, 0, 999, 599.0]]))
    assert pooled.shape == (1, 2, 6, 6) and not pooled.any()


def test_a_forward_pass_of_a_whole_network():
    torch.manual_seed(0)
    model = build_network("caffenet", CLASSES).eval()
    for layer, std in (
        (model.head.fc6, 0.01), (model.head.fc7, 0.01),
        (model.backbone.conv3, (2 / (256 * 3 * 3)) ** 0.5),  # keeps the spread through a ReLU
    ):  # fmt: skip
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02) and not layer.bias.any()
    logits, deltas = model(torch.randn(1, 3, 96, 128), torch.tensor([[0, 3, 4, 90, 80.0]]))
    assert logits.shape == (1, 21) and deltas.shape == (1, 84)
    assert logits.isfinite().all() and logits.abs().sum() > 0
