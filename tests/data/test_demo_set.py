from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fastrcnn_engine.data import demo_set
from fastrcnn_engine.data.demo_set import CLASSES, Stamp, write_demo_set
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.proposals import proposal_recall, selective_search
from fastrcnn_engine.data.voc import load_voc


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_demo_set(tmp_path_factory.mktemp("demo"), seed=3, train=40, test=20)


@pytest.fixture(scope="module")
def records(root):
    return load_voc(root, "train").records + load_voc(root, "test").records


def test_it_is_a_voc_data_set_without_problems(root):
    train, test = load_voc(root, "train"), load_voc(root, "test")
    assert (len(train.records), len(test.records)) == (40, 20)
    assert train.classes == test.classes == tuple(sorted(CLASSES))
    assert train.problems == test.problems == []
    assert not {r.image_id for r in train.records} & {r.image_id for r in test.records}
    for record in train.records + test.records:
        assert (record.width, record.height) == (320, 240)
        assert 0 < len(record.labels) <= 5
    tree = ElementTree.parse(root / "Annotations/test_0000.xml").getroot()
    assert tree.findtext("filename") == "test_0000.jpg"
    assert [tree.findtext(f"size/{k}") for k in ("width", "height", "depth")] == ["320", "240", "3"]


def test_all_classes_and_kinds_of_objects_occur(records):
    labels = np.concatenate([record.labels for record in records])
    counts = np.bincount(labels, minlength=7)[1:]
    assert counts.min() >= 0.4 * counts.mean() and counts.sum() > 2 * len(records)
    boxes = np.concatenate([record.boxes for record in records])
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).max(axis=1)
    assert sides.min() < 45 and sides.max() > 110
    difficult = np.concatenate([record.difficult for record in records])
    assert 0 < difficult.mean() < 0.15


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_images(tmp_path):
    first = files(write_demo_set(tmp_path / "a", seed=5, train=3, test=2))
    assert len(first) == 2 * 5 + 2
    assert files(write_demo_set(tmp_path / "b", seed=5, train=3, test=2)) == first
    more = files(write_demo_set(tmp_path / "c", seed=5, train=4, test=2))
    assert {k: v for k, v in more.items() if k in first and k.suffix != ".txt"} == {
        k: v for k, v in first.items() if k.suffix != ".txt"
    }
    other = files(write_demo_set(tmp_path / "d", seed=6, train=3, test=2))
    assert all(other[k] != v for k, v in first.items() if k.suffix in (".jpg", ".xml"))


def test_train_and_test_images_differ(root):
    train, test = (load_image(root / f"JPEGImages/{split}_0000.jpg") for split in ("train", "test"))
    assert not np.array_equal(train, test)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("centre", [(160.3, 119.6), (6.0, 230.0)])
def test_a_box_frames_the_pixels_that_were_painted(name, centre):
    shape, texture, colours = CLASSES[name]
    stamp = Stamp(shape, centre, 40.0, 0.9, 0.7)
    canvas = np.zeros((240, 320, 3), np.float32)  # a shadow on black is black
    stamp.paint(canvas, np.random.default_rng(0), texture, colours)
    painted = canvas.max(axis=2) > 0
    assert painted[stamp.mask].all()
    rows, columns = np.nonzero(painted)
    box = demo_set._describe("any", stamp.mask, stamp.area).box
    # The soft edge goes half a pixel beyond the mask, a little more at a sharp tip.
    found = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    assert np.abs(found - box).max() <= 2
    assert stamp.area == pytest.approx(Stamp(shape, (160, 120), 40.0, 0.9, 0.7).area, rel=0.02)


def test_boxes_frame_what_is_visible_and_hidden_objects_are_difficult():
    disc = CLASSES["disc"][0]
    below = Stamp(disc, (100, 100), 30.0, 1.0, 0.0)
    above = Stamp(disc, (130, 100), 30.0, 1.0, 0.0)
    whole = [("disc", below.mask, below.area)]
    assert demo_set._describe(*whole[0]).box == (71, 71, 129, 129)
    assert not demo_set._describe(*whole[0]).difficult
    (hidden,) = demo_set._hide(whole, above)
    item = demo_set._describe(*hidden)
    # The right edge is now where the two circles cross, x = 115 (hidden from there on).
    assert item.box[:2] == (71, 71) and item.box[2] == 114 and item.box[3] == 129
    # Two circles of radius r at distance r leave 1 - (2/3 - sqrt(3)/(2 pi)) = 0.61 of the lower
    # one.
    assert hidden[1].sum() / below.area == pytest.approx(0.609, abs=0.01)
    (more,) = demo_set._hide([hidden], Stamp(disc, (85, 130), 20.0, 1.0, 0.0))
    assert demo_set._describe(*more).difficult
    assert above.fits(whole) and not Stamp(disc, (105, 100), 40.0, 1.0, 0.0).fits(whole)


def test_objects_cut_by_the_border_are_truncated():
    stamp = Stamp(CLASSES["disc"][0], (10, 100), 30.0, 1.0, 0.0)
    item = demo_set._describe("disc", stamp.mask, stamp.area)
    assert item.truncated and item.box[0] == 0 and item.box[2] == 39
    assert stamp.fits([])  # 0.72 of it is to be seen
    assert not Stamp(CLASSES["disc"][0], (-15, 100), 30.0, 1.0, 0.0).fits([])


def test_colour_alone_does_not_tell_the_class(records):
    """Nearest class mean of a box's colours, on other objects.

    Four in five objects have one of two usual colours, one of them shared with another class: the
    best guess from the colour is right for 0.8 * 3/4 of all, and for a few of the others.
    """
    features, labels = [], []
    for record in records:
        image = load_image(record.image_path).astype(float)
        for (x1, y1, x2, y2), label in zip(record.boxes.astype(int), record.labels, strict=True):
            patch = image[y1 : y2 + 1, x1 : x2 + 1].reshape(-1, 3)
            features.append(np.concatenate([patch.mean(axis=0), patch.std(axis=0)]))
            labels.append(label)
    features, labels = np.array(features), np.array(labels)
    half = len(labels) // 2
    means = np.stack([features[:half][labels[:half] == k].mean(axis=0) for k in range(1, 7)])
    guess = 1 + np.linalg.norm(features[half:, None] - means, axis=2).argmin(axis=1)
    assert np.mean(guess == labels[half:]) < 0.65  # chance is 0.17


def test_selective_search_finds_the_objects_on_small_copies(records):
    records = records[:16]
    store = {
        r.image_id: selective_search(load_image(r.image_path), short_side=120) for r in records
    }
    result = proposal_recall(records, store)
    assert result["recall"][0.5] >= 0.95 and result["recall"][0.7] >= 0.9


@pytest.mark.parametrize(
    "options, message",
    [({"seed": -1}, "seed"), ({"train": 0}, "train"), ({"test": 0}, "test")],
)
def test_wrong_arguments_are_named(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        write_demo_set(tmp_path / "new", **({"seed": 0, "train": 1, "test": 1} | options))
    assert not (tmp_path / "new").exists()
