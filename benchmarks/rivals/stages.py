"""The training stages that R-CNN and SPPnet share: fine-tuning, SVMs, box regressors.

Both learn in stages from features of boxes that were pooled beforehand. They differ in where these
come from; here that is a function, `pooled_of(number of the image) -> (G + P, D)`, objects first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from sklearn.linear_model import Ridge
from torch import nn

from fastrcnn_engine import box_iou, clip_boxes_to_image, decode_boxes, encode_boxes, nms
from fastrcnn_engine.data.voc import ImageRecord
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.training import TrainConfig
from fastrcnn_engine.training.loop import build_optimiser
from fastrcnn_engine.training.sampling import RoiEntry, build_entry
from fastrcnn_engine.training.svm import MEAN_NORM, NEGATIVE_IOU, fit_svms

BATCH, POSITIVES = 128, 32  # windows of an iteration, and how many of them are objects
EVICT_SCORE = -1.2
NORM_IMAGES = 200
PooledOf = Callable[[int], torch.Tensor]


@dataclass
class Job:
    """What every mode gets: the same images, proposals, settings and start."""

    records: Sequence[ImageRecord]
    images: dict[str, np.ndarray]  # decoded, by id
    proposals: dict[str, np.ndarray]  # (P, 4) by image id
    config: TrainConfig  # resolved
    model: FastRCNN  # pre-trained convolutions, new fully connected layers
    folder: Path  # for what a mode keeps on disk; empty

    def boxes(self, number: int) -> np.ndarray:
        """Objects and proposals of an image, (G + P, 4)."""
        record = self.records[number]
        return np.concatenate([record.boxes, self.proposals[record.image_id]])

    def entries(self, foreground_iou: float, background_low: float) -> list[RoiEntry]:
        limits = {"foreground_iou": foreground_iou, "background_low": background_low}
        return [build_entry(r, self.proposals[r.image_id], **limits) for r in self.records]


@dataclass
class Stages:
    """Time of each stage of a training, and how far it moved which layers."""

    model: FastRCNN
    seconds: dict[str, float] = field(default_factory=dict)
    moved: dict[str, dict[str, float]] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        before = {key: value.clone() for key, value in weights_of(self.model).items()}
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.moved[name] = relative_change(before, weights_of(self.model))


def weights_of(model: FastRCNN) -> dict[str, torch.Tensor]:
    """Weights of convolutions and of fc6 and fc7, without biases and gains."""
    parts = {"backbone": model.backbone, "head": model.head}
    return {
        f"{part}.{name}": parameter.detach()
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
        if parameter.ndim > 1
    }


def relative_change(
    before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]
) -> dict[str, float]:
    """|W - W before| / |W before| of each part of the network, such as backbone.stage8."""
    parts: dict[str, list[str]] = {}
    for name in before:
        parts.setdefault(".".join(name.split(".")[:2]), []).append(name)
    return {
        part: (
            sum(float((after[n] - before[n]).square().sum()) for n in names)
            / sum(float(before[n].square().sum()) for n in names)
        )
        ** 0.5
        for part, names in parts.items()
    }


def fine_tune(
    job: Job,
    entries: Sequence[RoiEntry],
    logits_of: Callable[[np.ndarray, np.random.Generator], torch.Tensor],
    title: str,
) -> None:
    """SGD on the classification loss of 128 windows an iteration, a quarter of them objects.

    The windows come from images all over the set, drawn with replacement, as R-CNN and SPPnet do.
    logits_of: (128, 2) rows of (image number, box number), and a generator -> (128, K+1).
    """
    model, config = job.model, job.config
    rng = np.random.default_rng(config.seed)
    kinds = [
        np.array([(i, row) for i, e in enumerate(entries) for row in rows(e)], np.int64)
        for rows in (lambda e: e.foreground, lambda e: e.background)
    ]
    counts = (POSITIVES, BATCH - POSITIVES)
    optimiser = build_optimiser(model, config)
    model.train()
    for iteration in track(range(config.iterations), title):
        chosen = np.concatenate(
            [kind[rng.integers(len(kind), size=n)] for kind, n in zip(kinds, counts, strict=True)]
        )
        labels = torch.tensor([entries[i].labels[row] for i, row in chosen])
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate_at(iteration) * group["rate_factor"]
        loss = F.cross_entropy(logits_of(chosen, rng), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    model.eval()


@torch.inference_mode()
def train_svms(job: Job, pooled_of: PooledOf) -> None:
    """One SVM for each class on fc7, as new weights of cls_score; see training/svm.py.

    Unlike Fast R-CNN's: a negative overlaps *every* object of the class by less than 0.3, and of
    negatives that overlap each other by more than 0.7 one is enough (SPPnet paper; for R-CNN it
    only saves time).
    """
    model = job.model
    classes = len(model.classes)

    def features_of(number: int) -> np.ndarray:
        return model.head(pooled_of(number)).numpy()

    numbers = range(len(job.records))
    lengths = [np.linalg.norm(features_of(i), axis=1) for i in numbers[:NORM_IMAGES]]
    scale = np.float32(MEAN_NORM / np.concatenate(lengths).mean())
    objects: list[list[np.ndarray]] = [[] for _ in range(classes)]
    for i in numbers:
        record = job.records[i]
        rows = features_of(i)[: len(record.boxes)] * scale
        for row, label in zip(rows, record.labels.tolist(), strict=True):
            objects[label - 1].append(row)
    width = model.cls_score.in_features
    positives = [np.array(rows, np.float32).reshape(-1, width) for rows in objects]

    def images() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for i in track(numbers, "SVMs"):
            boxes = job.boxes(i)
            one = np.zeros(len(boxes), bool)
            one[np.asarray(nms(boxes, np.ones(len(boxes), np.float32), 0.7))] = True
            yield features_of(i) * scale, one[:, None] & _negatives(boxes, job.records[i], classes)

    model.cls_score.weight.zero_()
    model.cls_score.bias.zero_()
    for label, svm in enumerate(fit_svms(positives, images(), evict_score=EVICT_SCORE), start=1):
        model.cls_score.weight[label] = torch.from_numpy(svm.weight * scale)
        model.cls_score.bias[label] = svm.bias


def _negatives(boxes: np.ndarray, record: ImageRecord, classes: int) -> np.ndarray:
    iou = np.asarray(box_iou(boxes, record.boxes, inclusive=True))
    of_class = record.labels == np.arange(1, classes + 1)[:, None]  # (K, G)
    overlap = np.where(of_class, iou[:, None], 0).max(axis=2, initial=0)  # (P, K)
    return overlap < np.float32(NEGATIVE_IOU)


@torch.inference_mode()
def train_regressors(job: Job, pooled_of: PooledOf, *, iou: float, penalty: float) -> nn.Linear:
    """Ridge regression of the boxes of each class on pooled features: D -> 4(K+1) deltas.

    Learns from proposals that overlap an object by at least `iou`. Features are scaled to a mean
    length of 20, targets whitened for each class; the bias is penalised like any weight.
    """
    entries = job.entries(iou, 0.0)
    examples: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    lengths = []
    for i, entry in enumerate(track(entries, "box regressors")):
        rows = entry.foreground[entry.foreground >= len(entry.record.boxes)]
        pooled = pooled_of(i).flatten(1).numpy()
        lengths.append(np.linalg.norm(pooled, axis=1))
        targets = np.asarray(encode_boxes(entry.matched[rows], entry.boxes[rows]))
        for label in np.unique(entry.labels[rows]).tolist():
            own = entry.labels[rows] == label
            examples.setdefault(label, []).append((pooled[rows[own]], targets[own]))
    scale = np.float32(MEAN_NORM / np.concatenate(lengths).mean())
    layer = nn.Linear(pooled.shape[1], 4 * (len(job.model.classes) + 1))
    layer.weight.zero_()
    layer.bias.zero_()
    for label, parts in examples.items():
        features, targets = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        features = np.hstack([features * scale, np.ones((len(features), 1), np.float32)])
        mean = targets.mean(axis=0)
        values, vectors = np.linalg.eigh((targets - mean).T @ (targets - mean) / len(targets))
        whiten = vectors * (values + 0.001) ** -0.5 @ vectors.T
        ridge = Ridge(alpha=penalty, fit_intercept=False)
        ridge.fit(features, (targets - mean) @ whiten)
        weights = np.linalg.inv(whiten) @ ridge.coef_  # (4, D + 1)
        rows = slice(4 * label, 4 * label + 4)
        layer.weight[rows] = torch.from_numpy(weights[:, :-1] * scale)
        layer.bias[rows] = torch.from_numpy(weights[:, -1] + mean)
    return layer


def scored_boxes(
    model: FastRCNN,
    regressors: nn.Linear,
    pooled: torch.Tensor,
    proposals: np.ndarray,
    size: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Clipped boxes (P, K+1, 4) and SVM scores (P, K+1) of proposals pooled to (P, ...)."""
    scores = model.cls_score(model.head(pooled)).numpy()
    deltas = regressors(pooled.flatten(1)).numpy()
    boxes = decode_boxes(deltas, np.ascontiguousarray(proposals)).reshape(*scores.shape, 4)
    return clip_boxes_to_image(boxes, size, inclusive=True), scores
