"""Curves: valid SVG, the same input the same file, and a smoothing that is a mean."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from fastrcnn_engine.evaluation.voc import evaluate_voc
from fastrcnn_engine.report import plots
from fastrcnn_engine.report.plots import (
    curves_svg,
    hex_colour,
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


@pytest.fixture
def axes_of(monkeypatch):
    """Calls a plot and gives back its axes."""
    made, original = [], plots._axes

    @contextmanager
    def kept(*size):
        with original(*size) as (axes, svg):
            made.append(axes)
            yield axes, svg

    monkeypatch.setattr(plots, "_axes", kept)
    return lambda plot, *arguments, **options: (plot(*arguments, **options), made.pop())[1]


def test_the_shaded_area_is_the_ap_and_the_dot_is_the_score(axes_of):
    one = class_result()
    axes = axes_of(precision_recall_svg, one, 1, score=0.8)
    x, y = axes.collections[0].get_paths()[0].vertices.T
    area = abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2
    assert area == pytest.approx(one.ap("area")) == pytest.approx(5 / 6)
    curve, dot = axes.lines
    np.testing.assert_allclose(curve.get_xydata(), [[0.5, 1], [0.5, 0.5], [1, 2 / 3]])
    np.testing.assert_allclose(dot.get_xydata(), [[0.5, 0.5]])  # two have 0.8 and above
    assert len(axes_of(precision_recall_svg, one, 1, score=0.95).lines) == 1
    for bare, words in ((class_result(detected=False), "no detections"),
                        (class_result(objects=False), "no ground truth")):  # fmt: skip
        assert [text.get_text() for text in axes_of(precision_recall_svg, bare, 1).texts] == [words]


def test_losses_are_smoothed_and_their_first_rows_flatten_nothing(axes_of):
    values = np.r_[900.0, np.linspace(3, 1, 99)]
    log = [{"iteration": i, "loss": v, "mAP": v} for i, v in enumerate(values)]
    axes = axes_of(curves_svg, log, {"loss": "total"})
    smooth = running_mean(values, 5)
    for line, expected in zip(axes.lines, (values, smooth), strict=True):
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert axes.get_ylim() == pytest.approx((0, 1.08 * smooth.max()))
    for key, curve in (("loss", smooth), ("mAP", values)):
        axes = axes_of(runs_svg, {"a": log, "b": log[1:51]}, key)
        np.testing.assert_allclose(axes.lines[0].get_ydata(), curve)
        assert [line.get_color() for line in axes.lines] == [hex_colour(1), hex_colour(2)]
        assert axes.get_ylim()[1] < 4
    nothing = [{"iteration": 1, "loss": 0.0}]
    assert axes_of(curves_svg, nothing, {"loss": "total"}).get_ylim() == (0, 1)
    assert axes_of(runs_svg, {"a": nothing}, "loss").get_ylim() == (0, 1)


@pytest.mark.parametrize("sizes", [[8.0, 9.0, 31.0], [8.0], [8.0, 8.0, 16.0]])
def test_every_size_is_in_one_of_three_bars_for_each_doubling(axes_of, sizes):
    axes = axes_of(sizes_svg, {1: np.array(sizes), 2: np.zeros(0)}, ["a", "b"])
    bars = list(axes.containers[0])
    assert sum(bar.get_height() for bar in bars) == len(sizes)
    for bar in bars:
        assert (bar.get_x() + bar.get_width()) / bar.get_x() == pytest.approx(2 ** (1 / 3))
    assert axes.get_legend() is not None
    many = {label: np.array(sizes) for label in range(1, 12)}
    assert axes_of(sizes_svg, many, list("abcdefghijk")).get_legend() is None


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
