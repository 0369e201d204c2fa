"""What eval and report do."""

from __future__ import annotations

import itertools
from pathlib import Path

from fastrcnn_engine.commands import plain_console
from fastrcnn_engine.commands.common import (
    CACHE,
    check_alone,
    check_metric,
    check_out_folder,
    check_proposals,
    load_test_set,
    needing_all_images,
    needs_proposals,
    print_data,
    print_result,
    resize,
    search_of_training,
)
from fastrcnn_engine.commands.stages import (
    Run,
    detect_dataset,
    evaluate_and_report,
    search_datasets,
)
from fastrcnn_engine.data.proposals import ProposalStore
from fastrcnn_engine.evaluation.voc import check_settings
from fastrcnn_engine.files import read_json, write_whole
from fastrcnn_engine.options import Eval, ReportRuns
from fastrcnn_engine.report.compare import render_comparison
from fastrcnn_engine.report.runs import read_log, run_files
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
    content = load_checkpoint(checkpoint, tensors=False)
    trained = content.get("config", {})
    learned = path_of_training(checkpoint, content, "data")
    data = options.data or learned
    if data is None:
        raise ValueError(f"{checkpoint} does not say what it was trained on; give --data")
    data = data.resolve()  # of "." nothing could be named
    home = checkpoint.parent
    check_out_folder(options.out)
    if options.out is not None and (options.out / "checkpoint.pt").exists():
        raise ValueError(
            f"--out: {options.out} holds a run, whose own test would be replaced; give another"
        )
    log = read_log(home / "log.jsonl")
    with join(options.device) as processes:
        model = load_network(checkpoint, device=str(processes.device))
        resize(model, options)
        detection = options.detection.settings(model.classifier)
        # Ids of two data sets may be the same: proposals of one must never serve for the other.
        foreign = learned is None or data.resolve() != learned.resolve()
        # What was learned from had annotations: without them it has lost them.
        dataset = load_test_set(data, options.split, model.classes, needs_annotations=not foreign)
        print_data(console, dataset, "testing on")
        name = f"eval-{data.name}-{options.split}" if foreign else f"eval-{options.split}"
        # A run is judged by eval-SPLIT: what best.pt or an older checkpoint gets is not for there.
        prefix = "" if checkpoint.stem == "checkpoint" else f"{checkpoint.stem}-"
        run = Run(
            title=f"Fast R-CNN on {dataset.root.name}",
            out=options.out or _folder_of_test(home / f"{prefix}{name}", command, dataset.root),
            command=command,
            seed=trained.get("seed"),
            settings={"Training": trained},
        )
        with run.timed("proposals"), needing_all_images(dataset):
            own = None if foreign else path_of_training(checkpoint, content, "proposals")
            used = ProposalStore(own) if own is not None and own.is_file() else None
            if options.proposals is not None:
                store = ProposalStore(options.proposals)
                check_proposals(console, [dataset], store)
            elif used is not None and all(
                r.image_id in used and used.is_of(r.image_id, r.image_path) for r in dataset.records
            ):
                store = used
            else:
                cache = (options.out or home / name if foreign else home) / CACHE
                check_alone()
                search = search_of_training(checkpoint, content)
                if search is None:
                    other = "one that `fastrcnn-engine proposals` makes"
                    raise needs_proposals(checkpoint, content, other)
                store = search_datasets([dataset], cache, search)
        with run.timed("detection"), needing_all_images(dataset):
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
    print_result(console, run, dataset, *results)


def _folder_of_test(folder: Path, command: str, data: Path) -> Path:
    """The folder, or FOLDER-2, FOLDER-3 and so on: the first without the test of another command.

    So the same command again replaces its own results, and never those of others; typed in another
    directory, its relative paths may lead to other data.
    """
    numbers = itertools.count(2)
    out = folder
    while (done := out / "metrics.json").is_file():
        told = read_json(done)
        where = told.get("settings", {}).get("Evaluation", {}).get("data")
        if (told.get("command"), where) == (command, str(data)):
            break
        out = folder.with_name(f"{folder.name}-{next(numbers)}")
    return out


def report(options: ReportRuns) -> None:
    """See options.ReportRuns."""
    console = plain_console()
    text = render_comparison([run_files(folder) for folder in options.runs])
    write_whole(options.out, text)
    console.print(f"report: {options.out}", soft_wrap=True)
