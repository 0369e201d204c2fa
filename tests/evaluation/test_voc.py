"""VOC average precision against cases worked by hand and against a plain loop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fastrcnn_engine.evaluation.voc import FALSE_POSITIVE, IGNORED, TRUE_POSITIVE, evaluate_voc

FAR = (500, 500, 509, 509)  # overlaps nothing below


def image(image_id, boxes=(), labels=(), difficult=None):
    """Ground truth of one image."""
    count = len(labels)
    flags = [False] * count if difficult is None else difficult
    return SimpleNamespace(
        image_id=image_id,
        boxes=np.array(boxes, np.float32).reshape(count, 4),
        labels=np.array(labels, np.int64),
        difficult=np.array(flags, bool),
    )


def found(*rows, labels=None):
    """Detections from rows (score, x1, y1, x2, y2), all of class 1 unless labels are given."""
    table = np.array(rows, np.float32).reshape(-1, 5)
    labels = np.ones(len(table), np.int64) if labels is None else np.array(labels, np.int64)
    return SimpleNamespace(boxes=table[:, 1:], scores=table[:, 0], labels=labels)


def square(index):
    """The index-th of a row of 10 x 10 boxes that do not touch."""
    return (20 * index, 0, 20 * index + 9, 9)


def one_class(records, detections, **options):
    return evaluate_voc(records, ["thing"], detections, **options).per_class[0]


def test_five_detections_of_three_objects_by_hand():
    # Ranks: hit, miss, hit, miss, hit.
    truth = [image("a", [square(0), square(1), square(2)], [1, 1, 1])]
    hits = found(
        (0.9, *square(0)), (0.8, *FAR), (0.7, *square(1)), (0.6, *FAR), (0.5, *square(2))
    )
    result = one_class(truth, {"a": hits})
    assert (result.npos, result.ndet, result.tp, result.fp, result.ignored) == (3, 5, 3, 2, 0)
    np.testing.assert_allclose(result.precision, [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    np.testing.assert_allclose(result.recall, [1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    # Envelope: 1 up to recall 1/3, 2/3 up to 2/3, 3/5 up to 1.
    assert result.ap_area == pytest.approx((1 + 2 / 3 + 3 / 5) / 3, abs=1e-12)
    # Tenths 0, .1, .2, .3 see 1; .4, .5, .6 see 2/3; .7 .. 1 see 3/5.
    assert result.ap_11point == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11, abs=1e-12)


def test_precision_envelope_rises_over_later_precision():
    # miss, hit, hit: precision 0, 1/2, 2/3; the envelope is 2/3 everywhere.
    truth = [image("a", [square(0), square(1)], [1, 1])]
    result = one_class(truth, {"a": found((0.9, *FAR), (0.8, *square(0)), (0.7, *square(1)))})
    assert result.ap_area == pytest.approx(2 / 3)
    assert result.ap_11point == pytest.approx(2 / 3)


@pytest.mark.parametrize("tenth", range(11))
def test_recall_of_exactly_a_tenth_counts_for_that_tenth(tenth):
    # `tenth` of ten objects found without an error: precision 1 at the points 0 .. tenth.
    truth = [image("a", [square(i) for i in range(10)], [1] * 10)]
    rows = [(0.9 - 0.01 * i, *square(i)) for i in range(tenth)]
    result = one_class(truth, {"a": found(*rows)})
    assert result.ap_11point == pytest.approx((tenth + 1) / 11 if tenth else 0.0, abs=1e-12)
    assert result.ap_area == pytest.approx(tenth / 10, abs=1e-12)


def test_duplicates_are_false_positives():
    truth = [image("a", [square(0)], [1])]
    result = evaluate_voc(truth, ["thing"], {"a": found((0.5, *square(0)), (0.9, *square(0)))})
    assert result.matches["a"].status.tolist() == [FALSE_POSITIVE, TRUE_POSITIVE]
    assert result.per_class[0].ap_area == 1.0


def test_a_detection_belongs_to_its_best_object_even_if_that_is_taken():
    truth = [image("a", [(0, 0, 9, 9), (4, 0, 13, 9)], [1, 1])]
    detections = found((0.9, 0, 0, 9, 9), (0.8, 1, 0, 10, 9))
    # Box 2 against truth 1: 90/110, against truth 2: 70/130 = 0.538 >= 0.5, but not the best.
    result = evaluate_voc(truth, ["thing"], {"a": detections})
    assert result.matches["a"].status.tolist() == [TRUE_POSITIVE, FALSE_POSITIVE]
    assert result.matches["a"].found.tolist() == [True, False]


def test_equal_overlap_goes_to_the_first_object():
    truth = [image("a", [(0, 0, 9, 9), (0, 0, 9, 9)], [1, 1])]
    result = evaluate_voc(truth, ["thing"], {"a": found((0.9, 0, 0, 9, 9), (0.8, 0, 0, 9, 9))})
    assert result.matches["a"].found.tolist() == [True, False]


def test_iou_counts_both_end_pixels_and_the_threshold_itself_matches():
    # 10 x 10 object, detection of its left 5 columns: 50 / 100 with both ends counted. With
    # widths x2 - x1 it would be 4 * 9 / 81 = 0.44.
    truth = [image("a", [(0, 0, 9, 9)], [1])]
    half = {"a": found((0.9, 0, 0, 4, 9))}
    assert one_class(truth, half).tp == 1
    more = evaluate_voc(truth, ["thing"], half, iou_threshold=0.51)
    assert more.per_class[0].tp == 0 and more.to_dict()["iou_threshold"] == 0.51
    seven_tenths = {"a": found((0.9, 0, 0, 6, 9))}  # 0.7 is not a float32 number
    for threshold in (0.7, np.float64(0.7)):
        assert one_class(truth, seven_tenths, iou_threshold=threshold).tp == 1
    assert one_class(truth, {"a": found((0.9, 0, 0, 9, 9))}, iou_threshold=1.0).tp == 1


def test_difficult_objects_neither_help_nor_hurt():
    truth = [image("a", [square(0), square(1)], [1, 1], [True, False])]
    detections = found((0.9, *square(0)), (0.8, *square(0)), (0.7, *square(1)), (0.6, *FAR))
    result = evaluate_voc(truth, ["thing"], {"a": detections})
    one = result.per_class[0]
    assert result.matches["a"].status.tolist() == [IGNORED, IGNORED, TRUE_POSITIVE, FALSE_POSITIVE]
    assert (one.npos, one.ndet, one.tp, one.fp, one.ignored) == (1, 4, 1, 1, 2)
    assert one.ap_area == 1.0 and one.ap_11point == 1.0
    assert result.matches["a"].found.tolist() == [False, True]


def test_only_difficult_objects_give_no_ap():
    truth = [image("a", [square(0)], [1], [True])]
    result = evaluate_voc(truth, ["thing"], {"a": found((0.9, *square(0)))})
    assert result.per_class[0].ap_area is None and result.mean_ap is None


def test_class_without_ground_truth_is_left_out_of_the_mean():
    truth = [image("a", [square(0), square(1)], [1, 3])]
    detections = found((0.9, *square(0)), (0.8, *FAR), labels=[1, 2])
    result = evaluate_voc(truth, ["cat", "ghost", "dog"], {"a": detections})
    cat, ghost, dog = result.per_class
    assert cat.ap_area == 1.0
    assert ghost.ap_area is None and ghost.ap_11point is None and ghost.fp == 1
    assert dog.ap_area == 0.0  # ground truth, but nothing detected
    assert result.mean_ap == pytest.approx(0.5)
    table = result.to_dict()
    assert table["classes"]["ghost"]["AP"] is None and table["mAP"] == pytest.approx(0.5)


def test_labels_must_agree_for_a_match():
    truth = [image("a", [square(0)], [2])]
    result = evaluate_voc(truth, ["cat", "dog"], {"a": found((0.9, *square(0)), labels=[1])})
    assert result.per_class[0].fp == 1 and result.per_class[1].tp == 0


def test_equal_scores_rank_by_image_then_by_row():
    # All scores equal. Image order a, b: miss (a0), hit (a1), hit (b0): precision 0, 1/2, 2/3.
    truth = [image("a", [square(0)], [1]), image("b", [square(0)], [1])]
    detections = {"b": found((0.5, *square(0))), "a": found((0.5, *FAR), (0.5, *square(0)))}
    np.testing.assert_allclose(one_class(truth, detections).precision, [0, 1 / 2, 2 / 3])
    # The other order of the images: hit, miss, hit.
    np.testing.assert_allclose(one_class(truth[::-1], detections).precision, [1, 1 / 2, 2 / 3])


def test_scores_are_not_rounded():
    # Two scores that agree in three decimals: the hit is in front, so its precision is 1.
    truth = [image("a", [square(0)], [1])]
    result = one_class(truth, {"a": found((0.90001, *FAR), (0.90002, *square(0)))})
    assert result.ap_area == 1.0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int16, np.float16])
def test_scores_of_any_type_rank_alike(dtype):
    one = found((200, *square(0)), (0, *FAR))
    one.scores = one.scores.astype(dtype)
    assert evaluate_voc([image("a", [square(0)], [1])], ["thing"], {"a": one}).mean_ap == 1


def test_an_object_is_matched_in_its_own_image_only():
    truth = [image("a", [square(0)], [1]), image("b")]
    result = one_class(truth, {"a": found(), "b": found((0.9, *square(0)))})
    assert (result.npos, result.tp, result.fp, result.ap_area) == (1, 0, 1, 0.0)


def test_no_detections_and_no_images():
    truth = [image("a", [square(0)], [1])]
    result = one_class(truth, {"a": found()})
    assert (result.ap_area, result.ap_11point, len(result.precision)) == (0.0, 0.0, 0)
    assert evaluate_voc([], ["thing"], {}).mean_ap is None


def test_the_metric_chooses_the_headline():
    truth = [image("a", [square(0), square(1)], [1, 1])]
    detections = {"a": found((0.9, *square(0)))}
    assert evaluate_voc(truth, ["thing"], detections).mean_ap == pytest.approx(0.5)
    eleven = evaluate_voc(truth, ["thing"], detections, metric="11point")
    assert eleven.mean_ap == pytest.approx(6 / 11)
    assert eleven.to_dict()["mAP_area"] == pytest.approx(0.5)


def scored(scores):
    return SimpleNamespace(**vars(found((0.5, *FAR))) | {"scores": scores})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(metric="coco"), ["metric", "coco"]),
        (dict(iou_threshold=0.0), ["iou_threshold"]),
        (dict(iou_threshold=1.01), ["iou_threshold", "1.01"]),
        (dict(detections={"a": found(), "zzz": found()}), ["zzz", "not among"]),
        (dict(detections={}), ["'a'", "empty"]),
        (dict(detections={"a": found((0.5, *FAR), labels=[2])}), ["'a'", "row 0", "1..1"]),
        (dict(detections={"a": found((0.5, *FAR), labels=[0])}), ["background"]),
        (dict(detections={"a": found((np.nan, *FAR))}), ["'a'", "row 0", "score is nan"]),
        (dict(detections={"a": found((0.5, 0, 0, np.inf, 1))}), ["'a'", "row 0", "box"]),
        (dict(detections={"a": found((0.5, *FAR), labels=[1, 1])}), ["(1, 4)", "(2,)"]),
        (dict(detections={"a": scored(np.array([True]))}), ["'a'", "numbers, got bool"]),
        (dict(records=[image("a"), image("a")]), ["more than once"]),
        (dict(records=[image("a", [square(0)], [7])]), ["records", "7"]),
        (dict(records=[image("a", [square(0)], [1], [False] * 2)]), ["'a'", "2 difficult flags"]),
    ],
)
def test_user_errors_name_the_culprit(change, words):
    call = dict(records=[image("a", [square(0)], [1])], detections={"a": found()}) | change
    with pytest.raises(ValueError) as error:
        evaluate_voc(call.pop("records"), ["thing"], call.pop("detections"), **call)
    for word in words:
        assert word in str(error.value)


def plain_loop(records, detections, label, threshold):
    """(area AP, 11-point AP) of one class, in Python floats and the simplest loops."""
    rows = []
    for position, record in enumerate(records):
        found_here = detections[record.image_id]
        for row in range(len(found_here.scores)):
            if found_here.labels[row] == label:
                score, box = float(found_here.scores[row]), found_here.boxes[row].tolist()
                rows.append((-score, position, row, box))
    rows.sort(key=lambda entry: entry[:3])
    npos = sum(
        int(one == label and not hard)
        for record in records
        for one, hard in zip(record.labels, record.difficult, strict=True)
    )
    taken, curve, tp, fp = set(), [], 0, 0
    for _, position, _, (x1, y1, x2, y2) in rows:
        record, best, best_iou = records[position], None, -1.0
        for number, (one, truth) in enumerate(zip(record.labels, record.boxes, strict=True)):
            if one != label:
                continue
            tx1, ty1, tx2, ty2 = truth.tolist()
            width = min(x2, tx2) - max(x1, tx1) + 1
            height = min(y2, ty2) - max(y1, ty1) + 1
            inter = max(width, 0) * max(height, 0)
            area = (x2 - x1 + 1) * (y2 - y1 + 1) + (tx2 - tx1 + 1) * (ty2 - ty1 + 1) - inter
            if inter / area > best_iou:
                best, best_iou = number, inter / area
        if best is not None and best_iou >= threshold:
            if record.difficult[best]:
                continue
            if (position, best) not in taken:
                taken.add((position, best))
                tp += 1
            else:
                fp += 1
        else:
            fp += 1
        curve.append((tp, fp))
    eleven = 0.0
    for tenth in range(11):
        eleven += max([t / (t + f) for t, f in curve if 10 * t >= tenth * npos], default=0.0) / 11
    area, last = 0.0, 0
    for rank, (t, _) in enumerate(curve):
        area += (t - last) / npos * max(a / (a + b) for a, b in curve[rank:])
        last = t
    return area, eleven


@pytest.mark.parametrize("seed", range(6))
def test_random_sets_agree_with_the_plain_loop(seed):
    random = np.random.default_rng(seed)
    records, detections = [], {}
    for number in range(20):
        count = int(random.integers(0, 6))
        corner = random.integers(0, 60, (count, 2))
        boxes = np.concatenate([corner, corner + random.integers(5, 40, (count, 2))], axis=1)
        labels = random.integers(1, 3, count)
        hard = random.random(count) < 0.3
        records.append(image(str(number), boxes, labels, hard))
        # Detections: objects moved by a few pixels, several times, some of the wrong class.
        moved = np.repeat(boxes, 3, axis=0) + random.integers(-6, 7, (3 * count, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2])
        scores = random.integers(0, 8, len(moved)) / 8  # many ties
        guess = np.where(random.random(len(moved)) < 0.8, np.repeat(labels, 3), 1)
        detections[str(number)] = found(
            *np.column_stack([scores, moved]).tolist(), labels=guess.tolist()
        )
    result = evaluate_voc(records, ["one", "two"], detections)
    for label, one in enumerate(result.per_class, start=1):
        assert one.npos > 0 and one.tp > 0 and one.fp > 0 and one.ignored > 0
        area, eleven = plain_loop(records, detections, label, 0.5)
        assert one.ap_area == pytest.approx(area, abs=1e-12)
        assert one.ap_11point == pytest.approx(eleven, abs=1e-12)
