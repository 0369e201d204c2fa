"""Proposals out of several files, put together image by image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastrcnn_engine.data.proposals.boxes import at_most, distinct, within
from fastrcnn_engine.data.proposals.others import ProposalFile
from fastrcnn_engine.data.records import Dataset, ImageRecord


@dataclass(frozen=True)
class Merged:
    """Proposals (P, 4) float32 by image id, and what the files held besides.

    `ranked`: the best come first, in every image. `unknown`: (file, its name of an image) of what
    no data set has.
    """

    boxes: dict[str, np.ndarray]
    ranked: bool
    unknown: list[tuple[Path, str]]


def merge_proposals(
    files: Sequence[ProposalFile],
    datasets: Sequence[Dataset],
    *,
    max_boxes: int | None = None,
    seed: int = 3,
) -> Merged:
    """The boxes of all files for the images of the data sets.

    A file that names its images may be about any of them. A name is an image id, a file name with
    or without folder and suffix, or their number: 139 is 000000000139.jpg, and 5 is 000005. Files
    that go by the order of a split are taken by turns: with two data sets the first and third are
    of the first one.

    Boxes of an image follow one another in the order of the files, none comes twice. `max_boxes`
    keeps so many of an image: the best, where all come from one file that ranks them, else a draw
    (see `at_most`).

    Raises ValueError for an image that no file is about, a list of another length than its split,
    a name that fits several images, and boxes outside of their image.
    """
    records = {record.image_id: record for one in datasets for record in one.records}
    known = _names(records.values())
    ordered = [file for file in files if isinstance(file.boxes, list)]
    if len(ordered) % len(datasets):
        raise ValueError(
            f"splits: {len(datasets)}, files without names of images: {len(ordered)}; give as many "
            f"for each split: {', '.join(str(file.path) for file in ordered)}"
        )
    parts: dict[str, list[np.ndarray]] = {}
    sources: dict[str, list[ProposalFile]] = {}
    unknown: list[tuple[Path, str]] = []
    for file in files:
        if isinstance(file.boxes, list):
            dataset = datasets[ordered.index(file) % len(datasets)]
            if len(file.boxes) != len(dataset.records):
                raise ValueError(
                    f"images in {file.path}: {len(file.boxes)}, in {dataset.split}: "
                    f"{len(dataset.records)}; give the file of that split"
                )
            pairs = [(r.image_id, file.boxes[n]) for n, r in enumerate(dataset.records)]
        else:
            pairs = []
            for name in file.boxes:
                image_id = name if name in records else _image_of(name, known, file.path)
                if image_id is None:
                    unknown.append((file.path, name))
                else:
                    pairs.append((image_id, file.boxes[name]))
        for image_id, boxes in pairs:
            parts.setdefault(image_id, []).append(_inside(boxes, records[image_id], file.path))
            sources.setdefault(image_id, []).append(file)
    absent = [image_id for image_id in records if image_id not in parts]
    if absent:
        more = f" and {len(absent) - 1} more images" if len(absent) > 1 else ""
        raise ValueError(
            f"no proposals for image {absent[0]!r}{more} in "
            f"{', '.join(str(file.path) for file in files)}"
        )
    ranked = {i: len(own) == 1 and own[0].ranked for i, own in sources.items()}
    merged = {
        image_id: at_most(
            distinct(np.concatenate(parts[image_id])), max_boxes, image_id,
            seed=seed, ranked=ranked[image_id],
        )
        for image_id in records
    }  # fmt: skip
    return Merged(merged, all(ranked.values()), unknown)


def _names(records: Iterable[ImageRecord]) -> dict[str, set[str]]:
    """The image ids that each name may mean."""
    known: dict[str, set[str]] = {}
    for record in records:
        path = record.image_path
        number = record.image_id.rpartition("/")[2]
        names = {record.image_id, number, path.name, path.stem, f"{path.parent.name}/{path.name}"}
        names |= {_digits(number), _digits(path.stem)} - {""}
        for name in names:
            known.setdefault(name, set()).add(record.image_id)
    return known


def _image_of(name: str, known: dict[str, set[str]], path: Path) -> str | None:
    parts = name.split("/")
    for spelling in (name, "/".join(parts[-2:]), parts[-1], _digits(name)):
        if spelling in known:
            found = known[spelling]
            if len(found) > 1:
                raise ValueError(
                    f"{path}: {name!r} may be any of {', '.join(sorted(found))}; read a split at a "
                    "time"
                )
            return next(iter(found))
    return None


def _digits(name: str) -> str:
    """000139 and 2008_000002 as numbers are written, "" for what is no number."""
    plain = name.replace("_", "")
    return str(int(plain)) if plain.isdecimal() and plain.isascii() else ""


def _inside(boxes: np.ndarray, record: ImageRecord, path: Path) -> np.ndarray:
    """The boxes, if they are within the image; fractions that rounding left are cut off."""
    if not within(boxes, record.width, record.height).all():
        raise ValueError(
            f"{path} has boxes outside of image {record.image_id}, {record.width} x "
            f"{record.height}; it is of other images"
        )
    return np.minimum(boxes, np.array([record.width - 1, record.height - 1] * 2, np.float32))
