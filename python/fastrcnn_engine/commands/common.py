"""What several commands share: checks, what they print, how proposals are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastrcnn_engine.commands.stages import Run
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore, Search
from fastrcnn_engine.data.proposals.boxes import well_formed
from fastrcnn_engine.data.records import Dataset, NoSuchSplit
from fastrcnn_engine.data.voc import split_file
from fastrcnn_engine.evaluation.coco import NUMBERS, COCOResult, pycocotools
from fastrcnn_engine.evaluation.voc import METRICS, VOCResult
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.options import Detect, Eval, Export, Metric, SearchOptions
from fastrcnn_engine.report.text import number, several
from fastrcnn_engine.training.checkpoint import path_of_training
from fastrcnn_engine.training.distributed import rank_and_count

CACHE = "proposals.npz"  # in the folder of a run


def print_result(
    console: Console, run: Run, dataset: Dataset, result: VOCResult, coco: COCOResult | None
) -> None:
    """The table of a test, its headline, and where its files are."""
    at = f"IoU {result.iou_threshold:g}"
    if coco is None:
        title, headline, value = f"AP at {at}", f"mAP ({result.metric})", result.mean_ap
        columns = ("AP, area", "AP, 11 points")
        means = [result.mean_ap_of(metric) for metric in METRICS]
        averages = [[one.ap(metric) for metric in METRICS] for one in result.per_class]
    else:
        title, headline, value = "COCO", "AP (coco)", coco.numbers["AP"]
        columns = ("AP", "AP50", "AP75")
        means = [coco.numbers[name] for name in columns]
        averages = [one.values() for one in coco.per_class.values()]
    table = Table(title=f"{run.title}: {title}", title_justify="left")
    table.add_column("class")
    for name in (*columns, "objects", "detections", f"right at {at}"):
        table.add_column(name, justify="right")
    for one, values in zip(result.per_class, averages, strict=True):
        counts = (str(one.npos), str(one.ndet), str(one.tp))
        table.add_row(one.name, *map(number, values), *counts)
    table.add_section()
    table.add_row(Text("mean", "bold"), *map(number, means), "", "", "")
    console.print(table)
    if coco is not None:
        for name, meaning in NUMBERS.items():
            console.print(f"{name:>5} {number(coco.numbers[name])}  {meaning}")
    never = [one.name for one in result.per_class if one.npos and not one.ndet]
    print_notes(console, "class with objects and without a detection", never)
    total = sum(run.seconds.values())
    console.print(f"{headline}:", Text(number(value), "bold"), f"  {total:.0f} s")
    console.print(f"figures: {run.out / 'metrics.json'}", soft_wrap=True)
    if not any(len(record.boxes) for record in dataset.records):
        results = "voc_results" if dataset.coco is None else "coco_results.json"
        console.print(f"results for a server: {run.out / results}", soft_wrap=True)
    console.print(f"report: {run.out / 'report.html'}", soft_wrap=True)


def print_notes(console: Console, what: str, notes: list[str], most: int = 5) -> None:
    """How many notes there are, and the first of them; nothing where there are none. what: begins
    with the name of one of the things that are noted."""
    if notes:
        console.print(f"{several(len(notes), what)}:", style="yellow")
        for note in notes[:most]:
            console.print(f"  {note}", soft_wrap=True)
        if len(notes) > most:
            console.print(f"  and {len(notes) - most} more")


def print_data(console: Console, dataset: Dataset, doing: str, most: int = 5) -> None:
    """What is to be known of a data set before something is done with it: images that are missing,
    and the first of its notes. doing: with the images that are there."""
    if rank_and_count()[0] != 0:  # of several processes one alone prints
        return
    if dataset.missing:
        gone = set(dataset.missing)
        there = sum(record.image_path not in gone for record in dataset.records)
        if dataset.coco is None:
            listed, place = split_file(dataset.root, dataset.split).name, "JPEGImages"
        else:
            listed = dataset.coco.path.name
            place = f"{dataset.split}, nor in images/{dataset.split}"
        count = len(dataset.missing)
        console.print(
            f"{count} of {several(count + there, 'image')} of {listed} "
            f"{'has' if count == 1 else 'have'} no file in {dataset.root / place}; "
            f"{doing} {there}",
            style="bold red",
            soft_wrap=True,
        )
    print_notes(console, f"note on the data of {dataset.split}", dataset.problems, most)


@contextmanager
def split_of(option: str) -> Iterator[None]:
    """Where the block finds no split, the error names the option that chooses it."""
    try:
        yield
    except NoSuchSplit as error:
        raise NoSuchSplit(error.path, error.found, option) from None


def check_metric(metric: Metric) -> None:
    """What the metric needs is installed."""
    if metric == "coco":
        pycocotools()


def check_alone() -> None:
    """Of several processes each would search all images and write the same file."""
    if rank_and_count()[1] > 1:
        raise ValueError(
            "--proposals is missing: several processes need a file that is there already, and "
            "`fastrcnn-engine proposals` makes it"
        )


def check_out_folder(out: Path | None) -> None:
    """Raises ValueError where no folder of this name can be: before the work, not after it."""
    for path in (out, *out.absolute().parents) if out is not None else ():
        if path.exists():
            if not path.is_dir():
                raise ValueError(f"--out: {path} is a file, not a folder")
            return


def search_of(options: SearchOptions) -> Search:
    """The options as the search they ask for. ValueError for values out of range."""
    fields = dataclasses.asdict(options)
    workers = fields.pop("workers")
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    return Search(**fields)


def search_of_training(checkpoint: Path, content: dict[str, Any]) -> Search | None:
    """How the proposals of the training were made: the defaults of a checkpoint of no training,
    None where nothing tells, as of those of other programs.

    Raises FileNotFoundError for a model of edge boxes that is not there any more, ValueError for
    one that has changed.
    """
    path = path_of_training(checkpoint, content, "proposals")
    if path is None:
        return Search()
    settings = content.get("proposals_made_with")
    search = Search.from_dict(settings)
    if settings is None or search is None:
        return None
    if search.to_dict().get("edge_model_crc32") != settings.get("edge_model_crc32"):
        raise ValueError(
            f"{search.edge_model}: another model than the one that made the proposals of {path}"
        )
    return search


def needs_proposals(checkpoint: Path, content: dict[str, Any], otherwise: str) -> ValueError:
    """The error where no search gives proposals like those of the training. otherwise: what else
    may be done than to give a file of them."""
    path = path_of_training(checkpoint, content, "proposals")
    return ValueError(
        f"{checkpoint} learned from {path}, which no search of ours made, so it cannot be done "
        "again here: give --proposals, a file of the same program's boxes for these images "
        f"(docs/training.md, section 2), or {otherwise}; with other proposals it may find less"
    )


def check_proposals(console: Console, datasets: list[Dataset], store: ProposalStore) -> None:
    """Every image has proposals, and finite ones; told is where they are turned round. Found out
    now, not after hours of training or detection."""
    turned = [
        record.image_id
        for dataset in datasets
        for record in dataset.records
        if not well_formed(store[record.image_id]).all()
    ]
    if turned and rank_and_count()[0] == 0:  # of several processes it alone prints
        what = "image with proposals of x2 < x1 or y2 < y1, which find nothing (are they x y w h?)"
        print_notes(console, what, turned)


def load_test_set(
    data: Path,
    split: str,
    classes: Sequence[str],
    *,
    option: str = "--split",
    needs_annotations: bool = True,
) -> Dataset:
    """A split that AP is computed on, here or, without annotations, by a server. option: what names
    the split.

    ValueError for the first fault of an image or object.
    """
    faults: list[str] = []
    with split_of(option):
        dataset = load_dataset(
            data, split, classes, errors=faults, needs_annotations=needs_annotations
        )
    if faults:
        more = f" (and {len(faults) - 1} more)" if faults[1:] else ""
        raise ValueError(f"{faults[0]}{more}; {_every_image_counts(dataset)}")
    return dataset


@contextmanager
def needing_all_images(*datasets: Dataset) -> Iterator[None]:
    """Where the block fails by an image of sets that AP is computed on, what to do is told."""
    try:
        yield
    except (OSError, ValueError) as error:
        for dataset in datasets:
            if any(str(error).startswith(f"{r.image_path}: ") for r in dataset.records):
                raise ValueError(f"{error}; {_every_image_counts(dataset)}") from error
        raise


def _every_image_counts(dataset: Dataset) -> str:
    listed = split_file(dataset.root, dataset.split) if dataset.coco is None else dataset.coco.path
    # check-data is for what can be trained on: it refuses a set of VOC without annotations.
    checked = dataset.coco is not None or (dataset.root / "Annotations").is_dir()
    return (
        f"AP counts every image of {dataset.split}: mend what is wrong, or take the image out of "
        f"{listed}" + ("; check-data names all faults" if checked else "")
    )


def resize(model: FastRCNN, options: Eval | Detect | Export) -> None:
    """Scale images to the sizes of the options, where these name any."""
    given = {"short_side": options.short_side, "max_side": options.max_side}
    given = {name: size for name, size in given.items() if size is not None}
    model.preprocessing = dataclasses.replace(model.preprocessing, **given)
