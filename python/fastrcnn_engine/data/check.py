"""Looks at a whole data set before a training does: what is wrong with it, and what is in it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fastrcnn_engine.data.cores import usable_cores
from fastrcnn_engine.data.images import EXIF_ORIENTATION, load_image, opened_image
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.progress import progress_bar
from fastrcnn_engine.data.proposals import ProposalStore, proposal_recall
from fastrcnn_engine.data.proposals.boxes import well_formed, within
from fastrcnn_engine.data.records import Dataset, ImageRecord, collecting

NEARLY_BLACK = 16  # of 0..255: what 12 bits are that are kept in 16
QUANTILES = (0.05, 0.5, 0.95)

# Kinds of faults. Errors stop a training or an evaluation, warnings do not. Both are told in the
# order of ERRORS and WARNINGS.
UNUSABLE = "files that cannot be used"
UNDECODABLE = "images that cannot be decoded"
UNPROPOSED = "images not in the file of proposals"
BAD_PROPOSALS = "proposals that cannot be used"
NOTHING = "nothing to train on"
ERRORS = (UNUSABLE, UNDECODABLE, UNPROPOSED, BAD_PROPOSALS, NOTHING)

REPAIRED = "dropped, clipped or wrong in size"
TURNED = "images that EXIF turns (it is not applied)"
TWICE = "objects that are there twice"
NO_OBJECTS = "images without objects"
NO_PROPOSALS = "images with an empty list of proposals"
OUTSIDE = "proposals outside their image (are they of other images?)"
SWAPPED = "proposals with x2 < x1 or y2 < y1 (are they x y w h?)"
OUTDATED = "images that have changed since their proposals were made"
DARK = "images that are nearly black (12 bits in 16? the upper 8 are read)"
WARNINGS = (REPAIRED, TURNED, TWICE, NO_OBJECTS, NO_PROPOSALS, OUTSIDE, SWAPPED, OUTDATED, DARK)


@dataclass(frozen=True)
class DataCheck:
    """What was found. Every line names file and object, or the image."""

    dataset: Dataset  # what could be read
    errors: dict[str, list[str]]  # lines by kind, of ERRORS
    warnings: dict[str, list[str]]  # lines by kind, of WARNINGS
    recall: dict[str, Any] | None  # of the proposals, see `proposal_recall`; None without a file

    @property
    def is_usable(self) -> bool:
        """Whether nothing here would stop a training."""
        return not any(self.errors.values())

    def sizes(self, label: int | None = None) -> np.ndarray:
        """Side of a square with the area of each object, in pixels; of one class, or of all."""
        labels, sizes = self._objects
        return sizes if label is None else sizes[labels == label]

    @cached_property
    def _objects(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels and sizes of all objects: asked for class by class, of very many images."""
        records = self.dataset.records
        boxes = np.concatenate([np.zeros((0, 4), np.float32), *(r.boxes for r in records)])
        labels = np.concatenate([np.zeros(0, np.int64), *(r.labels for r in records)])
        sizes = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1))
        return labels, sizes.astype(np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the facts of each class among them."""
        classes = []
        images = Counter(label for r in self.dataset.records for label in set(r.labels.tolist()))
        for label, name in enumerate(self.dataset.classes, start=1):
            sizes = self.sizes(label)
            facts: dict[str, Any] = {
                "class": name,
                "objects": len(sizes),
                "images": images[label],
                "size_quantiles": np.quantile(sizes, QUANTILES).tolist() if len(sizes) else None,
            }
            if self.recall is not None:
                shares = self.recall["recall_by_label"].get(label)
                facts["recall"] = shares and {f"{t:g}": share for t, share in shares.items()}
            classes.append(facts)
        return {
            "images": len(self.dataset.records),
            "objects": len(self.sizes()),
            "errors": self.errors,
            "warnings": self.warnings,
            "classes": classes,
        }


def check_dataset(
    root: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] | None = None,
    *,
    proposals: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> DataCheck:
    """Reads a split, decodes every image, and goes on after each fault to find all of them.

    Args:
        root, split, classes: as `load_dataset`.
        proposals: a proposal file; its recall bounds the mAP of any detector that uses it.
        progress: show a live line.

    Raises FileNotFoundError and ValueError where nothing can be looked at: no such data set, split
    or file of proposals, a COCO file that is none.
    """
    found: dict[str, list[str]] = {kind: [] for kind in (*ERRORS, *WARNINGS)}
    dataset = load_dataset(root, split, classes, errors=found[UNUSABLE])
    store = None if proposals is None else ProposalStore(proposals)
    found[REPAIRED] += dataset.problems
    known = []  # images with proposals that can be used
    with progress_bar(progress) as bar, ThreadPoolExecutor(usable_cores()) as pool:
        task = bar.add_task("checking", total=len(dataset.records))
        for record, (unreadable, turned, dark) in zip(
            dataset.records, pool.map(_look_at, dataset.records), strict=True
        ):
            if unreadable:
                found[UNDECODABLE].append(unreadable)
            if turned != 1:
                found[TURNED].append(f"{record.image_path}: orientation {turned}")
            if dark:
                found[DARK].append(str(record.image_path))
            found[TWICE] += _twice(record, dataset.classes)
            if not len(record.boxes):
                found[NO_OBJECTS].append(record.image_id)
            if store is not None and record.image_id not in store:
                found[UNPROPOSED].append(record.image_id)
            elif store is not None:
                with collecting(found[BAD_PROPOSALS]):
                    boxes = store[record.image_id]
                    known.append(record)
                    if not len(boxes):
                        found[NO_PROPOSALS].append(record.image_id)
                    outside = ~within(boxes, record.width, record.height)
                    found[OUTSIDE] += _counted(record, boxes, outside)
                    found[SWAPPED] += _counted(record, boxes, ~well_formed(boxes))
                    if not unreadable and not store.is_of(record.image_id, record.image_path):
                        found[OUTDATED].append(record.image_id)
            bar.advance(task)
    if dataset.records and not any((~record.crowd).any() for record in dataset.records):
        found[NOTHING].append(f"none of the images of {split} has an object to train on")
    recall = None if store is None else proposal_recall(known, store)
    return DataCheck(
        dataset,
        {kind: found[kind] for kind in ERRORS},
        {kind: found[kind] for kind in WARNINGS},
        recall,
    )


def _look_at(record: ImageRecord) -> tuple[str, int, bool]:
    """Why the image cannot be decoded, "" if it can; its orientation by EXIF, 1 if none; whether
    its brightest pixel is dark."""
    try:
        dark = bool(load_image(record.image_path).max() < NEARLY_BLACK)
    except (OSError, ValueError) as error:
        return str(error), 1, False
    try:
        with opened_image(record.image_path) as image:
            return "", int(image.getexif().get(EXIF_ORIENTATION, 1)), dark
    except (OSError, ValueError):  # broken EXIF, which nobody else reads
        return "", 1, dark


def _counted(record: ImageRecord, boxes: np.ndarray, bad: np.ndarray) -> list[str]:
    """A line that tells how many of the boxes (P, 4) are bad (P,) and shows the first; or none."""
    if not bad.any():
        return []
    first = int(np.argmax(bad))
    return [
        f"{record.image_id} ({record.width}x{record.height}): {bad.sum()} of {len(boxes)}, row "
        f"{first} is {boxes[first].tolist()}"
    ]


def _twice(record: ImageRecord, classes: Sequence[str]) -> list[str]:
    """A line for each object that has the class and the box of one before it."""
    rows = np.column_stack([record.labels, record.boxes])
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    copies = [row for row, group in enumerate(np.ravel(inverse)) if first[group] != row]
    return [
        f"{record.image_id}: {classes[record.labels[row] - 1]} at "
        f"{' '.join(f'{side:g}' for side in record.boxes[row])}"
        for row in copies
    ]
