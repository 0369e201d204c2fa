"""Reads a data set in the layout of COCO: annotations/instances_SPLIT.json, images in SPLIT or in
images/SPLIT.

COCO's boxes [x, y, w, h] are continuous: x + w is the right edge. Here a box names the pixels it
holds, both ends inclusive: x2 = x + w - 1, y2 = y + h - 1. As for VOC nothing is repaired in
silence: an entry that cannot be used is dropped and reported with its id, and a file that cannot be
understood stops the reading.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn_engine.data.records import (
    CocoSource,
    Dataset,
    ImageRecord,
    NoSuchSplit,
    Stated,
    checked_classes,
    collecting,
    image_size,
    record_of,
    usable_box,
)

# What is read of the file. The outlines of objects, most of its volume, are let go at once.
KEYS = frozenset(
    ("images", "annotations", "categories", "id", "file_name", "name", "image_id", "category_id",
     "width", "height", "bbox", "area", "iscrowd", "ignore")
)  # fmt: skip


def instances_file(root: str | os.PathLike[str], split: str) -> Path:
    """Where the annotations of a split lie in COCO's layout."""
    return Path(root) / "annotations" / f"instances_{split}.json"


def load_coco(
    root: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] | None = None,
    *,
    errors: list[str] | None = None,
    stated_sizes: bool = False,
) -> Dataset:
    """Reads `annotations/instances_SPLIT.json` under `root`, with the images in the folder SPLIT.

    An image that is not there is looked for as `root`/file_name, as the name may hold the folder,
    and then in images/SPLIT.

    Records are in the order of the file; an image without objects is one with G = 0. Their ids are
    SPLIT/ID, as a second split may use the same numbers for other images. Objects with `iscrowd` or
    `ignore` are crowds: not trained on, and not counted by the evaluation.

    Told in `problems` and left out: an image without id or file name or whose file is missing, with
    its objects; an object without image, category or box, of an unknown image or category, with
    a box that has no area, is no number, or lies outside the image. A box partly outside is
    clipped. The size of an image is that of its file; that the entry states another is told too,
    and so is a file that has two ids.

    `classes` None: all categories by rising id, which may have gaps. Names choose some of them and
    the order of the labels; objects of other categories are not read, and `problems` tell how many.

    Raises FileNotFoundError for a missing file or folder, or if none of the images is there, and
    ValueError for a file that cannot be understood (named, with the key), two images or categories
    of one id, a flag that is neither 0 nor 1, and a class that is no category. With a list of
    `errors` a fault of one image is put there, and the image is left out. With `stated_sizes` an
    image that cannot be read has the size the file states, which `problems` tell.
    """
    root = Path(root)
    path, folder = instances_file(root, split), root / split
    content = read_instances(path)
    category_of = _categories(content["categories"], path)  # name -> id, by rising id
    classes = tuple(category_of) if classes is None else checked_classes(classes)
    unknown = [name for name in classes if name not in category_of]
    if unknown:
        raise ValueError(
            f"{path}: class {unknown[0]!r} is not one of its categories, {', '.join(category_of)}; "
            "name it there (a category may have no objects), or not among the classes"
        )
    problems: list[str] = []
    places = [folder, root, root / "images" / split]
    images, missing = _images(content["images"], path, places, problems)
    stated = {
        entry["id"]: (entry.get("width"), entry.get("height"))
        for entry in content["images"]
        if type(entry.get("id")) is int
    }
    # None: known, but not asked for
    label_of: dict[int, int | None] = dict.fromkeys(category_of.values())
    label_of.update((category_of[name], label) for label, name in enumerate(classes, start=1))
    name_of = {category: name for name, category in category_of.items()}
    objects: dict[int, list[tuple[str, int, dict[str, Any]]]] = {i: [] for i in images}
    unread = dict.fromkeys((name for name in category_of if name not in classes), 0)
    for number, entry in enumerate(content["annotations"]):
        where = f"{path}, annotation {_shown_id(entry, number)}"
        image_id, category = entry.get("image_id"), entry.get("category_id")
        if type(category) is not int or category not in label_of:
            problems.append(f"{where}: dropped, its category_id, {category!r}, is no category")
        elif type(image_id) is not int or image_id not in stated:
            problems.append(f"{where}: dropped, its image_id, {image_id!r}, is no image")
        elif image_id in images and (label := label_of[category]) is not None:
            objects[image_id].append((where, label, entry))
        elif image_id in images:
            unread[name_of[category]] += 1
    left_out = [f"{count} of {name}" for name, count in unread.items() if count]
    if left_out:
        problems.append(f"{path}: objects of other classes are not read: {', '.join(left_out)}")
    records = []
    for number, image_path in images.items():
        with collecting(errors):
            records.append(
                _read_record(
                    f"{split}/{number}", image_path, objects[number], stated[number],
                    f"{path}, image id {number}", problems, stated_sizes,
                )  # fmt: skip
            )
    source = CocoSource(path, tuple(category_of[name] for name in classes))
    return Dataset(classes, records, problems, root, split, source, tuple(missing))


