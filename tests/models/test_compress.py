"""Truncated SVD: the factorisation against NumPy's, and the compressed head."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn_engine.models import FastRCNN, FullyConnectedHead, build_network
from fastrcnn_engine.models.compress import (
    RANKS,
    compress,
    described,
    ranks_of,
    split_layers,
    truncated_svd,
)


def detector(**options) -> FastRCNN:
    torch.manual_seed(0)
    return FastRCNN(
        nn.Identity(), stride=1, head=FullyConnectedHead(5, 4, 40, 24), head_features=24,
        classes=["a"], pooled_size=4, **options,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (12, 12), (1, 5)])
def test_full_rank_changes_nothing(shape):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second, kept = truncated_svd(weight, min(shape))
    assert first.shape == (min(shape), shape[1]) and second.shape == (shape[0], min(shape))
    torch.testing.assert_close(second @ first, weight, rtol=0, atol=1e-12)
    assert kept == pytest.approx(1)
    assert len(truncated_svd(weight, energy=1.0)[0]) <= min(shape)  # whatever rounding says


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 3, 10, 15])
def test_no_matrix_of_that_rank_is_closer(dtype, rank):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(16, 50)) * np.geomspace(1, 1e-3, 16)[:, None]
    singular = np.linalg.svd(weight, compute_uv=False)
    parameter = nn.Parameter(torch.from_numpy(weight).to(dtype))
    first, second, kept = truncated_svd(parameter, rank)
    assert first.dtype == second.dtype == dtype
    assert not first.requires_grad and not second.requires_grad
    missing = weight - (second.double() @ first.double()).numpy()
    # What is missing are the other singular values: the largest of them, and their squares.
    rounding = 50 * torch.finfo(dtype).eps
    assert np.linalg.norm(missing, 2) == pytest.approx(singular[rank], rel=1e-6, abs=rounding)
    rest = np.square(singular[rank:]).sum()
    assert np.square(missing).sum() == pytest.approx(rest, rel=1e-6, abs=rounding)
    assert kept == pytest.approx(1 - rest / np.square(singular).sum())
    # U_t has orthonormal columns, Sigma_t V_t^T the singular values as the lengths of its rows.
    np.testing.assert_allclose(second.T @ second, np.eye(rank), atol=rounding)
    lengths = first.double().norm(dim=1)
    np.testing.assert_allclose(lengths, singular[:rank], rtol=1e-5, atol=rounding)


def test_energy_takes_the_smallest_rank_that_keeps_it():
    weight = torch.diag(torch.tensor([4.0, 2.0, 2.0, 1.0]))  # squares 16, 4, 4, 1 of 25
    expected = {0.1: 1, 0.63: 1, 0.65: 2, 0.79: 2, 0.81: 3, 0.95: 3, 0.97: 4, 1.0: 4}
    for energy, rank in expected.items():
        first, _, kept = truncated_svd(weight, energy=energy)
        assert len(first) == rank and kept >= energy - 1e-12, energy
    assert len(truncated_svd(torch.eye(2), energy=0.5)[0]) == 1  # exactly as much
    assert truncated_svd(torch.zeros(3, 5), 1)[2] == 0  # not NaN, which JSON has not


def test_bad_ranks_and_energies():
    weight = torch.ones(3, 5)
    for rank in (0, -1, 4):
        with pytest.raises(ValueError, match=f"rank is {rank}; it must be in 1 to 3"):
            truncated_svd(weight, rank)
    for energy in (0.0, -0.5, 1.01, float("nan")):
        with pytest.raises(ValueError, match=f"energy is {energy}; it must be above 0"):
            truncated_svd(weight, energy=energy)
    for both in ({}, {"rank": 1, "energy": 0.5}):
        with pytest.raises(ValueError, match="either a rank or an energy"):
            truncated_svd(weight, **both)
    with pytest.raises(ValueError, match="not finite"):
        truncated_svd(torch.tensor([[1.0, float("inf")]]), 1)


def test_head_of_a_low_rank_computes_the_same():
    model = detector()
    with torch.no_grad():
        for layer, rank in ((model.head.fc6, 6), (model.head.fc7, 3)):
            factors = torch.randn(layer.out_features, rank), torch.randn(rank, layer.in_features)
            layer.weight.copy_(factors[0] @ factors[1])
    pooled = torch.randn(9, 5, 4, 4)
    before = model.classify(pooled)
    bias = model.head.fc6.bias.clone()
    report = compress(model, {"fc6": 6, "fc7": 3})
    assert [name for name, _ in model.head.named_children()] == [
        "flatten", "fc6_L", "fc6_U", "relu6", "drop6", "fc7_L", "fc7_U", "relu7", "drop7",
    ]  # fmt: skip
    assert model.head.fc6_L.bias is None and torch.equal(model.head.fc6_U.bias, bias)
    assert model.head.fc6_L.weight.shape == (6, 80) and model.head.fc6_U.weight.shape == (40, 6)
    for one, two in zip(before, model.classify(pooled), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert [(x.name, x.inputs, x.outputs, x.rank) for x in report] == [
        ("fc6", 80, 40, 6), ("fc7", 40, 24, 3),
    ]  # fmt: skip
    assert all(x.energy == pytest.approx(1) for x in report)
    assert ranks_of(model) == {"fc6": 6, "fc7": 3}
    assert described(model) == "custom, fc6 rank 6, fc7 rank 3"
    assert not model.head.training


def test_layers_of_similar_names_are_not_compressed_ones():
    model = detector()
    layers = {"a_L": nn.Linear(2, 2), "b_L": nn.ReLU(), "b_U": nn.Linear(2, 2)}
    model.head = nn.Sequential(OrderedDict(layers))
    assert ranks_of(model) == {} and described(model) == "custom"


def test_a_layer_without_a_bias_gets_none():
    model = build_network("tiny", ["a"]).eval()
    compress(model, {"fc6": 20, "fc7": 10})
    assert all(getattr(model.head, f"{name}_U").bias is None for name in ("fc6", "fc7"))


def test_energy_of_a_head():
    model = detector().double()
    report = compress(model, energy=0.3)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    for layer in report:
        assert 0.3 <= layer.energy < 0.6 and 1 <= layer.rank < 20
    assert ranks_of(model) == {layer.name: layer.rank for layer in report}


def test_a_rank_that_saves_nothing_is_refused_and_nothing_is_replaced():
    # 80 x 40: a rank of 26 has 26 x 120 = 3120 weights, 27 has 3240 of 3200.
    model = detector()
    words = r"saves nothing: 27 x \(40 \+ 80\) weights instead of 40 x 80; give at most 26, or"
    with pytest.raises(ValueError, match=f"rank of fc6 is 27, which {words}"):
        compress(model, {"fc7": 2, "fc6": 27})
    # 40 x 24: exactly as many weights.
    words = r"saves nothing: 15 x \(24 \+ 40\) weights instead of 24 x 40; give at most 14, or"
    with pytest.raises(ValueError, match=f"rank of fc7 is 15, which {words}"):
        compress(model, {"fc7": 15})
    with pytest.raises(ValueError, match="rank of fc6 is 1024; 40 x 80 has ranks 1 to 40"):
        compress(model)
    with pytest.raises(ValueError, match="rank of fc7 is 0; 24 x 40 has ranks 1 to 24"):
        compress(model, {"fc7": 0})
    with pytest.raises(ValueError, match="rank of fc[67] is .* saves nothing"):
        compress(model, energy=1.0)
    with pytest.raises(ValueError, match="fc6: energy is 1.5; it must be above 0 and at most 1"):
        compress(model, energy=1.5)
    with pytest.raises(ValueError, match="either ranks or an energy"):
        compress(model, {"fc6": 2}, energy=0.5)
    assert ranks_of(model) == {} and model.head.fc6.weight.shape == (40, 80)
    assert len(compress(model, {"fc6": 26})) == 1


def test_other_heads_are_refused():
    model = detector()
    compress(model, {"fc6": 5})
    with pytest.raises(ValueError, match="compressed already: custom, fc6 rank 5"):
        compress(model, {"fc7": 5})
    model = detector()
    with pytest.raises(ValueError, match="no linear layer relu6; .*has flatten, fc6, relu6, drop6"):
        compress(model, {"relu6": 1})
    model.head = nn.ModuleDict({"fc6": model.head.fc6, "fc7": model.head.fc7})
    with pytest.raises(ValueError, match="no linear layer fc6; it must be a Sequential"):
        compress(model, {"fc6": 1})
    model.head = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="no linear layer fc6; .*has no layers"):
        compress(model, {"fc6": 1})


def test_frozen_layers_outside_of_the_compressed_ones_stay_frozen():
    model = detector(frozen=["head.fc6", "cls_score"])
    split_layers(model, {"fc6": 3})
    assert model.frozen == ("cls_score",)
    model.train()
    assert not model.cls_score.training and model.head.fc6_U.training
    assert not model.cls_score.weight.requires_grad


@pytest.mark.parametrize(
    ("name", "fc6", "fc7"),
    # Spec of the paper 4.4 for L: 102.8 M and 16.8 M weights become 29.9 M and 2.1 M.
    [
        ("caffenet", (37_748_736, 13_631_488), (16_777_216, 2_097_152)),
        ("vgg_cnn_m_1024", (75_497_472, 23_068_672), (4_194_304, 1_310_720)),
        ("vgg16", (102_760_448, 29_884_416), (16_777_216, 2_097_152)),
    ],
)
def test_weights_of_the_papers_networks(name, fc6, fc7):
    with torch.device("meta"):
        model = build_network(name, ["a"])
        before = [model.head.fc6.weight.numel(), model.head.fc7.weight.numel()]
    split_layers(model, RANKS)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    after = [sum(model.head.get_submodule(f"{x}_{y}").weight.numel() for y in "LU") for x in RANKS]
    assert list(zip(before, after, strict=True)) == [fc6, fc7]
