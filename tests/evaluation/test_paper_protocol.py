"""The paper's protocol against the whole set in memory, and cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.evaluation.detect import detect_image
from fastrcnn_engine.evaluation.paper_protocol import best_of_set, detect_set
from fastrcnn_engine.models import FastRCNN, FullyConnectedHead
from reference.nms import nms


def apart(count: int) -> np.ndarray:
    """Boxes (count, 4) that do not touch."""
    left = 20.0 * np.arange(count, dtype=np.float32)
    return np.stack([left, 0 * left, left + 9, 0 * left + 9], axis=1)


def one_class(boxes, scores):
    """Outputs of an image for a background and one class."""
    scores = np.asarray(scores, np.float32)
    both = np.stack([1 - scores, scores], axis=1)
    return np.repeat(boxes[:, None], 2, axis=1).astype(np.float32), both


def kept_rows(outputs, total):
    found = best_of_set(outputs, total, nms_threshold=0.3)
    return {image_id: one.rows.tolist() for image_id, one in found.items()}


def test_an_image_gives_a_class_its_best_hundred_before_suppression():
    # 99 good boxes on one place and 21 weaker ones elsewhere: only one of these is among the 100.
    boxes = np.concatenate([np.repeat(apart(1), 99, axis=0), apart(22)[1:]])
    scores = np.concatenate([np.linspace(0.9, 0.8, 99), np.linspace(0.5, 0.4, 21)])
    # Empty images leave room: the limit of the set is 4000.
    outputs = [("a", *one_class(boxes, scores))]
    assert kept_rows(outputs, 100) == {"a": [0, 99]}


@pytest.mark.parametrize(
    ("count", "left"),
    [
        (40, 40),  # as many as the limit of one image: no threshold
        (41, 39),  # one more: the 40th is the threshold and goes with the 41st
        (60, 39),
    ],
)
def test_the_threshold_of_the_set_is_its_lowest_and_goes_itself(count, left):
    scores = np.linspace(0.9, 0.1, count)
    assert kept_rows([("a", *one_class(apart(count), scores))], 1) == {"a": list(range(left))}


def test_ties_with_the_threshold_go_too():
    scores = [0.9] * 30 + [0.5] * 20
    assert kept_rows([("a", *one_class(apart(50), scores))], 1) == {"a": list(range(30))}
    assert kept_rows([("a", *one_class(apart(41), [0.5] * 41))], 1) == {"a": []}
    assert kept_rows([("a", *one_class(apart(40), [0.5] * 40))], 1) == {"a": list(range(40))}


def test_classes_and_images_have_their_say():
    # Class 1 has too many boxes and class 2 few; what class 1 keeps comes from the better image.
    boxes = np.repeat(apart(60)[:, None], 3, axis=1)
    good = np.zeros((60, 3), np.float32)
    good[:, 1], good[:, 2] = np.linspace(0.9, 0.8, 60), np.linspace(0.3, 0.2, 60)
    poor = np.zeros((60, 3), np.float32)
    poor[:, 1] = np.linspace(0.5, 0.4, 60)
    found = best_of_set([("poor", boxes, poor), ("good", boxes, good)], 2, nms_threshold=0.3)
    counts = {
        image_id: np.bincount(one.labels, minlength=3).tolist() for image_id, one in found.items()
    }
    # 80 of class 1: 60 good, 20 poor less the threshold. Of class 2, 120: the scores of 0 lose.
    assert counts == {"poor": [0, 19, 0], "good": [0, 60, 60]}


def test_nan_scores_and_boxes_are_never_detected():
    boxes, scores = one_class(apart(4), [0.9, np.nan, 0.7, 0.6])
    boxes[2, 1, 3] = np.nan
    assert kept_rows([("a", boxes, scores)], 1) == {"a": [0, 3]}


def test_images_without_proposals_have_an_entry():
    empty = (np.zeros((0, 3, 4), np.float32), np.zeros((0, 3), np.float32))
    found = best_of_set([("a", *empty)], 1, nms_threshold=0.3)["a"]
    assert found.boxes.shape == (0, 4) and found.labels.dtype == np.int64


def whole_set(outputs, total, threshold):
    """(class, image id, row, score) of everything kept, from all outputs at once."""
    kept = set()
    for label in range(1, outputs[0][2].shape[1]):
        found = []
        for image_id, _, scores in outputs:
            rows = sorted(range(len(scores)), key=lambda row: (-float(scores[row, label]), row))
            found += [(float(scores[row, label]), image_id, row) for row in rows[:100]]
        falling = sorted((score for score, _, _ in found), reverse=True)
        if len(falling) > 40 * total:
            found = [one for one in found if one[0] > falling[40 * total - 1]]
        for image_id, boxes, scores in outputs:
            rows = np.array([row for _, name, row in found if name == image_id], int)
            for place in nms(boxes[rows, label], scores[rows, label], threshold, inclusive=True):
                row = int(rows[place])
                kept.add((label, image_id, row, float(scores[row, label])))
    return kept


def random_set(proposals, steps):
    """Outputs of five images, as best_of_set takes them."""
    rng = np.random.default_rng(proposals)
    outputs = []
    for number in range(5):
        corner = rng.uniform(0, 100, (proposals, 3, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 60, corner.shape)], axis=2)
        # Images differ in how sure they are, and get surer: the threshold has to rise.
        scores = rng.integers(0, steps, (proposals, 3)) / steps * (number + 3) / 8
        outputs.append((f"{number}", boxes.astype(np.float32), scores.astype(np.float32)))
    return outputs


@pytest.mark.parametrize("proposals", [20, 39, 40, 41, 99, 101, 180])
@pytest.mark.parametrize("steps", [16, 10**6])  # many ties, hardly any
def test_random_sets_agree_with_the_whole_set_in_memory(proposals, steps):
    outputs = random_set(proposals, steps)
    expected = whole_set(outputs, 5, 0.3)
    for order in (outputs, outputs[::-1], [outputs[i] for i in (2, 0, 4, 1, 3)]):
        found = best_of_set(iter(order), 5, nms_threshold=0.3)
        assert list(found) == [image_id for image_id, _, _ in order]
        assert expected == {
            (int(label), image_id, int(row), float(score))
            for image_id, one in found.items()
            for _, score, label, row in zip(*one, strict=True)
        }
        for image_id, boxes, _ in outputs:
            one = found[image_id]
            np.testing.assert_array_equal(one.boxes, boxes[one.rows, one.labels])
            assert (np.diff(one.scores) <= 0).all()


def shared(parts, total):
    """What processes with these parts of a set keep; each goes twice over its part."""
    told = []

    def tells(own):
        told.append(own)
        return [own]

    for part in parts:
        best_of_set(part, total, nms_threshold=0.3, gathered=tells)
    found = [best_of_set(part, total, nms_threshold=0.3, gathered=lambda _: told) for part in parts]
    return {image_id: one for part in found for image_id, one in part.items()}


@pytest.mark.parametrize("processes", [2, 3, 6])  # of 6, one has no image
@pytest.mark.parametrize("proposals", [39, 41, 101, 180])
@pytest.mark.parametrize("steps", [16, 10**6])
def test_processes_that_share_a_set_keep_what_one_keeps(processes, proposals, steps):
    outputs = random_set(proposals, steps)
    # One part may alone be over the limit of the set: of it all the others are too weak.
    outputs[2] = (*outputs[2][:2], outputs[2][2] / 1000)
    for total in (1, 5):
        alone = best_of_set(iter(outputs), total, nms_threshold=0.3)
        parts = [outputs[rank::processes] for rank in range(processes)]
        together = shared(parts, total)
        assert together.keys() == alone.keys()
        for image_id, one in alone.items():
            for expected, got in zip(one, together[image_id], strict=True):
                np.testing.assert_array_equal(expected, got)


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = FastRCNN(
        nn.Sequential(nn.Conv2d(3, 6, 16, stride=16, padding=8), nn.ReLU()),
        stride=16,
        head=FullyConnectedHead(6, 3, 24),
        head_features=24,
        classes=["a", "b"],
        pooled_size=3,
        preprocessing=Preprocessing(short_side=(180, 360), max_side=600, std=(60.0, 60.0, 60.0)),
    )
    nn.init.normal_(network.cls_score.weight, std=3.0)
    nn.init.normal_(network.bbox_pred.weight, std=1.0)
    network.delta_std.fill_(0.1)
    return network.eval()


@pytest.mark.parametrize(
    ("box_regression", "learned", "options"),
    [(True, True, {}), (False, True, {"nms_threshold": 0.6}), (True, False, {})],
)
def test_a_small_set_is_detected_like_its_images_without_a_threshold(
    model, box_regression, learned, options
):
    # Too few proposals for any limit: what remains is decoding, clipping and suppression.
    model.box_regression = learned  # as training with or without it leaves the model
    rng = np.random.default_rng(1)
    images = []
    for name, count in (("first", 35), ("none", 0), ("second", 20)):
        corner = rng.uniform(0, [90, 60], (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(3, 70, (count, 2))], axis=1)
        image = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)
        images.append((name, image, boxes))  # float64
    told = []
    found = detect_set(
        model, iter(images), 3, box_regression=box_regression, **options,
        gathered=lambda own: told.append(own) or [own],
    )  # fmt: skip
    assert len(told) == 1
    for name, image, boxes in images:
        plain = detect_image(
            model, image, boxes, score_threshold=-1.0, max_detections=1000,
            box_regression=box_regression, **options,
        )  # fmt: skip
        for one, two in zip(found[name], plain, strict=True):
            np.testing.assert_array_equal(one, two)
    assert 10 < len(found["first"].rows) < 70
