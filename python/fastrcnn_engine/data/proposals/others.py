"""Readers of proposals that other programs wrote: MATLAB files, detectron2's and mmdetection's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn_engine.data.proposals.boxes import bad_row, well_formed
from fastrcnn_engine.data.proposals.pickles import read_pickle
from fastrcnn_engine.data.proposals.store import ProposalStore

XYXY, XYWH = 0, 1  # of detectron2's BoxMode; what else there is has no absolute corners


@dataclass(frozen=True, eq=False)
class ProposalFile:
    """Boxes (P, 4) float32 of images, x1 y1 x2 y2, 0-based, both ends inclusive.

    `boxes` are by the name the file has for an image, or a list in the order of a split. `ranked`:
    the best come first.
    """

    path: Path
    boxes: dict[str, np.ndarray] | ProposalStore | list[np.ndarray]
    ranked: bool


def read_proposals(path: str | os.PathLike[str]) -> ProposalFile:
    """Reads a file of proposals of any of these kinds; its content tells which, then its name.

    - Our own .npz (`ProposalStore`).
    - A MATLAB file with a variable `boxes` (published selective search). A cell of arrays is of a
      split, in its order, 1-based y1 x1 y2 x2 (original code, lib/datasets/pascal_voc.py). One
      array is of one image, whose name is that of the file without "_boxes", 0-based x1 y1 x2 y2
      (the demo of the original code).
    - A pickle of detectron2, and of Detectron before it: a dict with `boxes`, `ids` or `indexes`,
      `objectness_logits` or `scores`, and `bbox_mode`.
    - A pickle of mmdetection since its version 2: a list of (P, 4) or (P, 5) arrays in the order of
      a split, the fifth number a score, or a dict of them or of {bboxes, scores} by file name.

    Pickles run nothing (see `read_pickle`). Their boxes end where the last pixel ends, at x2 of
    [x1, x2): one pixel is taken off to name the last pixel, but no side gets shorter than one.
    Those of Detectron (`indexes`) name it already. Scores put the boxes in falling order.

    Raises FileNotFoundError, and ValueError for a file of another kind or with other boxes, naming
    file and image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of proposals")
    with open(path, "rb") as file:
        start = file.read(2)
    if start == b"PK":
        store = ProposalStore(path)
        return ProposalFile(path, store, bool((store.settings or {}).get("ranked")))
    if path.suffix.lower() == ".mat":
        return _read_mat(path)
    # Protocols before 2 begin with any of many letters.
    if start[:1] == b"\x80" or path.suffix.lower() in (".pkl", ".pickle"):
        return _read_pickled(path)
    raise ValueError(
        f"{path}: not a file of proposals; known are .npz, .mat of MATLAB, and pickles of "
        "detectron2 and mmdetection"
    )


def _read_mat(path: Path) -> ProposalFile:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except Exception as error:  # scipy has no list of what a broken file raises
        raise ValueError(f"{path}: not readable as a MATLAB file ({error})") from None
    if "boxes" not in content:
        names = sorted(name for name in content if not name.startswith("__"))
        raise ValueError(f"{path}: has no variable `boxes`, only {names}")
    boxes = content["boxes"]
    if boxes.dtype != object:
        name = path.stem.removesuffix("_boxes")
        return ProposalFile(path, {name: _corners(boxes, f"{path}")}, ranked=False)
    arrays = []
    for row, array in enumerate(boxes.ravel(), start=1):
        where = f"{path}, image {row}"
        own = _numbers(array, where)  # before any subtraction: the files hold unsigned numbers
        arrays.append(_corners(own[:, [1, 0, 3, 2]] - 1, where))
    return ProposalFile(path, arrays, ranked=False)


def _read_pickled(path: Path) -> ProposalFile:
    content = read_pickle(path)
    if isinstance(content, dict) and "boxes" in content:
        return _of_detectron(content, path)
    if isinstance(content, dict):
        for name in content:
            if not isinstance(name, str):
                raise ValueError(f"{path}: images must have file names, got {name!r}")
        of_name = {n: _of_mmdetection(one, f"{path}, {n}") for n, one in content.items()}
        ranked = all(ranked for _, ranked in of_name.values())
        return ProposalFile(path, {name: boxes for name, (boxes, _) in of_name.items()}, ranked)
    if isinstance(content, list):
        rows = [_of_mmdetection(one, f"{path}, image {n}") for n, one in enumerate(content, 1)]
        return ProposalFile(path, [boxes for boxes, _ in rows], all(ranked for _, ranked in rows))
    raise ValueError(
        f"{path}: a pickle of proposals holds a dict or a list, got {type(content).__name__}"
    )


