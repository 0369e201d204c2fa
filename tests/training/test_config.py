"""Settings: recipes, schedule, refusals."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrcnn_engine.models import build_network
from fastrcnn_engine.training import load_network, loop, save_checkpoint, train
from fastrcnn_engine.training.config import TrainConfig
from fastrcnn_engine.training.device import checked_device, the_same_on_every_run

BASE = TrainConfig(data=Path("d"), proposals=Path("p"))


def test_vgg16_takes_the_numbers_of_the_paper():
    config = BASE.resolved()
    assert (config.iterations, config.learning_rate, config.learning_rate_steps) == (
        40_000, 0.001, (30_000,)
    )  # fmt: skip
    assert (config.short_side, config.max_side, config.background_low) == (600, 1000, 0.1)
    assert (config.images_per_batch, config.rois_per_batch) == (2, 128)
    assert (config.foreground_fraction, config.foreground_iou) == (0.25, 0.5)
    assert (config.momentum, config.weight_decay, config.warmup) == (0.9, 0.0005, 0)
    assert config.flip and config.difficult and (config.tasks, config.seed) == ("both", 3)
    assert [config.learning_rate_at(i) for i in (0, 29_999, 30_000)] == pytest.approx(
        [1e-3, 1e-3, 1e-4]
    )


def test_own_values_win_over_the_recipe():
    config = replace(BASE, network="tiny", iterations=100, background_low=0.1).resolved()
    assert (config.iterations, config.background_low) == (100, 0.1)
    assert config.learning_rate_steps == (75,)
    assert config.resolved() == config
    # What a recipe would fill in is told from what was chosen.
    assert config.unresolved().learning_rate_steps is None
    chosen = replace(config, learning_rate_steps=(40,))
    assert chosen.unresolved().learning_rate_steps == (40,)
    assert chosen.unresolved().resolved() == chosen


def test_tiny_takes_the_numbers_that_its_results_were_made_with():
    config = replace(BASE, network="tiny").resolved()
    assert (config.iterations, config.learning_rate, config.warmup) == (3000, 0.02, 100)
    assert (config.short_side, config.max_side, config.background_low) == (480, 800, 0.0)
    own = build_network("tiny", ["cat"]).preprocessing
    assert (own.short_side, own.max_side) == (480, 800)


def test_paths_may_be_texts():
    names = ("data", "proposals", "output", "weights", "init")
    config = TrainConfig(**{name: f"some/{name}" for name in names})
    assert [getattr(config, name) for name in names] == [Path("some", name) for name in names]


def test_warmup_rises_linearly():
    config = replace(BASE, learning_rate=1.0, warmup=3).resolved()
    rates = [config.learning_rate_at(i) for i in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "resnet"), ("iterations", 0), ("learning_rate", 0.0), ("rois_per_batch", 127),
        ("foreground_fraction", 1.5), ("foreground_iou", 0.0), ("background_low", 0.5),
        ("foreground_fraction", 0.5 / 64),  # rounds to no RoI of an image
        ("log_every", 0), ("seed", -1), ("warmup", -1), ("momentum", 1.0), ("momentum", -0.1),
        ("weight_decay", -1e-4), ("weight_decay", math.inf), ("weight_decay", math.nan),
        ("learning_rate", math.inf), ("learning_rate", math.nan),
        ("learning_rate_drop", 0.0), ("learning_rate_drop", 1.1),
        ("learning_rate_steps", (0, 5)), ("learning_rate_steps", (7, 7)),
        ("images_per_batch", 0), ("checkpoint_every", 0), ("val_every", 0), ("accumulate", 0),
        ("loader_threads", 0), ("keep", -1), ("cache_megabytes", -1), ("background_low", -0.1),
        ("on_bad_image", "ignore"), ("amp", "fp8"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field} is {value!r}")):
        replace(BASE, **{field: value}).resolved()


def test_the_ends_of_the_ranges_are_taken():
    replace(
        BASE, learning_rate_drop=1.0, foreground_iou=1.0, foreground_fraction=1.0, momentum=0.0,
        weight_decay=0.0, cache_megabytes=0, background_low=0.0, seed=0,
    ).resolved()  # fmt: skip


@pytest.mark.parametrize("short_side", [0, 1001, (), (0, 480), (480, 480), (600, 480), (480, 1200)])
def test_bad_sizes_are_refused_before_anything_else(short_side):
    with pytest.raises(ValueError, match="short_side must be") as error:
        replace(BASE, short_side=short_side).resolved()
    assert f"short_side={short_side}, max_side=1000" in str(error.value)


def test_the_five_scales_of_the_paper():
    scales = (480, 576, 688, 864, 1200)
    config = replace(BASE, short_side=scales, max_side=2000).resolved()
    assert config.short_side == scales and config.to_dict()["short_side"] == list(scales)


def test_what_a_run_starts_from():
    with pytest.raises(ValueError, match="tasks is 'svm'; it must be one of both, classification"):
        replace(BASE, tasks="svm").resolved()
    boxes = replace(BASE, tasks="boxes")
    with pytest.raises(ValueError, match="tasks is 'boxes'.*init, its checkpoint, is missing"):
        boxes.resolved()
    assert replace(boxes, init=Path("c.pt")).resolved().to_dict()["init"] == "c.pt"
    replace(boxes, resume=True).resolved()  # its own checkpoint holds everything
    with pytest.raises(ValueError, match="weights is 'w.pth' and init is 'c.pt'"):
        replace(BASE, weights=Path("w.pth"), init=Path("c.pt")).resolved()


def test_a_run_of_one_iteration_is_allowed():
    assert replace(BASE, iterations=1).resolved().learning_rate_steps == (1,)


@pytest.mark.parametrize("network", ["caffenet", "vgg_cnn_m_1024"])
def test_s_and_m_are_trained_as_l(network):
    config = replace(BASE, network=network).resolved()
    assert config == replace(BASE.resolved(), network=network)


def test_weights_and_frozen_stages_are_for_the_networks_of_the_paper():
    for network in ("caffenet", "vgg_cnn_m_1024", "vgg16"):
        replace(BASE, network=network, weights=Path("x"), freeze_to="conv5").resolved()
    with pytest.raises(ValueError, match="weights is 'x.pth'; tiny takes none, only caffenet, vgg"):
        replace(BASE, network="tiny", weights=Path("x.pth")).resolved()
    with pytest.raises(ValueError, match="freeze_to is 'conv5'; it must be none for tiny"):
        replace(BASE, network="tiny", freeze_to="conv5").resolved()
    replace(BASE, network="tiny", freeze_to="none").resolved()
    with pytest.raises(ValueError, match="freeze_to is 'conv1_2'; it must be one of none, conv1, "):
        replace(BASE, freeze_to="conv1_2").resolved()


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "mps", "cuda:99"])
def test_bad_devices_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"device is '{name}'"):
        checked_device(name)


def test_cuda_without_cuda_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device is 'cuda', but torch finds no CUDA device"):
        checked_device("cuda")
    assert checked_device("cpu").type == "cpu"
    # torch's CUDA is there, but ours is not: told before hours of searching for proposals.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    built = "fastrcnn_engine.training.device.build_info"
    monkeypatch.setattr(built, lambda: {"cuda_device": "no nvcc was found"})
    with pytest.raises(ValueError, match="device is 'cuda', but .* CUDA here: no nvcc was found; "):
        checked_device("cuda")
    monkeypatch.setattr(built, lambda: {"cuda_device": "available"})
    assert checked_device("cuda").type == "cuda"


def test_a_gpu_takes_convolutions_that_are_the_same_on_every_run(voc, monkeypatch):
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "benchmark", True)
    before = cudnn.deterministic, cudnn.benchmark
    with pytest.raises(ZeroDivisionError), the_same_on_every_run(torch.device("cuda:1")):
        assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        raise ZeroDivisionError
    assert (cudnn.deterministic, cudnn.benchmark) == before
    with the_same_on_every_run(torch.device("cpu")):
        assert (cudnn.deterministic, cudnn.benchmark) == before
    asked = []
    monkeypatch.setattr(
        loop, "the_same_on_every_run", lambda d: asked.append(d) or the_same_on_every_run(d)
    )
    train(replace(voc, iterations=1), progress=False)
    assert asked == [torch.device("cpu")]


def test_plain_values_only():
    plain = replace(BASE, classes=("a", "b")).resolved().to_dict()
    assert plain["data"] == "d" and plain["classes"] == ["a", "b"]
    assert all(
        isinstance(v, (str, int, float, bool, list, type(None))) for v in plain.values()
    )


def test_numbers_of_numpy_become_pythons(tmp_path):
    """A checkpoint with others could not be read again."""
    config = replace(
        BASE, network="tiny", learning_rate=np.float32(0.5), iterations=np.int64(7),
        learning_rate_steps=[np.int32(3), 5], short_side=np.array([100, 120]), max_side=200,
    ).resolved()  # fmt: skip
    assert (config.learning_rate, config.iterations) == (0.5, 7)
    assert (config.learning_rate_steps, config.short_side) == ((3, 5), (100, 120))
    model = build_network("tiny", list(np.unique(["b", "a"])))
    save_checkpoint(tmp_path / "one.pt", model, config=config.to_dict())
    assert load_network(tmp_path / "one.pt").classes == ("a", "b")


@pytest.mark.parametrize(
    ("field", "value"),
    [("flip", "no"), ("iterations", "3"), ("iterations", 3.0), ("momentum", "x"), ("seed", True),
     ("short_side", "120"), ("learning_rate_steps", 5), ("seed", 2**64)],
)  # fmt: skip
def test_a_value_of_another_kind_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field} is .*; it must be"):
        replace(BASE, **{field: value}).resolved()
