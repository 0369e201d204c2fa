"""Writes small COCO data sets for the tests."""

from __future__ import annotations

import json
import shutil

import numpy as np
from PIL import Image

from fastrcnn_engine.data.voc import load_voc


def write_instances(root, split, images, annotations, categories):
    """The annotations of one split; the lists hold what the file holds."""
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    (root / split).mkdir(exist_ok=True)
    return path


def write_picture(root, split, name, *, size=(40, 30)):
    path = root / split / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def annotation(number, image, category, bbox, **more):
    width, height = bbox[2:]
    outline = {"segmentation": [[0.0] * 8], "area": width * height, "iscrowd": 0}
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox} | outline | more


def coco_copy(voc, root, splits, *, crowds):
    """A VOC data set in COCO's layout, ids with gaps; its difficult objects are crowds or not."""
    for split in splits:
        dataset = load_voc(voc, split)
        images, annotations = [], []
        for number, record in enumerate(dataset.records):
            images.append({"id": 7 + 3 * number, "file_name": record.image_path.name})
            for box, label, difficult in zip(
                record.boxes.tolist(), record.labels.tolist(), record.difficult.tolist(),
                strict=True,
            ):  # fmt: skip
                x1, y1, x2, y2 = box
                bbox = [x1, y1, x2 - x1 + 1, y2 - y1 + 1]
                number = 100 + len(annotations)
                flag = int(crowds and difficult)
                annotations.append(
                    annotation(number, images[-1]["id"], 10 * label, bbox, iscrowd=flag)
                )
        categories = [
            {"id": 10 * label, "name": name} for label, name in enumerate(dataset.classes, start=1)
        ]
        write_instances(root, split, images, annotations, categories)
        for record in dataset.records:
            shutil.copy(record.image_path, root / split)
    return root
