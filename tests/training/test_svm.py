"""SVM scores: the solver against the dual problem, mining, and a detector that scores by SVMs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.voc import load_voc
from fastrcnn_engine.evaluation.detect import detect_image, proposal_features, score_proposals
from fastrcnn_engine.evaluation.paper_protocol import detect_set
from fastrcnn_engine.ops import box_iou
from fastrcnn_engine.training import (
    load_network,
    save_checkpoint,
    svm,
    train,
    train_svms,
)
from fastrcnn_engine.training.sampling import without_crowds
from fastrcnn_engine.training.svm import LinearSVM, fit_svms, negatives_of

from .small import own_network


def two_clouds(count: int, seed: int, apart: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    """Positives and negatives, (count, 5) each, in directions of their own."""
    rng = np.random.default_rng(seed)
    centre = np.float32([apart, 0, 0, 0, 0])
    clouds = rng.normal(0, 2, (2, count, 5)).astype(np.float32)
    return clouds[0] + centre, clouds[1] - centre


def test_fit_solves_the_original_problem():
    # minimise |w|^2 / 2 + sum C_i max(0, 1 - y_i w x_i), every x with one more feature of 10: as
    # a dual, maximise sum a - |sum a y x|^2 / 2 over 0 <= a_i <= C_i.
    positives, negatives = two_clouds(30, 0, apart=1.0)
    x = np.concatenate([positives, negatives]).astype(np.float64)
    x = np.hstack([x, np.full((60, 1), 10.0)])
    y = np.repeat([1.0, -1.0], 30)
    limits = np.repeat([0.002, 0.001], 30)
    gram = (y[:, None] * x) @ (y[:, None] * x).T
    dual = minimize(
        lambda a: (a @ gram @ a / 2 - a.sum(), gram @ a - 1),
        np.zeros(60), jac=True, bounds=[(0, c) for c in limits],
        options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000},
    )  # fmt: skip
    expected = (dual.x * y) @ x
    one = LinearSVM(positives, evict_score=-np.inf)
    one.mine(negatives)
    one.fit()
    np.testing.assert_allclose(one.weight, expected[:5], atol=1e-4)
    assert one.bias == pytest.approx(10 * expected[5], abs=1e-3)
    before = one.weight
    one.fit()
    assert (one.weight == before).all()  # the same order of the examples


def test_only_hard_negatives_are_held():
    positives, negatives = two_clouds(50, 1)
    one = LinearSVM(positives)
    one.weight, one.bias = np.array([0.5, 0, 0, 0, 0]), 0.0
    one.mine(negatives)
    scores = one.scores(negatives)
    assert 0 < (scores > -1.0001).sum() < 50
    np.testing.assert_array_equal(one.negatives, negatives[scores > -1.0001])
    one.mine(np.float32([[-2, 0, 0, 0, 0], [-2.001, 0, 0, 0, 0]]))  # -1 is hard, -1.0005 is not
    assert one.negatives[-1].tolist() == [-2, 0, 0, 0, 0]


def test_trained_again_after_two_thousand_and_the_easy_let_go():
    positives, _ = two_clouds(100, 2)
    one = LinearSVM(positives)
    sizes = []
    for seed in range(3, 9):
        one.mine(two_clouds(900, seed)[1])
        sizes.append((one.fits, len(one.negatives)))
    assert sizes[:2] == [(0, 900), (0, 1800)] and sizes[2][0] == sizes[3][0] == 1
    assert sizes[2][1] < 2700  # some were let go
    one.fit()
    assert (one.scores(one.negatives) >= -1.1).all()
    assert (one.scores(positives) > 0).mean() > 0.95
    assert (one.scores(two_clouds(500, 20)[1]) < 0).mean() > 0.95


def test_two_thousand_are_not_yet_many():
    one = LinearSVM(two_clouds(10, 2)[0])
    one.mine(two_clouds(2000, 3)[1])
    assert one.fits == 0
    one.mine(two_clouds(1, 4)[1])
    assert one.fits == 1


def test_classes_without_examples():
    positives, negatives = two_clouds(20, 3)
    none = positives[:0]
    mask = np.ones((20, 2), bool)
    missing, found = fit_svms([none, positives], [(negatives, mask)])
    assert missing.scores(positives).tolist() == [-np.inf] * 20  # above no threshold
    assert len(missing.negatives) == 0  # else every box of every image would be held
    assert (found.scores(positives) > found.scores(negatives).max()).all()
    (alone,) = fit_svms([positives], [(negatives, ~mask[:, :1])])
    assert alone.scores(positives).tolist() == [0.0] * 20
    (every,) = fit_svms([positives], [(negatives, mask[:, :1])], evict_score=-np.inf)
    assert len(every.negatives) == 20 > len(found.negatives)


def test_a_box_overlaps_with_the_class_of_its_best_object_alone():
    boxes = np.float32([[0, 0, 9, 9], [0, 0, 9, 19], [50, 50, 60, 60], [0, 0, 9, 2], [0, 0, 9, 1]])
    negative = negatives_of(boxes, np.array([1, 3]), 3)
    # The objects themselves are negatives of the other class, though they overlap by a half.
    assert negative[0].tolist() == [False, True, True]
    assert negative[1].tolist() == [True, True, False]
    assert negative[2].all()
    assert negative[3].tolist() == [False, True, True]  # 0.3 is no negative
    assert negative[4].all()  # 0.2 is one
    assert negatives_of(boxes, np.zeros(0, np.int64), 3).all()


def test_an_object_is_no_negative_of_its_class_though_another_has_its_box():
    boxes = np.float32([[0, 0, 9, 9]] * 3)  # two objects and a proposal: the first on ties
    negative = negatives_of(boxes, np.array([1, 2]), 2)
    assert negative.tolist() == [[False, True], [True, False], [False, True]]


@pytest.fixture
def detector(voc):
    """A network of one's own, its images and their proposals."""
    data = load_voc(voc.data, "train")
    return own_network().eval(), data, ProposalStore(voc.proposals)


