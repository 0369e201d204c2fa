"""The three transformations of a pre-trained network, from both kinds of file."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fastrcnn_engine.models import build_network, transform_pretrained
from fastrcnn_engine.models.pretrained import TORCHVISION_LAYERS

from .caffemodel_files import network
from .small import CONVOLUTIONS, small_network

NAMES = list(CONVOLUTIONS)
BGR_MEAN = (102.9801, 115.9465, 122.7717)


def numbers(shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=tuple(shape)).astype("f4")


def caffe_layers(model) -> dict[str, list[np.ndarray]]:
    """Weights for every layer of ``model`` and for fc8, under Caffe's names."""
    layers = {
        name: [numbers(model.get_submodule(f"backbone.{name}").weight.shape), numbers([4])]
        for name in CONVOLUTIONS[model.name]
    }
    for name in ("fc6", "fc7"):
        layer = model.get_submodule(f"head.{name}")
        layers[name] = [numbers(layer.weight.shape), numbers(layer.bias.shape)]
    return layers | {"fc8": [numbers([1000, 6]), numbers([1000])]}


def torchvision_state(model) -> dict[str, torch.Tensor]:
    state = {}
    for theirs, ours in TORCHVISION_LAYERS.items():
        for kind, parameter in model.get_submodule(ours).named_parameters():
            state[f"{theirs}.{kind}"] = torch.from_numpy(numbers([*parameter.shape]))
    return state | {"classifier.6.weight": torch.ones(1000, 6), "classifier.6.bias": torch.ones(9)}


def write_caffe(path, layers, **options):
    path.write_bytes(network(layers, **options))
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_caffemodel_becomes_the_detector(tmp_path, name, version, legacy):
    model = small_network(name)
    layers = caffe_layers(model)
    # The content tells what it is, whatever its name.
    path = write_caffe(tmp_path / "weights.pth", layers, version=version, legacy=legacy)
    score = model.cls_score.weight.clone()
    report = transform_pretrained(model, path)

    ours = [f"backbone.{x}" for x in CONVOLUTIONS[name]] + ["head.fc6", "head.fc7"]
    for layer in ours:
        weight, bias = layers[layer.split(".")[1]]
        np.testing.assert_array_equal(model.get_submodule(layer).weight.detach(), weight)
        np.testing.assert_array_equal(model.get_submodule(layer).bias.detach(), bias)
    assert torch.equal(model.cls_score.weight, score)
    # Trained on BGR and copied as it is: the images must be BGR.
    assert (model.preprocessing.channel_order, model.preprocessing.mean) == ("BGR", BGR_MEAN)
    assert model.preprocessing.std == (1.0, 1.0, 1.0)

    rows = [(change.layer, change.action) for change in report]
    assert rows == [
        ("input", "replaced"),
        *((layer, "copied") for layer in ours[:-2]),
        ("pool5", "replaced"), ("head.fc6", "copied"), ("head.fc7", "copied"),
        ("fc8", "replaced"), ("cls_score", "new"), ("bbox_pred", "new"),
    ]  # fmt: skip
    details = {change.layer: change.detail for change in report}
    assert details["pool5"] == "last max-pool -> RoI pooling 2x2, 1/2"
    assert details["head.fc7"] == "from fc7, 6x8"
    assert details["cls_score"] == "3x6, Gaussian of std 0.01"
    assert details["bbox_pred"] == "12x6, Gaussian of std 0.001"


