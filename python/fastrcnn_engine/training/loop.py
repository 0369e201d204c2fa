"""The training loop of Fast R-CNN: one stage, one loss, nothing cached on disk (paper 2.3)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fastrcnn_engine.data.images import Preprocessing, batch_images, load_image, prepare_image
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import ImageRecord
from fastrcnn_engine.models import FastRCNN, LayerChange, build_network, transform_pretrained
from fastrcnn_engine.ops import smooth_l1
from fastrcnn_engine.training.checkpoint import (
    load_checkpoint,
    load_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from fastrcnn_engine.training.config import TrainConfig, checked_device
from fastrcnn_engine.training.interrupt import Interrupt
from fastrcnn_engine.training.progress import ProgressLine
from fastrcnn_engine.training.sampling import (
    RoiEntry,
    build_roidb,
    drawn_boxes,
    levels_of_batch,
    sample_batch,
)
from fastrcnn_engine.training.targets import normalised_targets, target_statistics


@dataclass(frozen=True)
class Batch:
    """What one iteration learns from. N images, R RoIs."""

    images: torch.Tensor  # (N, 3, H, W) float32, prepared
    rois: torch.Tensor  # (R, 5) float32, image index and box in pixels of `images`
    labels: torch.Tensor  # (R,) int64, 0 is background
    targets: torch.Tensor  # (R, 4) float32, normalised
    image_ids: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        moved = (t.to(device) for t in (self.images, self.rois, self.labels, self.targets))
        return Batch(*moved, self.image_ids)


@dataclass(frozen=True)
class TrainResult:
    """Where a run left its files, and what a caller may want to show."""

    model: FastRCNN
    checkpoint: Path
    log: Path
    iterations: int
    problems: list[str]  # bad boxes of the data set, one line each
    unusable: list[str]  # ids of images without any usable RoI
    layers: list[LayerChange]  # what became of each pre-trained layer; empty without weights


class ImageCache:
    """Decoded images (H, W, 3) uint8, kept in memory until ``limit`` bytes are spent."""

    def __init__(self, limit: int):
        self.left = limit
        self.images: dict[str, np.ndarray] = {}

    def __getitem__(self, record: ImageRecord) -> np.ndarray:
        image = self.images.get(record.image_id)
        if image is None:
            image = load_image(record.image_path)
            if image.nbytes <= self.left:
                self.left -= image.nbytes
                self.images[record.image_id] = image
        return image


def make_batch(
    iteration: int, entries: list[RoiEntry], cache: ImageCache, model: FastRCNN, config: TrainConfig
) -> Batch:
    """Prepare batch 0, 1, 2, ... on the CPU; a function of (config.seed, iteration) alone."""
    mean = model.delta_mean.view(-1, 4).cpu().numpy()
    std = model.delta_std.view(-1, 4).cpu().numpy()
    levels = model.preprocessing.levels()
    drawn_levels = levels_of_batch(iteration, len(levels), config)
    images, rois, labels, targets, ids = [], [], [], [], []
    for n, (entry, flipped, rows) in enumerate(sample_batch(iteration, entries, config)):
        image, scale = prepare_image(cache[entry.record], levels[drawn_levels[n]], flip=flipped)
        boxes, label, matched = drawn_boxes(entry, flipped, rows)
        images.append(image)
        # The product is taken in float64 and stored as float32, not rounded to whole pixels
        # (original code, lib/roi_data_layer/minibatch.py).
        rois.append(np.insert(boxes.astype(np.float64) * scale, 0, n, axis=1).astype(np.float32))
        labels.append(label)
        # Targets are ratios of box sizes: the unscaled boxes serve as well.
        targets.append(normalised_targets(boxes, matched, label, mean, std))
        ids.append(entry.record.image_id)
    return Batch(
        batch_images(images),
        torch.from_numpy(np.concatenate(rois)),
        torch.from_numpy(np.concatenate(labels)),
        torch.from_numpy(np.concatenate(targets)),
        tuple(ids),
    )


# What keeps its weights when only one task is learned. A frozen head drops no features either.
FROZEN_BY_TASKS = {
    "both": (),
    "classification": ("bbox_pred",),
    "boxes": ("backbone", "head", "cls_score"),
}


def multi_task_loss(
    logits: torch.Tensor,
    deltas: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor,
    tasks: str = "both",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classification and localisation loss of R RoIs (paper equations 1 to 3, lambda = 1).

    Both are divided by R, background RoIs included, as in the author's code. A task that is not
    learned has the loss 0, without a gradient.

    Args:
        logits: (R, K+1). deltas: (R, 4(K+1)), normalised. labels: (R,) int64, 0 is background.
        targets: (R, 4), normalised; background rows do not count.
        tasks: as in TrainConfig.
    """
    none = logits.new_zeros(())
    return (
        none if tasks == "boxes" else F.cross_entropy(logits, labels),
        none if tasks == "classification" else smooth_l1(deltas, targets, labels),
    )


