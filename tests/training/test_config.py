"""Settings: recipes, schedule, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastrcnn_engine.training.config import TrainConfig

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
        ("log_every", 0),
    ],
)  # fmt: skip
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        replace(BASE, **{field: value}).resolved()


def test_plain_values_only():
    plain = replace(BASE, classes=("a", "b")).resolved().to_dict()
    assert plain["data"] == "d" and plain["classes"] == ["a", "b"]
    assert all(
        isinstance(v, (str, int, float, bool, list, type(None))) for v in plain.values()
    )