@pytest.mark.parametrize("zipped", [True, False])  # as torch.save writes now, and as it did
def test_a_torchvision_state_dict_becomes_vgg16(tmp_path, zipped):
    model = small_network("vgg16", freeze_to="conv2")
    state = torchvision_state(model)
    path = tmp_path / "weights.caffemodel"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    report = transform_pretrained(model, path)
    for theirs, ours in TORCHVISION_LAYERS.items():
        layer = model.get_submodule(ours)
        assert torch.equal(layer.weight, state[f"{theirs}.weight"]), ours
        assert torch.equal(layer.bias, state[f"{theirs}.bias"]), ours
    assert model.preprocessing.channel_order == "RGB"
    assert model.preprocessing.mean == (123.675, 116.28, 103.53)
    assert model.preprocessing.std == (58.395, 57.12, 57.375)

    rows = [(change.layer, change.action) for change in report]
    assert rows[0] == ("input", "replaced")
    assert rows[1:14] == [(ours, "copied") for ours in list(TORCHVISION_LAYERS.values())[:13]]
    assert rows[14:] == [
        ("features.30", "replaced"), ("head.fc6", "copied"), ("head.fc7", "copied"),
        ("classifier.6", "replaced"), ("cls_score", "new"), ("bbox_pred", "new"),
    ]  # fmt: skip
    assert report[1].detail == "from features.0, 4x3x3x3, frozen"
    assert report[5].detail == "from features.10, 4x4x3x3"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floats_are_taken(tmp_path, dtype):
    model = small_network("vgg16")
    state = {name: value.to(dtype) for name, value in torchvision_state(model).items()}
    torch.save(state, tmp_path / "x.pth")
    transform_pretrained(model, tmp_path / "x.pth")
    assert torch.equal(model.backbone.conv5_3.weight, state["features.28.weight"].float())


def test_a_state_dict_may_hold_caffes_weights_and_a_caffemodel_nothing_else(tmp_path):
    model = small_network("vgg16")
    torch.save({5: "whatever", **torchvision_state(model)}, tmp_path / "x.pth")
    transform_pretrained(model, tmp_path / "x.pth", "caffe")
    assert model.preprocessing.channel_order == "BGR"
    transform_pretrained(model, tmp_path / "x.pth", "torchvision")
    assert model.preprocessing.channel_order == "RGB"
    path = write_caffe(tmp_path / "x.caffemodel", caffe_layers(model))
    transform_pretrained(model, path, "caffe")
    with pytest.raises(ValueError, match="style is 'torchvision', but .*x.caffemodel is no torch"):
        transform_pretrained(model, path, "torchvision")
    with pytest.raises(ValueError, match="style is 'caffe-rgb', but .*x.caffemodel is no torch"):
        transform_pretrained(model, path, "caffe-rgb")
    with pytest.raises(ValueError, match="style is 'keras'; it must be one of caffe, torchv"):
        transform_pretrained(model, path, "keras")


@pytest.mark.parametrize("kind", ["caffemodel", "pth"])
def test_a_file_of_convolutions_only_is_accepted_and_said(tmp_path, kind):
    model = small_network("vgg16")
    path = tmp_path / f"convs.{kind}"
    if kind == "pth":
        state = torchvision_state(model)
        torch.save({k: v for k, v in state.items() if k.startswith("features")}, path)
    else:
        layers = caffe_layers(model)
        write_caffe(path, {name: layers[name] for name in CONVOLUTIONS["vgg16"]})
    before = model.head.fc6.weight.clone()
    report = transform_pretrained(model, path)
    missing = [change for change in report if change.action == "missing"]
    assert [change.layer for change in missing] == ["head.fc6", "head.fc7"]
    assert "stays random" in missing[0].detail
    assert torch.equal(model.head.fc6.weight, before)


