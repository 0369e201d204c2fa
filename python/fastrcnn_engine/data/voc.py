"""Reads a data set in the layout of PASCAL VOC: JPEGImages, Annotations, ImageSets/Main.

The files come from many hands, so nothing is repaired in silence: a box that cannot be used is
dropped and reported with its file and object number, and a file that cannot be understood stops the
reading.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from fastrcnn_engine.data.records import (
    Box,
    Dataset,
    ImageRecord,
    NoSuchSplit,
    checked_classes,
    collecting,
    image_size,
    record_of,
    usable_box,
)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def load_voc(
    root: str | os.PathLike[str],
    split: str,
    classes: Sequence[str] | None = None,
    *,
    errors: list[str] | None = None,
    stated_sizes: bool = False,
    needs_annotations: bool = True,
) -> Dataset:
    """Reads the images named in `ImageSets/Main/<split>.txt` under `root`, with their objects.

    Coordinates are 1-based in the files and 0-based here (original code,
    lib/datasets/pascal_voc.py). A box of no width or height, with a coordinate that is no number,
    or wholly outside the image is dropped; one that is partly outside is clipped; both are told in
    `problems`. The image's own size rules where the annotation states another, and of several files
    of an id the one whose name it states; both are told. An image without objects is a record with
    G = 0. With `stated_sizes` an image that is missing or cannot be read has the size its
    annotation states, which `problems` tell. The id of an image in a subfolder is SUB/NAME.

    `classes` None: all names found in all annotation files of the folder and those in it, sorted,
    so that every split of a data set gets the same numbers. With `needs_annotations` False there
    may be no folder of them, nor a link in its place, as of a test set whose objects are kept
    secret: then no image has objects, which `problems` tell, and no class is known but `classes`.

    Raises FileNotFoundError for a missing folder, split, annotation or image (with `stated_sizes`
    only if none is there), and ValueError for a file that cannot be read, a class that is not in
    `classes`, or an image named twice. With a list of `errors` a fault of one image, object or line
    is put there, and what has it is left out.
    """
    root = Path(root)
    ids = _read_split(root, split, errors)
    listed = split_file(root, split)
    annotation_dir, image_dir = root / "Annotations", root / "JPEGImages"
    # A link that leads nowhere is there: it was meant to be the folder.
    annotated = needs_annotations or os.path.lexists(annotation_dir)
    for folder in (annotation_dir, image_dir) if annotated else (image_dir,):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; a VOC data set has one")

    trees: dict[str, ElementTree.Element] = {}
    if classes is None and annotated:
        names = set()
        for annotated_id in _annotated(annotation_dir):
            path = annotation_dir / f"{annotated_id}.xml"
            with collecting(errors):
                trees[annotated_id] = tree = _parse(path, listed)
                for number, obj in enumerate(tree.findall("object"), start=1):
                    with collecting(errors):
                        names.add(_class_name(obj, path, number))
        classes = sorted(names)
        if not classes:
            raise ValueError(
                f"{annotation_dir}: no annotation file names an object, so no class is known"
            )
    classes = checked_classes(classes) if classes is not None else ()
    label_of = {name: label for label, name in enumerate(classes, start=1)}

    names_in = cache(_names_in)  # an image is looked for under many names
    gone: set[str] = set()
    problems: list[str] = []
    if not annotated:
        trees = dict.fromkeys(ids, ElementTree.Element("annotation"))
        problems.append(f"{annotation_dir}: no such folder, so no image of {split} has objects")
    records = []
    for image_id, line in ids.items():
        path = annotation_dir / f"{image_id}.xml"
        with collecting(errors):
            tree = trees.get(image_id)
            if tree is None:
                tree = _parse(path, listed)
            inside, _, name = image_id.rpartition("/")
            folder = image_dir / inside if inside else image_dir
            image_path = _find_image(folder, names_in(folder), name, tree, problems)
            if image_path is None:
                if not stated_sizes:
                    # Faults are collected by those who need every image, or do nothing with it.
                    how = "" if errors is not None else _without_the_image(tree)
                    raise FileNotFoundError(
                        f"{listed}, line {line}: no image {_looked_for(image_id, tree)}{how}"
                    )
                gone.add(image_id)
                image_path = folder / (_stated_name(tree) or name + IMAGE_SUFFIXES[0])
            stem = image_path.stem
            if stem != name and path.with_name(f"{stem}.xml").exists():
                raise ValueError(
                    f"{path}: there is no image {image_id!r}, and {image_path.name}, which it "
                    f"names, is that of {stem!r}"
                )
            records.append(
                _read_record(
                    image_id, image_path, tree, path, label_of, problems, errors, stated_sizes
                )
            )
    missing = tuple(record.image_path for record in records if record.image_id in gone)
    if records and len(missing) == len(records):
        raise FileNotFoundError(
            f"{image_dir}: none of the images of {split} is there; looked for files named by their "
            f"ids with {', '.join(IMAGE_SUFFIXES)}"
        )
    return Dataset(classes, records, problems, root, split, missing=missing)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without spaces around them and whatever editors put before the
    first. Raises ValueError for another encoding than UTF-8, naming the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not readable as UTF-8 ({error}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{path}: has null bytes, as UTF-16 has; save it as UTF-8")
    return [line.strip() for line in text.splitlines()]


def split_file(root: Path, split: str) -> Path:
    """Where the ids of a split's images stand."""
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _read_split(root: Path, split: str, errors: list[str] | None) -> dict[str, int]:
    """The ids, and the line of each."""
    path = split_file(root, split)
    if not path.is_file():
        raise NoSuchSplit(path, sorted(p.stem for p in path.parent.glob("*.txt")))
    line_of: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if not words:
            continue
        with collecting(errors):
            if len(words) > 1:
                raise ValueError(
                    f"{path}, line {number}: expected one image id, got {line!r}; an id has no "
                    "spaces: rename picture and annotation (files of single classes, id and 1 or "
                    "-1, are no splits)"
                )
            if {"", ".", ".."} & set(words[0].split("/")):
                raise ValueError(
                    f"{path}, line {number}: {words[0]!r} is no image id, which is NAME or SUB/NAME"
                )
            if words[0] in line_of:
                raise ValueError(
                    f"{path}, line {number}: image {words[0]!r} stands already in "
                    f"line {line_of[words[0]]}; name each image once"
                )
            line_of[words[0]] = number
    if not line_of:
        raise ValueError(f"{path}: names no image")
    return line_of


