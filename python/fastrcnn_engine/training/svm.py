"""Linear SVMs in place of the softmax (paper 5.4, table 8; original code, tools/train_svms.py).

One SVM for each class learns from the features of a trained network, what objects of the class look
like against everything that hardly overlaps one. That is far too much to hold, so one pass over the
images picks the hard negatives: those the SVM of the moment does not score clearly below -1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.progress import counted
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import ImageRecord
from fastrcnn_engine.evaluation.detect import proposal_features
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.training.sampling import best_objects, without_crowds

# All of them the original's.
MEAN_NORM = 20.0  # features are scaled to this mean length: C belongs to it
NORM_IMAGES = 100  # drawn to measure their length
C = 0.001
POSITIVE_WEIGHT = 2.0
BIAS_FEATURE = 10.0  # the bias is the weight of one more feature that always has this value
NEGATIVE_IOU = 0.3
HARD_SCORE = -1.0001  # a negative above it is hard
RETRAIN_AFTER = 2000  # hard negatives
EVICT_SCORE = -1.1  # after a training, negatives below it are let go


class LinearSVM:
    """The SVM of one class, and the examples it learns from.

    ``weight`` (F,) and ``bias`` are 0 until the first ``fit``, which makes every negative hard.
    """

    def __init__(self, positives: np.ndarray, *, evict_score: float = EVICT_SCORE):
        """positives: (P, F) float32, scaled. evict_score: R-CNN and SPPnet have -1.2."""
        self.positives = positives
        self.negatives = positives[:0]
        self.weight = np.zeros(positives.shape[1])
        self.bias = 0.0
        self.evict_score = evict_score
        self.fits = 0
        self._new = 0

    def scores(self, features: np.ndarray) -> np.ndarray:
        """(P, F) -> (P,)."""
        return features @ self.weight + self.bias

    def mine(self, features: np.ndarray) -> None:
        """Take the hard ones of these negatives (P, F); train again once there are many."""
        if len(self.positives) == 0:
            return
        hard = features[self.scores(features) > HARD_SCORE]
        if len(hard) == 0:
            return
        self.negatives = np.concatenate([self.negatives, hard])
        self._new += len(hard)
        if self._new > RETRAIN_AFTER:
            self.fit()

    def fit(self) -> None:
        """Train on all positives and the negatives held, then let the easy ones of these go.

        A class without positives scores -inf from then on, which is never a detection; one without
        negatives stays as it is.
        """
        from sklearn.svm import LinearSVC

        self.fits += 1
        self._new = 0
        if len(self.positives) == 0:
            self.bias = -np.inf
            return
        if len(self.negatives) == 0:
            return
        # liblinear's own solver of the hinge loss. It visits examples in an order it draws.
        solver = LinearSVC(
            loss="hinge",
            dual=True,  # pyright: ignore[reportArgumentType]  # told from scikit-learn's "auto"
            C=C,
            class_weight={1: POSITIVE_WEIGHT},
            intercept_scaling=BIAS_FEATURE,  # pyright: ignore[reportArgumentType]  # likewise, 1
            max_iter=10_000,
            random_state=0,
        )
        labels = np.repeat([1, -1], [len(self.positives), len(self.negatives)])
        solver.fit(np.concatenate([self.positives, self.negatives]), labels)
        intercept: Any = solver.intercept_  # an array, once it is fitted
        self.weight, self.bias = solver.coef_[0], float(intercept[0])
        self.negatives = self.negatives[self.scores(self.negatives) >= self.evict_score]


def fit_svms(
    positives: Sequence[np.ndarray],
    images: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    evict_score: float = EVICT_SCORE,
) -> list[LinearSVM]:
    """One SVM for each of K classes, hard negatives mined in one pass over the images.

    Args:
        positives: features (P_k, F) of the objects of each class, scaled.
        images: of one image at a time, scaled features (P, F) of its boxes, and (P, K) bool: which
            of them are negatives of which class.
        evict_score: as for LinearSVM.

    Returns:
        The K trained SVMs.
    """
    svms = [LinearSVM(own, evict_score=evict_score) for own in positives]
    for features, negative in images:
        for svm, rows in zip(svms, negative.T, strict=True):
            svm.mine(features[rows])
    for svm in svms:
        svm.fit()
    return svms


def negatives_of(boxes: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Which boxes (P, 4) of an image are negatives of which class, (P, K) bool.

    Those whose IoU with the class is below 0.3. As in the original code a box overlaps with the
    class of its best object alone (the first on ties): for every other class it is a negative,
    whatever it overlaps. R-CNN looked at all objects of the class. The objects are the first of the
    boxes, and of the class that `labels` (G,) says, also where two share one box.
    """
    overlap = np.zeros((len(boxes), classes + 1), np.float32)
    if len(labels):
        best, iou = best_objects(boxes, boxes[: len(labels)])
        overlap[np.arange(len(boxes)), labels[best]] = iou
    return overlap[:, 1:] < np.float32(NEGATIVE_IOU)


