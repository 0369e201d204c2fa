"""What detect does."""

from __future__ import annotations

import dataclasses
import sys
import zlib
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastrcnn_engine.bulk import JsonLines, ParquetParts, check_made_by, detect_many
from fastrcnn_engine.commands import plain_console
from fastrcnn_engine.commands.common import print_notes, resize, search_of_training
from fastrcnn_engine.data.proposals import Search
from fastrcnn_engine.evaluation.detect import CONFIDENT_SCORES
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.options import Detect, Detection
from fastrcnn_engine.pipeline import detect_files, expand_folders
from fastrcnn_engine.shards import WHOLE, shard_file, shard_of
from fastrcnn_engine.training import load_checkpoint, load_network
from fastrcnn_engine.training.checkpoint import checkpoint_file


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
    content = load_checkpoint(checkpoint, tensors=False)
    model = load_network(checkpoint, device=options.device)
    resize(model, options)
    search = search_of_training(checkpoint, content, console)
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
        checksum = 0
        with open(checkpoint, "rb") as file:  # of VGG16 it is a gigabyte
            while part := file.read(2**20):
                checksum = zlib.crc32(part, checksum)
        _detect_many(options, model, images, search, detection, f"{checksum:08x}", console)
        return
    unreadable: list[str] = []
    results = detect_files(
        model, images, options.out, search=search, detection=detection, errors=unreadable
    )
    table = Table("image", "detections", "drawn")
    for path, drawn, found in results:
        names = [model.classes[label - 1] for label in found.labels.tolist()]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        table.add_row(str(path), counts or "none", str(drawn))
    console.print(table)
    console.print(f"boxes: {options.out / 'detections.json'}", soft_wrap=True)
    print_notes(console, "images that cannot be read, left out", unreadable, len(unreadable))
    if unreadable:
        sys.exit(1)


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
    if parquet:
        rows = ParquetParts(path, options.shard)
    else:
        rows = JsonLines(shard_file(path, options.shard))
    with rows:  # they are ours before anything is said of them
        check_made_by(path, made_by)
        many = detect_many(model, images, rows, search=search, detection=detection)
    speed = f", {many.done / many.seconds:.1f} a second" if many.done else ""
    console.print(
        f"images: {many.done} done{speed}, {many.before} done before, {many.unreadable} could "
        f"not be read; results: {many.path}",
        soft_wrap=True,
    )
