"""The network around a backbone of one's own, and ``tiny``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastrcnn_engine.models import FastRCNN, FullyConnectedHead, build_network
from fastrcnn_engine.ops import roi_pool


def own(**options) -> FastRCNN:
    """A user's backbone: one strided convolution with batch normalisation. Any module will do."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 5, 9, stride=8, padding=4), nn.BatchNorm2d(5))
    parts = {"backbone": backbone, "head": FullyConnectedHead(5, 2, 16), "head_features": 16,
             "stride": 8, "classes": ["a", "b"], "pooled_size": 2}  # fmt: skip
    return FastRCNN(**(parts | options))


ROIS = torch.tensor([[0, 0, 0, 63, 47], [1, 10, 10, 30, 30], [1, 0, 0, 8, 8]]).float()


def test_forward_is_backbone_pooling_head_and_siblings():
    model = own().eval()
    images = torch.randn(2, 3, 48, 64)
    logits, deltas = model(images, ROIS)
    assert logits.shape == (3, 3) and deltas.shape == (3, 12)
    pooled = roi_pool(model.backbone(images), ROIS, 2, 1 / 8)
    torch.testing.assert_close(logits, model.cls_score(model.head(pooled)))
    torch.testing.assert_close(deltas, model.bbox_pred(model.head(pooled)))


def test_no_rois_are_legal():
    logits, deltas = own().eval()(torch.randn(1, 3, 48, 64), torch.zeros(0, 5))
    assert logits.shape == (0, 3) and deltas.shape == (0, 12)


def test_new_layers_start_as_in_the_paper():
    torch.manual_seed(0)
    model = FastRCNN(
        nn.Identity(), stride=1, head=nn.Identity(), head_features=4000,
        classes=[str(number) for number in range(20)],
    )  # fmt: skip
    assert model.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert model.cls_score.weight.mean().abs() < 2e-4
    assert not model.cls_score.bias.any() and not model.bbox_pred.bias.any()
    assert (model.cls_score.out_features, model.bbox_pred.out_features) == (21, 84)


def test_unnormalise_uses_the_buffers_which_are_part_of_the_state():
    model = own()
    model.delta_mean.copy_(torch.arange(12.0))
    model.delta_std.fill_(0.5)
    assert model.unnormalise(torch.full((1, 12), 2.0))[0].tolist() == [1 + i for i in range(12)]
    assert {"delta_mean", "delta_std"} <= set(model.state_dict())


def test_other_statistics_change_no_prediction_of_a_network_that_has_learned():
    model, hidden = own(), torch.randn(7, 16)
    with torch.no_grad():
        model.bbox_pred.bias.normal_()
    new = {name: value.clone() for name, value in model.bbox_pred.named_parameters()}
    mean, std = torch.randn(12), torch.rand(12) + 0.1
    model.renormalise(mean, std)  # has learned nothing that could be kept
    for name, value in model.bbox_pred.named_parameters():
        assert torch.equal(value, new[name])
    assert torch.equal(model.delta_mean, mean) and torch.equal(model.delta_std, std)
    predicted = model.unnormalise(model.bbox_pred(hidden))

    other_mean, other_std = torch.randn(12), torch.rand(12) + 0.1
    other_mean[8:], other_std[8:] = 0, 1  # a class that the other data do not have
    model.renormalise(other_mean, other_std)
    assert torch.equal(model.delta_mean, torch.cat([other_mean[:8], mean[8:]]))
    assert torch.equal(model.delta_std, torch.cat([other_std[:8], std[8:]]))
    torch.testing.assert_close(model.unnormalise(model.bbox_pred(hidden)), predicted)
    assert torch.equal(model.bbox_pred.weight[8:], new["weight"][8:])

    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.renormalise(model.delta_mean.clone(), model.delta_std.clone())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_modules_need_no_gradient_and_keep_their_batch_statistics():
    model = own(frozen=["backbone"])
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.head.parameters())
    model.train()
    assert model.training and not model.backbone[1].training
    model(torch.randn(2, 3, 48, 64), ROIS)[0].sum().backward()
    assert model.backbone[1].num_batches_tracked == 0
    model.freeze(["cls_score"])  # in addition
    assert model.frozen == ("backbone", "cls_score")


@pytest.mark.parametrize("stride", [4, 7, 16])
def test_a_stride_that_is_not_the_backbones_is_refused(stride):
    model = own(stride=stride).eval()
    with pytest.raises(ValueError, match=f"stride is {stride}, but the backbone makes"):
        model.check_parts()
    assert not model.training


@pytest.mark.parametrize("padding", [0, 4, 20])  # moves the map; its cells are as wide as before
def test_the_stride_of_a_backbone_does_not_depend_on_its_padding(padding):
    model = own()
    model.backbone[0].padding = (padding, padding)
    before = model.backbone[1].running_mean.clone()
    model.check_parts()
    assert model.training and torch.equal(model.backbone[1].running_mean, before)