def _annotated(folder: Path) -> list[str]:
    """What has an annotation in the folder or in those in it, sorted: NAME or SUB/NAME."""
    found = []
    for place, subfolders, files in os.walk(folder, followlinks=True):
        # macOS leaves ._NAME.xml, editors leave folders with old copies.
        subfolders[:] = [name for name in subfolders if name[0] != "."]
        inside = "" if place == str(folder) else f"{Path(place).relative_to(folder).as_posix()}/"
        found += [inside + name for name in files if name[0] != "." and name.endswith(".xml")]
    return [name.removesuffix(".xml") for name in sorted(found)]


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):  # of an id with a subfolder
        return set()


def _parse(path: Path, listed: Path) -> ElementTree.Element:
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file; every image of a split needs an annotation (one without "
            f"objects if nothing is in it): write it, or take the id out of {listed}"
        ) from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # unknown encodings, too
        raise ValueError(f"{path}: not readable as XML: {error}") from None
    if root.tag != "annotation":  # it would be an image without objects
        raise ValueError(f"{path}: must hold an <annotation> as VOC's do, got <{root.tag}>")
    return root


def _find_image(
    folder: Path,
    names: set[str],
    name: str,
    tree: ElementTree.Element,
    problems: list[str],
) -> Path | None:
    """The image of an id that ends with `name`, among the names in its folder; None if there is
    none."""
    # The id comes first: annotation tools leave stale names in `filename`, VOC itself goes by the
    # id.
    candidates = [name + suffix for suffix in IMAGE_SUFFIXES]
    candidates += [name + suffix.upper() for suffix in IMAGE_SUFFIXES]
    stated = _stated_name(tree)
    found = [one for one in candidates if one in names] or [stated] * (stated in names)
    if not found:
        return None
    used = stated if stated in found else found[0]
    if len(found) > 1:
        problems.append(f"{folder}: {', '.join(found)} are of one id, {name!r}; {used} is used")
    return folder / used


def _stated_name(tree: ElementTree.Element) -> str:
    """The image's file as its annotation has it, without folders; "" if it has none."""
    return (tree.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1]


def _looked_for(image_id: str, tree: ElementTree.Element) -> str:
    suffixes = ",".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
    stated = _stated_name(tree)
    named = f", nor {stated}, which its annotation names" if stated else ""
    return f"JPEGImages/{image_id}.{{{suffixes}}}{named}"


def _without_the_image(tree: ElementTree.Element) -> str:
    """What to do where the image of this annotation is missing."""
    sides = [(tree.findtext(f"size/{side}") or "").strip() for side in ("width", "height")]
    # Another image takes its place only where its annotation tells how large it was.
    skip = "; a training on this split goes on without it if on_bad_image is skip"
    return f"; take the id out of the list{skip if all(map(str.isdecimal, sides)) else ''}"


def _class_name(obj: ElementTree.Element, path: Path, number: int) -> str:
    name = (obj.findtext("name") or "").strip()
    if not name:
        raise ValueError(f"{path}, object {number}: has no name")
    return name


def _read_record(
    image_id: str,
    image_path: Path,
    tree: ElementTree.Element,
    path: Path,
    label_of: dict[str, int],
    problems: list[str],
    errors: list[str] | None,
    stated_sizes: bool,
) -> ImageRecord:
    stated = tree.findtext("size/width"), tree.findtext("size/height")
    width, height = image_size(
        image_path, stated, str(path), problems, stated_sizes=stated_sizes
    )
    boxes, labels, difficult = [], [], []
    for number, obj in enumerate(tree.findall("object"), start=1):
        with collecting(errors):
            name = _class_name(obj, path, number)
            if name not in label_of:
                raise ValueError(
                    f"{path}, object {number}: class {name!r} is not one of "
                    f"{', '.join(label_of)}; add it to the classes or take the object out"
                )
            where = f"{path}, object {number} ({name})"
            is_difficult = _read_difficult(obj, where)
            box = _read_box(obj, width, height, where, problems)
            if box is not None:
                boxes.append(box)
                labels.append(label_of[name])
                difficult.append(is_difficult)
    return record_of(image_id, image_path, (width, height), boxes, labels, difficult)


def _read_box(
    obj: ElementTree.Element, width: int, height: int, where: str, problems: list[str]
) -> Box | None:
    texts = [obj.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        x1, y1, x2, y2 = (float(text or "") - 1 for text in texts)
    except ValueError:
        x1 = y1 = x2 = y2 = math.nan
    shown = f"box {' '.join(str(text).strip() for text in texts)} (xmin ymin xmax ymax)"
    return usable_box((x1, y1, x2, y2), width, height, where, shown, problems)


def _read_difficult(obj: ElementTree.Element, where: str) -> bool:
    text = (obj.findtext("difficult") or "").strip() or "0"
    if text not in ("0", "1"):
        raise ValueError(f"{where}: difficult must be 0 or 1, got {text!r}")
    return text == "1"
