"""Which RoIs a batch is made of: hierarchical sampling (paper 2.3; original code,
lib/roi_data_layer/minibatch.py).

Everything random here is a function of (seed, iteration) alone. So the state of the sampler *is*
the iteration number: a resumed run draws what the uninterrupted one would have drawn, and batches
may be prepared ahead of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fastrcnn_engine.data.preparation import flip_boxes
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import ImageRecord
from fastrcnn_engine.ops import box_iou
from fastrcnn_engine.training.config import ResolvedConfig, TrainConfig

# A proposal with more than this share of its area in a crowd is not used (py-faster-rcnn,
# lib/datasets/coco.py).
CROWD_SHARE = 0.7


@dataclass(frozen=True)
class RoiEntry:
    """One training image with its labelled RoIs: ground truth first, then the proposals.

    ``boxes`` (G+P, 4) float32 and ``matched`` (G+P, 4) float32, the object each box overlaps most,
    are in pixels of the original image. ``foreground`` and ``background`` are row numbers. There is
    one of these for each image of a set, so nothing is held that is quickly made of the rest.
    """

    record: ImageRecord
    objects: np.ndarray  # (G, 4) float32
    object_labels: np.ndarray  # (G,)
    proposals: np.ndarray  # (P, 4) float32, of the mapped file where all of them are used
    best: np.ndarray  # (G+P,) int32, the object each box overlaps most; 0 without objects
    foreground: np.ndarray
    background: np.ndarray

    @property
    def boxes(self) -> np.ndarray:
        return np.concatenate([self.objects, self.proposals])

    @property
    def labels(self) -> np.ndarray:
        labels = np.zeros(len(self.best), dtype=np.int64)
        labels[self.foreground] = self.object_labels[self.best[self.foreground]]
        return labels

    @property
    def matched(self) -> np.ndarray:
        return self.objects[self.best] if len(self.objects) else self.boxes


def without_crowds(
    record: ImageRecord, proposals: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What of an image is learned from: objects (G', 4), their labels (G',), proposals (P', 4).

    A crowd is no object, and a proposal inside one is neither object nor background.
    """
    proposals = np.asarray(proposals, dtype=np.float32).reshape(-1, 4)
    if not record.crowd.any():
        return record.boxes, record.labels, proposals
    crowds = record.boxes[record.crowd]
    corner = np.maximum(proposals[:, None, :2], crowds[None, :, :2])
    sides = np.minimum(proposals[:, None, 2:], crowds[None, :, 2:]) - corner + 1  # (P, C, 2)
    inside = np.maximum(sides, 0).prod(axis=2).max(axis=1)
    area = (proposals[:, 2:] - proposals[:, :2] + 1).prod(axis=1)
    objects = ~record.crowd
    outside = inside <= np.float32(CROWD_SHARE) * area
    return record.boxes[objects], record.labels[objects], proposals[outside]


