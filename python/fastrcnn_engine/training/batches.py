"""From a sampled batch to tensors, ahead of the training that waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch
import torch.nn.functional as F

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.preparation import batch_images, prepare_image
from fastrcnn_engine.data.records import ImageRecord
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.training.config import TrainConfig
from fastrcnn_engine.training.distributed import Processes
from fastrcnn_engine.training.interrupt import Interrupt, Stopped
from fastrcnn_engine.training.sampling import (
    RoiEntry,
    drawn_boxes,
    levels_of_batch,
    sample_batch,
    sample_rows,
)
from fastrcnn_engine.training.targets import normalised_targets


@dataclass(frozen=True)
class Batch:
    """What one iteration learns from. N images, R RoIs."""

    images: torch.Tensor  # (N, 3, H, W) float32, prepared
    rois: torch.Tensor  # (R, 5) float32, image index and box in pixels of `images`
    labels: torch.Tensor  # (R,) int64, 0 is background
    targets: torch.Tensor  # (R, 4) float32, normalised
    image_ids: tuple[str, ...]
    skipped: tuple[str, ...] = ()  # images that could not be read: "id: why"
    counts: tuple[int, ...] = ()  # RoIs of each of its parts, by take_together of all processes

    def to(self, device: torch.device) -> Batch:
        tensors = ("images", "rois", "labels", "targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})

    def padded(self, height: int, width: int) -> Batch:
        """Zeros right and below, up to H = ``height`` and W = ``width``."""
        missing = (0, width - self.images.shape[3], 0, height - self.images.shape[2])
        return replace(self, images=F.pad(self.images, missing)) if any(missing) else self

    def parts(self, count: int) -> list[Batch]:
        """The same images in ``count`` smaller batches of equal numbers, sizes as they are."""
        if count == 1:
            return [self]
        size = len(self.images) // count
        found = []
        for first in range(0, len(self.images), size):
            own = (self.rois[:, 0] >= first) & (self.rois[:, 0] < first + size)
            rois = self.rois[own]
            rois[:, 0] -= first
            images, ids = self.images[first : first + size], self.image_ids[first : first + size]
            found.append(Batch(images, rois, self.labels[own], self.targets[own], ids))
        return found


class ImageCache:
    """Decoded images (H, W, 3) uint8, kept in memory until ``limit`` bytes are spent."""

    def __init__(self, limit: int):
        self.left, self.lock = limit, Lock()
        self.images: dict[str, np.ndarray] = {}

    def __getitem__(self, record: ImageRecord) -> np.ndarray:
        image = self.images.get(record.image_id)
        if image is None:
            image = load_image(record.image_path)
            with self.lock:
                # Of several threads that missed the same image one keeps it.
                if image.nbytes <= self.left and record.image_id not in self.images:
                    self.images[record.image_id] = image
                    self.left -= image.nbytes
        return image


def make_batch(
    iteration: int,
    entries: list[RoiEntry],
    cache: ImageCache,
    model: FastRCNN,
    config: TrainConfig,
    *,
    process: int = 0,
    processes: int = 1,
) -> Batch:
    """Prepare batch 0, 1, 2, ... on the CPU; a function of (config.seed, iteration) alone.

    Of several processes each prepares its share, consecutive images of the batch.

    Raises:
        FileNotFoundError, ValueError: an image that cannot be read; with ``on_bad_image`` "skip"
            only if there is no other.
    """
    mean = model.delta_mean.view(-1, 4).cpu().numpy()
    std = model.delta_std.view(-1, 4).cpu().numpy()
    levels = model.preprocessing.levels()
    drawn_levels = levels_of_batch(iteration, len(levels), config)
    sampled = sample_batch(iteration, entries, config)
    share = len(sampled) // processes
    images, rois, labels, targets, ids, skipped = [], [], [], [], [], []
    for n, place in enumerate(range(process * share, (process + 1) * share)):
        entry, flipped, rows = sampled[place]
        try:
            pixels = cache[entry.record]
        except (OSError, ValueError) as error:
            if config.on_bad_image == "stop":
                raise
            skipped.append(f"{entry.record.image_id}: {error}")
            rng = np.random.default_rng([config.seed, 3, iteration, place])
            entry, pixels = _another(entries, cache, rng)
            rows = sample_rows(entry, rng, config)
        image, scale = prepare_image(pixels, levels[drawn_levels[place]], flip=flipped)
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
        tuple(skipped),
    )


def _another(
    entries: list[RoiEntry], cache: ImageCache, rng: np.random.Generator
) -> tuple[RoiEntry, np.ndarray]:
    """An image drawn from all, in place of one that cannot be read."""
    for index in rng.permutation(len(entries)).tolist():
        try:
            return entries[index], cache[entries[index].record]
        except (OSError, ValueError):
            continue  # it is told of when its own turn comes
    raise ValueError(f"none of the {len(entries)} images can be read")


class Loader:
    """Batches ``start`` to ``stop - 1`` in order, ``threads`` of them prepared ahead.

    So decoding and resizing overlap with learning. Leaving the block waits for nothing but the
    batches in work.
    """

    def __init__(self, prepare: Callable[[int], Batch], start: int, stop: int, *, threads: int):
        self.prepare = prepare
        self.coming = iter(range(start, stop))
        self.pool = ThreadPoolExecutor(max_workers=threads)
        self.ahead: deque[Future[Batch]] = deque()
        for _ in range(threads):
            self._ask()

    def _ask(self) -> None:
        for iteration in self.coming:
            self.ahead.append(self.pool.submit(self.prepare, iteration))
            break

    def take(self) -> Batch:
        """The next batch. Raises what preparing it raised."""
        batch = self.ahead.popleft().result()
        self._ask()
        return batch

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.pool.shutdown(cancel_futures=True)


def take_together(
    loader: Loader, processes: Processes, parts: int, iteration: int, interrupt: Interrupt
) -> Batch | BaseException:
    """This process's share of the next batch, or what ends the run, of all processes at once.

    Padding, ``counts`` and ``skipped`` are those of the whole batch, whoever works on it.
    """
    batch, failure = None, None
    try:
        batch = loader.take()
    except (OSError, ValueError) as error:
        failure = error
    facts = [0] * (3 + parts)
    if batch is not None:
        sizes = [len(part.labels) for part in batch.parts(parts)]
        facts = [*batch.images.shape[2:], len(batch.skipped), *sizes]
    everyone = processes.all([*facts, interrupt.asked, failure is not None])
    heights, widths, skipped, *counts, asked, failed = zip(*everyone, strict=True)
    if any(failed):
        told = failure or f"process {failed.index(1)} could not make its batch and says why"
        since = f"; stopped after iteration {iteration}, --resume goes on from there"
        kind = OSError if failure is None or isinstance(failure, OSError) else ValueError
        end = kind(f"{told}{since if iteration else ''}")
        end.__cause__ = failure
        return end
    if any(asked):
        return Stopped(f"resume goes on from iteration {iteration}", max(asked))
    assert batch is not None  # what kept it away has been returned
    return replace(
        batch.padded(max(heights), max(widths)),
        skipped=sum(processes.gathered(batch.skipped), ()) if any(skipped) else (),
        counts=tuple(map(sum, counts)),
    )
