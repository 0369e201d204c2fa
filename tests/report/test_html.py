"""The gallery and the report page."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.records import Dataset, record_of
from fastrcnn_engine.evaluation.coco import NUMBERS, COCOResult
from fastrcnn_engine.evaluation.mistakes import find_mistakes
from fastrcnn_engine.evaluation.pooled import PooledRoI
from fastrcnn_engine.evaluation.voc import (
    FALSE_POSITIVE,
    IGNORED,
    TRUE_POSITIVE,
    evaluate_voc,
)
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.report import gallery, html
from fastrcnn_engine.report.cuts import Cut, cut_missed, cut_wrong
from fastrcnn_engine.report.gallery import drawn_at, make_gallery
from fastrcnn_engine.report.html import Report, render_report, write_report
from fastrcnn_engine.report.pooled import look

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
    mistakes = find_mistakes(records, CLASSES, drawn.detections, drawn.result)
    counts = np.zeros((10, 15), np.int64)
    counts[4, 9] = 12
    pooled = PooledRoI(counts, 8, 20, np.array([[8, 3, 12, 6]]), cell=8.0, short_side=80)
    return Report(
        title="A <title> & more",
        result=evaluate_voc(records, CLASSES, detections),
        drawn=drawn,
        gallery=make_gallery(records, CLASSES, drawn),
        mistakes=mistakes,
        wrong=cut_wrong(records, CLASSES, drawn, mistakes),
        missed=cut_missed(records, CLASSES, drawn, mistakes),
        looked=[
            look(load_image(records[1].image_path), "good", 1, "right", drawn, CLASSES,
                 (62, 22, 97, 49), pooled)
        ],
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
    made = make_gallery(records, CLASSES, drawn_at(records, CLASSES, detections, score=0.5))
    assert [one.image_id for one in made.best] == ["good", "empty"]
    assert [one.image_id for one in made.worst] == ["bad"]
    bad = made.worst[0]
    # The right detection has a score of 0.2 and is not shown, so its object counts as missed.
    assert (bad.right, bad.wrong, bad.missed) == (0, 1, 1)
    assert bad.picture.shape == (427, 640, 3)
    assert drawn_at(records, CLASSES, detections, iou_threshold=0.75).result.iou_threshold == 0.75
    low = make_gallery(records, CLASSES, drawn_at(records, CLASSES, detections, score=0.1))
    shown = {one.image_id: one for one in low.best + low.worst}["bad"]
    assert (shown.right, shown.wrong, shown.missed) == (1, 1, 0)


def test_images_are_ranked_by_what_is_right_of_all_boxes_and_objects(scene, monkeypatch):
    counts = {"bad": (1, 0, 1), "good": (3, 2, 0), "empty": (4, 0, 2)}  # F1 0.667, 0.75 and 0.8
    monkeypatch.setattr(gallery, "verdict_counts", lambda record, _: counts[record.image_id])
    made = make_gallery(scene[0], CLASSES, drawn_at(scene[0], CLASSES, scene[1]))
    assert [one.image_id for one in made.best + made.worst] == ["empty", "good", "bad"]
    text = Page(html._pictures(made, 0.5)).text
    for words in ("empty 4 right 2 missed", "good 3 right 2 wrong", "bad 1 right 1 missed"):
        assert words in text, words


def test_what_is_drawn_has_at_least_the_score(scene):
    score = float(scene[1]["good"].scores[1])
    assert len(drawn_at(scene[0], CLASSES, scene[1], score=score).detections["good"].scores) == 2


def test_a_difficult_object_is_not_missed():
    image = SimpleNamespace(difficult=np.array([False, True, True]))
    match = SimpleNamespace(
        status=np.array([TRUE_POSITIVE, FALSE_POSITIVE, IGNORED]), found=np.array([False] * 3)
    )
    assert gallery.verdict_counts(image, match) == (1, 1, 1)


def test_samples_are_from_all_over_and_those_without_objects_come_last(monkeypatch):
    def load(path):
        if path.stem == "2":
            raise OSError("no image")
        return int(path.stem)

    monkeypatch.setattr(gallery, "load_image", load)
    monkeypatch.setattr(gallery, "draw_marks", lambda image, marks, width: (image, marks, width))
    boxes, empty = [(1, 1, 9, 9), (2, 2, 8, 8)], (0, 4)
    records = [
        record_of(str(n), Path(f"{n}.png"), (20, 20), *(
            ([], [], []) if n in empty else (boxes, [1, 3], [False, True])
        )) for n in range(20)
    ]  # fmt: skip
    samples = gallery.sample_pictures(Dataset(tuple(CLASSES), records, [], Path("set"), "train"))
    assert [number for number, _, _ in samples] == [6, 8, 10, 12, 14, 16, 18, 1, 3]
    _, marks, width = samples[0]
    assert [(mark.label, mark.dashed) for mark in marks] == [("cat", False), ("ghost", True)]
    few = Dataset(tuple(CLASSES), records[:2], [], Path("set"), "train")
    assert [number for number, _, _ in gallery.sample_pictures(few)] == [1, 0] and width == 420


class Page(HTMLParser):
    """Collects tags, checks that they are closed in order, and keeps the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "input"):
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
    # Curves of three classes, two loss plots, three pictures, a mistake, an object that is missed,
    # a RoI that is looked into.
    assert len(images) == 3 + 2 + 3 + 1 + 1 + 2
    assert all(image["alt"] for image in images)


