"""What demo and train do."""

from __future__ import annotations

import dataclasses
import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from fastrcnn_engine.commands import plain_console
from fastrcnn_engine.commands.common import (
    CACHE,
    check_alone,
    check_metric,
    check_out_folder,
    check_proposals,
    load_test_set,
    needing_all_images,
    print_data,
    print_notes,
    print_result,
    search_of,
    split_of,
)
from fastrcnn_engine.commands.config_file import read_settings
from fastrcnn_engine.commands.stages import (
    Run,
    detect_dataset,
    evaluate_and_report,
    search_datasets,
)
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.files import check_idle, write_json
from fastrcnn_engine.options import Demo, Detection, Metric, SearchOptions
from fastrcnn_engine.report.environment import versions
from fastrcnn_engine.report.runs import read_log
from fastrcnn_engine.report.text import number
from fastrcnn_engine.training import TrainConfig, TrainResult, settled
from fastrcnn_engine.training import train as run_training
from fastrcnn_engine.training.config import ResolvedConfig
from fastrcnn_engine.training.device import checked_device
from fastrcnn_engine.training.distributed import join, rank_and_count

# What a demo takes away before it starts again in the folder of an earlier one.
DEMO_FILES = (CACHE, "checkpoint.pt", "log.jsonl", "metrics.json", "report.html")


@dataclass(frozen=True)
class Train(TrainConfig):
    """Train Fast R-CNN in one stage (paper, section 2.3), and test it if a test split is named.

    Sources of the defaults: "paper" is Fast R-CNN, section 2.3 unless named; "code" is the
    author's released code where the paper is silent. The folder of the run gets checkpoint.pt,
    log.jsonl, config.json and, without --proposals, proposals.npz; with --test-split also
    report.html, metrics.json and detections.json. A run that was stopped goes on with --resume as
    if nothing had happened. `torchrun -m fastrcnn_engine train ...` trains on several GPUs.
    """

    config: str | None = None
    """Where settings come from that are not named here: a preset (bccd-tiny, demo, voc07-L,
    voc07-M, voc07-S) or a YAML file of your own; the config.json of a run is one too."""
    # Wider than the field it overrides: the loop is given a config that has its proposals.
    proposals: Path | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """Proposal file (.npz) with every image; None computes one into the folder of the run."""
    output: Annotated[Path, tyro.conf.arg(name="out")] = Path("runs/train")
    """Folder of the run."""
    test_split: str | None = None
    """Split to test on after the training; None does not test."""
    metric: Metric = "area"
    """Headline AP of the test: area (VOC10 and later), 11point (the paper's VOC07 tables) or coco
    (its twelve numbers; difficult objects of VOC count as crowds)."""
    search: SearchOptions = field(default_factory=SearchOptions)
    detection: Detection = field(default_factory=Detection)


def configured(source: str) -> Train:
    """The defaults of `train` with the settings of a preset or a file in their place.

    What a recipe filled in for a run is left to the recipe again: options that win over the file
    may name another network, or other iterations.
    """
    settings, of_a_run = read_settings(source, Train)
    options = Train(**{"data": tyro.MISSING, **settings, "config": source})
    return options.unresolved() if of_a_run else options


def demo(options: Demo, command: str) -> None:
    """See options.Demo."""
    console = plain_console()
    if rank_and_count()[1] > 1:
        raise ValueError("the demo is one process's work; run it without torchrun")
    out, data = options.out, options.out / "drawn"
    _check_demo_folder(out, data)
    check_idle(out)  # the training asks again and holds the folder
    for name in DEMO_FILES:
        (out / name).unlink(missing_ok=True)  # ids are the same for every seed, images are not
    run = Run("Fast R-CNN on drawn images", out, command, options.seed)
    with run.timed("drawing the images"):
        write_demo_set(
            data, seed=options.seed, train=options.train_images, test=options.test_images
        )
    training_set, test_set = load_dataset(data, "train"), load_dataset(data, "test")
    # The images are small and clear: a coarse and quick search finds their objects.
    search = SearchOptions(short_side=120)
    with run.timed("proposals"):
        store = search_datasets([training_set, test_set], out / CACHE, search_of(search))
    config = settled(
        TrainConfig(
            data=data,
            proposals=out / CACHE,
            output=out,
            split="train",
            network="tiny",
            seed=options.seed,
            iterations=options.iterations,
            short_side=240,  # their own size
        )
    )
    asked = {"test_split": "test", "search": dataclasses.asdict(search)}
    _train_and_test(run, config, asked, store, training_set, test_set, Detection(), console)


def train(options: Train, command: str) -> None:
    """See Train."""
    console = plain_console()
    # A mistake there is found before the training, not after it.
    options.detection.settings()
    check_metric(options.metric)
    search = search_of(options.search)
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    config = settled(TrainConfig(**{name: getattr(options, name) for name in names}))
    if config.proposals is None:
        check_alone()
    _check_folder(config)
    if rank_and_count()[0] == 0:
        check_idle(config.output)  # the training asks again and holds the folder
    run = Run(f"Fast R-CNN on {options.data.name}", config.output, command, config.seed)
    skips = config.on_bad_image == "skip"
    with split_of("--split"):
        datasets = [load_dataset(config.data, config.split, config.classes, stated_sizes=skips)]
    print_data(console, datasets[0], "training on", most=1)  # all come after it
    others = (("--test-split", options.test_split), ("--val-split", config.val_split))
    for option, split in others:
        if split is not None:
            one = load_test_set(config.data, split, datasets[0].classes, option=option)
            datasets.append(one)
            print_data(console, one, "testing on")
    test_set = datasets[1] if options.test_split is not None else None
    first = rank_and_count()[0] == 0  # of several processes it alone prints
    if config.device == "cpu" and first:
        with suppress(ValueError):
            checked_device("cuda")
            console.print("a GPU is there: --device cuda would use it")
    from_scratch = config.weights is None and config.init is None and not config.resume
    if from_scratch and config.network != "tiny" and first:
        console.print(
            f"{config.network} starts from random weights, from which it hardly learns; give it "
            "--weights, or take --network tiny"
        )
    asked = {
        "test_split": options.test_split,
        "metric": options.metric,
        "search": dataclasses.asdict(options.search),
        "detection": dataclasses.asdict(options.detection),
    }
    with run.timed("proposals"):
        if config.proposals is None:
            cache = config.output / CACHE
            workers = options.search.workers
            store = search_datasets(
                datasets[:1], cache, search, workers=workers, errors=[] if skips else None
            )
            if datasets[1:]:
                with needing_all_images(*datasets[1:]):
                    store = search_datasets(datasets[1:], cache, search, workers=workers)
            config = dataclasses.replace(config, proposals=cache)
        else:
            store = ProposalStore(config.proposals)
            check_proposals(console, datasets, store)
    _train_and_test(run, config, asked, store, datasets[0], test_set, options.detection, console)


