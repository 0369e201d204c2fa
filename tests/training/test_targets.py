"""Target statistics against numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fastrcnn_engine.data.records import ImageRecord
from fastrcnn_engine.training.sampling import build_entry
from fastrcnn_engine.training.targets import normalised_targets, target_statistics

# Two objects of 80x40 (x2 - x1, y2 - y1) and proposals of the same size moved by 8 and 16 to the
# right, and one by 4 down: dx = -0.1, -0.2 and dy = -0.1; each object's own row has targets 0.
BOXES = np.array([[0, 0, 80, 40], [100, 50, 180, 90]], dtype=np.float32)
PROPOSALS = np.array(
    [[8, 0, 88, 40], [16, 0, 96, 40], [100, 54, 180, 94]], dtype=np.float32
)


def entries():
    record = ImageRecord(
        "a", Path("a.png"), 300, 200, BOXES, np.array([1, 3]), np.zeros(2, dtype=bool)
    )
    return [build_entry(record, PROPOSALS, foreground_iou=0.5, background_low=0.1)]


def test_statistics_without_flips():
    mean, std = target_statistics(entries(), 3, flip=False)
    # Class 1: dx in {0, -0.1, -0.2}: mean -0.1, variance 0.02/3. Class 3: dy in {0, -0.1}.
    np.testing.assert_allclose(mean[1], [-0.1, 0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(std[1], [np.sqrt(0.02 / 3), 1, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(mean[3], [0, -0.05, 0, 0], atol=1e-7)
    np.testing.assert_allclose(std[3], [1, 0.05, 1, 1], rtol=1e-5)


def test_statistics_with_flips_have_no_horizontal_mean():
    mean, std = target_statistics(entries(), 3, flip=True)
    # dx in {0, -0.1, -0.2, 0, 0.1, 0.2}: mean 0, variance 0.1/6.
    np.testing.assert_allclose(mean[1], 0, atol=1e-7)
    np.testing.assert_allclose(std[1], [np.sqrt(0.1 / 6), 1, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(mean[3], [0, -0.05, 0, 0], atol=1e-7)


def test_a_target_that_is_always_the_same_is_not_scaled_by_rounding():
    always = replace(entries()[0], foreground=np.full(1000, 2))  # dx = -0.1, as float32 has it
    mean, std = target_statistics([always], 3, flip=False)
    np.testing.assert_allclose(mean[1], [-0.1, 0, 0, 0], rtol=1e-6)
    assert (std == 1).all()


def test_background_and_absent_classes_are_left_alone():
    mean, std = target_statistics(entries(), 3, flip=True)
    assert (mean[[0, 2]] == 0).all() and (std[[0, 2]] == 1).all()


def test_targets_use_the_statistics_of_their_own_class():
    mean = np.zeros((4, 4), dtype=np.float32)
    std = np.ones((4, 4), dtype=np.float32)
    mean[1], std[1] = [0.1, 0, 0, 0], [0.5, 1, 1, 1]
    mean[3], std[3] = [0, 0.3, 0, 0], [1, 0.2, 1, 1]
    boxes = PROPOSALS[[0, 2, 1]]
    matched = BOXES[[0, 1, 0]]
    targets = normalised_targets(boxes, matched, np.array([1, 3, 0]), mean, std)
    # Row 0: (-0.1 - 0.1) / 0.5. Row 1: (-0.1 - 0.3) / 0.2. Row 2 is background.
    np.testing.assert_allclose(
        targets, [[-0.4, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 0]], atol=1e-6
    )


def test_targets_of_the_training_set_have_zero_mean_and_unit_variance():
    made = entries()[0]
    mean, std = target_statistics([made], 3, flip=False)
    rows = made.foreground
    targets = normalised_targets(
        made.boxes[rows], made.matched[rows], made.labels[rows], mean, std
    )
    ones = targets[made.labels[rows] == 1]
    np.testing.assert_allclose(ones[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(ones[:, 0].std(), 1, rtol=1e-5)
