"""What paper_claims.py and ablations.py share: drawn images, pre-trained convolutions, the test."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import nn

from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.proposals import Search, compute_proposals
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.data.voc import load_voc
from fastrcnn_engine.evaluation.voc import VOCResult, evaluate_voc
from fastrcnn_engine.models import FastRCNN, build_network
from fastrcnn_engine.training import TrainConfig
from fastrcnn_engine.training.loop import build_optimiser
from harness import console
from rivals.rcnn import pool_crops, warp

Inputs = list[tuple[str, np.ndarray, np.ndarray]]  # image id, image, proposals (P, 4)
DetectAll = Callable[[Inputs], dict]
NMS = 0.3
FIRST_SEED = 3


@dataclass(frozen=True)
class SceneSettings:
    """What decides the images, their proposals and the convolutions everything starts from."""

    train_images: int = 100  # drawn ones
    test_images: int = 50
    short_side: int = 240
    search_short_side: int = 120  # of selective search
    pretrain_images: int = 150
    pretrain_iterations: int = 200


Settings = TypeVar("Settings", bound=SceneSettings)


def add_options(parser: argparse.ArgumentParser, kind: type[SceneSettings]) -> None:
    """An option for every setting, then how many seeds, threads, and where to work."""
    for field in dataclasses.fields(kind):
        option = "--" + field.name.replace("_", "-")
        number = int if field.type == "int" else str
        parser.add_argument(option, type=number, default=field.default, help="default %(default)s")
    parser.add_argument(
        "--seeds", type=int, default=1, help="runs, with seeds 3, 4, ...; default 1"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: every core")


def chosen(args: argparse.Namespace, kind: type[Settings]) -> tuple[Settings, range]:
    """The settings and the seeds that were given; sets the threads."""
    torch.set_num_threads(args.threads)
    names = [field.name for field in dataclasses.fields(kind)]
    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    return kind(**{name: getattr(args, name) for name in names}), seeds


def keep(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file of results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def kept(path: Path) -> dict[str, Any] | None:
    """What `keep` wrote; None where there is nothing, or no whole file."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def drawn(root: Path, *, seed: int, train: int, test: int) -> Path:
    """The drawn set of that seed and size under `root`, drawn where it is not there yet."""
    root = root.with_name(f"{root.name}-{train}-{test}")
    if not root.exists():
        unfinished = root.with_name(f".{root.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_demo_set(unfinished, seed=seed, train=train, test=test)
        os.replace(unfinished, root)
    return root


class Scene:
    """Images, proposals and pre-trained convolutions that everything of one seed shares."""

    def __init__(
        self,
        settings: SceneSettings,
        seed: int,
        work: Path,
        train: Dataset,
        test: Dataset,
        *,
        mode: str,  # of selective search
        others: Dataset | None = None,  # more images, to be searched as well
    ) -> None:
        self.settings, self.seed, self.work = settings, seed, work
        self.train, self.test = train, test
        records = {r.image_id: r for r in (*train.records, *test.records)}
        records |= {r.image_id: r for r in (others.records if others else ())}
        self.records = list(records.values())
        self.store = compute_proposals(
            [(r.image_id, r.image_path) for r in self.records],
            work / f"proposals-{mode}-{settings.search_short_side}.npz",
            Search(mode=mode, short_side=settings.search_short_side),
        )  # fmt: skip
        self.images = {r.image_id: load_image(r.image_path) for r in self.records}
        self.proposals = {r.image_id: np.array(self.store[r.image_id]) for r in self.records}
        self.backbone = self._pretrained()

    def config(self, folder: Path, iterations: int, **changes: Any) -> TrainConfig:
        defaults: dict[str, Any] = {
            "data": self.train.root,
            "proposals": self.store.path,
            "output": folder,
            "split": self.train.split,
            "network": "tiny",
            "seed": self.seed,
            "iterations": iterations,
            "warmup": iterations // 10,
            "short_side": self.settings.short_side,
            "max_side": 2 * self.settings.short_side,
        }
        return TrainConfig(**defaults | changes).resolved()

    def model(self, config: TrainConfig) -> FastRCNN:
        """`tiny` with the pre-trained convolutions and new layers after them."""
        torch.manual_seed(self.seed)
        model = build_network("tiny", self.train.classes)
        model.backbone.load_state_dict(self.backbone)
        model.preprocessing = dataclasses.replace(
            model.preprocessing, short_side=config.short_side, max_side=config.max_side
        )
        return model

    def _pretrained(self) -> dict[str, torch.Tensor]:
        """Weights of tiny's convolutions after learning to classify other drawn objects."""
        count, iterations = self.settings.pretrain_images, self.settings.pretrain_iterations
        path = self.work / f"pretrained-{count}-{iterations}.pt"
        if not path.exists():
            root = drawn(self.work / "other-drawn", seed=self.seed + 1000, train=count, test=1)
            weights = pretrained(load_voc(root, "train"), self.config(self.work, iterations))
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            torch.save(weights, unfinished)
            os.replace(unfinished, path)
        return torch.load(path, weights_only=True)

    def inputs(self, proposals: Mapping[str, np.ndarray] | None = None) -> Inputs:
        """The test images with their proposals, or with others."""
        proposals = self.proposals if proposals is None else proposals
        ids = [record.image_id for record in self.test.records]
        return [(i, self.images[i], proposals[i]) for i in ids]

    def tested(
        self,
        detect_all: DetectAll,
        passes: int = 1,
        proposals: Mapping[str, np.ndarray] | None = None,
    ) -> tuple[float, VOCResult]:
        """Seconds an image, the median of some passes over the test images, and the APs."""
        inputs = self.inputs(proposals)
        seconds = []
        for _ in track(range(passes), "test"):
            start = time.perf_counter()
            found = detect_all(inputs)
            seconds.append((time.perf_counter() - start) / len(inputs))
        return median(seconds), evaluate_voc(self.test.records, self.test.classes, found)


def pretrained(dataset: Dataset, config: TrainConfig) -> dict[str, torch.Tensor]:
    """What the convolutions of tiny learn from pictures of one object each, as of ImageNet.

    A picture is up to two and a half times as wide and high as its object, which lies anywhere in
    it. There is no background class and no proposal: that would be R-CNN already.
    """
    rng = np.random.default_rng(config.seed)
    torch.manual_seed(config.seed)
    model = build_network("tiny", dataset.classes).train()
    optimiser = build_optimiser(model, config)
    images = {record.image_id: load_image(record.image_path) for record in dataset.records}
    objects = [
        (images[record.image_id], box, label)
        for record in dataset.records
        for box, label in zip(record.boxes, record.labels, strict=True)
    ]
    for iteration in track(range(config.iterations), "pre-training"):
        pictures, labels = [], []
        for i in rng.integers(len(objects), size=64):
            image, corners, label = objects[i]
            size = corners[2:] - corners[:2] + 1
            room = (rng.uniform(1, 2.5) - 1) * size
            first = corners[:2] - rng.uniform(0, 1, 2) * room
            (picture,) = warp(image, np.concatenate([first, first + size + room - 1])[None])
            pictures.append(picture[:, ::-1] if rng.random() < 0.5 else picture)
            labels.append(label)
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate_at(iteration) * group["rate_factor"]
        logits = model.cls_score(model.head(pool_crops(model, np.stack(pictures))))
        loss = nn.functional.cross_entropy(logits, torch.tensor(labels))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return model.backbone.state_dict()


def spread(values: list[float], form: str) -> str:
    """The mean, and with several seeds the standard deviation."""
    text = format(mean(values), form)
    return text if len(values) == 1 else f"{text} ± {deviation(values):{form.lstrip('+')}}"


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of what seeds are a sample of; of one seed 0."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def save_figure(figure: Figure, caption: str, path: Path) -> None:
    """Saves a picture with its caption on top."""
    figure.suptitle(caption, x=0.01, ha="left", fontsize=9.5)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    console.print(f"wrote {path}")
