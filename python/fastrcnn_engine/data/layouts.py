"""Reads a data set of either layout, VOC or COCO, by what is in its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastrcnn_engine.data.coco import instances_file, load_coco
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.data.voc import load_voc


def load_dataset(
    root: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] | None = None,
    *,
    errors: list[str] | None = None,
    stated_sizes: bool = False,
    needs_annotations: bool = True,
) -> Dataset:
    """One split of a data set: `load_coco` where `root` has annotations/instances_SPLIT.json,
    `load_voc` where it has ImageSets.

    Raises FileNotFoundError, saying what was looked for, and what the two raise.
    """
    root = Path(root)
    if instances_file(root, split).is_file():
        return load_coco(root, split, classes, errors=errors, stated_sizes=stated_sizes)
    if (root / "ImageSets").is_dir():
        return load_voc(
            root, split, classes, errors=errors, stated_sizes=stated_sizes,
            needs_annotations=needs_annotations,
        )  # fmt: skip
    if any(root.glob("annotations/instances_*.json")):
        # It tells which splits there are.
        return load_coco(root, split, classes, errors=errors, stated_sizes=stated_sizes)
    raise FileNotFoundError(
        f"{root}: no data set here; looked for annotations/instances_{split}.json (COCO, with the "
        f"images in {split}) and for ImageSets/Main/{split}.txt (VOC)"
    )
