"""What eval, detect and report do."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrcnn_engine.bulk import JsonLines, ParquetParts, check_made_by, detect_many
from fastrcnn_engine.commands import plain_console
from fastrcnn_engine.commands.common import (
    CACHE,
    check_alone,
    check_metric,
    check_proposals,
    print_result,
    resize,
)
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import ProposalStore, Search
from fastrcnn_engine.evaluation.detect import CONFIDENT_SCORES
from fastrcnn_engine.evaluation.voc import check_settings
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.options import Detect, Detection, Eval, ReportRuns
from fastrcnn_engine.pipeline import (
    Run,
    detect_dataset,
    detect_files,
    evaluate_and_report,
    expand_folders,
    read_json,
    read_log,
    run_files,
    search_datasets,
)
from fastrcnn_engine.report.compare import render_comparison
from fastrcnn_engine.shards import WHOLE, shard_file, shard_of
from fastrcnn_engine.training import load_checkpoint, load_network
from fastrcnn_engine.training.checkpoint import checkpoint_file, path_of_training
from fastrcnn_engine.training.distributed import join


def evaluate(options: Eval, command: str) -> None:
    """See options.Eval."""
    console = plain_console()
    given = options.run_dir or options.checkpoint
    if given is None or (options.run_dir is not None and options.checkpoint is not None):
        raise ValueError("give either --run or --checkpoint")
    check_settings("area", options.iou_threshold)
    check_metric(options.metric)
    checkpoint = checkpoint_file(given)
    content = load_checkpoint(checkpoint)
    trained = content.get("config", {})
    learned = path_of_training(checkpoint, content, "data")
    data = options.data or learned
    if data is None:
        raise ValueError(f"{checkpoint} does not say what it was trained on; give --data")
    home = checkpoint.parent
    log = read_log(home / "log.jsonl")
    with join(options.device) as processes:
        model = load_network(checkpoint, device=str(processes.device))
        resize(model, options)
        detection = options.detection.settings()
        dataset = load_dataset(data, options.split, model.classes)
        # Ids of two data sets may be the same: proposals of one must never serve for the other.
        foreign = learned is None or data.resolve() != learned.resolve()
        name = f"eval-{data.name}-{options.split}" if foreign else f"eval-{options.split}"
        # A run is judged by eval-SPLIT: what best.pt or an older checkpoint gets is not for there.
        prefix = "" if checkpoint.stem == "checkpoint" else f"{checkpoint.stem}-"
        run = Run(
            title=f"Fast R-CNN on {dataset.root.name}",
            out=options.out or _folder_of_test(home / f"{prefix}{name}", command),
            command=command,
            seed=trained.get("seed"),
            settings={"Training": trained},
        )
        with run.timed("proposals"):
            own = None if foreign else path_of_training(checkpoint, content, "proposals")
            used = ProposalStore(own) if own is not None and own.is_file() else None
            if options.proposals is not None:
                store = ProposalStore(options.proposals)
                check_proposals([dataset], store)
            elif used is not None and all(r.image_id in used for r in dataset.records):
                store = used
            else:
                cache = (options.out or home / name if foreign else home) / CACHE
                check_alone()
                search = _search_of_training(checkpoint, content, console, needed=not foreign)
                store = search_datasets([dataset], cache, search)
        with run.timed("detection"):
            found = detect_dataset(model, dataset, store, detection, processes)
    if found is None:
        return
    results = evaluate_and_report(
        run, model, dataset, store, found,
        detection=detection,
        metric=options.metric,
        iou_threshold=options.iou_threshold,
        log=log,
    )  # fmt: skip
    print_result(console, run, *results)


def _folder_of_test(folder: Path, command: str) -> Path:
    """The folder, or FOLDER-2, FOLDER-3 and so on: the first without the test of another command.

    So the same command again replaces its own results, and never those of others.
    """
    numbers = itertools.count(2)
    out = folder
    while (done := out / "metrics.json").is_file() and read_json(done).get("command") != command:
        out = folder.with_name(f"{folder.name}-{next(numbers)}")
    return out


def detect(options: Detect) -> None:
    """See options.Detect."""
    console = plain_console()
    if options.shard != WHOLE and not options.many:
        raise ValueError(f"--shard is {options.shard}, but only --many works on a part")
    if options.format != "jsonl" and not options.many:
        raise ValueError(f"--format is {options.format}, but only --many writes it")
    Detection(score_threshold=options.score).settings()  # checks it
    images = expand_folders(options.images, lists=options.many)
    images = shard_of(list(dict.fromkeys(images)), options.shard)
    checkpoint = checkpoint_file(options.checkpoint)
    content = load_checkpoint(checkpoint)
    model = load_network(checkpoint, device=options.device)
    resize(model, options)
    search = _search_of_training(checkpoint, content, console)
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
        checksum = f"{zlib.crc32(checkpoint.read_bytes()):08x}"
        _detect_many(options, model, images, search, detection, checksum, console)
        return
    results = detect_files(model, images, options.out, search=search, detection=detection)
    table = Table("image", "detections", "drawn")
    for path, drawn, found in results:
        names = [model.classes[label - 1] for label in found.labels.tolist()]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        table.add_row(str(path), counts or "none", str(drawn))
    console.print(table)
    console.print(f"boxes: {options.out / 'detections.json'}", soft_wrap=True)


def _detect_many(
    options: Detect,
    model: FastRCNN,
    images: list[Path],
    search: Search,
    detection: dict[str, Any],
    checksum: str,
    console: Console,
) -> None:
    """A row for each image. checksum: of the checkpoint."""
    sizes = model.preprocessing.to_dict()
    made_by = {
        "checkpoint_crc32": checksum,
        **detection,
        **{name: sizes[name] for name in ("short_side", "max_side")},
        # Where a model of edge boxes lies does not count, as its checksum does.
        "search": {k: v for k, v in search.to_dict().items() if k != "edge_model"},
    }
    parquet = options.format == "parquet"
    path = options.out / ("detections" if parquet else "detections.jsonl")
    known = check_made_by(path, made_by)
    if parquet:
        rows = ParquetParts(path, options.shard)
    else:
        rows = JsonLines(shard_file(path, options.shard))
    if not known:
        console.print(
            f"rows: {path} has some of an older version, which does not say what made them; "
            "they stay as they are",
            soft_wrap=True,
        )
    many = detect_many(model, images, rows, search=search, detection=detection)
    speed = f", {many.done / many.seconds:.1f} a second" if many.done else ""
    console.print(
        f"images: {many.done} done{speed}, {many.before} done before, {many.unreadable} could "
        f"not be read; results: {many.path}",
        soft_wrap=True,
    )


def report(options: ReportRuns) -> None:
    """See options.ReportRuns."""
    console = plain_console()
    text = render_comparison([run_files(folder) for folder in options.runs])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, encoding="utf-8")
    console.print(f"report: {options.out}", soft_wrap=True)


def _search_of_training(
    checkpoint: Path, content: dict[str, Any], console: Console, *, needed: bool = False
) -> Search:
    """How the proposals of the training were made; else the defaults, which is told.

    needed: the proposals themselves are wanted, not more of their kind.

    Raises FileNotFoundError for a model of edge boxes that is not there any more, or a needed file
    that is not and cannot be made again; ValueError for a model that has changed.
    """
    path = path_of_training(checkpoint, content, "proposals")
    if path is None:
        return Search()
    missing = not path.is_file()
    # Older checkpoints do not say how; the file may.
    told = "proposals_made_with" in content
    settings = content.get("proposals_made_with")
    if not told and not missing:
        settings = ProposalStore(path).settings
    search = Search.from_dict(settings)
    if search is not None:
        checksum = search.to_dict().get("edge_model_crc32")
        if settings is not None and checksum != settings.get("edge_model_crc32"):
            raise ValueError(
                f"{search.edge_model}: another model than the one that made the proposals of {path}"
            )
        return search
    if missing and needed:
        raise FileNotFoundError(
            f"{path}: the proposals of the training are not there, and nothing tells how to make "
            "them again; give --proposals"
        )
    if settings is not None:
        reason = "does not say how to make more of its kind"
    elif missing and not told:
        reason = "is not there, and this older checkpoint does not say how it was made"
    else:
        reason = "does not say how it was made"
    console.print(
        f"proposals: {path} {reason}; images are searched by {Search().method}", soft_wrap=True
    )
    return Search()
