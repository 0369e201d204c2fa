"""The metric coco is that of pycocotools on the files that are written."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from data.coco_files import annotation, coco_copy, write_instances, write_picture
from fastrcnn_engine.data.coco import load_coco
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.records import Dataset, record_of
from fastrcnn_engine.data.voc import load_voc
from fastrcnn_engine.evaluation.coco import NUMBERS, coco_results, evaluate_coco
from fastrcnn_engine.evaluation.voc import evaluate_voc

pytest.importorskip("pycocotools")

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 1, "name": "dog"}, {"id": 8, "name": "ghost"}]


def directly(truth, results):
    """The twelve numbers of pycocotools on two files."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ground_truth = COCO(str(truth))
    evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def detected(dataset, seed):
    """Objects moved a little, some several times, some of another class, and some of nothing."""
    random = np.random.default_rng(seed)
    found = {}
    for record in dataset.records:
        boxes = np.repeat(record.boxes, 3, axis=0)
        boxes = np.concatenate([boxes, random.uniform(0, 40, (4, 4)).astype(np.float32)])
        boxes = boxes + random.normal(0, 3, boxes.shape).astype(np.float32)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        labels = np.concatenate([np.repeat(record.labels, 3), [1, 1, 2, 2]])
        labels[random.random(len(labels)) < 0.2] = 1
        scores = random.integers(0, 40, len(labels)).astype(np.float32) / 41  # ties too
        found[record.image_id] = SimpleNamespace(boxes=boxes, scores=scores, labels=labels)
    return found


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Twelve images of all sizes of objects, with crowds, odd boxes and an empty image."""
    root = tmp_path_factory.mktemp("coco")
    random = np.random.default_rng(3)
    images, annotations = [], []
    for number in range(12):
        images.append({"id": 5 + 2 * number, "file_name": f"{number}.png"})
        write_picture(root, "val", f"{number}.png", size=(280, 220))
        for _ in range(int(random.integers(1, 7)) if number else 0):
            x, y = random.uniform(0, 60, 2).round(2).tolist()
            w, h = random.uniform(5, 200, 2).round(2).tolist()
            annotations.append(
                annotation(
                    50 + len(annotations), images[-1]["id"], int(random.choice([1, 3])),
                    [x, y, min(w, 280 - x), min(h, 220 - y)],
                    iscrowd=int(random.random() < 0.2), area=0.7 * w * h,
                )
            )  # fmt: skip
    # What training cannot use is to be found all the same: the official numbers count it.
    annotations.append(annotation(900, 7, 3, [290.5, 20, 20, 30]))
    annotations.append(annotation(901, 9, 3, [20, 20, 0.5, 30]))
    write_instances(root, "val", images[::-1], annotations, CATEGORIES)
    return root


def test_the_numbers_are_those_of_pycocotools_on_the_files(coco, tmp_path, capsys):
    dataset = load_coco(coco, "val")
    assert len(dataset.problems) == 2
    found = detected(dataset, 1)
    result = evaluate_coco(dataset, found)
    assert capsys.readouterr().out == ""
    path = tmp_path / "results.json"
    path.write_text(json.dumps(coco_results(dataset, found)))
    reference = directly(dataset.coco.path, path)
    assert list(result.numbers) == list(NUMBERS) and len(NUMBERS) == 12
    assert list(result.numbers.values()) == reference.stats.tolist()
    assert 0.2 < result.numbers["AP"] < result.numbers["AP50"] < 1
    # Classes by name: dog has the id 1, cat 3, and no ghost is there.
    assert dataset.classes == ("dog", "cat", "ghost")
    precision = reference.eval["precision"][:, :, :, 0, 2]
    for place, name in enumerate(("dog", "cat")):
        own = result.per_class[name]
        assert own["AP"] == pytest.approx(precision[:, :, place].mean(), abs=1e-12)
        assert own["AP50"] == pytest.approx(precision[0, :, place].mean(), abs=1e-12)
        assert own["AP75"] == pytest.approx(precision[5, :, place].mean(), abs=1e-12)
    assert result.per_class["ghost"] == {"AP": None, "AP50": None, "AP75": None}
    assert result.numbers["AP"] == pytest.approx(
        (result.per_class["dog"]["AP"] + result.per_class["cat"]["AP"]) / 2, abs=1e-12
    )
    assert json.loads(json.dumps(result.to_dict()))["AR100"] == result.numbers["AR100"]


def test_a_subset_of_the_classes_in_another_order(coco):
    whole, part = load_coco(coco, "val"), load_coco(coco, "val", ["cat", "dog"])
    found = detected(whole, 2)
    swapped = {
        image_id: SimpleNamespace(boxes=one.boxes, scores=one.scores, labels=3 - one.labels)
        for image_id, one in found.items()
    }
    before, after = evaluate_coco(whole, found), evaluate_coco(part, swapped)
    assert after.numbers == before.numbers
    for name in ("cat", "dog"):
        assert after.per_class[name] == before.per_class[name]


def test_results_are_in_terms_of_the_file_and_not_rounded(coco):
    dataset = load_coco(coco, "val", ["cat"])
    score = np.float32(0.123456789)
    one = SimpleNamespace(
        boxes=np.float32([[0, 1, 9.25, 20]]), scores=np.float32([score]), labels=np.array([1])
    )
    rows = coco_results(dataset, {"val/11": one})
    assert rows == [
        {"image_id": 11, "category_id": 3, "bbox": [0, 1, 10.25, 20], "score": float(score)}
    ]


def test_nothing_detected_and_everything_detected(coco):
    dataset = load_coco(coco, "val")
    nothing = {
        record.image_id: SimpleNamespace(
            boxes=np.zeros((0, 4), np.float32), scores=np.zeros(0), labels=np.zeros(0, int)
        )
        for record in dataset.records
    }
    assert set(evaluate_coco(dataset, nothing).numbers.values()) == {0.0}
    voc = evaluate_voc(dataset.records, dataset.classes, nothing)
    crowds = sum(int(record.crowd.sum()) for record in dataset.records)
    assert crowds > 0
    objects = sum(len(record.boxes) for record in dataset.records)
    assert sum(c.npos for c in voc.per_class) == objects - crowds


def test_an_object_is_found_once_also_by_the_first_detection_of_all(tmp_path):
    """pycocotools takes a match with the id 0 for none."""
    boxes = [(0, 0, 39, 39), (50, 0, 89, 39)]
    record = record_of("a", tmp_path / "a.png", (100, 100), boxes, [1, 1], [False, False])
    found = SimpleNamespace(
        boxes=np.float32([boxes[0], boxes[0], boxes[1]]), scores=np.float32([0.9, 0.8, 0.7]),
        labels=np.array([1, 1, 1]),
    )  # fmt: skip
    result = evaluate_coco(Dataset(("thing",), [record], [], tmp_path, "test"), {"a": found})
    # At 51 of 101 points of recall the precision is 1, then 2 / 3.
    assert result.numbers["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_annotations_that_are_not_whole_do_not_stop_the_evaluation(coco, tmp_path):
    shutil.copytree(coco, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    first, second, *others = content["annotations"]
    for one in content["annotations"]:
        one["area"] = one["bbox"][2] * one["bbox"][3]
    path.write_text(json.dumps(content))
    dataset = load_coco(tmp_path, "val")
    found = detected(dataset, 4)
    whole = evaluate_coco(dataset, found)
    del first["area"]
    second["area"] = None
    content["annotations"] += [  # the reader drops them
        first | {"id": 990, "bbox": None}, first | {"id": 991, "image_id": [5]},
        first | {"id": 992, "category_id": "3"}, {"id": 993},
    ]  # fmt: skip
    path.write_text(json.dumps(content))
    dataset = load_coco(tmp_path, "val")
    assert len(dataset.problems) == 2 + 4
    assert evaluate_coco(dataset, found) == whole


def test_voc_data_counts_like_its_copy_in_coco_with_difficult_as_crowds(tmp_path):
    voc = write_demo_set(tmp_path / "voc", seed=6, train=1, test=12)
    copy = coco_copy(voc, tmp_path / "coco", ["test"], crowds=True)
    before, after = load_voc(voc, "test"), load_coco(copy, "test")
    assert any(record.difficult.any() for record in before.records)
    found = detected(before, 5)
    moved = {
        new.image_id: found[old.image_id]
        for old, new in zip(before.records, after.records, strict=True)
    }
    one, two = evaluate_coco(before, found), evaluate_coco(after, moved)
    assert one == two and one.numbers["AP50"] > 0.3
    # And VOC's metric is the same on either.
    first = evaluate_voc(before.records, before.classes, found).to_dict()
    assert first == evaluate_voc(after.records, after.classes, moved).to_dict()
    assert coco_results(before, found)[0]["image_id"] == 1


def test_a_missing_package_says_what_to_install(coco, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        evaluate_coco(load_coco(coco, "val"), {})