def _of_detectron(content: dict[str, Any], path: Path) -> ProposalFile:
    inclusive = "indexes" in content  # Detectron's name; its boxes name their last pixel
    ids = content.get("ids", content.get("indexes"))
    scores = content.get("objectness_logits", content.get("scores"))
    mode = content.get("bbox_mode", XYXY)
    if not isinstance(mode, int) or mode not in (XYXY, XYWH):
        raise ValueError(f"{path}: bbox_mode is {mode!r}; read are XYXY_ABS, 0, and XYWH_ABS, 1")
    boxes = content["boxes"]
    lists = {"boxes": boxes, "ids": ids} | ({} if scores is None else {"scores": scores})
    for name, values in lists.items():
        listed = isinstance(values, (list, tuple, np.ndarray)) and getattr(values, "ndim", 1) > 0
        if not listed or len(values) != len(boxes):
            raise ValueError(f"{path}: {name} must be a list, one for each of `boxes`")
    found: dict[str, np.ndarray] = {}
    for row, image_id in enumerate(lists["ids"]):
        known = isinstance(image_id, bytes)
        name = image_id.decode(errors="backslashreplace") if known else str(image_id)
        where = f"{path}, {name}"
        if name in found:
            raise ValueError(f"{where}: the image is there twice")
        own = _numbers(boxes[row], where)
        if mode == XYWH:
            own = np.concatenate([own[:, :2], own[:, :2] + own[:, 2:]], axis=1)
        score = None if scores is None else scores[row]
        corners = _corners(own, where) if inclusive else _last_pixels(own, where)
        found[name] = _falling(corners, score, where)
    return ProposalFile(path, found, ranked=scores is not None)


def _of_mmdetection(one: Any, where: str) -> tuple[np.ndarray, bool]:
    """The boxes of an image, and whether there were scores to put them in order."""
    if isinstance(one, dict):
        if "bboxes" not in one:
            raise ValueError(f"{where}: has no `bboxes`, only {sorted(map(str, one))}")
        boxes, scores = _numbers(one["bboxes"], where), one.get("scores")
    else:
        boxes = _numbers(one, where, columns=(4, 5))
        scores = boxes[:, 4] if boxes.shape[1] == 5 else None
    return _falling(_last_pixels(boxes[:, :4], where), scores, where), scores is not None


def _numbers(array: Any, where: str, columns: tuple[int, ...] = (4,)) -> np.ndarray:
    """As float64 (P, 4); no boxes may have any shape."""
    try:
        numbers = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: boxes must be an array of numbers") from None
    if numbers.size == 0:
        return np.zeros((0, columns[-1]))
    if numbers.ndim != 2 or numbers.shape[1] not in columns:
        shapes = " or ".join(f"(P, {count})" for count in columns)
        raise ValueError(f"{where}: boxes must be {shapes}, got {numbers.shape}")
    return numbers


def _last_pixels(boxes: np.ndarray, where: str) -> np.ndarray:
    """Boxes [x1, x2) as boxes that name their last pixel."""
    corners = _corners(boxes, where)
    corners[:, 2:] = np.maximum(corners[:, 2:] - 1, corners[:, :2])
    return corners


def _corners(boxes: Any, where: str) -> np.ndarray:
    """As float32 (P, 4), if finite with 0 <= x1 <= x2 and 0 <= y1 <= y2."""
    corners = _numbers(boxes, where).astype(np.float32)
    good = well_formed(corners) & (corners >= 0).all(axis=1)
    bad = bad_row(corners, good, "finite 0 <= x1 <= x2 and 0 <= y1 <= y2")
    if bad is not None:
        raise ValueError(f"{where}, {bad}; the file is of another kind")
    return corners


def _falling(boxes: np.ndarray, scores: Any, where: str) -> np.ndarray:
    """The boxes by falling score; equal ones and those without stay in their order."""
    if scores is None:
        return boxes
    try:
        scores = np.asarray(scores, dtype=np.float64).ravel()
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: scores must be an array of numbers") from None
    if len(scores) != len(boxes):
        raise ValueError(f"{where}: {len(scores)} scores for {len(boxes)} boxes")
    if np.isnan(scores).any():
        raise ValueError(f"{where}: score {int(np.argmax(np.isnan(scores)))} is no number")
    return boxes[np.argsort(-scores, kind="stable")]
