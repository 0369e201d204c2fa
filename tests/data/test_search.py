"""The methods by name, the grid, and how many boxes are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastrcnn_engine import box_iou
from fastrcnn_engine.data.proposals import (
    ProposalStore,
    Search,
    compute_proposals,
    dense_boxes,
    edge_boxes,
    selective_search,
)
from fastrcnn_engine.data.proposals.boxes import at_most, distinct, well_formed
from fastrcnn_engine.data.proposals.dense_boxes import ASPECTS, SIDES
from fastrcnn_engine.data.proposals.search import METHODS, same_boxes

from .edge_models import write_edge_model
from .test_proposals import save_scenes, scene


def rows(boxes):
    return set(map(tuple, boxes.tolist()))


def test_dense_boxes_cover_the_image():
    boxes = dense_boxes(320, 240)
    assert 3000 < len(boxes) < 8000 and len(np.unique(boxes, axis=0)) == len(boxes)
    assert (boxes[:, :2] == 0).all(axis=1).sum() == len(SIDES) * len(ASPECTS)
    assert boxes[:, 2:].max(axis=0).tolist() == [319, 239] and boxes.min() == 0
    # Wherever an object of such a size lies, some box overlaps it by half at least.
    rng = np.random.default_rng(0)
    size = rng.uniform(24, 150, (500, 2))
    size[:, 1] = size[:, 0] * rng.uniform(0.5, 2, 500)
    corner = rng.uniform(0, 1, (500, 2)) * (np.array([320, 240]) - size).clip(0)
    objects = np.concatenate([corner, (corner + size).clip(0, [319, 239])], axis=1)
    best = np.asarray(box_iou(objects.astype(np.float32), boxes, inclusive=True)).max(axis=1)
    assert (best >= 0.5).mean() > 0.98


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 30), (7, 4), (11, 40)])
def test_dense_boxes_hold_a_pixel_however_small_the_image(width, height):
    boxes = dense_boxes(width, height)
    assert len(boxes) and well_formed(boxes).all() and boxes.min() == 0
    assert boxes[:, 2:].max(axis=0).tolist() == [width - 1, height - 1]


def test_a_method_is_its_function():
    image, _ = scene(180, 240)
    same = {
        "selective-search": selective_search(image, mode="fast", short_side=90, min_size=12),
        "edge-boxes": edge_boxes(image, short_side=90, min_size=12),
        "grid": dense_boxes(240, 180),
    }
    assert same.keys() == set(METHODS)
    for method, boxes in same.items():
        search = Search(method, mode="fast", short_side=90, min_size=12)
        np.testing.assert_array_equal(search.boxes(image, "a"), boxes)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (7, 5)])
def test_a_grid_of_a_tiny_image_has_whole_boxes(size):
    boxes = Search("grid", min_size=1).boxes(np.zeros((*size, 3), np.uint8), "a")
    assert len(boxes) and (boxes[:, :2] <= boxes[:, 2:]).all() and boxes.min() == 0
    assert (boxes[:, 2:] <= (size[1] - 1, size[0] - 1)).all() and len(rows(boxes)) == len(boxes)


@pytest.mark.parametrize("method", METHODS)
def test_fewer_boxes_are_among_more_and_in_their_order(method):
    image, _ = scene()
    every = Search(method).boxes(image, "a").tolist()
    assert len(every) > 150
    larger = every
    for count in (150, 40, 7, 1):
        boxes = Search(method, max_boxes=count).boxes(image, "a").tolist()
        assert len(boxes) == count
        places = [larger.index(box) for box in boxes]
        assert places == sorted(places)
        larger = boxes
    assert Search(method, max_boxes=10**6).boxes(image, "a").tolist() == every


def test_the_best_edge_boxes_are_kept_and_others_drawn():
    image, _ = scene(180, 240)
    first = Search("edge-boxes", max_boxes=20).boxes(image, "a")
    np.testing.assert_array_equal(first, edge_boxes(image)[:20])
    drawn = {
        (image_id, seed): Search("grid", max_boxes=20, seed=seed).boxes(image, image_id).tolist()
        for image_id in "ab"
        for seed in (3, 4)
    }
    assert len({str(boxes) for boxes in drawn.values()}) == 4  # by id and by seed
    assert drawn["a", 3] != Search("grid").boxes(image, "a")[:20].tolist()


def test_a_draw_is_fair():
    boxes = np.arange(400, dtype=np.float32).reshape(100, 4)
    counts = np.zeros(100)
    for number in range(400):
        kept = at_most(boxes, 10, f"image {number}", seed=0, ranked=False)
        assert len(kept) == 10
        counts[(kept[:, 0] / 4).astype(int)] += 1
    assert counts.sum() == 4000 and 15 < counts.min() and counts.max() < 70  # 40 each, +- 6


def test_a_draw_is_the_same_on_every_run():
    boxes = np.zeros((1000, 4), np.float32) + np.arange(1000, dtype=np.float32)[:, None]
    kept = at_most(boxes, 5, "000005", seed=3, ranked=False)[:, 0].tolist()
    assert kept == [16, 358, 398, 497, 513]  # files of today must be made again tomorrow


def test_distinct_keeps_the_first_and_the_order():
    boxes = np.float32([[5, 5, 6, 6], [1, 1, 2, 2], [5, 5, 6, 6], [0, 0, 1, 1], [1, 1, 2, 2]])
    assert distinct(boxes).tolist() == [[5, 5, 6, 6], [1, 1, 2, 2], [0, 0, 1, 1]]


@pytest.mark.parametrize("method", METHODS)
def test_a_file_does_not_depend_on_workers_or_order(tmp_path, method):
    items = save_scenes(tmp_path, 4)
    for name, own, workers in (("one", items, 1), ("same", items, 3), ("two", items[::-1], 2)):
        compute_proposals(
            own, tmp_path / name, Search(method, max_boxes=15), workers=workers, progress=False
        )
    assert (tmp_path / "one").read_bytes() == (tmp_path / "same").read_bytes()
    one, two = ProposalStore(tmp_path / "one"), ProposalStore(tmp_path / "two")
    assert list(one) == [image_id for image_id, _ in items]
    assert one.settings == two.settings and one.settings["max_boxes"] == 15
    for image_id, _ in items:
        assert len(one[image_id]) == 15
        np.testing.assert_array_equal(one[image_id], two[image_id])
    # What the file says of itself makes the same boxes again.
    image, _ = scene(seed=2)
    again = Search.from_dict(one.settings)
    assert again is not None and again.method == method
    np.testing.assert_array_equal(again.boxes(image, "image 2"), one["image 2"])


def test_settings_of_files():
    assert Search().to_dict() == {  # as files of the first version have it
        "method": "selective search", "mode": "fine", "short_side": 200, "min_size": 16,
    }  # fmt: skip
    assert Search("grid", max_boxes=9).to_dict() == {
        "method": "grid", "min_size": 16, "max_boxes": 9, "seed": 3,
    }  # fmt: skip
    # The seed of a draw decides the boxes, so the file of another one is not gone on with.
    drawn, other = (Search(max_boxes=9, seed=seed).to_dict() for seed in (3, 4))
    assert not same_boxes(drawn, other) and Search.from_dict(other).seed == 4
    old = {"method": "selective search", "mode": "fast", "short_side": None, "min_size": 1}
    assert Search.from_dict(old) == Search(mode="fast", short_side=None, min_size=1)
    assert Search.from_dict(None) is None
    assert Search.from_dict({"method": "read", "files": ["a.mat"]}) is None
    assert Search.from_dict({"kind": "dense"}) is None
    for value in ({"short_side": "x"}, {"method": "edge boxes", "edge_model": 7}, {"seed": None}):
        with pytest.raises(ValueError, match="said to be made with .* of another kind"):
            Search.from_dict({"method": "grid"} | value)


def test_the_model_of_edge_boxes_is_part_of_the_settings(tmp_path):
    items = save_scenes(tmp_path, 2)
    model = write_edge_model(tmp_path / "model.yml")
    search = Search("edge-boxes", edge_model=model)
    store = compute_proposals(items, tmp_path / "p.npz", search, progress=False)
    assert store.settings["edge_model"] == str(model)
    assert Search.from_dict(store.settings) == search
    # Where it lies is no part: the file of another folder, or machine, goes on.
    moved = tmp_path / "elsewhere" / "m.yml"
    moved.parent.mkdir()
    moved.write_bytes(model.read_bytes())
    there = Search("edge-boxes", edge_model=moved)
    compute_proposals(items, tmp_path / "p.npz", there, progress=False)
    write_edge_model(model, threshold=0.9)
    with pytest.raises(ValueError, match=r"p\.npz: holds proposals made with"):
        compute_proposals(items, tmp_path / "p.npz", search, progress=False)
    model.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.yml: no such model"):
        compute_proposals(items, tmp_path / "p.npz", search, progress=False)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "sliding"}, "method must be one of selective-search.*'sliding'"),
        ({"mode": "best"}, "mode must be one of fast.*'best'"),
        ({"short_side": 0}, "short_side must be above 0, got 0"),
        ({"min_size": 0}, "min_size must be above 0"),
        ({"max_boxes": 0}, "max_boxes must be above 0"),
        ({"seed": -1}, "seed must not be negative"),
        ({"edge_model": Path("m.yml")}, "edge_model is m.yml, but the method is selective-search"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Search(**options)
