"""Tables 5 to 8 and figure 3 of Fast R-CNN at small scale, each cell a detector of its own.

    python benchmarks/ablations.py                           # everything, one seed
    python benchmarks/ablations.py --tables 6 8 --seeds 3    # mean and spread

Needs pip install '.[train,bench]'. Every detector is `tiny` on the drawn set, starts from the same
pre-trained convolutions as in paper_claims.py and is tested by the paper's protocol. All trainings
of a seed see the same images in the same order for the same number of iterations: 800 unless told
otherwise, in which each image comes 16 times. Table `data` says what half and twice as many would
have done. No setting was chosen by the test images.

A cell is a file in --work with the settings that made it, a training has its checkpoint there: a
run that was stopped goes on, and a changed setting runs again what it concerns.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest import mock

import numpy as np
from rich import box
from rich.table import Table

import harness
from ablations_cells import COUNTS, EXPERIMENTS, Cell, Experiment, Training
from ablations_plot import against, draw, points
from fastrcnn_engine import box_iou
from fastrcnn_engine.data.proposals import ProposalStore, dense_boxes, write_proposals
from fastrcnn_engine.data.proposals.dense_boxes import ASPECTS, SIDES
from fastrcnn_engine.data.records import ImageRecord
from fastrcnn_engine.data.voc import load_voc
from fastrcnn_engine.evaluation import detect
from fastrcnn_engine.evaluation.paper_protocol import detect_set
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.training import train, train_svms
from harness import console
from scene import (
    NMS,
    Inputs,
    Scene,
    SceneSettings,
    add_options,
    chosen,
    drawn,
    keep,
    kept,
    spread,
)

TIMED_IMAGES, TIMED_ROUNDS = 5, 9


@dataclass(frozen=True)
class Settings(SceneSettings):
    """What every cell depends on."""

    test_images: int = 100
    iterations: int = 800


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, Settings)
    parser.add_argument(
        "--tables", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="default all"
    )
    parser.add_argument(
        "--cells", nargs="+", help="only run these cells, a piece of a long run; shows no table"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--out", type=Path, help="folder of results; default in benchmarks/results")
    args = parser.parse_args(arguments)
    settings, seeds = chosen(args, Settings)
    benches = [Bench(settings, seed, args.work / f"seed-{seed}", args.threads) for seed in seeds]
    if args.cells is not None:
        known = {cell.name: cell for e in EXPERIMENTS.values() for cell in e.cells}
        if unknown := set(args.cells) - set(known):
            parser.error(f"no cell {', '.join(unknown)}; there are {', '.join(known)}")
        for bench in benches:
            for name in args.cells:
                bench.result(known[name])
        return
    out = args.out or harness.RESULTS / f"ablations-{datetime.date.today()}"
    for name in args.tables:
        run_experiment(name, settings, benches, out)


def run_experiment(name: str, settings: Settings, benches: Sequence[Bench], out: Path) -> None:
    """All cells of a table, the table itself, its file and its picture."""
    experiment = EXPERIMENTS[name]
    results = [
        {"cell": cell.name, "label": cell.label, "seed": bench.seed, **bench.result(cell)}
        for bench in benches
        for cell in experiment.cells
    ]
    if experiment.timed:
        times = benches[0].times(name, experiment)  # they depend on no seed
        for result in results:
            result["test_ms"] = times[result["cell"]]
    show(experiment, results)
    found = harness.document("ablations", benches[0].threads, len(benches), [], {})
    found |= {"settings": dataclasses.asdict(settings), "experiment": experiment.title}
    found["results"] = results
    harness.save(found, out / f"{name}.json")
    draw(experiment, found, COUNTS, out / f"{name}.png")


class Bench:
    """The cells of one seed: takes from its folder what is done, and does the rest."""

    def __init__(self, settings: Settings, seed: int, work: Path, threads: int) -> None:
        self.settings, self.seed, self.work, self.threads = settings, seed, work, threads

    @cached_property
    def scene(self) -> AblationScene:
        return AblationScene(self.settings, self.seed, self.work)

    def done(self, path: Path, makings: dict[str, Any], run: Callable[[], dict]) -> dict:
        """What `run` returns, or returned earlier, if the file says that the same made it."""
        makings = plain({**dataclasses.asdict(self.settings), **makings})
        found = kept(path)
        if found is None or found.get("settings") != makings:
            console.print(f"[bold]{path.stem}[/bold], seed {self.seed}")
            found = {"settings": makings, "result": run()}
            keep(path, found)
        return found["result"]

    def result(self, cell: Cell) -> dict[str, Any]:
        makings = dataclasses.asdict(cell)
        del makings["label"]  # decides no figure
        path = self.work / f"{cell.name}.json"
        return self.done(path, {"cell": makings}, lambda: self.scene.result(cell))

    def times(self, name: str, experiment: Experiment) -> dict[str, float]:
        """Milliseconds of a test image by cell, best of rounds in which all take their turn."""

        def run() -> dict[str, float]:
            inputs = self.scene.inputs()[:TIMED_IMAGES]
            rows = [
                harness.Row(cell.name, "", self.scene.test_of(cell, inputs))
                for cell in experiment.cells
            ]
            records = harness.interleave(rows, TIMED_ROUNDS)
            return {record["who"]: record["best_ms"] / len(inputs) for record in records}

        makings = {
            "threads": self.threads,
            "cells": [dataclasses.asdict(cell) for cell in experiment.cells],
        }
        return self.done(self.work / f"times-{name}.json", makings, run)


class AblationScene(Scene):
    """Trains and tests cells on the drawn images of one seed."""

    settings: Settings

    def __init__(self, settings: Settings, seed: int, work: Path) -> None:
        count = settings.train_images
        root = drawn(work / "drawn", seed=seed, train=2 * count, test=settings.test_images)
        every = load_voc(root, "train")
        for split, part in (("half", count // 2), ("once", count), ("twice", 2 * count)):
            lines = "".join(f"{record.image_id}\n" for record in every.records[:part])
            path = root / "ImageSets/Main" / f"{split}.txt"
            if not path.exists() or path.read_text() != lines:  # another process may be reading it
                partial = path.with_name(f".{path.name}.{os.getpid()}")
                partial.write_text(lines)
                os.replace(partial, path)
        once, test = (load_voc(root, split, every.classes) for split in ("once", "test"))
        super().__init__(settings, seed, work, once, test, mode="fine", others=every)

    def result(self, cell: Cell) -> dict[str, Any]:
        """Trains the detector of a cell, where that is not done yet, and tests it."""
        model = self.detector(cell)
        boxes = self.boxes(cell.training.boxes)
        _, aps = self.tested(partial(self.detect_all, cell, model), proposals=boxes)
        console.print(f"  mAP {100 * aps.mean_ap:.1f} %")
        log = self.folder(cell.training) / "log.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return {
            "mean_ap": aps.mean_ap,
            "ap": {one.name: one.ap_area for one in aps.per_class},
            "iterations": lines[-1]["iteration"],
            "iteration_ms": median(2000 / line["images_per_second"] for line in lines),
            "proposals": quality(self.test.records, boxes),
        }

    def test_of(self, cell: Cell, inputs: Inputs) -> Callable[[], dict]:
        return partial(self.detect_all, cell, self.detector(cell), inputs)

    def detect_all(self, cell: Cell, model: FastRCNN, inputs: Inputs) -> dict:
        area = detect.CANONICAL_AREA
        if cell.target_share is not None:
            area = (cell.target_share * self.settings.short_side) ** 2
        with mock.patch.object(detect, "CANONICAL_AREA", area):
            return detect_set(
                model, inputs, len(inputs), nms_threshold=NMS, box_regression=cell.box_regression
            )

    def detector(self, cell: Cell) -> FastRCNN:
        model = self.trained(cell.training)
        if cell.scales is not None:
            model.preprocessing = dataclasses.replace(
                model.preprocessing, **self.sizes(cell.scales)
            )
        if cell.svm:
            train_svms(model, self.train.records, self.boxes(cell.training.boxes), seed=self.seed)
        return model

    def folder(self, training: Training) -> Path:
        return self.work / "trainings" / training.name

    def sizes(self, scales: Sequence[float]) -> dict[str, Any]:
        """Short sides of the image, and the limit of the long one."""
        sides = tuple(round(scale * self.settings.short_side) for scale in scales)
        return {"short_side": sides if len(sides) > 1 else sides[0], "max_side": 2 * sides[-1]}

    def trained(self, training: Training) -> FastRCNN:
        """The detector of a training, which goes on from its checkpoint if the same made that."""
        folder = self.folder(training)
        makings = plain(dataclasses.asdict(self.settings) | dataclasses.asdict(training))
        if kept(folder / "settings.json") != makings:
            shutil.rmtree(folder, ignore_errors=True)
            keep(folder / "settings.json", makings)
        init = None
        if training.init is not None:
            self.trained(training.init)
            init = self.folder(training.init) / "checkpoint.pt"
        config = self.config(
            folder,
            round(self.settings.iterations * training.length),
            proposals=self.boxes(training.boxes).path,
            split=training.split,
            classes=self.train.classes,
            tasks=training.tasks,
            init=init,
            resume=(folder / "checkpoint.pt").exists(),
            checkpoint_every=200,
            **self.sizes(training.scales),
        )
        model = self.model(config)
        model.freeze(training.frozen)
        return train(config, model=model).model

    def boxes(self, kind: str) -> ProposalStore:
        """The proposals of that kind, written to a file where they are not yet in one."""
        if kind == "search":
            return self.store
        path = self.work / f"proposals-{kind}.npz"
        made_of = {"kind": kind, "sides": SIDES, "aspects": ASPECTS, "seed": self.seed}
        settings = plain({**made_of, "images": len(self.records), "search": self.store.settings})
        if not path.exists() or ProposalStore(path).settings != settings:
            items = [(r.image_id, self.boxes_of(kind, n, r)) for n, r in enumerate(self.records)]
            write_proposals(path, items, settings=settings)
        return ProposalStore(path)

    def boxes_of(self, kind: str, number: int, record: ImageRecord) -> np.ndarray:
        """Proposals (P, 4) of one image, the `number`-th.

        search-N: N boxes of selective search, drawn (its order means nothing); fewer boxes are
        among more. dense: as in `dense_boxes`. nearest: for each box of selective search the dense
        one that overlaps it most. search+dense: both.
        """
        search = self.proposals[record.image_id]
        if kind.startswith("search-"):
            order = np.random.default_rng([self.seed, number]).permutation(len(search))
            return search[order[: int(kind.removeprefix("search-"))]]
        dense = dense_boxes(record.width, record.height)
        if kind == "nearest":
            best = np.asarray(box_iou(search, dense, inclusive=True)).argmax(axis=1)
            return dense[np.unique(best)]
        return dense if kind == "dense" else np.concatenate([search, dense])


def quality(records: Sequence[ImageRecord], boxes: ProposalStore) -> dict[str, float]:
    """How many boxes an image has, and how well they cover the objects that count.

    recall: share of the objects that some box overlaps by 0.5 or more; average_recall: the mean of
    that at 0.5, 0.55 .. 0.95.
    """
    best = [
        np.asarray(box_iou(record.boxes, boxes[record.image_id], inclusive=True)).max(axis=1)
        for record in records
        if len(record.boxes)
    ]
    counts = np.concatenate([~record.difficult for record in records])
    overlaps = np.concatenate(best)[counts]
    return {
        "an_image": mean(len(boxes[record.image_id]) for record in records),
        "recall": float((overlaps >= 0.5).mean()),
        "average_recall": mean((overlaps >= t).mean() for t in np.arange(0.5, 0.96, 0.05)),
    }


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(values))


def show(experiment: Experiment, results: list[dict]) -> None:
    """Prints the table."""
    reference, paper = experiment.reference, experiment.paper
    table = Table(title=experiment.title, box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("mAP, %", "against the reference", f"paper, {experiment.network}", "against",
                    "boxes", "recall, %", "average recall, %", "iteration, ms",
                    *(["test, ms"] if experiment.timed else [])):  # fmt: skip
        table.add_column(heading, justify="right")
    for cell in experiment.cells:
        own = [result for result in results if result["cell"] == cell.name]
        boxes = [result["proposals"] for result in own]
        difference = spread(against(results, cell.name, reference), "+.1f")
        columns = [spread(points(results, cell.name), ".1f"), difference]
        if cell.name in paper:
            columns += [f"{paper[cell.name]:.1f}", f"{paper[cell.name] - paper[reference]:+.1f}"]
        else:
            columns += ["", ""]
        columns.append(f"{mean(b['an_image'] for b in boxes):.0f}")
        columns += [f"{100 * mean(b[k] for b in boxes):.1f}" for k in ("recall", "average_recall")]
        columns.append(f"{mean(result['iteration_ms'] for result in own):.0f}")
        if experiment.timed:
            columns.append(f"{own[0]['test_ms']:.1f}")
        if cell.name == reference:
            columns[1] = columns[3] = "reference"
        table.add_row(cell.label, *columns)
    console.print(table)


if __name__ == "__main__":
    main()