@dataclass(frozen=True)
class SVMReport:
    """What the SVM of one class learned from."""

    name: str
    objects: int
    negatives: int
    """Hard ones, held at the end."""
    fits: int
    """How often it was trained."""


def train_svms(
    model: FastRCNN, records: Sequence[ImageRecord], proposals: ProposalStore, *, seed: int = 3
) -> list[SVMReport]:
    """Put linear SVMs into the place of the network's softmax: new weights of ``cls_score``.

    Afterwards ``model.classifier`` is "svm" and the scores of ``cls_score`` are the SVMs' own, with
    0 for the background. Nothing else of the network changes. Images are not mirrored; objects
    marked difficult count like any other, as in the original code; crowds are left out.

    Args:
        model: trained, in evaluation mode.
        records: the images it was trained on.
        proposals: of each of them; the objects themselves join them.
        seed: of the images that the length of the features is measured on.

    Raises:
        ValueError: SVMs already, no objects at all, features that are all 0, or as
            ``evaluation.detect.detect_image``.
    """
    if model.classifier == "svm":
        raise ValueError("the network scores by SVMs already; take the one they were made of")
    if not any((~record.crowd).any() for record in records):
        raise ValueError(f"none of the {len(records)} images has an object to train on")

    def features_of(record: ImageRecord, boxes: np.ndarray) -> np.ndarray:
        return proposal_features(model, load_image(record.image_path), boxes)

    def boxes_of(record: ImageRecord) -> tuple[np.ndarray, np.ndarray]:
        """Objects and then proposals, and the labels of the objects."""
        objects, labels, own = without_crowds(record, proposals[record.image_id])
        return np.concatenate([objects, own]), labels

    drawn = np.random.default_rng(seed).permutation(len(records))[:NORM_IMAGES]
    with counted(drawn.tolist(), "length of the features", len(drawn)) as some:
        lengths = [
            np.linalg.norm(features_of(records[i], boxes_of(records[i])[0]), axis=1) for i in some
        ]
    length = float(np.concatenate(lengths).mean())
    if not length > 0:
        raise ValueError("the features of the network are 0 wherever one looks; is it trained?")
    scale = np.float32(MEAN_NORM / length)

    classes = len(model.classes)
    objects: list[list[np.ndarray]] = [[] for _ in range(classes)]
    with counted(records, "objects", len(records)) as each:
        for record in each:
            boxes, labels, _ = without_crowds(record, proposals[record.image_id])
            features = features_of(record, boxes) * scale
            for row, label in zip(features, labels.tolist(), strict=True):
                objects[label - 1].append(row)
    width = model.cls_score.in_features
    positives = [np.array(rows, np.float32).reshape(-1, width) for rows in objects]

    def candidates(record: ImageRecord) -> tuple[np.ndarray, np.ndarray]:
        boxes, labels = boxes_of(record)
        return features_of(record, boxes) * scale, negatives_of(boxes, labels, classes)

    with counted(records, "hard negatives", len(records)) as each:
        svms = fit_svms(positives, map(candidates, each))
    with torch.no_grad():
        model.cls_score.weight.zero_()
        model.cls_score.bias.zero_()
        for label, svm in enumerate(svms, start=1):
            # The network's features are not scaled: its weights are.
            model.cls_score.weight[label] = torch.from_numpy(svm.weight * scale)
            model.cls_score.bias[label] = svm.bias
    model.classifier = "svm"
    return [
        SVMReport(name, len(svm.positives), len(svm.negatives), svm.fits)
        for name, svm in zip(model.classes, svms, strict=True)
    ]
