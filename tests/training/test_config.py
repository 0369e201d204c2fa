"""Settings: recipes, schedule, refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastrcnn_engine.training.config import TrainConfig, checked_device

BASE = TrainConfig(data=Path("d"), proposals=Path("p"))


def test_vgg16_takes_the_numbers_of_the_paper():
    config = BASE.resolved()
    assert (config.iterations, config.learning_rate, config.learning_rate_steps) == (
        40_000, 0.001, (30_000,)
    )  # fmt: skip
    assert (config.short_side, config.max_side, config.background_low) == (600, 1000, 0.1)
    assert (config.images_per_batch, config.rois_per_batch) == (2, 128)
    assert [config.learning_rate_at(i) for i in (0, 29_999, 30_000)] == pytest.approx(
        [1e-3, 1e-3, 1e-4]
    )


def test_own_values_win_over_the_recipe():
    config = replace(BASE, network="tiny", iterations=100, background_low=0.1).resolved()
    assert (config.iterations, config.background_low) == (100, 0.1)
    assert config.learning_rate_steps == (75,)
    assert config.resolved() == config


def test_warmup_rises_linearly():
    config = replace(BASE, learning_rate=1.0, warmup=3).resolved()
    rates = [config.learning_rate_at(i) for i in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "resnet"), ("iterations", 0), ("learning_rate", 0.0), ("rois_per_batch", 127),
        ("foreground_fraction", 1.5), ("foreground_iou", 0.0), ("background_low", 0.5),
        ("log_every", 0), ("seed", -1), ("warmup", -1), ("momentum", 1.0), ("momentum", -0.1),
        ("weight_decay", -1e-4), ("learning_rate_drop", 0.0), ("learning_rate_drop", 1.1),
        ("learning_rate_steps", (0, 5)), ("learning_rate_steps", (7, 7)),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value!r}")):
        replace(BASE, **{field: value}).resolved()


def test_a_run_of_one_iteration_is_allowed():
    assert replace(BASE, iterations=1).resolved().learning_rate_steps == (1,)


def test_weights_are_for_vgg16():
    replace(BASE, weights=Path("x.pth")).resolved()
    with pytest.raises(ValueError, match="weights is 'x.pth'; only vgg16 takes weights"):
        replace(BASE, network="tiny", weights=Path("x.pth")).resolved()


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "mps", "cuda:99"])
def test_bad_devices_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"device is '{name}'"):
        checked_device(name)


def test_cuda_without_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds no CUDA device"):
        checked_device("cuda")
    assert checked_device("cpu").type == "cpu"


def test_plain_values_only():
    plain = replace(BASE, classes=("a", "b")).resolved().to_dict()
    assert plain["data"] == "d" and plain["classes"] == ["a", "b"]
    assert all(
        isinstance(v, (str, int, float, bool, list, type(None))) for v in plain.values()
    )