def test_page_shows_the_numbers(report):
    page = Page(render_report(report))
    # cat: 0.9 wrong, 0.8 right, 0.2 right of 2 objects: area (2/3 + 2/3) / 2; dog 1; mean 0.833.
    assert report.result.mean_ap == pytest.approx((2 / 3 + 1) / 2)
    assert "0.833" in page.text and "0.667" in page.text and "n/a" in page.text
    assert "nothing to find, nothing found" in page.text
    assert "1 wrong" in page.text and "1 missed" in page.text
    assert "fastrcnn-engine demo --seed 3" in page.text
    assert "2 min 05 s" in page.text and "bad.xml, object 1" in page.text
    assert "viewport" in str(page.tags)
    assert "and 1 more" not in page.text
    many = replace(report, notes=[f"note {i:02}." for i in range(21)])
    words = "Notes (21) note 00."
    page = Page(render_report(many))
    assert words in page.text and "note 19. and 1 more" in page.text and "note 20" not in page.text
    page = Page(render_report(replace(many, notes=many.notes[:20])))
    assert "note 19." in page.text and "more Classes" not in page.text


def test_the_headline_and_the_table_are_of_what_they_say(report, scene):
    low = replace(report, drawn=drawn_at(scene[0], CLASSES, scene[1], score=0.1))
    text = Page(render_report(low)).text.replace("\u00a0", " ")
    for words in (
        "mAP at IoU 0.5 area under the curve 3 test images 3 objects to find",
        "100 % recall at score 0.1 75 % precision at score 0.1",
        "90 % of the objects proposed, IoU 0.5 n/a of the objects proposed, IoU 0.7 2 min 08 s in",
        "class AP, area AP, 11 points objects detections precision recall cat 0.667",
        "mean 0.833 0.833 3 4",
        "learning_rate 0.02 steps 1, 2 flip yes",
    ):  # fmt: skip
        assert words in text, words
    none = replace(report, drawn=drawn_at(scene[0], CLASSES, scene[1], score=0.95))
    text = Page(render_report(none)).text.replace("\u00a0", " ")
    assert "0 % recall at score 0.95 n/a precision at score 0.95" in text
    one, at = SimpleNamespace(name="x", npos=4, ndet=9), SimpleNamespace(tp=1, fp=1, npos=4)
    row = html._class_row(1, one, at, [0.75, 0.5])
    assert Page(row).text == "x 0.750 0.500 4 9 0.500 0.250" and "width:75.0%" in row
    # One cat of two, and nothing else: area 1/2, but 6 of 11 points.
    half = {**scene[1], "bad": scene[1]["empty"]}
    result = evaluate_voc(scene[0], CLASSES, half, metric="11point")
    text = Page(render_report(replace(report, result=result))).text
    assert "0.773 mAP at IoU 0.5 VOC07, 11 points" in text and "cat AP, 11 points 0.545" in text
    assert "class AP, 11 points AP, area objects" in text and "cat 0.545 0.500 2 1" in text


def test_each_curve_of_the_loss_has_its_name(report, monkeypatch):
    drawn = []
    monkeypatch.setattr(html, "curves_svg", lambda _, keys: drawn.append(keys) or "<svg/>")
    render_report(report)
    assert drawn == [{"loss": "total"}, {"loss_cls": "classification", "loss_box": "boxes"}]


def test_times_are_told_as_people_do():
    for seconds, told in ((9.94, "9.9 s"), (42.4, "42 s"), (100, "1 min 40 s"), (125, "2 min 05 s"),
                          (11110, "3 h 05 min")):  # fmt: skip
        assert html._duration(seconds) == told.replace(" ", "\u00a0")
    bars = html._timing({"training": 50.0, "detection": 5.0, "report": 0.0})
    assert re.findall(r"width:([\d.]+)%", bars) == ["100.0", "10.0", "0.0"]
    assert "width:0.0%" in html._timing({"nothing": 0.0})


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
    assert 'alt="a &quot;b&quot;"' in html.embedded_svg("<svg/>", 'a "b"')
    assert "<dog>" not in text and "&lt;dog&gt; &amp; co" in text
    assert "<title>A &lt;title&gt; &amp; more</title>" in text


