"""Curves: valid SVG, the same input the same file, and a smoothing that is a mean."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

from fastrcnn_engine.evaluation.voc import evaluate_voc
from fastrcnn_engine.report.plots import (
    curves_svg,
    precision_recall_svg,
    running_mean,
    runs_svg,
    sizes_svg,
)


def class_result(detected=True, objects=True):
    truth = SimpleNamespace(
        image_id="a",
        boxes=np.array([[0, 0, 9, 9], [30, 0, 39, 9]], np.float32)[: 2 * objects],
        labels=np.ones(2 * objects, np.int64),
        difficult=np.zeros(2 * objects, bool),
    )
    rows = 3 * detected
    detections = SimpleNamespace(
        boxes=np.array([[0, 0, 9, 9], [60, 60, 69, 69], [30, 0, 39, 9]], np.float32)[:rows],
        scores=np.array([0.9, 0.8, 0.3])[:rows],
        labels=np.ones(rows, np.int64),
    )
    return evaluate_voc([truth], ["cat"], {"a": detections}).per_class[0]


def test_precision_recall_is_svg_and_repeatable():
    one = precision_recall_svg(class_result(), 1, score=0.5)
    assert ElementTree.fromstring(one).tag.endswith("svg")
    assert one == precision_recall_svg(class_result(), 1, score=0.5)
    assert one != precision_recall_svg(class_result(), 1)  # the dot


def test_empty_curves_are_drawn_too():
    for one in (class_result(detected=False), class_result(objects=False)):
        assert ElementTree.fromstring(precision_recall_svg(one, 1, score=0.5)).tag.endswith("svg")
    assert ElementTree.fromstring(curves_svg([], {"loss": "total"})).tag.endswith("svg")


def test_rows_without_a_value_are_left_out():
    full = [{"iteration": i, "loss": 1.0 / i} for i in range(1, 9)]
    gaps = full + [{"iteration": 9, "loss": None}, {"iteration": 10}]
    assert curves_svg(gaps, {"loss": "total"}) == curves_svg(full, {"loss": "total"})


def test_running_mean_by_hand():
    values = np.array([4.0, 0.0, 2.0, 6.0])
    np.testing.assert_allclose(running_mean(values, 1), [2.0, 2.0, 8 / 3, 4.0])
    np.testing.assert_allclose(running_mean(values, 0), values)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("$x^{$", "$x^{$"),  # no mathematics, and no error of it
        ("$a$", "$a$"),
        ("_background", " _background"),  # matplotlib leaves names with a first _ out of a legend
        ("\x1b[31m", r"\x1b[31m"),  # no SVG may hold it
        ("two\nlines", r"two\nlines"),
        ("\udcff", r"\udcff"),  # of a file name that is no UTF-8
        ("--><script>", "- -&gt;&lt;script&gt;"),
    ],
)
def test_names_stand_in_a_legend_as_they_are(name, shown):
    log = [{"iteration": i, "loss": 1.0 / i} for i in range(1, 9)]
    for svg in (runs_svg({name: log}, "loss"), sizes_svg({1: np.array([8.0, 30.0])}, [name])):
        ElementTree.fromstring(svg.encode())
        assert f"<!-- {shown} -->" in svg