def _train_and_test(
    run: Run,
    config: ResolvedConfig,
    asked: dict[str, Any],
    store: ProposalStore,
    training_set: Dataset,
    test_set: Dataset | None,
    detection: Detection,
    console: Console,
) -> None:
    """asked: settings of the command that are none of the training, for config.json."""
    settings = config.to_dict()
    # What --config takes (config_file.FACTS: without the last three). Whether to resume is a
    # matter of the moment.
    content = {
        "training": {name: value for name, value in settings.items() if name != "resume"},
        **asked,
        "proposals_made_with": store.settings, "command": run.command, "versions": versions(),
    }  # fmt: skip

    def write_config() -> None:  # of the run as it is, not of one that is refused
        _check_folder(config)  # another may have begun and ended since
        write_json(run.out / "config.json", content)

    with run.timed("training"):
        trained = run_training(config, dataset=training_set, on_start=write_config)
    if rank_and_count()[0] == 0:  # of several processes it alone prints
        _print_training(console, trained)
    if test_set is None:
        return
    run.settings["Training"] = settings
    used = detection.settings()
    with join(config.device) as processes, run.timed("detection"), needing_all_images(test_set):
        found = detect_dataset(trained.model, test_set, store, used, processes)
    if found is None:
        return
    results = evaluate_and_report(
        run, trained.model, test_set, store, found,
        detection=used, metric=asked.get("metric", "area"), log=read_log(trained.log),
    )  # fmt: skip
    print_result(console, run, test_set, *results)


def _print_training(console: Console, trained: TrainResult) -> None:
    """What became of layers and images, where the time went, and the files."""
    for change in trained.layers:
        console.print(f"{change.layer}: {change.action}, {change.detail}", soft_wrap=True)
    print_notes(console, "note on the data it learned from", trained.problems)
    print_notes(console, "image without a usable RoI, not trained on", trained.unusable)
    print_notes(console, "image that cannot be read, replaced by others", trained.bad_images)
    if trained.seconds is not None:
        table = Table("an iteration", "ms", "%")
        whole = sum(trained.seconds.values())
        for part, seconds in trained.seconds.items():
            table.add_row(part, f"{1000 * seconds:.1f}", f"{100 * seconds / whole:.1f}")
        table.add_row("whole", f"{1000 * whole:.1f}", "")
        console.print(table)
    console.print(f"checkpoint: {trained.checkpoint}", soft_wrap=True)
    if trained.best is not None:
        console.print(
            f"best on {trained.best['split']}: {trained.checkpoint.with_name('best.pt')}, mAP "
            f"{number(trained.best['mAP'])} after iteration {trained.best['iteration']}",
            soft_wrap=True,
        )


def _check_folder(config: TrainConfig) -> None:
    """A new run must not overwrite one, nor use proposals that belong to other images."""
    out = config.output
    check_out_folder(out)
    if not config.resume and (out / "checkpoint.pt").exists():
        raise ValueError(
            f"--out: {out} holds the checkpoint of a run already; --resume goes on with it, "
            "another --out starts a new one"
        )
    before = _data_of_run(out)
    # The data of a resumed run may have moved; the training compares what is in it.
    if not config.resume and before is not None and before.resolve() != config.data.resolve():
        raise ValueError(
            f"--out: {out} holds a run on {before}, --data is {config.data}; give another --out"
        )


def _check_demo_folder(out: Path, data: Path) -> None:
    """A demo deletes what an earlier one left, and nothing else."""
    check_out_folder(out)
    before = _data_of_run(out)
    # A demo that was stopped early has its images and proposals but no config.json yet.
    stopped = before is None and data.is_dir() and not (out / "checkpoint.pt").exists()
    own = stopped or (before is not None and before.resolve() == data.resolve())
    there = [name for name in (*DEMO_FILES, "config.json") if (out / name).exists()]
    drawn = re.compile(r"(train|test)(_\d{4,}\.(jpg|xml)|\.txt)")
    others = [path for path in data.rglob("*") if path.is_file() and not drawn.fullmatch(path.name)]
    if others:
        raise ValueError(f"--out: {others[0]} is of no demo; give another --out")
    if there and not own:
        raise ValueError(
            f"--out: {out} holds {', '.join(there)}, which no demo left there; give another --out"
        )


def _data_of_run(out: Path) -> Path | None:
    """The data set that the run in this folder learned from; None if there is no run."""
    path = out / "config.json"
    if not path.is_file():
        return None
    try:
        return Path(json.loads(path.read_text(encoding="utf-8"))["training"]["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(
            f"--out: {path} was not written by this program; give another --out"
        ) from None
