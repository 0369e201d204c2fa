"""COCO's twelve numbers, computed by pycocotools itself on what is in memory.

Boxes go back to COCO's continuous x y w h (w = x2 - x1 + 1). Where the records come from a COCO
file the ground truth is what stands there: unclipped boxes, areas of outlines, and objects that
training cannot use. So the numbers are those of pycocotools on that file and `coco_results`, but
for annotations with `ignore`, which are crowds here and to pycocotools nothing special.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrcnn_engine.data.coco import bbox_of, is_crowd, read_instances, to_bbox
from fastrcnn_engine.data.records import Dataset

# In the order of COCOeval.stats. "AP" alone is the mean over ten IoU thresholds and all classes.
NUMBERS = {
    "AP": "average precision, mean over IoU 0.50, 0.55 .. 0.95",
    "AP50": "average precision at IoU 0.50",
    "AP75": "average precision at IoU 0.75",
    "APs": "AP of small objects, area below 32 x 32",
    "APm": "AP of medium objects",
    "APl": "AP of large objects, area above 96 x 96",
    "AR1": "average recall with 1 detection of a class in an image",
    "AR10": "average recall with 10",
    "AR100": "average recall with 100",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
}


@dataclass(frozen=True)
class COCOResult:
    """The twelve NUMBERS, and AP, AP50 and AP75 of each class by its name.

    A number is None where there is no ground truth that counts.
    """

    numbers: dict[str, float | None]
    per_class: dict[str, dict[str, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        return {**self.numbers, "classes": self.per_class}


def pycocotools() -> tuple[Any, Any]:
    """Its classes COCO and COCOeval. Raises ImportError, saying what to install."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ImportError("the metric coco needs pycocotools: pip install pycocotools") from error
    return COCO, COCOeval


def evaluate_coco(dataset: Dataset, detections: Mapping[str, Any]) -> COCOResult:
    """COCO's metric of detections on a data set of any layout.

    Args:
        detections: image id -> an object with boxes (M, 4) in image pixels, both ends inclusive,
            scores (M,) and labels (M,) 1..K; checked by `evaluation.voc.evaluate_voc`.

    Difficult objects of VOC become crowds, the one way to have pycocotools ignore an object: any
    number of detections on it count neither as right nor as wrong. On a crowd is what lies in it
    (intersection over the area of the detection), not what has IoU with it as in VOC's own metric.

    Raises ImportError without pycocotools. Source: COCOeval of pycocotools 2.
    """
    COCO, COCOeval = pycocotools()
    found = [
        # As COCO.loadRes numbers and measures them; that one fails when nothing was detected.
        {**row, "id": number, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
        for number, row in enumerate(coco_results(dataset, detections), start=1)
    ]
    with redirect_stdout(io.StringIO()):  # it prints its progress
        sides = []
        for annotations in (_ground_truth(dataset), found):
            side = COCO()
            side.dataset = {
                "images": [{"id": image_id} for image_id in _image_ids(dataset).values()],
                "categories": [{"id": category} for category in _category_ids(dataset)],
                "annotations": annotations,
            }
            side.createIndex()
            sides.append(side)
        evaluation = COCOeval(*sides, iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    order = list(evaluation.params.catIds)
    thresholds = evaluation.params.iouThrs
    # (T, R, K, A, M): thresholds, recalls, categories, sizes (first: all), limits (last: 100).
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for name, category in zip(dataset.classes, _category_ids(dataset), strict=True):
        own = precision[:, :, order.index(category)]
        at = {"AP": own, "AP50": own[thresholds == 0.5], "AP75": own[thresholds == 0.75]}
        # -1 stands for "no object": then everywhere in the class.
        per_class[name] = {key: _number(values.mean()) for key, values in at.items()}
    numbers = dict(zip(NUMBERS, map(_number, evaluation.stats), strict=True))
    return COCOResult(numbers, per_class)


def coco_results(dataset: Dataset, detections: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Detections in COCO's format of results: image_id, category_id, bbox and score of each.

    Ids are those of the COCO file; for other data the place of the image, from 1, and the label.
    Nothing is rounded.
    """
    image_ids, category_ids = _image_ids(dataset), _category_ids(dataset)
    return [
        {
            "image_id": image_ids[image_id],
            "category_id": category_ids[label - 1],
            "bbox": bbox,
            "score": score,
        }
        for image_id, one in detections.items()
        for bbox, score, label in zip(
            to_bbox(one.boxes).tolist(),
            np.asarray(one.scores, np.float64).tolist(),
            np.asarray(one.labels).tolist(),
            strict=True,
        )
    ]


def _image_ids(dataset: Dataset) -> dict[str, int]:
    if dataset.coco is not None:
        return {r.image_id: int(r.image_id.rpartition("/")[2]) for r in dataset.records}
    return {r.image_id: place for place, r in enumerate(dataset.records, start=1)}


def _category_ids(dataset: Dataset) -> tuple[int, ...]:
    if dataset.coco is not None:
        return dataset.coco.category_ids
    return tuple(range(1, len(dataset.classes) + 1))


def _ground_truth(dataset: Dataset) -> list[dict[str, Any]]:
    """Annotations with ids from 1: pycocotools takes a match with the id 0 for none."""
    if dataset.coco is None:
        image_ids = _image_ids(dataset)
        stated = [
            (image_ids[record.image_id], label, bbox, bbox[2] * bbox[3], difficult)
            for record in dataset.records
            for label, bbox, difficult in zip(
                record.labels.tolist(), to_bbox(record.boxes).tolist(), record.difficult.tolist(),
                strict=True,
            )
        ]  # fmt: skip
    else:
        images, categories = set(_image_ids(dataset).values()), set(dataset.coco.category_ids)
        stated = []
        for one in read_instances(dataset.coco.path)["annotations"]:
            image_id, category, bbox = one.get("image_id"), one.get("category_id"), bbox_of(one)
            # The reader has told what is wrong with the others.
            if type(image_id) is type(category) is int and bbox is not None:
                if image_id in images and category in categories:
                    area = one.get("area")
                    if not isinstance(area, (int, float)):
                        area = bbox[2] * bbox[3]
                    crowd = is_crowd(one, str(dataset.coco.path))
                    stated.append((image_id, category, list(bbox), area, crowd))
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    return [
        {"id": number, **dict(zip(keys, values, strict=True))}
        for number, values in enumerate(stated, start=1)
    ]


def _number(value: float) -> float | None:
    return None if value < 0 else float(value)