@pytest.mark.parametrize("kind", ["caffemodel", "pth"])
def test_hidden_layers_that_are_not_finite_are_left_and_told(tmp_path, kind):
    """As in torchvision's VGG16_Weights.IMAGENET1K_FEATURES, which wants images its own way."""
    model, path = small_network("vgg16"), tmp_path / f"x.{kind}"
    if kind == "pth":
        state = torchvision_state(model)
        state["classifier.0.weight"].fill_(torch.nan)
        state["classifier.3.bias"][2] = torch.inf
        torch.save(state, path)
    else:
        layers = caffe_layers(model)
        layers["fc6"][0][:] = np.nan
        layers["fc7"][1][2] = np.inf
        write_caffe(path, layers)
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    report = transform_pretrained(model, path)
    details = {change.layer: (change.action, change.detail) for change in report}
    for name, theirs in (("fc6", "classifier.0"), ("fc7", "classifier.3")):
        theirs = theirs if kind == "pth" else name
        detail = f"{theirs} not finite in the file; stays random"
        assert details[f"head.{name}"] == ("missing", detail)
    assert details["backbone.conv5_3"][0] == "copied"
    assert all(torch.equal(model.head.state_dict()[name], before[name]) for name in before)
    assert model.preprocessing.std == (1.0, 1.0, 1.0)
    assert model.preprocessing.channel_order == ("RGB" if kind == "pth" else "BGR")
    if kind == "pth":
        assert model.preprocessing.mean == pytest.approx((123, 117, 104), abs=1e-3)
        transform_pretrained(model, path, "torchvision")
        assert model.preprocessing.mean[0] == 123.675, "as it was told"
        state["classifier.0.weight"].fill_(0)  # fc7 alone says nothing of the kind
        torch.save(state, path)
        transform_pretrained(model, path)
        assert model.preprocessing.mean[0] == 123.675


def test_real_networks_take_real_shapes(tmp_path):
    # Everything but fc6 of M, which would be 300 MB. Both ways to write shapes.
    model = build_network("vgg_cnn_m_1024", ["a"])
    names = [*CONVOLUTIONS["vgg_cnn_m_1024"], "fc7"]
    layers = {
        name: [np.full(shape, i, "f4"), np.full(shape[0], -i, "f4")]
        for i, (name, shape) in enumerate(
            zip(names, [(96, 3, 7, 7), (256, 96, 5, 5), (512, 256, 3, 3), (512, 512, 3, 3),
                        (512, 512, 3, 3), (1024, 4096)], strict=True)
        )
    }  # fmt: skip
    path = write_caffe(tmp_path / "m.caffemodel", layers, version=1, legacy=True)
    report = transform_pretrained(model, path)
    for i, name in enumerate(names):
        layer = (model.head if name == "fc7" else model.backbone).get_submodule(name)
        assert (layer.weight == i).all() and (layer.bias == -i).all(), name
    details = {change.layer: (change.action, change.detail) for change in report}
    assert details["backbone.conv1"] == ("copied", "from conv1, 96x3x7x7, frozen")
    assert details["pool5"] == ("replaced", "last max-pool -> RoI pooling 6x6, 1/16")
    assert details["head.fc6"][0] == "missing"
    assert details["head.fc7"] == ("copied", "from fc7, 1024x4096")


def test_groups_halve_the_inputs_of_a_filter(tmp_path):
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in build_network("caffenet", ["a"]).named_parameters()}
    assert shapes["backbone.conv2.weight"] == (256, 48, 5, 5)  # as in the file


