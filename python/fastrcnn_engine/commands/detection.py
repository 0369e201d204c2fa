"""What detect does: on a few images, or on very many."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from fastrcnn_engine.commands import plain_console
from fastrcnn_engine.commands.bulk import (
    JsonLines,
    ParquetParts,
    Propose,
    check_made_by,
    detect_many,
)
from fastrcnn_engine.commands.common import (
    check_out_folder,
    needs_proposals,
    print_notes,
    resize,
    search_of_training,
)
from fastrcnn_engine.commands.shards import WHOLE, shard_of
from fastrcnn_engine.commands.stages import detections_as_json
from fastrcnn_engine.data.images import load_image, opened_image
from fastrcnn_engine.data.progress import counted
from fastrcnn_engine.data.proposals import ProposalStore, Search
from fastrcnn_engine.data.proposals.boxes import bad_row, within
from fastrcnn_engine.data.records import collecting
from fastrcnn_engine.data.voc import IMAGE_SUFFIXES, read_lines
from fastrcnn_engine.evaluation.detect import CONFIDENT_SCORES, detect_image
from fastrcnn_engine.files import crc32_of, whole_file, write_json
from fastrcnn_engine.models import FastRCNN
from fastrcnn_engine.ops import Detections
from fastrcnn_engine.options import Detect, Detection
from fastrcnn_engine.report.draw import detection_marks, draw_marks
from fastrcnn_engine.report.text import several
from fastrcnn_engine.training import load_checkpoint, load_network
from fastrcnn_engine.training.checkpoint import checkpoint_file

DRAWN = b"drawn by fastrcnn-engine detect"  # the comment in a picture that detect_files makes


def detect(options: Detect) -> None:
    """See options.Detect."""
    console = plain_console()
    if options.shard != WHOLE and not options.many:
        raise ValueError(f"--shard is {options.shard}, but only --many works on a part")
    if options.format != "jsonl" and not options.many:
        raise ValueError(f"--format is {options.format}, but only --many writes it")
    if options.mode is not None and options.proposals is not None:
        raise ValueError("give either --proposals or --mode, which is of a search for them")
    check_out_folder(options.out)
    for name in ("checkpoint.pt", "metrics.json"):
        if (options.out / name).exists():
            raise ValueError(
                f"--out: {options.out} holds a run or a test ({name}), whose detections.json would "
                "be replaced; give another folder"
            )
    everything = list(dict.fromkeys(expand_folders(options.images, lists=options.many)))
    for folder, count in subfolders_of(options.images):
        console.print(
            f"not looked at: {folder} ({several(count, 'image')}); name this folder too",
            soft_wrap=True,
        )
    images = shard_of(everything, options.shard)
    checkpoint = checkpoint_file(options.checkpoint)
    content = load_checkpoint(checkpoint, tensors=False)
    classifier = content["network"]["classifier"]
    Detection(score_threshold=options.score_threshold).settings(classifier)  # checks it
    model = load_network(checkpoint, device=options.device)
    resize(model, options)
    source: dict[str, Any] = {}
    if options.proposals is None:
        search = _search(options, checkpoint, content)
        propose = _boxes_of(search)
        # Where a model of edge boxes lies does not count, as its checksum does.
        source["search"] = {k: v for k, v in search.to_dict().items() if k != "edge_model"}
    else:
        propose = _proposals_of(images, everything, ProposalStore(options.proposals))
        if options.many:
            source["proposals_crc32"] = crc32_of(options.proposals)
    threshold = options.score_threshold
    if threshold is None:
        threshold = CONFIDENT_SCORES[model.classifier]
    detection = {"score_threshold": threshold}
    if options.many:
        source["checkpoint_crc32"] = crc32_of(checkpoint)
        _detect_many(options, model, images, propose, detection, source, console)
        return
    unreadable: list[str] = []
    results = detect_files(
        model, images, options.out, propose=propose, detection=detection, errors=unreadable
    )
    table = Table()
    for title in ("image", "detections", "drawn"):
        table.add_column(title, overflow="fold")  # a path cut short is none
    for path, drawn, found in results:
        names = [model.classes[label - 1] for label in found.labels.tolist()]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        table.add_row(str(path), counts or "none", str(drawn))
    console.print(table)
    console.print(f"boxes: {options.out / 'detections.json'}", soft_wrap=True)
    print_notes(console, "image that cannot be read, left out", unreadable, len(unreadable))
    if unreadable:
        sys.exit(1)


def _detect_many(
    options: Detect,
    model: FastRCNN,
    images: list[Path],
    propose: Propose,
    detection: dict[str, Any],
    source: dict[str, Any],
    console: Console,
) -> None:
    """A row for each image. source: what tells checkpoint and proposals from others."""
    sizes = model.preprocessing.to_dict()
    sizes = {name: sizes[name] for name in ("short_side", "max_side")}
    made_by = {**source, **detection, **sizes}
    parquet = options.format == "parquet"
    path = options.out / ("detections" if parquet else "detections.jsonl")
    if parquet:
        rows = ParquetParts(path, options.shard)
    else:
        rows = JsonLines(path, options.shard)
    with rows:  # they are ours before anything is said of them
        check_made_by(path, made_by)
        many = detect_many(model, images, rows, propose=propose, detection=detection)
    speed = f", {many.done / many.seconds:.1f} a second" if many.done else ""
    console.print(
        f"images: {many.done} done{speed}, {many.before} done before, {many.failed} "
        f"failed; results: {many.path}",
        soft_wrap=True,
    )
    if many.failed:  # their rows say why
        sys.exit(1)


def _search(options: Detect, checkpoint: Path, content: dict[str, Any]) -> Search:
    """The search of the training, in the mode that is asked for."""
    search = search_of_training(checkpoint, content)
    if options.mode is None:
        if search is None:
            raise needs_proposals(checkpoint, content, "--mode for selective search")
        return search
    search = search or Search()
    if search.method != "selective-search":
        raise ValueError(
            f"--mode is {options.mode}, but the proposals of the training are of "
            f"{search.method}, which has no modes"
        )
    return dataclasses.replace(search, mode=options.mode)


def _boxes_of(search: Search) -> Propose:
    """An image goes by its name without folder and suffix there."""
    return lambda pixels, image: search.boxes(pixels, image.stem)


def _proposals_of(
    images: Sequence[Path], everything: Sequence[Path], store: ProposalStore
) -> Propose:
    """The boxes that a file has for image files, all of which it must have.

    everything: the images of all parts of the job; of two none may have the boxes of the other.
    """
    image_of: dict[str, Path] = {}
    for image in everything:
        for name in _names_of(image, store):
            # With a checksum there is no doubt whose boxes they are.
            if not store.fingerprints[name] and image_of.setdefault(name, image) != image:
                raise ValueError(
                    f"{store.path}: {name!r} may be {image_of[name]} or {image}; name images by "
                    "their folders too there"
                )
    if missing := [str(image) for image in images if not _names_of(image, store)]:
        shown = ", ".join(missing[:5]) + (", ..." if missing[5:] else "")
        known = next((f", as {name!r} is" for name in store), "")
        raise ValueError(
            f"{store.path}: no proposals for {len(missing)} of {len(images)} images: {shown}; add "
            f"boxes under their names without suffix{known}, or leave these images out"
        )

    def propose(pixels: np.ndarray, image: Path) -> np.ndarray:
        names = _names_of(image, store)
        name = next((name for name in names if store.is_of(name, image)), None)
        if name is None:
            raise ValueError(
                f"{image}: the boxes of {' and '.join(map(repr, names))} in {store.path} are of "
                "another image, or of this one before it was changed, by its checksum; make "
                "proposals of this image, or leave it out"
            )
        boxes = store[name]  # which checks them
        height, width = pixels.shape[:2]
        inside = f"x1 y1 x2 y2 inside of {width} x {height} pixels"
        if outside := bad_row(boxes, within(boxes, width, height), inside):
            raise ValueError(
                f"{image}: proposals of {name!r} in {store.path}, {outside}; they are of another "
                "image, or x2 and y2 are one past the last pixel, and 1 is to be subtracted"
            )
        return boxes

    return propose


def _names_of(image: Path, store: ProposalStore) -> list[str]:
    """The ids under which a file may have the boxes of an image, the likeliest first.

    They are those that a data set gives: of VOC the path below a folder, without its suffix, of
    COCO folder and number. The file's checksums tell which it is; without any it is the longest.
    """
    path = image.absolute()
    parts = path.with_suffix("").parts
    names = ["/".join(parts[start:]) for start in range(1, len(parts))]
    names = [name for name in names if name in store]
    if number := re.search(r"\d+$", path.stem):
        name = f"{path.parent.name}/{int(number[0])}"
        # Only COCO's own files have the id in their name for sure.
        sure = re.fullmatch(r"(COCO_\w+_)?\d+", path.stem)
        if name in store and name not in names and (sure or store.fingerprints[name]):
            names.append(name)
    return [name for name in names if store.fingerprints[name]] or names[:1]


def detect_files(
    model: FastRCNN,
    images: Sequence[Path],
    out: Path,
    *,
    propose: Propose,
    detection: Mapping[str, Any],
    errors: list[str],
) -> list[tuple[Path, Path, Detections]]:
    """Detects on image files.

    Writes one drawn picture per image, NAME-detections.jpg, and detections.json, both into `out`,
    which may be the folder of the images: of pictures only earlier drawings that are not among the
    images are written over. Returns (image, drawn picture, detections) of each. A path that leads
    nowhere stops it before the first search; an image that cannot be read is told in `errors`.
    """
    if not images:
        raise ValueError("images: name at least one image file")
    for path in images:
        if not path.is_file():
            raise FileNotFoundError(f"images: {path}: no such file")
    out.mkdir(parents=True, exist_ok=True)
    results = []
    taken = {path.resolve() for path in images}
    with counted(images, "detection", len(images)) as each:
        for path in each:
            image = None
            with collecting(errors):
                image = load_image(path)
            if image is None:
                continue
            found = detect_image(model, image, propose(image, path), **detection)
            drawn = _free_name(out, path.stem, taken)
            taken.add(drawn.resolve())
            picture = draw_marks(image, detection_marks(found, model.classes))
            with whole_file(drawn) as file:
                Image.fromarray(picture).save(file, format="JPEG", quality=92, comment=DRAWN)
            results.append((path, drawn, found))
    content = detections_as_json({str(p): found for p, _, found in results}, model.classes)
    write_json(out / "detections.json", content)
    return results


def expand_folders(paths: Sequence[Path], *, lists: bool = False) -> list[Path]:
    """Image files, with every folder replaced by the images in it, by name, but for those that
    detect_files drew there.

    lists: a text file (.txt) is replaced by the images it names, one a line.
    """
    files = []
    for path in paths:
        if path.is_dir():
            inside = sorted(_images_in(path))
            if not inside:
                deeper = ", ".join(str(sub) for sub, _ in subfolders_of([path]))
                raise ValueError(
                    f"{path}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})"
                    + (f"; there are some in {deeper}" if deeper else "")
                )
            files += inside
        elif lists and path.suffix.lower() == ".txt":
            files += [Path(line) for line in read_lines(path) if line]
        else:
            files.append(path)
    return files


def _images_in(folder: Path) -> list[Path]:
    """But those that detect_files drew. macOS leaves ._NAME.jpg, which are no images."""
    named = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    return [one for one in named if not _is_drawn(one)]


def subfolders_of(paths: Sequence[Path]) -> list[tuple[Path, int]]:
    """The folders right inside of those that are named which hold images, and how many."""
    inside = [sub for path in paths if path.is_dir() for sub in sorted(path.iterdir())]
    found = []
    for sub in inside:
        if sub in paths or not sub.is_dir():
            continue
        with suppress(OSError):  # a folder that may not be read is none of ours
            count = len(_images_in(sub))
            found += [(sub, count)] * (count > 0)
    return found


def _is_drawn(path: Path) -> bool:
    """Whether detect_files drew this picture. The name alone might be that of somebody's photo."""
    if not re.search(r"-detections(-\d+)?\.jpg$", path.name):
        return False
    try:
        with opened_image(path) as image:
            return image.info.get("comment") == DRAWN
    except (OSError, ValueError):
        return False  # whatever reads the images tells of it


def _free_name(folder: Path, stem: str, taken: set[Path]) -> Path:
    # Two images of one name from different folders must not overwrite each other, nor an input, nor
    # what is somebody's own.
    name, number = folder / f"{stem}-detections.jpg", 2
    while name.resolve() in taken or (name.exists() and not _is_drawn(name)):
        name, number = folder / f"{stem}-detections-{number}.jpg", number + 1
    return name
