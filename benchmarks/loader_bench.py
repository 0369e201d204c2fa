"""How long the training loop waits for images: decoded by itself, or by 1 or 2 threads ahead of it.

    python benchmarks/loader_bench.py        # a minute or two; keep the machine quiet

Trains `tiny` on JPEG files of 640 x 480, none of them kept in memory (`--cache-megabytes 0`), as
`fastrcnn-engine train --loader-threads N --profile` does. Before that, batches alone, by one
thread, two threads and two processes in turns. Where two threads make as many as two processes,
which here need not even hand their batches over, Python's lock is not in the way.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore, write_proposals
from fastrcnn_engine.models import build_network
from fastrcnn_engine.training import TrainConfig, loop, train
from fastrcnn_engine.training.batches import Batch, ImageCache, make_batch
from fastrcnn_engine.training.sampling import build_roidb

WIDTH, HEIGHT = 640, 480
LOADER_THREADS = (0, 1, 2)
ROUNDS = 3  # of every kind of pool


class InTurn:
    """What `Loader` would be without threads: a batch is made when it is asked for."""

    def __init__(self, prepare: Callable[[int], Batch], start: int, stop: int, *, threads: int):
        self.coming = map(prepare, range(start, stop))

    def take(self) -> Batch:
        return next(self.coming)

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def write_images(root: Path, count: int) -> TrainConfig:
    """A COCO directory of pictures with as much detail as photos, a box in each, and proposals."""
    rng = np.random.default_rng(0)
    (root / "train").mkdir()
    (root / "annotations").mkdir()
    images, objects, proposals = [], [], {}
    for number in range(1, count + 1):
        pixels = np.zeros((HEIGHT, WIDTH, 3))
        for cell in (4, 16, 64):  # detail of several sizes
            small = rng.integers(0, 256, (HEIGHT // cell + 1, WIDTH // cell + 1, 3), np.uint8)
            pixels += np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.BICUBIC))
        name = f"{number:06}.jpg"
        Image.fromarray((pixels / 3).astype(np.uint8)).save(root / "train" / name, quality=90)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        x, y = rng.integers(0, WIDTH // 2), rng.integers(0, HEIGHT // 2)
        box = [int(x), int(y), 200, 160]
        objects.append({"id": number, "image_id": number, "category_id": 1, "bbox": box,
                        "area": 32000, "iscrowd": 0})  # fmt: skip
        corner = rng.uniform(0, 0.6, (500, 2)) * (WIDTH, HEIGHT)
        near = np.tile([x, y, x + 199, y + 159], (50, 1)) + rng.uniform(-9, 9, (50, 4))
        boxes = np.concatenate([near, np.hstack([corner, corner + rng.uniform(40, 180, (500, 2))])])
        proposals[name] = boxes.clip(0, [WIDTH - 1, HEIGHT - 1] * 2).astype(np.float32)
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    records = load_dataset(root, "train").records
    boxes_of = {record.image_id: proposals[record.image_path.name] for record in records}
    write_proposals(root / "proposals.npz", boxes_of.items())
    return TrainConfig(
        data=root, proposals=root / "proposals.npz", split="train", network="tiny",
        cache_megabytes=0, profile=True, log_every=10**6, checkpoint_every=10**6,
    )  # fmt: skip


class Maker:
    """Makes batches that nothing learns from. One for each process; a pool's threads share it."""

    made: Maker

    def __init__(self, config: TrainConfig):
        torch.set_num_threads(1)  # what is compared is one thread or process of the loader and two
        config = config.resolved()
        dataset = load_dataset(config.data, config.split)
        entries, _ = build_roidb(dataset.records, ProposalStore(config.proposals), config)
        model = build_network(config.network, dataset.classes)
        self.prepare = partial(
            make_batch, entries=entries, cache=ImageCache(0), model=model, config=config
        )
        self.prepare(0)
        Maker.made = self


def make(iteration: int) -> None:
    Maker.made.prepare(iteration)


def batches_a_second(config: TrainConfig, count: int) -> dict[str, float]:
    """By the kind of pool; they take turns, so that all meet the same machine."""
    Maker(config)
    pools: dict[str, Executor] = {
        "one thread": ThreadPoolExecutor(1),
        "two threads": ThreadPoolExecutor(2),
        "two processes": ProcessPoolExecutor(
            2, multiprocessing.get_context("spawn"), initializer=Maker, initargs=(config,)
        ),
    }
    seconds = dict.fromkeys(pools, 0.0)
    for pool in pools.values():
        list(pool.map(make, range(count)))  # both processes have started
    for _ in range(ROUNDS):
        for name, pool in pools.items():
            start = time.perf_counter()
            list(pool.map(make, range(count)))
            seconds[name] += time.perf_counter() - start
    for pool in pools.values():
        pool.shutdown()
    return {name: ROUNDS * count / spent for name, spent in seconds.items()}


def main() -> None:
    """Prints batches a second by threads, and of an iteration the wait for data and the whole."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=64, help="how many files")
    parser.add_argument("--iterations", type=int, default=40, help="of each training")
    parser.add_argument("--threads", type=int, help="torch's threads; its own default without")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        config = write_images(Path(folder), options.images)
        size = np.mean([path.stat().st_size for path in Path(folder, "train").iterdir()])
        print(f"{options.images} images of {WIDTH} x {HEIGHT}, {size / 1000:.0f} kB each; "
              f"{torch.get_num_threads()} torch threads")  # fmt: skip
        torch_threads = torch.get_num_threads()
        made = batches_a_second(config, options.iterations)
        torch.set_num_threads(torch_threads)
        each = ", ".join(f"{one:.1f} by {name}" for name, one in made.items())
        print(f"batches a second, alone: {each}")
        print("loader threads   waiting for data     an iteration   share")
        for threads in LOADER_THREADS:
            run = TrainConfig(**{
                **vars(config), "output": Path(folder, f"run{threads}"),
                "iterations": options.iterations, "loader_threads": max(threads, 1),
            })  # fmt: skip
            with mock.patch.object(loop, "Loader", loop.Loader if threads else InTurn):
                seconds = train(run, progress=False).seconds
            waiting, whole = seconds["waiting for data"], sum(seconds.values())
            print(f"{threads:14} {1000 * waiting:15.1f} ms {1000 * whole:13.1f} ms "
                  f"{100 * waiting / whole:6.1f} %")  # fmt: skip


if __name__ == "__main__":
    main()