def build_optimiser(model: FastRCNN, config: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum over everything that is not frozen (paper 2.3).

    Weights decay; biases learn at twice the rate and do not decay, as in the author's code (the
    paper says both decay). Gains of normalisation layers learn at the base rate without decay.
    torch keeps the learning rate outside the velocity, Caffe inside: after a drop of the rate the
    step shrinks at once here, and over some ten iterations there.
    """
    weights, biases, gains = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("bias"):
            biases.append(parameter)
        else:
            (gains if parameter.ndim < 2 else weights).append(parameter)
    groups = [
        {"params": weights, "rate_factor": 1.0, "weight_decay": config.weight_decay},
        {"params": biases, "rate_factor": 2.0, "weight_decay": 0.0},
        {"params": gains, "rate_factor": 1.0, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


def settled(config: TrainConfig) -> TrainConfig:
    """The settings a run will have: recipe values filled in, everything checked but the data.

    A run that is resumed keeps the steps of its learning rate unless ``config`` names others: a
    longer run must not move the drops that have been or were to come.

    Raises:
        ValueError: a bad setting, no such device, no weights file, no checkpoint to resume.
    """
    resolved = config.resolved()
    checked_device(config.device)
    checkpoint = config.output / "checkpoint.pt"
    if config.resume:
        if not checkpoint.is_file():
            raise ValueError(f"resume: checkpoint {checkpoint} does not exist")
        if config.learning_rate_steps is None:
            steps = load_checkpoint(checkpoint)["config"]["learning_rate_steps"]
            resolved = dataclasses.replace(resolved, learning_rate_steps=tuple(steps))
    elif config.weights is not None and not config.weights.is_file():
        raise ValueError(f"weights file {config.weights} does not exist")
    elif config.init is not None and not config.init.is_file():
        raise ValueError(f"init: checkpoint {config.init} does not exist")
    return resolved


def train(
    config: TrainConfig,
    *,
    model: FastRCNN | None = None,
    progress: bool = True,
    on_log: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train a detector and leave ``checkpoint.pt`` and ``log.jsonl`` in ``config.output``.

    Args:
        config: all settings; see TrainConfig.
        model: a network of your own to train instead of ``config.network``, whose recipe is used
            all the same. Its image size is taken from ``config``, and what ``config.tasks`` does
            not learn is frozen.
        progress: show a live line with the losses, the speed and the time left.
        on_log: called with each line of the log, a dict: iteration, loss, loss_cls, loss_box,
            learning_rate, images_per_second, foreground, rois (the last two: mean per batch).

    Raises:
        ValueError: a bad setting, missing proposals (image named), a checkpoint that does not
            belong to this run.
        FloatingPointError: the loss is not finite; the iteration and its images are named.
        KeyboardInterrupt: after Ctrl-C, once the iteration is done and a checkpoint is written.
    """
    config = settled(config)
    device = checked_device(config.device)
    if model is not None and config.weights is not None:
        raise ValueError(
            f"weights is {str(config.weights)!r}; load those of a model of your own before the "
            "training"
        )
    if model is not None and config.freeze_to is not None:
        raise ValueError(
            f"freeze_to is {config.freeze_to!r}; a model of your own has its frozen layers already"
        )
    checkpoint, log = config.output / "checkpoint.pt", config.output / "log.jsonl"
    dataset = load_dataset(config.data, config.split, config.classes)
    store = ProposalStore(config.proposals)
    entries, unusable = build_roidb(dataset.records, store, config)
    learned_from = data_fingerprint(dataset.records, store)

    torch.manual_seed(config.seed)
    layers: list[LayerChange] = []
    if model is None:
        model = build_network(config.network, dataset.classes, freeze_to=config.freeze_to)
        if config.weights is not None and not config.resume:
            layers = transform_pretrained(model, config.weights, config.weights_style)
    elif model.classes != dataset.classes:
        raise ValueError(f"the model knows {model.classes}, the data set has {dataset.classes}")
    if config.init is not None and not config.resume:
        _start_from(config.init, model)
    model.box_regression = config.tasks != "classification"
    model.freeze(FROZEN_BY_TASKS[config.tasks])
    model.preprocessing = dataclasses.replace(
        model.preprocessing, short_side=config.short_side, max_side=config.max_side
    )
    mean, std = target_statistics(entries, len(dataset.classes), flip=config.flip)
    model.delta_mean.copy_(torch.from_numpy(mean).flatten())
    model.delta_std.copy_(torch.from_numpy(std).flatten())
    model.to(device).train()
    optimiser = build_optimiser(model, config)
    # Statistics over a single RoI do not exist; a frozen layer keeps the ones it has.
    normalises_rois = any(
        isinstance(m, torch.nn.BatchNorm1d) and m.training for m in model.modules()
    )

    start = 0
    if config.resume:
        start = _resume(checkpoint, model, optimiser, config, learned_from, device)
    _open_log(log, start)
    cache = ImageCache(config.cache_megabytes * 2**20)
    meter = Meter()

    def prepare(iteration: int) -> Batch:
        return make_batch(iteration, entries, cache, model, config)

    with ExitStack() as stack:
        line = stack.enter_context(ProgressLine(start, config.iterations, enabled=progress))
        log_file = stack.enter_context(open(log, "a", encoding="utf-8"))
        # One batch ahead, so that decoding and resizing overlap with learning.
        ahead = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        interrupt = stack.enter_context(Interrupt())
        upcoming = ahead.submit(prepare, start) if start < config.iterations else None
        for iteration in range(start, config.iterations):
            batch = upcoming.result().to(device)
            if normalises_rois and len(batch.labels) < 2:
                raise ValueError(
                    f"iteration {iteration + 1}: the batch of {', '.join(batch.image_ids)} has "
                    f"{len(batch.labels)} RoI; {model.name} normalises over the RoIs and needs "
                    "two. Give more proposals, a larger rois_per_batch or a lower background_low"
                )
            if iteration + 1 < config.iterations:
                upcoming = ahead.submit(prepare, iteration + 1)

            rate = config.learning_rate_at(iteration)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["rate_factor"]
            logits, deltas = model(batch.images, batch.rois)
            loss_cls, loss_box = multi_task_loss(
                logits, deltas, batch.labels, batch.targets, config.tasks
            )
            loss = loss_cls + loss_box
            if not math.isfinite(loss.item()):
                raise FloatingPointError(
                    f"the loss is {loss.item()} in iteration {iteration + 1} "
                    f"(classification {loss_cls.item()}, boxes {loss_box.item()}) on images "
                    f"{', '.join(batch.image_ids)}; lower learning_rate, or look at these images "
                    f"and their boxes. The last checkpoint in {config.output} is untouched."
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()

            done = iteration + 1
            meter.add(loss_cls.item(), loss_box.item(), batch)
            line.update(done, meter.loss, rate)
            if done % config.log_every == 0 or done == config.iterations:
                entry = {"iteration": done, **meter.read(), "learning_rate": rate}
                log_file.write(json.dumps(entry) + "\n")
                log_file.flush()
                if on_log is not None:
                    on_log(entry)
            stop = interrupt.asked  # asked once: it may change while the checkpoint is written
            if stop or done % config.checkpoint_every == 0 or done == config.iterations:
                save_checkpoint(
                    checkpoint,
                    model,
                    optimiser=optimiser.state_dict(),
                    iteration=done,
                    # The sampler and the schedule are functions of config and iteration.
                    config=config.to_dict(),
                    learned_from=learned_from,
                    random_state=random_state(device),
                )
            if stop:
                raise KeyboardInterrupt(f"resume goes on from iteration {done}")
    return TrainResult(
        model.eval(), checkpoint, log, config.iterations, dataset.problems, unusable, layers
    )


class Meter:
    """Means since the last line of the log."""

    def __init__(self):
        self.loss = math.nan  # of the last batch
        self._clear()

    def _clear(self) -> None:
        self.cls = self.box = 0.0
        self.batches = self.images = self.rois = self.foreground = 0
        self.started = time.perf_counter()

    def add(self, loss_cls: float, loss_box: float, batch: Batch) -> None:
        self.loss = loss_cls + loss_box
        self.cls += loss_cls
        self.box += loss_box
        self.batches += 1
        self.images += len(batch.images)
        self.rois += len(batch.labels)
        self.foreground += int((batch.labels > 0).sum())

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        means = {
            "loss": (self.cls + self.box) / self.batches,
            "loss_cls": self.cls / self.batches,
            "loss_box": self.box / self.batches,
            "images_per_second": self.images / seconds,
            "foreground": self.foreground / self.batches,
            "rois": self.rois / self.batches,
        }
        self._clear()
        return means


def data_fingerprint(records: list[ImageRecord], proposals: ProposalStore) -> str:
    """A short hash of what is learned from: image ids, ground truth, boxes proposed per image."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(f"{record.image_id} {len(proposals[record.image_id])}\n".encode())
        digest.update(record.boxes.tobytes() + record.labels.tobytes())
        if record.crowd.any():
            digest.update(record.crowd.tobytes())
    return digest.hexdigest()[:16]


# Settings that may differ between a run and its continuation. A run may become longer and its files
# may move: what is in the data is compared by its fingerprint, and the weights were read already.
FREE_ON_RESUME = {"output", "device", "resume", "iterations", "log_every", "checkpoint_every",
                  "cache_megabytes", "data", "proposals", "weights", "weights_style",
                  "init"}  # fmt: skip


def _start_from(path: Path, model: FastRCNN) -> None:
    """Copy the weights of a checkpoint, and the preprocessing they are used to, into ``model``."""
    content = load_checkpoint(path)
    if content["network"]["classes"] != list(model.classes):
        raise ValueError(
            f"init: {path} knows {content['network']['classes']}, the data set has "
            f"{list(model.classes)}"
        )
    load_weights(model, content, path)
    model.preprocessing = Preprocessing.from_dict(content["network"]["preprocessing"])


def _resume(
    path: Path,
    model: FastRCNN,
    optimiser: torch.optim.Optimizer,
    config: TrainConfig,
    learned_from: str,
    device: torch.device,
) -> int:
    """Load a checkpoint into model, optimiser and generators; return the iteration it was at."""
    content = load_checkpoint(path)
    now = config.to_dict()
    # A setting that the checkpoint is older than has the value it always had, its default.
    before = TrainConfig(config.data, config.proposals).to_dict() | content["config"]
    changed = [
        f"{key} was {before.get(key)!r}, is {now[key]!r}"
        for key in now
        if key not in FREE_ON_RESUME and before.get(key) != now[key]
    ]
    if content["network"]["classes"] != list(model.classes):
        changed.append(f"classes were {content['network']['classes']}, are {list(model.classes)}")
    if content.get("learned_from") != learned_from:
        changed.append("images, objects or numbers of proposals are not those it learned from")
    if changed:
        raise ValueError(
            f"cannot resume from {path}: {'; '.join(changed)}. Give the same settings, or another "
            "output directory for a new run"
        )
    load_weights(model, content, path)
    # Pre-trained weights brought their own with them.
    model.preprocessing = Preprocessing.from_dict(content["network"]["preprocessing"])
    optimiser.load_state_dict(content["optimiser"])
    restore_random_state(content["random_state"], device)
    return content["iteration"]


def _open_log(path: Path, start: int) -> None:
    """Empty the log of a new run; of a resumed one, drop the lines after the checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if start and path.is_file() else ""
    # What follows the last line's end was cut off when the run was killed.
    lines = text.rpartition("\n")[0].splitlines()
    kept = [line for line in lines if json.loads(line)["iteration"] <= start]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