@pytest.mark.parametrize("name", ["tiny", "caffenet", "vgg_cnn_m_1024", "vgg16"])
def test_the_parts_of_the_networks_fit(name):
    with torch.device("meta"):  # shapes, no numbers
        build_network(name, ["a"]).check_parts()


class Maps(nn.Module):
    """Makes what a function makes of a map with 5 channels and stride 8."""

    def __init__(self, change):
        super().__init__()
        self.layer, self.change = nn.Conv2d(3, 5, 8, stride=8), change

    def forward(self, images):
        return self.change(self.layer(images))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"backbone": Maps(lambda one: {"0": one, "pool": one})}, "one map .* got dict; wrap it"),
        ({"backbone": Maps(lambda one: one.flatten(2))}, r"one map .* got \(1, 5, 256\); wrap it"),
        ({"backbone": Maps(lambda one: torch.cat([one, one], 1))}, "windows of 10 x 2 x 2: .* has "
         r"10 channels and pooled_size is 2; make the head for these \(mat1 and mat2"),
        ({"pooled_size": 3}, "windows of 5 x 3 x 3: .* 5 channels and pooled_size is 3; make"),
        ({"head_features": 8}, r"head_features is 8, but of one window the head makes \(1, 16\)"),
        ({"head": nn.Identity()}, r"is 16, but of one window the head makes \(1, 5, 2, 2\); it mu"),
    ],
)  # fmt: skip
def test_a_backbone_or_head_of_another_shape_is_told_in_our_words(change, says):
    model = own(**change)
    with pytest.raises(ValueError, match=says):
        model.check_parts()
    assert model.training


def test_weights_that_are_not_float32_are_told():
    model = own()
    model.head.double()
    with pytest.raises(ValueError, match=r"head\.\S+ must be float32, got float64: model.float"):
        model.check_parts()


def test_what_rests_learns_again_and_what_is_frozen_does_not():
    model = own(frozen=["backbone"])
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    for names in (["backbone", "head", "cls_score"], ["bbox_pred"], []):
        model.rest(names)
        now = {n for n, p in model.train().named_parameters() if p.requires_grad}
        assert now == {n for n in learning if not n.startswith(tuple(names))}
        assert model.head.training is ("head" not in names) and not model.backbone.training
    model.rest(["head", "cls_score"])
    model.freeze(["head"])  # for good, whatever rests
    model.rest([])
    assert not any(p.requires_grad for p in model.head.parameters())
    assert all(p.requires_grad for p in model.cls_score.parameters())


@pytest.mark.parametrize("classes", ["cat", [], ["cat", "cat"], [""], [1, 2], {"cat", "dog"}, None])
@pytest.mark.parametrize("name", ["tiny", "vgg16", "own"])
def test_classes_that_are_no_list_of_different_names_are_refused(name, classes):
    with torch.device("meta"), pytest.raises(ValueError, match="classes must be a list of .*got "):
        own(classes=classes) if name == "own" else build_network(name, classes)


def test_misspelt_frozen_module_and_a_stride_that_is_none_are_refused():
    with pytest.raises(ValueError, match="'backbone.conv9'"):
        own(frozen=["backbone.conv9"])
    for stride in (0, -16):
        with pytest.raises(ValueError, match=f"stride must be a whole number from 1 on.* {stride}"):
            own(stride=stride)
    for size in ((7, 7), 0, 2.0):
        with pytest.raises(ValueError, match=r"pooled_size must be a whole .* got (\(7|0|2)"):
            own(pooled_size=size)
    with pytest.raises(ValueError, match="frozen names '', which is not a submodule"):
        own(frozen=[""])
    with pytest.raises(ValueError, match="'resnet' is not known: it is one of tiny, caffenet, "):
        build_network("resnet", ["a"])


@pytest.mark.parametrize("size", [(96, 128), (90, 121)])
def test_tiny_map_covers_the_image_at_its_stride(size):
    model = build_network("tiny", ["a", "b", "c"])
    height, width = model.backbone(torch.randn(1, 3, *size)).shape[2:]
    assert (height, width) == (-(-size[0] // model.stride), -(-size[1] // model.stride))


def test_every_parameter_of_tiny_gets_a_gradient():
    torch.manual_seed(0)
    model = build_network("tiny", ["a", "b", "c"])
    # Blocks start as the identity; one step away from it, everything must take part.
    for name, parameter in model.named_parameters():
        if name.endswith("norm2.weight"):
            assert not parameter.any(), name
            nn.init.ones_(parameter)
    logits, deltas = model(torch.randn(2, 3, 48, 64), ROIS)
    (logits.square().sum() + deltas.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