def test_unfit_files_name_the_layer(tmp_path):
    model, path = small_network("vgg16"), tmp_path / "weights"
    with pytest.raises(ValueError, match="weights does not exist"):
        transform_pretrained(model, path)
    for content in ({"conv1.weight": torch.zeros(1)}, torch.zeros(1)):
        torch.save(content, path)
        with pytest.raises(ValueError, match="features.0.weight is not in it"):
            transform_pretrained(model, path)
    state = torchvision_state(model)
    bias = state.pop("features.17.bias")
    torch.save(state, path)
    with pytest.raises(ValueError, match="weights for vgg16: no features.17.bias in it"):
        transform_pretrained(model, path)
    torch.save(state | {"features.17.bias": bias, "features.2.weight": torch.zeros(8, 4)}, path)
    with pytest.raises(ValueError, match=r"features.2.weight has shape \(8, 4\), expected \(4, 4,"):
        transform_pretrained(model, path)

    state["features.17.bias"] = torch.full_like(bias, torch.nan)
    torch.save(state, path)
    with pytest.raises(ValueError, match="features.17.bias holds numbers that are not finite"):
        transform_pretrained(model, path)

    layers = caffe_layers(model)
    write_caffe(path, {k: v for k, v in layers.items() if k != "conv4_1"})
    with pytest.raises(ValueError, match="weights for vgg16: no conv4_1.weight in it"):
        transform_pretrained(model, path)
    write_caffe(path, layers | {"conv4_1": [layers["conv4_1"][0]]})
    with pytest.raises(ValueError, match="no conv4_1.bias in it"):
        transform_pretrained(model, path)
    for shape in ([1], [2, 1, 1, 4]):  # ones in front are axes of old files, nothing else is
        write_caffe(path, layers | {"conv4_1": [layers["conv4_1"][0], numbers(shape)]})
        says = f"conv4_1.bias has shape {tuple(shape)}, expected (4,)"
        with pytest.raises(ValueError, match=re.escape(says)):
            transform_pretrained(model, path)
    write_caffe(path, layers | {"fc7": [numbers([4096, 8]), numbers([4096])]})
    with pytest.raises(ValueError, match=r"fc7.weight has shape \(4096, 8\), expected \(6, 8\)"):
        transform_pretrained(model, path)
    path.write_bytes(b"<!DOCTYPE html><title>404</title>")
    with pytest.raises(ValueError, match="weights is not a readable caffemodel: byte 0"):
        transform_pretrained(model, path)
    path.write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="weights is not a readable state dict"):
        transform_pretrained(model, path)


@pytest.mark.parametrize(
    "value",
    [None, 5, "text", [1.0], torch.zeros(1).expand(10**7, 10**7), torch.eye(3).to_sparse(),
     torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.int8),
     torch.zeros(3, device="meta"), torch.zeros(3).to(torch.float8_e4m3fn)],
)  # fmt: skip
def test_what_is_no_tensor_of_the_file_s_own_numbers_is_refused(tmp_path, value):
    """One number may be said to be 10 ** 14, which would have to be somewhere."""
    model = small_network("vgg16")
    torch.save(torchvision_state(model) | {"features.2.bias": value}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: features\.2\.bias must be a dense tensor"):
        transform_pretrained(model, tmp_path / "weights.pth")


def test_a_file_runs_no_code(tmp_path):
    class Code:
        def __reduce__(self):
            return (tmp_path / "made").mkdir, ()

    model = small_network("vgg16")
    torch.save(torchvision_state(model) | {"features.2.bias": Code()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not a readable state dict: .* more than") as error:
        transform_pretrained(model, tmp_path / "weights.pth")
    assert "weights_only" not in str(error.value)  # nobody is told to let it run
    assert not (tmp_path / "made").exists()


def test_files_of_another_network_are_refused(tmp_path):
    vgg16, caffenet = small_network("vgg16"), small_network("caffenet")
    path = write_caffe(tmp_path / "vgg16.caffemodel", caffe_layers(vgg16))
    with pytest.raises(ValueError, match="vgg16.caffemodel for caffenet: no conv1.weight in it"):
        transform_pretrained(caffenet, path)
    torch.save(torchvision_state(vgg16), tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match="torch file; network 'caffenet' takes a caffemodel"):
        transform_pretrained(caffenet, tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match="network is 'tiny'; it must be one of caffenet, vgg_cnn"):
        transform_pretrained(build_network("tiny", ["a"]), path)


def test_caffes_layers_compute_what_they_did(tmp_path):
    # The fully connected layers read a pooled map by channel, row, column, as Caffe's do.
    model = small_network("caffenet").eval()
    layers = caffe_layers(model)
    transform_pretrained(model, write_caffe(tmp_path / "x", layers, legacy=True))
    pooled = numbers([3, 4, 2, 2])
    hidden = pooled.reshape(3, -1)
    for name in ("fc6", "fc7"):
        hidden = np.maximum(hidden @ layers[name][0].T + layers[name][1], 0)
    got = model.head(torch.from_numpy(pooled)).detach().numpy()
    np.testing.assert_allclose(got, hidden, rtol=1e-5, atol=1e-5)