def test_crowds_are_not_learned_from(detector):
    model, data, store = detector
    first = data.records[0]
    crowd = dataclasses.replace(first, crowd=np.ones(len(first.boxes), bool))
    with pytest.raises(ValueError, match="has an object to train on"):
        train_svms(model, [crowd], store)
    report = train_svms(model, [crowd, *data.records[1:]], store)
    left = np.concatenate([record.labels for record in data.records[1:]])
    assert len(first.labels) and len(left)
    assert [one.objects for one in report] == [int((left == label).sum()) for label in (1, 2)]


def test_what_lies_on_a_crowd_alone_is_a_negative(detector, monkeypatch):
    model, data, store = detector
    record = data.records[0]
    boxes = store[record.image_id]
    alone = box_iou(boxes, record.boxes, inclusive=True).max(axis=1) == 0
    row = np.flatnonzero(alone)[0]
    crowd = boxes[row] * 1
    crowd[2] -= 0.4 * (crowd[2] - crowd[0] + 1)  # the proposal overlaps it, and sticks out
    record = dataclasses.replace(
        record, boxes=np.concatenate([record.boxes, crowd[None]]),
        labels=np.append(record.labels, 1), difficult=np.append(record.difficult, True),
        crowd=np.append(record.crowd, True),
    )  # fmt: skip
    seen = []
    monkeypatch.setattr(svm, "fit_svms", lambda p, images: seen.extend(images) or fit_svms(p, []))
    train_svms(model, [record], store)
    objects, _, own = without_crowds(record, boxes)
    place = len(objects) + int(np.flatnonzero((own == boxes[row]).all(axis=1))[0])
    assert seen[0][1][place].all()


def test_the_network_scores_by_its_svms(detector, monkeypatch):
    model, data, store = detector
    record = data.records[0]
    image, boxes = load_image(record.image_path), store[record.image_id]
    before = score_proposals(model, image, boxes)
    kept = []
    monkeypatch.setattr(svm, "fit_svms", lambda *a: kept.extend(fit_svms(*a)) or kept)
    report = train_svms(model, data.records, store)
    assert [(one.name, one.objects) for one in report] == [("brick", 2), ("leaf", 2)]
    assert model.classifier == "svm"

    features = proposal_features(model, image, boxes)
    lengths = [
        np.linalg.norm(
            proposal_features(
                model, load_image(r.image_path), np.concatenate([r.boxes, store[r.image_id]])
            ),
            axis=1,
        )
        for r in data.records
    ]
    scaled = features * (20 / np.concatenate(lengths).mean())
    expected = np.stack([np.zeros(len(boxes)), *[one.scores(scaled) for one in kept]], axis=1)
    scores, deltas = score_proposals(model, image, boxes)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(deltas, before[1])

    # Colours are easy: an object scores higher for its own class.
    for record in data.records:
        own, _ = score_proposals(model, load_image(record.image_path), record.boxes)
        for row, label in zip(own, record.labels.tolist(), strict=True):
            assert row[label] == row[1:].max()


def test_the_seed_chooses_the_images_whose_features_are_measured(detector, monkeypatch):
    def first(seed):
        with pytest.raises(OSError) as stopped:
            train_svms(*detector[:1], detector[1].records, detector[2], seed=seed)
        return str(stopped.value)

    monkeypatch.setattr(svm, "load_image", lambda path: open(path / "no image"))
    assert first(1) == first(1) and len({first(seed) for seed in range(5)}) > 1


def test_both_protocols_keep_scores_below_zero(detector):
    model, data, store = detector
    train_svms(model, data.records, store)
    record = data.records[0]
    image, boxes = load_image(record.image_path), store[record.image_id]
    today = detect_image(model, image, boxes, max_detections=1000)
    assert today.scores.min() < 0
    paper = detect_set(model, [("x", image, boxes)], 1)["x"]
    assert paper.scores.min() < 0
    assert detect_image(model, image, boxes, score_threshold=0.0).scores.min(initial=1) > 0


def test_a_checkpoint_says_how_it_scores_and_is_not_trained_on(voc, detector):
    model, data, store = detector
    model = train(dataclasses.replace(voc, iterations=2), progress=False).model
    train_svms(model, data.records, store)
    path = voc.output / "svm.pt"
    save_checkpoint(path, model)
    loaded = load_network(path)
    assert loaded.classifier == "svm"
    assert torch.equal(loaded.cls_score.weight, model.cls_score.weight)
    assert not loaded.cls_score.weight[0].any() and loaded.cls_score.bias[0] == 0
    again = dataclasses.replace(voc, init=path, output=voc.output / "again")
    with pytest.raises(ValueError, match="scores by SVMs; it is for detection and does not learn"):
        train(again, progress=False)
    with pytest.raises(ValueError, match="scores by SVMs already"):
        train_svms(loaded, data.records, store)


def test_what_cannot_be_trained_is_refused(detector):
    model, data, store = detector
    empty = [record for record in data.records if not len(record.boxes)]
    with pytest.raises(ValueError, match="none of the 1 images has an object"):
        train_svms(model, empty, store)
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match="features of the network are 0"):
        train_svms(model, data.records, store)
    assert model.classifier == "softmax"
