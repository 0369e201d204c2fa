"""Reads a data set of either layout, VOC or COCO, by what is in its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastrcnn_engine.data.coco import instances_file, load_coco
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.data.voc import load_voc

ROBOFLOW = "_annotations.coco.json"  # the name of a COCO file in the folder of its images


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

    Raises FileNotFoundError, saying what was looked for and what was found instead, and what the
    two raise.
    """
    root = Path(root)
    if instances_file(root, split).is_file():
        return load_coco(root, split, classes, errors=errors, stated_sizes=stated_sizes)
    if (root / "ImageSets").is_dir():
        return load_voc(
            root, split, classes, errors=errors, stated_sizes=stated_sizes,
            needs_annotations=needs_annotations,
        )  # fmt: skip
    unmoved = (root / split / ROBOFLOW).is_file()
    if any(root.glob("annotations/instances_*.json")) and not unmoved:
        # It tells which splits there are.
        return load_coco(root, split, classes, errors=errors, stated_sizes=stated_sizes)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    raise FileNotFoundError(
        f"{root}: no data set here; looked for annotations/instances_{split}.json (COCO, with the "
        f"images in {split}) and for ImageSets/Main/{split}.txt (VOC){_found_instead(root)}"
    )


def _found_instead(root: Path) -> str:
    """What other layouts leave in a folder, and what to do with it; "" if there is nothing."""
    files = sorted(root.glob(f"*/{ROBOFLOW}"))
    if files:
        names = [file.parent.name for file in files]
        moves = [f"{name}/{ROBOFLOW} to annotations/instances_{name}.json" for name in names]
        return f"; found COCO files beside their images: move {', '.join(moves)}"
    for pattern in ("*", "VOCdevkit/*"):
        for folder in sorted(root.glob(pattern)):
            coco = any(folder.glob("annotations/instances_*.json"))
            if coco or os.path.isdir(folder / "ImageSets" / "Main"):
                return f"; {folder} looks like one: give that folder"
    for pattern in ("labels", "*/labels"):
        if folders := sorted(root.glob(pattern)):
            return (
                f"; {folders[0].relative_to(root).as_posix()} looks like YOLO's: its labels are "
                "not read, convert them to COCO's or VOC's (docs/data.md, Other layouts)"
            )
    return ""
