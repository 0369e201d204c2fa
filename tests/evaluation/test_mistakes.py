"""Kinds of mistakes and the confusion matrix, by hand and by what must add up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from fastrcnn_engine.data.records import record_of
from fastrcnn_engine.evaluation.mistakes import KINDS, find_mistakes
from fastrcnn_engine.evaluation.voc import evaluate_voc

CLASSES = ("dog", "cat")


def image(name, objects):
    """objects: (label, box, difficult)."""
    labels, boxes, difficult = zip(*objects, strict=True) if objects else ((), (), ())
    return record_of(
        name, Path(f"{name}.jpg"), (100, 100), list(boxes), list(labels), list(difficult)
    )


def found(*rows):
    """rows: (label, score, box)."""
    labels, scores, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return SimpleNamespace(
        boxes=np.array(boxes, np.float32).reshape(-1, 4), scores=np.array(scores, np.float32),
        labels=np.array(labels, np.int64),
    )  # fmt: skip


def test_each_kind_by_hand():
    records = [
        image("a", [(1, (0, 0, 19, 19), False), (2, (50, 50, 69, 69), False),
                    (1, (80, 0, 99, 19), True)]),
        image("b", [(2, (0, 0, 9, 9), False)]),
    ]  # fmt: skip
    detections = {
        "a": found(
            (1, 0.9, (0, 0, 19, 19)),  # right
            (1, 0.8, (0, 0, 19, 18)),  # duplicate
            (1, 0.7, (0, 0, 9, 9)),  # localisation: IoU 1/4
            (1, 0.6, (50, 50, 69, 69)),  # other class
            (2, 0.5, (30, 0, 39, 9)),  # background
            (1, 0.4, (80, 0, 99, 19)),  # on a difficult object: counts nowhere
        ),
        "b": found(),
    }
    result = evaluate_voc(records, CLASSES, detections)
    mistakes = find_mistakes(records, CLASSES, detections, result)
    assert KINDS == ("duplicate", "localisation", "other class", "background")
    assert mistakes.kinds.tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]
    assert mistakes.missed.tolist() == [0, 2]
    #                                       dog cat missed
    assert mistakes.confusion.tolist() == [[1, 0, 0], [1, 0, 1], [2, 1, 0]]
    assert mistakes.to_dict()["false_positives"]["dog"]["other class"] == 1
    assert mistakes.to_dict()["missed"] == {"dog": 0, "cat": 2}
    # One by one, by falling score, with the object that each is about.
    wrong = [(one.row, one.kind, one.truth, round(one.iou, 2)) for one in mistakes.wrong]
    assert wrong == [
        (1, "duplicate", 0, 0.95), (2, "localisation", 0, 0.25), (3, "other class", 1, 1.0),
        (4, "background", None, 0.0),
    ]  # fmt: skip
    assert [one.score for one in mistakes.wrong] == [np.float32(s) for s in (0.8, 0.7, 0.6, 0.5)]
    # The larger one first, with what lies on it.
    lost = [(one.image_id, one.truth, one.row, one.iou) for one in mistakes.lost]
    assert lost == [("a", 1, 3, 1.0), ("b", 0, None, 0.0)]


def test_an_overlap_of_exactly_a_half_or_a_tenth_is_one():
    records = [image("a", [(1, (0, 0, 19, 19), False)])]
    detections = {
        "a": found(
            (1, 0.9, (0, 0, 19, 9)),  # IoU 1/2: right
            (1, 0.8, (0, 10, 19, 19)),  # 1/2: duplicate
            (1, 0.7, (0, 0, 19, 1)),  # 1/10: localisation
            (2, 0.6, (0, 0, 19, 1)),  # 1/10: other class
            (1, 0.5, (0, 0, 12, 2)),  # 39/400: background
        )
    }
    result = evaluate_voc(records, CLASSES, detections)
    mistakes = find_mistakes(records, CLASSES, detections, result)
    assert [one.kind for one in mistakes.wrong] == list(KINDS)
    assert mistakes.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [3, 1, 0]]


def test_an_object_goes_to_its_strongest_detection_wherever_that_stands():
    records = [image("a", [(1, (0, 0, 19, 19), False)])]
    detections = {"a": found((2, 0.3, (0, 0, 19, 19)), (1, 0.9, (0, 0, 19, 19)))}
    result = evaluate_voc(records, CLASSES, detections)
    mistakes = find_mistakes(records, CLASSES, detections, result)
    assert mistakes.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_mistakes_of_several_images_are_in_one_order():
    records = [image("a", []), image("b", [(2, (0, 0, 9, 9), False), (2, (50, 0, 89, 9), False)]),
               image("c", [(1, (0, 0, 9, 9), False)])]  # fmt: skip
    detections = {
        "a": found((1, 0.3, (0, 0, 9, 9)), (1, 0.5, (0, 0, 9, 9))),
        "b": found((1, 0.9, (0, 0, 29, 9)), (1, 0.5, (70, 5, 99, 14)),
                   (2, 0.2, (85, 9, 99, 40))),
        "c": found(),
    }
    result = evaluate_voc(records, CLASSES, detections)
    mistakes = find_mistakes(records, CLASSES, detections, result)
    order = [(one.image_id, one.row) for one in mistakes.wrong]
    assert order == [("b", 0), ("a", 1), ("b", 1), ("a", 0), ("b", 2)]
    # What touches an object is background, and yet has it beside it.
    last = mistakes.wrong[-1]
    assert (last.kind, last.truth) == ("background", 1) and 0 < last.iou < 0.1
    assert [(one.image_id, one.truth, one.row) for one in mistakes.lost] == [
        ("b", 1, 1), ("b", 0, 0), ("c", 0, None)
    ]  # fmt: skip


def test_a_mistake_of_place_has_the_object_of_its_own_class_beside_it():
    records = [image("a", [(2, (0, 0, 9, 9), False), (1, (0, 0, 19, 19), False)])]
    detections = {"a": found((1, 0.9, (0, 0, 9, 9)))}  # all of the cat, a quarter of the dog
    result = evaluate_voc(records, CLASSES, detections)
    (one,) = find_mistakes(records, CLASSES, detections, result).wrong
    assert (one.kind, one.truth, one.iou) == ("localisation", 1, 0.25)


def test_sums_are_those_of_the_evaluation_on_random_sets():
    rng = np.random.default_rng(0)

    def boxes(count):
        corner = rng.integers(0, 60, (count, 2))
        return np.hstack([corner, corner + rng.integers(5, 40, (count, 2))]).tolist()

    def label(one):
        return int(detections[one.image_id].labels[one.row])

    for _ in range(50):
        records, detections = [], {}
        for name in "abc":
            objects = [(int(rng.integers(1, 3)), box, bool(rng.random() < 0.2))
                       for box in boxes(rng.integers(0, 6))]  # fmt: skip
            records.append(image(name, objects))
            near = [(label, float(rng.random()), (np.array(box) + rng.integers(-4, 5, 4)).tolist())
                    for label, box, _ in objects]  # fmt: skip
            far = [(int(rng.integers(1, 3)), float(rng.random()), box) for box in boxes(3)]
            detections[name] = found(*near, *far)
        result = evaluate_voc(records, CLASSES, detections)
        mistakes = find_mistakes(records, CLASSES, detections, result)
        assert mistakes.kinds.sum(axis=1).tolist() == [one.fp for one in result.per_class]
        assert mistakes.missed.tolist() == [one.npos - one.tp for one in result.per_class]
        counted = [[sum((one.kind, label(one)) == (kind, k) for one in mistakes.wrong)
                    for kind in KINDS] for k in (1, 2)]  # fmt: skip
        assert counted == mistakes.kinds.tolist()
        assert len(mistakes.lost) == mistakes.missed.sum()
        objects = [one.npos for one in result.per_class]
        assert mistakes.confusion[:-1].sum(axis=1).tolist() == objects
