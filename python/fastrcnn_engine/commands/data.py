"""What check-data and proposals do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.table import Table

from fastrcnn_engine.commands import plain_console
from fastrcnn_engine.commands.common import (
    CACHE,
    check_out_folder,
    print_notes,
    search_of,
    split_of,
)
from fastrcnn_engine.commands.shards import WHOLE
from fastrcnn_engine.commands.stages import RECALL_THRESHOLDS, search_datasets
from fastrcnn_engine.data.check import check_dataset
from fastrcnn_engine.data.layouts import load_dataset
from fastrcnn_engine.data.proposals import (
    ProposalStore,
    merge_proposals,
    proposal_recall,
    read_proposals,
    write_proposals,
)
from fastrcnn_engine.data.records import Dataset
from fastrcnn_engine.files import whole_file, write_json, write_whole
from fastrcnn_engine.options import CheckData, Proposals, SearchOptions
from fastrcnn_engine.report.draw import picture_grid
from fastrcnn_engine.report.gallery import sample_pictures
from fastrcnn_engine.report.plots import sizes_svg
from fastrcnn_engine.report.text import number


def check_data(options: CheckData) -> None:
    """See options.CheckData."""
    console = plain_console()
    check_out_folder(options.out)
    with split_of("--split"):
        check = check_dataset(
            options.data, options.split, options.classes, proposals=options.proposals
        )
    for kind, lines in check.errors.items():
        print_notes(console, f"error, {kind}", lines, len(lines))
    for kind, lines in check.warnings.items():
        print_notes(console, f"warning, {kind}", lines, 20)
    content = check.to_dict()
    console.print(_class_facts(content["classes"]))
    write_json(options.out / "check.json", content)
    names = check.dataset.classes
    sizes = {label: check.sizes(label) for label in range(1, len(names) + 1)}
    write_whole(options.out / "sizes.svg", sizes_svg(sizes, names))
    samples = sample_pictures(check.dataset)
    if samples:
        with whole_file(options.out / "samples.jpg") as file:
            Image.fromarray(picture_grid(samples)).save(file, format="JPEG", quality=88)
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


def proposals(options: Proposals) -> None:
    """See options.Proposals."""
    console = plain_console()
    with split_of("--split"):
        datasets = [
            load_dataset(options.data, split, stated_sizes=True, needs_annotations=False)
            for split in options.split
        ]
    out = options.out or options.data / CACHE
    if options.read and options.shard != WHOLE:
        raise ValueError(f"--shard is {options.shard}, but with --read there is nothing to search")
    unreadable: list[str] = []
    if options.read:
        store = _read_and_merged(options, datasets, out, console)
    else:
        store = search_datasets(
            datasets, out, search_of(options.search),
            workers=options.search.workers, shard=options.shard, errors=unreadable,
        )  # fmt: skip
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
    what = "image that cannot be read, without proposals"
    print_notes(console, what, sorted(unreadable), len(unreadable))
    if unreadable:
        sys.exit(1)


def _read_and_merged(
    options: Proposals, datasets: list[Dataset], out: Path, console: Console
) -> ProposalStore:
    """The boxes of the files of --read as a proposal file."""
    if out.exists():
        raise ValueError(f"--out: {out} exists already; give another file")
    for name in ("method", "mode", "short_side", "min_size", "edge_model"):
        given = getattr(options.search, name)
        if given != getattr(SearchOptions, name):
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is {given}, but with --read nothing is searched")
    search = search_of(options.search)  # checks the limit and the seed
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
    print_notes(console, "image in the files that none of the splits has, left out", names)
    return ProposalStore(out)
