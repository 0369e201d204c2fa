"""What a data set is to everything behind its reader, and the rules for boxes that all readers
share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn_engine.data.images import opened_image

Box = tuple[float, float, float, float]
Stated = tuple[object, object]  # width and height as an annotation has them
MAX_SIDE = 2**24  # of an image: float32 boxes tell no pixel from the next beyond


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and its objects. Boxes are 0-based pixel indices with both ends inclusive.

    As in VOC, difficult objects are trained on, unless TrainConfig.difficult is False, and the
    evaluation does not count them. A crowd (COCO: a region of objects that were not told apart) is
    difficult and never trained on.

    Attributes:
        image_id: unique in its data set.
        image_path: the image file.
        width: of the image, in pixels.
        height: of the image, in pixels.
        boxes: (G, 4) float32, x1 y1 x2 y2.
        labels: (G,) int64, 1..K.
        difficult: (G,) bool.
        crowd: (G,) bool; None becomes all False.
    """

    image_id: str
    image_path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.crowd is None:
            object.__setattr__(self, "crowd", np.zeros(len(self.boxes), dtype=bool))

    def without_difficult(self) -> ImageRecord:
        """The same image without the objects that are difficult. Crowds stay: they are regions."""
        kept = ~self.difficult | self.crowd
        names = ("boxes", "labels", "difficult", "crowd")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})


@dataclass(frozen=True)
class CocoSource:
    """The COCO file that records were read from, for results in its own terms.

    What follows the last slash of a record's image id is the number in the file.
    """

    path: Path
    category_ids: tuple[int, ...]  # the one of label k is category_ids[k - 1]


@dataclass(frozen=True, eq=False)
class Dataset:
    """The records of one split. `classes[k - 1]` is the name of label k; there is no background
    entry."""

    classes: tuple[str, ...]
    records: list[ImageRecord]
    problems: list[str]  # one line for each box or image that was dropped or clipped
    root: Path
    split: str
    coco: CocoSource | None = None  # None: not from a COCO file
    # Image files of the split that are not there. COCO's are left out, VOC's are records.
    missing: tuple[Path, ...] = ()

    def without_difficult(self) -> Dataset:
        """What a training with --no-difficult learns from.

        An image that had no other objects is left out, which `problems` tell: as one without
        objects it would be background, what lies on the difficult ones too. Raises ValueError where
        difficult objects are all there are.
        """
        records, problems = [], list(self.problems)
        for record in self.records:
            easy = record.without_difficult()
            if len(record.boxes) and not len(easy.boxes):
                problems.append(f"{record.image_id}: left out, as all its objects are difficult")
            else:
                records.append(easy)
        lost = len(problems) > len(self.problems)
        if lost and not any((~record.crowd).any() for record in records):
            raise ValueError(
                f"{self.root}: all objects of {self.split} are difficult, and --no-difficult "
                "(difficult is False) leaves them out; train with them, or choose another split"
            )
        return replace(self, records=records, problems=problems)


class NoSuchSplit(FileNotFoundError):
    """A data set has no split of that name: `path` is not there. `found` are those it has;
    argument: where another is to be named."""

    def __init__(self, path: Path, found: list[str], argument: str = "split"):
        self.path, self.found = path, found
        advice = f"; give one of them by {argument}" if found else ""
        there = ", ".join(found) or "none"
        super().__init__(f"{path}: no such file; splits found beside it: {there}{advice}")

    def __reduce__(self) -> tuple[Any, ...]:  # else another process would make it of its message
        return NoSuchSplit, (self.path, self.found)


def checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple.

    Raises ValueError for what is no list, a single text, no name, an empty one or one named twice.
    """
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise ValueError(f"classes must be a list of names, got {classes!r}")
    classes = tuple(classes)
    texts = all(isinstance(name, str) and name for name in classes)
    if not classes or not texts or len(set(classes)) != len(classes):
        raise ValueError(
            "classes must be a list of different names, at least one and none empty; got "
            f"{list(classes)}"
        )
    return tuple(map(str, classes))  # a checkpoint holds none of NumPy's texts


@contextmanager
def collecting(errors: list[str] | None) -> Iterator[None]:
    """Within the block a file's fault is put into `errors`, once, and ends the block; with None it
    is raised."""
    try:
        yield
    except (OSError, ValueError) as error:
        if errors is None:
            raise
        if str(error) not in errors:
            errors.append(str(error))


def image_size(
    path: Path, stated: Stated, where: str, problems: list[str], *, stated_sizes: bool
) -> tuple[int, int]:
    """(width, height) of an image file, from its header.

    stated: what the annotation says, numbers or texts, None what it does not; `where` it stands.
        Another size than the file's is told in `problems`: the boxes may be those of another image.
    stated_sizes: take it for a file that is no image, which `problems` tell.

    Raises ValueError if it is no image, and no size above 0 is stated or it is not to be taken.
    """
    try:
        with opened_image(path) as image:
            size = image.size
    except (OSError, ValueError) as error:
        try:
            width, height = (int(str(value)) for value in (stated if stated_sizes else ()))
        except ValueError:  # another number of them, too
            raise error from None
        if min(width, height) < 1 or max(width, height) > MAX_SIDE:
            raise
        problems.append(f"{error}; the stated size, {width}x{height}, is used")
        return width, height
    shown = [str(value).strip() for value in stated if value is not None]
    if len(shown) == 2 and [text.removesuffix(".0") for text in shown] != [str(n) for n in size]:
        problems.append(
            f"{where}: states size {'x'.join(shown)}, the image has {size[0]}x{size[1]}; the "
            "image's size is used"
        )
    return size


def usable_box(
    box: Box, width: int, height: int, where: str, shown: str, problems: list[str]
) -> Box | None:
    """The box (x1, y1, x2, y2, inclusive) clipped to the image, or None if it cannot be used.

    A box of no width or height (x2 <= x1: one pixel or less, as regression divides by that width),
    with a coordinate that is no finite number, or wholly outside is dropped. Dropping and clipping
    are told in `problems`, with `where` it stands and the box as `shown` in its file.
    """
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box):
        problems.append(f"{where}: dropped, a coordinate is missing or no number: {shown}")
        return None
    if x2 <= x1 or y2 <= y1:
        problems.append(f"{where}: dropped, no width or no height: {shown}")
        return None
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, width - 1.0), min(y2, height - 1.0)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        problems.append(f"{where}: dropped, outside the image of {width}x{height}: {shown}")
        return None
    if clipped != (x1, y1, x2, y2):
        problems.append(f"{where}: clipped to the image of {width}x{height}: {shown}")
    if clipped[2] - clipped[0] < 1 or clipped[3] - clipped[1] < 1:  # see sampling.build_entry
        problems.append(f"{where}: not learned from, thinner than two pixels: {shown}")
    return clipped


def record_of(
    image_id: str,
    image_path: Path,
    size: tuple[int, int],
    boxes: list[Box],
    labels: list[int],
    difficult: list[bool],
    crowd: list[bool] | None = None,
) -> ImageRecord:
    """The record of lists of G entries each; `size` is (width, height)."""
    return ImageRecord(
        image_id,
        image_path,
        *size,
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        np.array(labels, dtype=np.int64),
        np.array(difficult, dtype=bool),
        np.array(crowd or [False] * len(boxes), dtype=bool),
    )


def check_labels(argument: str, image_id: str, labels: np.ndarray, count: int) -> None:
    """Raises ValueError unless the labels (G,) of an image are integers in 1..count."""
    labels = np.asarray(labels)
    if labels.size and labels.dtype.kind not in "iu":
        raise ValueError(
            f"{argument}: image {image_id!r}: labels must be integers, got {labels.dtype}"
        )
    bad = np.flatnonzero((labels < 1) | (labels > count))
    if len(bad):
        raise ValueError(
            f"{argument}: image {image_id!r}, row {bad[0]}: label {labels[bad[0]]} is not in "
            f"1..{count} (0 is the background)"
        )
