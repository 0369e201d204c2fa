"""What each command does. Imported by the command line once a command has been chosen."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from fastrcnn_engine import cli
from fastrcnn_engine.bulk import JsonLines, ParquetParts, detect_many
from fastrcnn_engine.config_file import read_settings
from fastrcnn_engine.data.check import check_dataset
from fastrcnn_engine.data.demo_set import write_demo_set
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import (
    ProposalStore,
    Search,
    merge_proposals,
    proposal_recall,
    read_proposals,
    write_proposals,
)
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.evaluation.coco import NUMBERS, COCOResult, pycocotools
from fastrcnn_engine.evaluation.detect import CONFIDENT_SCORES
from fastrcnn_engine.evaluation.export import INPUTS, OUTPUTS, export_onnx
from fastrcnn_engine.evaluation.voc import METRICS, VOCResult, check_settings
from fastrcnn_engine.models import RANKS, FastRCNN
from fastrcnn_engine.models import compress as compress_head
from fastrcnn_engine.pipeline import (
    RECALL_THRESHOLDS,
    Run,
    detect_dataset,
    detect_files,
    evaluate_and_report,
    expand_folders,
    run_files,
    search_datasets,
    write_json,
)
from fastrcnn_engine.report.compare import render_comparison
from fastrcnn_engine.report.draw import picture_grid
from fastrcnn_engine.report.environment import versions
from fastrcnn_engine.report.gallery import sample_pictures
from fastrcnn_engine.report.html import number
from fastrcnn_engine.report.plots import sizes_svg
from fastrcnn_engine.shards import WHOLE, shard_file, shard_of
from fastrcnn_engine.training import (
    TrainConfig,
    TrainResult,
    load_checkpoint,
    load_network,
    save_checkpoint,
    settled,
    train_svms,
)
from fastrcnn_engine.training import train as run_training
from fastrcnn_engine.training.distributed import environment, join

CACHE = "proposals.npz"
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
    metric: cli.Metric = "area"
    """Headline AP of the test: area (VOC10 and later), 11point (VOC07, the paper's tables) or coco
    (its twelve numbers; difficult objects of VOC count as crowds)."""
    search: cli.Search = field(default_factory=cli.Search)
    detection: cli.Detection = field(default_factory=cli.Detection)

    def run(self, command: str) -> None:
        train(self, command)


def configured(source: str) -> Train:
    """The defaults of `train` with the settings of a preset or a file in their place."""
    settings = {"data": tyro.MISSING, **read_settings(source, Train), "config": source}
    return Train(**settings)


def demo(options: cli.Demo, command: str) -> None:
    """See cli.Demo."""
    console = Console(highlight=False)
    out, data = options.out, options.out / "drawn"
    _check_demo_folder(out, data)
    for name in DEMO_FILES:
        (out / name).unlink(missing_ok=True)  # ids are the same for every seed, images are not
    run = Run("Fast R-CNN on drawn images", out, command, options.seed)
    with run.timed("drawing the images"):
        write_demo_set(
            data, seed=options.seed, train=options.train_images, test=options.test_images
        )
    training_set, test_set = load_dataset(data, "train"), load_dataset(data, "test")
    # The images are small and clear: a coarse and quick search finds their objects.
    search = cli.Search(short_side=120)
    with run.timed("proposals"):
        store = search_datasets([training_set, test_set], out / CACHE, dataclasses.asdict(search))
    config = TrainConfig(
        data=data,
        proposals=out / CACHE,
        output=out,
        split="train",
        network="tiny",
        seed=options.seed,
        iterations=options.iterations,
        short_side=240,  # their own size
    )
    asked = {"test_split": "test", "search": dataclasses.asdict(search)}
    _train_and_test(run, config, asked, store, test_set, cli.Detection(), console)


def check_data(options: cli.CheckData) -> None:
    """See cli.CheckData."""
    console = Console(highlight=False)
    check = check_dataset(
        options.data, options.split, options.classes, proposals=options.proposals
    )
    for kind, lines in check.errors.items():
        _print_notes(console, f"errors, {kind}", lines, len(lines))
    for kind, lines in check.warnings.items():
        _print_notes(console, f"warnings, {kind}", lines, 20)
    content = check.to_dict()
    console.print(_class_facts(content["classes"]))
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "check.json", content)
    names = check.dataset.classes
    sizes = {label: check.sizes(label) for label in range(1, len(names) + 1)}
    (options.out / "sizes.svg").write_text(sizes_svg(sizes, names), encoding="utf-8")
    samples = sample_pictures(check.dataset)
    if samples:
        Image.fromarray(picture_grid(samples)).save(options.out / "samples.jpg", quality=88)
    count = sum(map(len, check.errors.values()))
    console.print(
        f"images read: {len(check.dataset.records)}, objects: {len(check.sizes())}, "
        f"errors: {count}, warnings: {sum(map(len, check.warnings.values()))}; all of them are in "
        f"{options.out / 'check.json'}",
        soft_wrap=True,
    )
    if not check.is_usable:
        sys.exit(1)


def _class_facts(classes: list[dict[str, Any]]) -> Table:
    """The classes of DataCheck.to_dict() as a table, with recall where proposals were given."""
    recalls = [f"{t:g}" for t in RECALL_THRESHOLDS if any("recall" in one for one in classes)]
    table = Table("class", "objects", "images", "size, 5 %", "median", "95 %",
                  *(f"recall at IoU {threshold}" for threshold in recalls))  # fmt: skip
    for facts in classes:
        sizes = [f"{size:.0f}" for size in facts["size_quantiles"] or ()] or ["-"] * 3
        shares = [number((facts["recall"] or {}).get(threshold)) for threshold in recalls]
        counts = str(facts["objects"]), str(facts["images"])
        table.add_row(facts["class"], *counts, *sizes, *shares)
    return table


def proposals(options: cli.Proposals) -> None:
    """See cli.Proposals."""
    console = Console(highlight=False)
    datasets = [load_dataset(options.data, split) for split in options.split]
    out = options.out or options.data / CACHE
    if options.read and options.shard != WHOLE:
        raise ValueError(f"--shard is {options.shard}, but with --read there is nothing to search")
    if options.read:
        store = _read_and_merged(options, datasets, out, console)
    else:
        search = dataclasses.asdict(options.search)
        store = search_datasets(datasets, out, search, shard=options.shard)
    recalls = [f"recall at IoU {threshold:g}" for threshold in RECALL_THRESHOLDS]
    table = Table("split", "images", "boxes an image", *recalls)
    for dataset in datasets:
        own = [record for record in dataset.records if record.image_id in store]
        facts = proposal_recall(own, store, RECALL_THRESHOLDS)
        shares = [number(facts["recall"][threshold]) for threshold in RECALL_THRESHOLDS]
        boxes = f"{facts['mean_boxes']:.0f}"
        table.add_row(dataset.split, str(len(own)), boxes, *shares)
    console.print(table)
    console.print(f"proposals: {store.path}", soft_wrap=True)


def train(options: Train, command: str) -> None:
    """See Train."""
    console = Console(highlight=False)
    # A mistake there is found before the training, not after it.
    options.detection.settings()
    _check_metric(options.metric)
    search = dataclasses.asdict(options.search)
    Search(**{name: value for name, value in search.items() if name != "workers"})
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    config = settled(TrainConfig(**{name: getattr(options, name) for name in names}))
    if config.proposals is None:
        _check_alone()
    _check_folder(config)
    run = Run(f"Fast R-CNN on {options.data.name}", config.output, command, config.seed)
    skips = config.on_bad_image == "skip"
    datasets = [load_dataset(config.data, config.split, config.classes, stated_sizes=skips)]
    if options.test_split is not None:
        datasets.append(load_dataset(config.data, options.test_split, datasets[0].classes))
    test_set = datasets[1] if len(datasets) > 1 else None
    if config.val_split is not None:
        datasets.append(load_dataset(config.data, config.val_split, datasets[0].classes))
    asked = {
        "test_split": options.test_split,
        "metric": options.metric,
        "search": dataclasses.asdict(options.search),
        "detection": dataclasses.asdict(options.detection),
    }
    with run.timed("proposals"):
        if config.proposals is None:
            cache = config.output / CACHE
            store = search_datasets(datasets, cache, search)
            config = dataclasses.replace(config, proposals=cache)
        else:
            store = ProposalStore(config.proposals)
            _check_proposals(datasets, store)
    _train_and_test(run, config, asked, store, test_set, options.detection, console)


def evaluate(options: cli.Eval, command: str) -> None:
    """See cli.Eval."""
    console = Console(highlight=False)
    given = options.run_dir or options.checkpoint
    if given is None or (options.run_dir is not None and options.checkpoint is not None):
        raise ValueError("give either --run or --checkpoint")
    check_settings("area", options.iou_threshold)
    _check_metric(options.metric)
    checkpoint = _checkpoint_file(given)
    trained = load_checkpoint(checkpoint).get("config", {})
    if options.data is None and "data" not in trained:
        raise ValueError(f"{checkpoint} does not say what it was trained on; give --data")
    with join(options.device) as processes:
        model = load_network(checkpoint, device=str(processes.device))
        _resize(model, options)
        detection = options.detection.settings()
        data = Path(options.data or trained["data"])
        dataset = load_dataset(data, options.split, model.classes)
        home = checkpoint.parent
        # Ids of two data sets may be the same: proposals of one must never serve for the other.
        foreign = data.resolve() != Path(trained.get("data", "")).resolve()
        name = f"eval-{data.name}-{options.split}" if foreign else f"eval-{options.split}"
        run = Run(
            title=f"Fast R-CNN on {dataset.root.name}",
            out=options.out or home / name,
            command=command,
            seed=trained.get("seed"),
            settings={"Training": trained},
        )
        with run.timed("proposals"):
            used = None if foreign else _trained_on(trained)
            if options.proposals is not None:
                store = ProposalStore(options.proposals)
                _check_proposals([dataset], store)
            elif used is not None and all(r.image_id in used for r in dataset.records):
                store = used
            else:
                cache = (run.out if foreign else home) / CACHE
                _check_alone()
                search = _search_of_training(home, trained, console)
                store = search_datasets([dataset], cache, dataclasses.asdict(search))
        with run.timed("detection"):
            found = detect_dataset(model, dataset, store, detection, processes)
    if found is None:
        return
    results = evaluate_and_report(
        run, model, dataset, store, found,
        detection=detection,
        metric=options.metric,
        iou_threshold=options.iou_threshold,
        log=home / "log.jsonl",
    )  # fmt: skip
    _print_result(console, run, *results)


def detect(options: cli.Detect) -> None:
    """See cli.Detect."""
    console = Console(highlight=False)
    if options.shard != WHOLE and not options.many:
        raise ValueError(f"--shard is {options.shard}, but only --many works on a part")
    if options.format != "jsonl" and not options.many:
        raise ValueError(f"--format is {options.format}, but only --many writes it")
    images = expand_folders(options.images, lists=options.many)
    images = shard_of(images, options.shard)
    checkpoint = _checkpoint_file(options.checkpoint)
    trained = load_checkpoint(checkpoint).get("config", {})
    model = load_network(checkpoint, device=options.device)
    _resize(model, options)
    search = _search_of_training(checkpoint.parent, trained, console)
    if options.mode is not None:
        if search.method != "selective-search":
            raise ValueError(
                f"--mode is {options.mode}, but the proposals of the training are of "
                f"{search.method}, which has no modes"
            )
        search = dataclasses.replace(search, mode=options.mode)
    score = CONFIDENT_SCORES[model.classifier] if options.score is None else options.score
    detection = {"score_threshold": score}
    if options.many:
        if options.format == "parquet":
            rows = ParquetParts(options.out / "detections", options.shard)
        else:
            rows = JsonLines(shard_file(options.out / "detections.jsonl", options.shard))
        many = detect_many(model, images, rows, search=search, detection=detection)
        speed = f", {many.done / many.seconds:.1f} a second" if many.done else ""
        console.print(
            f"images: {many.done} done{speed}, {many.before} done before, {many.unreadable} could "
            f"not be read; results: {many.path}",
            soft_wrap=True,
        )
        return
    results = detect_files(model, images, options.out, search=search, detection=detection)
    table = Table("image", "detections", "drawn")
    for path, drawn, found in results:
        names = [model.classes[label - 1] for label in found.labels.tolist()]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        table.add_row(str(path), counts or "none", str(drawn))
    console.print(table)
    console.print(f"boxes: {options.out / 'detections.json'}", soft_wrap=True)


def compress(options: cli.Compress) -> None:
    """See cli.Compress."""
    console = Console(highlight=False)
    if options.rois < 1:
        raise ValueError(f"--rois is {options.rois}; it must be at least 1")
    ranks = {name: getattr(options, name) for name in RANKS}
    if options.energy is not None and any(rank is not None for rank in ranks.values()):
        raise ValueError("give either --energy or ranks, --fc6 and --fc7")
    if options.energy is None:
        ranks = {name: RANKS[name] if rank is None else rank for name, rank in ranks.items()}
    checkpoint = _checkpoint_file(options.checkpoint)
    out = _new_checkpoint(options.out or checkpoint.parent / "compressed")
    content = load_checkpoint(checkpoint)
    model = load_network(checkpoint, device=options.device)
    head = model.head
    by_energy = options.energy is not None
    for layer in compress_head(model, None if by_energy else ranks, energy=options.energy):
        console.print(
            f"{layer.name}: {layer.outputs} x {layer.inputs}, rank {layer.rank} keeps "
            f"{100 * layer.energy:.2f} % of the squared singular values"
        )
    before, after = (_head_costs(model, one, options.rois) for one in (head, model.head))
    save_checkpoint(out, model, **_of_the_training(content))
    table = Table("", "before", "after", "after / before")
    for name, old in before.items():
        shown = f"{old:,.2f}" if isinstance(old, float) else f"{old:,}"
        new = f"{after[name]:,.2f}" if isinstance(old, float) else f"{after[name]:,}"
        table.add_row(name, shown, new, f"{after[name] / old:.3f}")
    console.print(table)
    console.print(f"checkpoint: {out}", soft_wrap=True)


def svm(options: cli.Svm) -> None:
    """See cli.Svm."""
    console = Console(highlight=False)
    checkpoint = _checkpoint_file(options.checkpoint)
    out = _new_checkpoint(options.out or checkpoint.parent / "svm")
    content = load_checkpoint(checkpoint)
    trained = content.get("config", {})
    for name in ("data", "proposals"):
        if getattr(options, name) is None and name not in trained:
            raise ValueError(f"{checkpoint} does not say what it was trained on; give --{name}")
    model = load_network(checkpoint, device=options.device)
    data = Path(options.data or trained["data"])
    dataset = load_dataset(data, trained.get("split", "trainval"), model.classes)
    store = ProposalStore(options.proposals or trained["proposals"])
    _check_proposals([dataset], store)
    table = Table("class", "objects", "hard negatives", "trainings")
    for one in train_svms(model, dataset.records, store, seed=trained.get("seed", 3)):
        table.add_row(one.name, str(one.objects), str(one.negatives), str(one.fits))
    save_checkpoint(out, model, **_of_the_training(content))
    console.print(table)
    console.print(f"checkpoint: {out}", soft_wrap=True)


def export(options: cli.Export) -> None:
    """See cli.Export."""
    console = Console(highlight=False)
    checkpoint = _checkpoint_file(options.checkpoint)
    out = options.out or checkpoint.parent / "detector.onnx"
    model = load_network(checkpoint)
    _resize(model, options)
    export_onnx(
        model, out, score_threshold=options.score_threshold, nms_threshold=options.nms_threshold,
        max_detections=options.max_detections,
    )  # fmt: skip
    table = Table("", "", box=None, show_header=False)
    for name, meaning in (INPUTS | OUTPUTS).items():
        table.add_row(name, meaning)
    console.print(table)
    settings = ", ".join(f"{k} {v}" for k, v in model.preprocessing.to_dict().items())
    console.print(f"preprocessing: {settings}", soft_wrap=True)
    console.print(f"file: {out} ({out.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


def report(options: cli.ReportRuns) -> None:
    """See cli.ReportRuns."""
    console = Console(highlight=False)
    text = render_comparison([run_files(folder) for folder in options.runs])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    console.print(f"report: {options.out}", soft_wrap=True)


def _train_and_test(
    run: Run,
    config: TrainConfig,
    asked: dict[str, Any],
    store: ProposalStore,
    test_set: Dataset | None,
    detection: cli.Detection,
    console: Console,
) -> None:
    """asked: settings of the command that are none of the training, for config.json."""
    config = settled(config)
    settings = config.to_dict()
    # What --config takes (config_file.FACTS: without the last three). Whether to resume is a
    # matter of the moment.
    content = {
        "training": {name: value for name, value in settings.items() if name != "resume"},
        **asked,
        "proposals_made_with": store.settings, "command": run.command, "versions": versions(),
    }  # fmt: skip
    first = environment()[0] == 0  # of several processes it alone writes and prints
    if first:
        write_json(run.out / "config.json", content)
    with run.timed("training"):
        trained = run_training(config)
    if first:
        _print_training(console, trained)
    if test_set is None:
        return
    run.settings["Training"] = settings
    used = detection.settings()
    with join(config.device) as processes, run.timed("detection"):
        found = detect_dataset(trained.model, test_set, store, used, processes)
    if found is None:
        return
    results = evaluate_and_report(
        run, trained.model, test_set, store, found,
        detection=used, metric=asked.get("metric", "area"), log=trained.log,
    )  # fmt: skip
    _print_result(console, run, *results)


def _print_training(console: Console, trained: TrainResult) -> None:
    """What became of layers and images, where the time went, and the files."""
    for change in trained.layers:
        console.print(f"{change.layer}: {change.action}, {change.detail}", soft_wrap=True)
    _print_notes(console, "boxes or images dropped or clipped", trained.problems)
    _print_notes(console, "images without a usable RoI, not trained on", trained.unusable)
    _print_notes(console, "images that cannot be read, replaced by others", trained.bad_images)
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


def _check_metric(metric: cli.Metric) -> None:
    """What the metric needs is installed."""
    if metric == "coco":
        pycocotools()


def _new_checkpoint(folder: Path) -> Path:
    """The checkpoint to write into a folder, which must not hold one."""
    path = folder / "checkpoint.pt"
    if path.exists():
        raise ValueError(f"--out: {path} exists already; give another folder")
    return path


def _of_the_training(content: dict[str, Any]) -> dict[str, Any]:
    """What eval and detect want to know of it; the optimiser does not fit a changed network."""
    kept = ("config", "iteration", "learned_from")
    return {key: content[key] for key in kept if key in content}


def _read_and_merged(
    options: cli.Proposals, datasets: list[Dataset], out: Path, console: Console
) -> ProposalStore:
    """The boxes of the files of --read as a proposal file."""
    if out.exists():
        raise ValueError(f"--out: {out} exists already; give another file")
    search = Search(max_boxes=options.search.max_boxes, seed=options.search.seed)  # checks them
    try:
        merged = merge_proposals(
            [read_proposals(path) for path in options.read], datasets,
            max_boxes=search.max_boxes, seed=search.seed,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"--read: {error}") from None
    settings: dict[str, Any] = {"method": "read", "files": [path.name for path in options.read]}
    if merged.ranked:
        settings["ranked"] = True
    if search.max_boxes is not None:
        settings |= {"max_boxes": search.max_boxes, "seed": search.seed}
    write_proposals(out, merged.boxes.items(), settings=settings)
    names = [f"{path.name}: {name}" for path, name in merged.unknown]
    _print_notes(console, "images in the files that none of the splits has, left out", names)
    return ProposalStore(out)


def _check_folder(config: TrainConfig) -> None:
    """A new run must not overwrite one, nor use proposals that belong to other images."""
    out = config.output
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
    before = _data_of_run(out)
    # A demo that was stopped early has its images and proposals but no config.json yet.
    stopped = before is None and data.is_dir() and not (out / "checkpoint.pt").exists()
    own = stopped or (before is not None and before.resolve() == data.resolve())
    there = [name for name in (*DEMO_FILES, "config.json") if (out / name).exists()]
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
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"--out: {path} was not written by this program; give another --out"
        ) from None


def _check_alone() -> None:
    """Of several processes each would search all images and write the same file."""
    if environment()[1] > 1:
        raise ValueError(
            "--proposals is missing: several processes need a file that is there already, and "
            "`fastrcnn-engine proposals` makes it"
        )


def _check_proposals(datasets: list[Dataset], store: ProposalStore) -> None:
    """Every image has proposals. Found out now, not after hours of training or detection."""
    for dataset in datasets:
        for record in dataset.records:
            store[record.image_id]


@torch.inference_mode()
def _head_costs(model: FastRCNN, head: torch.nn.Module, rois: int) -> dict[str, int | float]:
    """What ``head`` and the sibling layers cost: the layers that see every RoI."""
    parts = (head, model.cls_score, model.bbox_pred)
    linear = [x for part in parts for x in part.modules() if isinstance(x, torch.nn.Linear)]
    parameters = sum(p.numel() for part in parts for p in part.parameters())
    backbone = sum(p.numel() for p in model.backbone.parameters())
    side = model.pooled_size
    channels = linear[0].in_features // side**2
    pooled = torch.rand((rois, channels, side, side), device=model.delta_mean.device)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        hidden = head(pooled)
        # The number is there only when a GPU has done it all.
        (model.cls_score(hidden).sum() + model.bbox_pred(hidden).sum()).item()
        seconds.append(time.perf_counter() - start)
    return {
        "parameters of the network": parameters + backbone,
        "parameters after RoI pooling": parameters,
        "multiply-adds a RoI": sum(x.weight.numel() for x in linear),
        f"ms for {rois} RoIs": 1000 * statistics.median(seconds[1:]),
    }


def _resize(model: FastRCNN, options: cli.Eval | cli.Detect | cli.Export) -> None:
    """Scale images to the sizes of the options, where these name any."""
    given = {"short_side": options.short_side, "max_side": options.max_side}
    given = {name: size for name, size in given.items() if size is not None}
    model.preprocessing = dataclasses.replace(model.preprocessing, **given)


def _checkpoint_file(path: Path) -> Path:
    return path / "checkpoint.pt" if path.is_dir() else path


def _trained_on(trained: dict[str, Any]) -> ProposalStore | None:
    path = trained.get("proposals")
    return ProposalStore(path) if path is not None and Path(path).is_file() else None


def _search_of_training(home: Path, trained: dict[str, Any], console: Console) -> Search:
    """How the proposals of the training were made, as their file tells; else the defaults.

    Raises FileNotFoundError for a model of edge boxes that is not there any more.
    """
    own = ProposalStore(home / CACHE) if (home / CACHE).is_file() else None
    silent = None
    for store in (own, _trained_on(trained)):
        if store is None or store.settings is None:
            continue
        search = Search.from_dict(store.settings)
        if search is not None:
            search.to_dict()  # the model is there
            return search
        silent = store
    if silent is not None:
        console.print(
            f"proposals: {silent.path} does not say how to make more of its kind; images are "
            f"searched by {Search().method}",
            soft_wrap=True,
        )
    return Search()


def _print_result(
    console: Console, run: Run, result: VOCResult, coco: COCOResult | None
) -> None:
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
    table.add_row("[bold]mean[/]", *map(number, means), "", "", "")
    console.print(table)
    if coco is not None:
        for name, meaning in NUMBERS.items():
            console.print(f"{name:>5} {number(coco.numbers[name])}  {meaning}")
    total = sum(run.seconds.values())
    console.print(f"{headline}: [bold]{number(value)}[/]   {total:.0f} s")
    console.print(f"figures: {run.out / 'metrics.json'}", soft_wrap=True)
    console.print(f"report: {run.out / 'report.html'}", soft_wrap=True)


def _print_notes(console: Console, what: str, notes: list[str], most: int = 5) -> None:
    if notes:
        console.print(f"[yellow]{len(notes)} {what}:[/]")
        for note in notes[:most]:
            console.print(f"  {note}", soft_wrap=True, markup=False)
        if len(notes) > most:
            console.print(f"  and {len(notes) - most} more")