def test_sections_without_content_are_left_out(report):
    bare = replace(
        report, facts={}, seconds={}, log=(), settings={}, proposal_recall={}, command="",
        versions={}, notes=(),
    )  # fmt: skip
    assert "<h2>Training" not in render_report(replace(bare, log=[{"iteration": 1, "loss": None}]))
    page = Page(render_report(bare))
    for heading in ("Training", "Time", "Settings", "How to reproduce", "Notes"):
        assert heading not in page.text
    page = Page(render_report(replace(report, wrong=(), missed=(), looked=())))
    for heading in ("False positives by", "Missed objects", "What RoI pooling took"):
        assert heading not in page.text


def test_mistakes_are_told_by_kind_and_by_class(report, monkeypatch):
    text = " ".join(Page(render_report(report)).text.split())
    assert "right duplicate localisation other class background missed" in text
    assert "missed cat 1 0 0 0 1 1 <dog> & co 1 0 0 0 0 0 ghost 0 0 0 0 0 0" in text
    words = "What was taken for what what it is cat <dog> & co ghost missed"
    assert f"{words} cat 1 1 <dog> & co 1 ghost nothing 1 Rows" in text
    monkeypatch.setattr(html, "MOST_CONFUSED", 3)
    assert "What was taken for what" in render_report(report)
    monkeypatch.setattr(html, "MOST_CONFUSED", 2)
    page = render_report(report)
    assert "Mistakes" in page and "What was taken for what" not in page
    assert "Mistakes" not in render_report(replace(report, mistakes=None))


def cut(name, kind, beside="", image_id="one"):
    return Cut(np.zeros((8, 8, 3), np.uint8), name, kind, beside, image_id)


def test_false_positives_are_told_one_by_one_and_chosen_by_kind(report):
    kinds = np.array([[0, 0, 2, 30], [0, 1, 0, 5], [0, 0, 0, 0]])
    cuts = [cut("cat 0.97", "background"), cut("cat 0.90", "other class", "<dog>, IoU 0.20"),
            cut("<dog> 0.80", "localisation", image_id="<two>")]  # fmt: skip
    told = replace(report, wrong=cuts, mistakes=replace(report.mistakes, kinds=kinds))
    page = Page(render_report(told))
    assert "The 24 with the highest scores, and 6 of each kind at least" in page.text
    assert "all 3 of 38 localisation 1 other class 1 of 2 background 1 of 35" in page.text
    words = "cat 0.97 background nothing overlaps one cat 0.90 other class <dog>, IoU 0.20 one"
    assert f"{words} <dog> 0.80 localisation nothing overlaps <two>" in page.text
    # Each button is of one kind, and so is each figure; no kind that does not occur has a button.
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    labels = [attributes["for"] for tag, attributes in page.tags if tag == "label"]
    assert ids == labels == ["kind-0", "kind-2", "kind-3", "kind-4"]
    figures = [attributes.get("class") for tag, attributes in page.tags if tag == "figure"]
    assert [one for one in figures if one] == ["kind-4", "kind-3", "kind-2"]
    few = replace(report.mistakes, kinds=np.array([[0, 1, 1, 1]]), classes=("cat",))
    page = Page(html._wrong(cuts, few))
    assert "All of them" in page.text and "all 3 localisation 1 other" in page.text


def test_missed_objects_are_told_one_by_one(report):
    assert "All of them. Beside each, the detection" in Page(render_report(report)).text
    mistakes = replace(report.mistakes, missed=np.array([40, 1, 0]))
    page = Page(html._missed([cut("cat", "", "<dog> 0.51, IoU 0.45")] * 12, mistakes))
    assert "The 12 largest of 41" in page.text and "cat <dog> 0.51, IoU 0.45 one" in page.text


def test_what_was_pooled_is_told(report):
    text = Page(render_report(report)).text.replace("\u00a0", " ")
    words = "RoI of 36 × 28 pixels = 5 × 4 cells (short side 80); 20 maxima"
    assert f"<dog> & co 0.70 right {words}, 40 % of them flat good" in text
    one = report.looked[0]
    whole = replace(one, pooled=replace(one.pooled, flat=0))
    assert f"{words} good" in Page(html._looked([whole])).text
    wrong = html._looked([replace(one, verdict="background")])
    assert '<em class="wrong">background</em>' in wrong and 'class="right">right' not in wrong
    outside = replace(one, pooled=replace(one.pooled, bins=np.zeros((0, 4), np.int64)))
    assert "36 × 28 pixels, outside the map (short side 80)" in Page(html._looked([outside])).text


def test_a_set_without_objects_can_be_reported(scene):
    records, detections = [scene[0][2]], {"empty": scene[1]["empty"]}
    result = evaluate_voc(records, CLASSES, detections)
    drawn = drawn_at(records, CLASSES, detections)
    made = make_gallery(records, CLASSES, drawn)
    text = render_report(Report("empty", result, drawn, made))
    assert "n/a" in Page(text).text
    # Precision has another reason to be missing than average precision.
    assert "as precision: there is no such detection" in Page(text).text


def test_write_report_makes_the_folder(report, tmp_path):
    path = write_report(tmp_path / "a" / "b" / "report.html", report)
    assert path.read_text(encoding="utf-8") == render_report(report)