def best_objects(boxes: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of the objects (G, 4), at least one, each box overlaps most, and the IoU: (R,) each.

    The first one on ties. The first G of the boxes (R, 4) are the objects: each is its own, also
    where two share one box.
    """
    iou = np.asarray(box_iou(boxes, objects, inclusive=True))
    best = iou.argmax(axis=1)
    best[: len(objects)] = np.arange(len(objects))
    return best, iou[np.arange(len(boxes)), best]


def _is_wide(boxes: np.ndarray) -> np.ndarray:
    """Which of the boxes (R, 4) are two pixels wide and high at least, (R,) bool."""
    return (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= 1


def build_entry(
    record: ImageRecord, proposals: np.ndarray, *, foreground_iou: float, background_low: float
) -> RoiEntry:
    """Label the ground truth and the proposals (P, 4) of one image.

    The best object decides (the first on ties). IoU at least ``foreground_iou`` is foreground;
    IoU in [``background_low``, ``foreground_iou``) is background; the rest is not used. Both
    comparisons are made in float32. Objects marked difficult count like any other, as in the
    author's code, unless TrainConfig.difficult is False: then the record has none. Crowds are left
    out (``without_crowds``). In an image without objects the lower bound, a rule for picking hard
    examples near objects, has no meaning: every proposal is background. Objects and proposals
    narrower or lower than two pixels (x2 - x1 < 1) are not used: regression divides by x2 - x1, and
    a single box of 1.001 pixels would decide how the targets of its class are normalised.
    """
    truth, truth_labels, proposals = without_crowds(record, proposals)
    wide = _is_wide(proposals)
    if not wide.all():
        proposals = proposals[wide]
    wide = _is_wide(truth)
    truth, truth_labels = truth[wide].astype(np.float32, copy=False), truth_labels[wide]
    if len(truth) == 0:
        best = np.zeros(len(proposals), dtype=np.int32)
        is_foreground = np.zeros(len(proposals), dtype=bool)
        is_background = ~is_foreground
    else:
        best, overlap = best_objects(np.concatenate([truth, proposals]), truth)
        is_foreground = overlap >= np.float32(foreground_iou)
        is_background = ~is_foreground & (overlap >= np.float32(background_low))
    foreground, background = map(np.flatnonzero, (is_foreground, is_background))
    return RoiEntry(
        record, truth, truth_labels, proposals,
        *(rows.astype(np.int32) for rows in (best, foreground, background)),
    )  # fmt: skip


def build_roidb(
    records: list[ImageRecord], proposals: ProposalStore, config: ResolvedConfig
) -> tuple[list[RoiEntry], list[str]]:
    """Entries of all images, and the ids of images left out because no RoI of theirs is usable.

    Raises:
        ValueError: an image has no proposals in the file (named), or nothing is left to train on.
    """
    entries, unusable = [], []
    for record in records:
        entry = build_entry(
            record,
            proposals[record.image_id],
            foreground_iou=config.foreground_iou,
            background_low=config.background_low,
        )
        if len(entry.foreground) + len(entry.background):
            entries.append(entry)
        else:
            unusable.append(record.image_id)
    if not any(len(entry.foreground) for entry in entries):
        raise ValueError(
            f"none of the {len(records)} images has an object to train on; "
            "check the split and the class names"
        )
    return entries, unusable


def images_of_batch(iteration: int, entries: int, config: TrainConfig) -> list[tuple[int, bool]]:
    """(entry index, flipped) of each image of a batch.

    With ``config.flip`` every image is there twice, once mirrored, as two independent entries
    (the paper's probability of one half). The stream of images is one random permutation after
    another, each image once in each. (The author's code drops the last batch of a permutation.)
    """
    length = entries * (2 if config.flip else 1)
    chosen = []
    start = iteration * config.images_per_batch
    for position in range(start, start + config.images_per_batch):
        epoch, place = divmod(position, length)
        index = int(_order_of_images(config.seed, epoch, length)[place])
        chosen.append((index % entries, index >= entries))
    return chosen


@lru_cache(maxsize=4)  # else COCO's 236 000 would be permuted anew for each image
def _order_of_images(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(length)


def sample_rows(entry: RoiEntry, rng: np.random.Generator, config: TrainConfig) -> np.ndarray:
    """Draw the RoIs of one image without replacement: row numbers, foreground rows first.

    At most ``round(fraction * R/N)`` foreground rows, halves rounded to even (Python's and
    NumPy's round). Background fills up to R/N. What is missing is not replaced: the batch is then
    smaller, and the losses divide by its real size, as in the original code.
    """
    per_image = config.rois_per_batch // config.images_per_batch
    wanted = min(round(config.foreground_fraction * per_image), len(entry.foreground))
    foreground = rng.choice(entry.foreground, wanted, replace=False)
    wanted = min(per_image - wanted, len(entry.background))
    background = rng.choice(entry.background, wanted, replace=False)
    return np.concatenate([foreground, background])


def sample_batch(
    iteration: int, entries: list[RoiEntry], config: TrainConfig
) -> list[tuple[RoiEntry, bool, np.ndarray]]:
    """(entry, flipped, drawn rows) of each image of batch 0, 1, 2, ..."""
    rng = np.random.default_rng([config.seed, 1, iteration])
    return [
        (entries[index], flipped, sample_rows(entries[index], rng, config))
        for index, flipped in images_of_batch(iteration, len(entries), config)
    ]


def levels_of_batch(iteration: int, levels: int, config: TrainConfig) -> list[int]:
    """The level of the image pyramid, 0 .. levels - 1, that each image of a batch is scaled to.

    Drawn uniformly for each image and iteration (paper 5.2; original code, minibatch.py), from a
    stream of its own: the images and RoIs of a batch are the same whatever the scales are.
    """
    rng = np.random.default_rng([config.seed, 2, iteration])
    return rng.integers(levels, size=config.images_per_batch).tolist()


def drawn_boxes(
    entry: RoiEntry, flipped: bool, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (r, 4), labels (r,) and matched objects (r, 4) of drawn rows, mirrored if asked."""
    boxes, matched = entry.boxes[rows], entry.matched[rows]
    if flipped:
        width = entry.record.width
        boxes, matched = flip_boxes(boxes, width), flip_boxes(matched, width)
    return boxes, entry.labels[rows], matched
