"""The gallery and the report page."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastrcnn_engine.evaluation.coco import NUMBERS, COCOResult
from fastrcnn_engine.evaluation.mistakes import find_mistakes
from fastrcnn_engine.evaluation.voc import evaluate_voc
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.report import html
from fastrcnn_engine.report.gallery import drawn_at, make_gallery
from fastrcnn_engine.report.html import Report, render_report, write_report

CLASSES = ["cat", "<dog> & co", "ghost"]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Three images: all right; one wrong and one missed; nothing at all."""
    folder = tmp_path_factory.mktemp("images")

    def image(image_id, boxes, labels):
        path = folder / f"{image_id}.png"
        Image.fromarray(np.full((80, 120, 3), 128, np.uint8)).save(path)
        return SimpleNamespace(
            image_id=image_id,
            image_path=path,
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            labels=np.array(labels, np.int64),
            difficult=np.zeros(len(labels), bool),
        )

    def found(boxes, scores, labels):
        return Detections(
            boxes=np.array(boxes, np.float32).reshape(-1, 4),
            scores=np.array(scores, np.float32),
            labels=np.array(labels, np.int64),
            rows=np.arange(len(labels)),
        )

    records = [
        image("bad", [[10, 10, 39, 39]], [1]),
        image("good", [[10, 10, 39, 39], [60, 20, 99, 59]], [1, 2]),
        image("empty", [], []),
    ]
    detections = {
        "bad": found([[70, 10, 99, 39], [10, 10, 39, 39]], [0.9, 0.2], [1, 1]),
        "good": found([[10, 10, 39, 39], [60, 20, 99, 59]], [0.8, 0.7], [1, 2]),
        "empty": found([], [], []),
    }
    return records, detections


@pytest.fixture(scope="module")
def report(scene):
    records, detections = scene
    drawn = drawn_at(records, CLASSES, detections)
    return Report(
        title="A <title> & more",
        result=evaluate_voc(records, CLASSES, detections),
        drawn=drawn,
        gallery=make_gallery(records, CLASSES, drawn),
        mistakes=find_mistakes(records, CLASSES, drawn.detections, drawn.result),
        facts={"data": "drawn"},
        seconds={"training": 125.0, "detection": 3.2},
        log=[
            {"iteration": i, "loss": 2 / i, "loss_cls": 1.5 / i, "loss_box": 0.5 / i}
            for i in range(1, 30)
        ],
        settings={"Training": {"learning_rate": 0.02, "steps": [1, 2], "flip": True}},
        proposal_recall={0.5: 0.9, 0.7: None},
        command="fastrcnn-engine demo --seed 3",
        versions={"torch": "2"},
        notes=["bad.xml, object 1: no width"],
    )


def test_gallery_ranks_images_and_counts_what_is_drawn(scene):
    records, detections = scene
    gallery = make_gallery(records, CLASSES, drawn_at(records, CLASSES, detections, score=0.5))
    assert [one.image_id for one in gallery.best] == ["good", "empty"]
    assert [one.image_id for one in gallery.worst] == ["bad"]
    bad = gallery.worst[0]
    # The right detection has a score of 0.2 and is not shown, so its object counts as missed.
    assert (bad.right, bad.wrong, bad.missed) == (0, 1, 1)
    assert bad.picture.shape == (427, 640, 3)
    low = make_gallery(records, CLASSES, drawn_at(records, CLASSES, detections, score=0.1))
    shown = {one.image_id: one for one in low.best + low.worst}["bad"]
    assert (shown.right, shown.wrong, shown.missed) == (1, 1, 0)


class Page(HTMLParser):
    """Collects tags, checks that they are closed in order, and keeps the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_page_is_self_contained(report):
    text = render_report(report)
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "embed"), tag
        for name in ("src", "href", "srcset", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    assert not re.search(r"https?://", text)
    assert "@import" not in text and "url(" not in text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 + 2 + 3  # curves of three classes, two loss plots, three pictures
    assert all(image["alt"] for image in images)


def test_page_shows_the_numbers(report):
    page = Page(render_report(report))
    # cat: 0.9 wrong, 0.8 right, 0.2 right of 2 objects: area (2/3 + 2/3) / 2; dog 1; mean 0.833.
    assert report.result.mean_ap == pytest.approx((2 / 3 + 1) / 2)
    assert "0.833" in page.text and "0.667" in page.text and "n/a" in page.text
    assert "1 wrong" in page.text and "1 missed" in page.text
    assert "fastrcnn-engine demo --seed 3" in page.text
    assert "2 min 05 s" in page.text and "bad.xml, object 1" in page.text
    assert "viewport" in str(page.tags)


def test_page_shows_the_numbers_of_coco(report):
    assert "COCO" not in Page(render_report(report)).text
    numbers = {name: 0.101 + place / 100 for place, name in enumerate(NUMBERS)} | {"APs": None}
    classes = {name: {"AP": 0.9, "AP50": 0.95, "AP75": None} for name in CLASSES}
    page = Page(render_report(replace(report, coco=COCOResult(numbers, classes)))).text
    assert "0.101 AP at IoU 0.50 to 0.95" in page and "AP75, COCO" in page
    assert "cat 0.900 0.950 n/a 2" in page and "mean 0.101 0.111 0.121" in page
    for name, meaning in NUMBERS.items():
        value = "n/a" if name == "APs" else f"{numbers[name]:.3f}"
        assert f"{name}: {meaning} {value}" in page


def test_names_are_escaped(report):
    text = render_report(report)
    assert "<dog>" not in text and "&lt;dog&gt; &amp; co" in text
    assert "<title>A &lt;title&gt; &amp; more</title>" in text


def test_sections_without_content_are_left_out(report):
    bare = replace(
        report, facts={}, seconds={}, log=(), settings={}, proposal_recall={}, command="",
        versions={}, notes=(),
    )  # fmt: skip
    page = Page(render_report(bare))
    for heading in ("Training", "Time", "Settings", "How to reproduce", "Notes"):
        assert heading not in page.text


def test_mistakes_are_told_by_kind_and_by_class(report, monkeypatch):
    text = " ".join(Page(render_report(report)).text.split())
    assert "right duplicate localisation other class background missed" in text
    assert "What was taken for what" in text
    monkeypatch.setattr(html, "MOST_CONFUSED", 1)
    page = render_report(report)
    assert "Mistakes" in page and "What was taken for what" not in page
    assert "Mistakes" not in render_report(replace(report, mistakes=None))


def test_a_set_without_objects_can_be_reported(scene):
    records, detections = [scene[0][2]], {"empty": scene[1]["empty"]}
    result = evaluate_voc(records, CLASSES, detections)
    drawn = drawn_at(records, CLASSES, detections)
    gallery = make_gallery(records, CLASSES, drawn)
    text = render_report(Report("empty", result, drawn, gallery))
    assert "n/a" in Page(text).text


def test_write_report_makes_the_folder(report, tmp_path):
    path = write_report(tmp_path / "a" / "b" / "report.html", report)
    assert path.read_text(encoding="utf-8") == render_report(report)