def read_instances(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists `images`, `annotations` and `categories` of a COCO file, without outlines.

    Raises FileNotFoundError, telling which splits there are, and ValueError for a file that is no
    JSON or lacks one of the lists.
    """

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key in KEYS}

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=kept)
    except FileNotFoundError:
        splits = (p.stem.removeprefix("instances_") for p in path.parent.glob("instances_*.json"))
        raise NoSuchSplit(path, sorted(splits)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            got = f"got {type(entries).__name__}" if key in content else "it is missing"
            raise ValueError(f"{path}: {key!r} must be a list of objects, {got}")
    return content


def is_crowd(annotation: dict[str, Any], where: str) -> bool:
    """Whether it is a region that neither training nor evaluation counts.

    ValueError, with `where` it stands, for a flag that is neither 0 nor 1: any text would be true.
    """
    for key in ("iscrowd", "ignore"):
        if annotation.get(key) not in (None, 0, 1, "0", "1"):
            raise ValueError(f"{where}: {key} must be 0 or 1, got {annotation[key]!r}; write one")
    return any(annotation.get(key) in (1, "1") for key in ("iscrowd", "ignore"))


def bbox_of(annotation: dict[str, Any]) -> tuple[float, float, float, float] | None:
    """(x, y, w, h) as it stands in the file; None if there are not four finite numbers."""
    try:
        if isinstance(annotation["bbox"], str):  # of four digits
            return None
        x, y, w, h = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return (x, y, w, h) if math.isfinite(x + y + w + h) else None


def to_bbox(boxes: np.ndarray) -> np.ndarray:
    """Inclusive pixel boxes (M, 4), x1 y1 x2 y2, as COCO's x y w h: float64 (M, 4)."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1], axis=1)


def _shown_id(entry: dict[str, Any], number: int) -> str:
    return f"id {entry['id']}" if "id" in entry else f"without id at place {number}"


def _categories(entries: list[dict[str, Any]], path: Path) -> dict[str, int]:
    id_of: dict[str, int] = {}
    for number, entry in enumerate(entries):
        category, name = entry.get("id"), entry.get("name")
        if type(category) is not int or not isinstance(name, str) or not name:
            raise ValueError(
                f"{path}: categories[{number}] needs a whole number id and a name, got {entry}"
            )
        if name in id_of or category in id_of.values():
            raise ValueError(f"{path}: categories[{number}], {entry}: id or name comes twice")
        id_of[name] = category
    if not id_of:
        raise ValueError(f"{path}: 'categories' is empty, so no class is known")
    return dict(sorted(id_of.items(), key=lambda item: item[1]))


def _images(
    entries: list[dict[str, Any]], path: Path, places: list[Path], problems: list[str]
) -> tuple[dict[int, Path], list[Path]]:
    """The image files that are there, by id, each in the first of the places that has it; and where
    the others belong."""
    images: dict[int, Path] = {}
    missing: list[Path] = []
    folder = places[0]
    seen: set[int] = set()
    id_of: dict[Path, int] = {}
    for number, entry in enumerate(entries):
        where = f"{path}, image {_shown_id(entry, number)}"
        image_id, name = entry.get("id"), entry.get("file_name")
        if type(image_id) is not int or not isinstance(name, str) or not name:
            problems.append(f"{where}: dropped, needs a whole number id and a file_name")
            continue
        if image_id in seen:
            raise ValueError(f"{where}: this id comes twice; name each image once")
        seen.add(image_id)
        # A name may be longer than names can be.
        file = next((place / name for place in places if os.path.isfile(place / name)), None)
        if file is None:
            problems.append(f"{where}: dropped with its objects, no file {folder / name}")
            missing.append(folder / name)
            continue
        images[image_id] = file
        if id_of.setdefault(file, image_id) != image_id:
            problems.append(
                f"{where}: its file, {name}, is that of image id {id_of[file]} too; objects of "
                "one are background in the other"
            )
    if not images:
        if not any(place.is_dir() for place in (places[0], places[2])):
            raise FileNotFoundError(
                f"{folder}: no such folder; the images of {path.name} belong there"
            )
        first = f"; {problems[0]}" if problems else ""
        tried = f"; looked in {', '.join(map(str, places))}" if missing else ""
        raise FileNotFoundError(f"{folder}: none of the images of {path} is there{first}{tried}")
    return images, missing


def _read_record(
    image_id: str,
    image_path: Path,
    objects: list[tuple[str, int, dict[str, Any]]],
    stated: Stated,
    place: str,
    problems: list[str],
    stated_sizes: bool,
) -> ImageRecord:
    width, height = image_size(image_path, stated, place, problems, stated_sizes=stated_sizes)
    boxes, labels, crowd = [], [], []
    for where, label, annotation in objects:
        region = is_crowd(annotation, where)
        x, y, w, h = bbox_of(annotation) or (math.nan,) * 4
        # In float32, what records hold and programs write: float32's 0.1 and 39.9 add up to more
        # than 40 in float64; that box is not outside an image of 40 pixels.
        inclusive = tuple(np.array([x, y, x + w - 1, y + h - 1], dtype=np.float32).tolist())
        shown = f"bbox {annotation.get('bbox')} (x y w h)"
        box = usable_box(inclusive, width, height, where, shown, problems)
        if box is None:
            continue
        boxes.append(box)
        labels.append(label)
        crowd.append(region)
    return record_of(
        image_id, image_path, (width, height), boxes, labels, difficult=crowd, crowd=crowd
    )
