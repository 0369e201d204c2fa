"""Region proposals: selective search, the file they are kept in, and readers of published ones.

Proposals are computed once per data set and kept in one uncompressed .npz file: an array (P, 4)
float32 for each image id, x1 y1 x2 y2 in pixels of the original image, 0-based, both ends
inclusive. Training reads it through the page cache, so a set of any size costs no start-up time and
no memory of its own.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fastrcnn_engine.data.images import load_image
from fastrcnn_engine.data.records import ImageRecord

MODES = ("fast", "quality", "fine")
SAVE_SECONDS = 120  # a killed run loses at most this much work
ALIGNMENT = 64  # bytes, of each array in the file: mapped arrays are as good as allocated ones


# --------------------------------------------------------------------------------------- the search


def selective_search(
    image: np.ndarray,  # (H, W, 3) uint8 RGB
    *,
    mode: str = "fine",
    short_side: int | None = 200,
    min_size: int = 16,
) -> np.ndarray:
    """Selective search (Uijlings et al. 2013) by OpenCV's contrib module; (P, 4) float32 boxes.

    An image whose short side is above `short_side` is shrunk to it for the search, and the boxes
    are brought back to whole pixels of the image as given; None searches it as it is. Boxes
    narrower or lower than `min_size` pixels of the image are left out. No box comes twice.

    The order is by coordinates and means nothing. OpenCV's own order is drawn with C's rand(),
    which no seed of OpenCV's reaches; the set of boxes does not depend on it, so the same image
    always gives the same array.

    Modes: "fast" and "quality" are OpenCV's; "fine" starts from smaller segments (see `_fine`).

    Raises ImportError when OpenCV has no contrib modules, ValueError for other images or an unknown
    mode.
    """
    cv2 = _opencv()
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            "image must be (H, W, 3) uint8 RGB with H, W above 0, got shape "
            f"{image.shape}, {image.dtype}"
        )
    if short_side is not None and short_side < 1:
        raise ValueError(f"short_side must be above 0 or None, got {short_side}")
    height, width = image.shape[:2]
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    if short_side is not None and short_side < min(height, width):
        factor = short_side / min(height, width)
        size = (round(width * factor), round(height * factor))
        bgr = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA)

    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    if mode == "fine":
        _fine(cv2, search, bgr)
    else:
        search.setBaseImage(bgr)
        if mode == "fast":
            search.switchToSelectiveSearchFast()
        else:
            search.switchToSelectiveSearchQuality()
    found = np.asarray(search.process(), dtype=np.float64).reshape(-1, 4)  # x, y, w, h

    # [x, x + w) covers whole pixels of the searched image; so does its image here, up to rounding.
    to_x, to_y = width / bgr.shape[1], height / bgr.shape[0]
    x1 = np.round(found[:, 0] * to_x)
    y1 = np.round(found[:, 1] * to_y)
    x2 = np.round((found[:, 0] + found[:, 2]) * to_x) - 1
    y2 = np.round((found[:, 1] + found[:, 3]) * to_y) - 1
    boxes = np.stack([x1, y1, x2, y2], axis=1)
    large = (x2 - x1 + 1 >= min_size) & (y2 - y1 + 1 >= min_size)
    return np.unique(boxes[large], axis=0).astype(np.float32)


def _fine(cv2: Any, search: Any, bgr: np.ndarray) -> None:
    """Sets the search up to begin with small segments in three colour spaces.

    OpenCV's own modes begin with segments of 100 pixels and more, where neighbours that touch are
    one already. The original began at k = 50 (R-CNN code, selective_search_boxes.m). Texture is
    left out of the similarity: it costs a third of the time and finds nothing more here.
    """
    segmentation = cv2.ximgproc.segmentation
    for image in (cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV), cv2.cvtColor(bgr, cv2.COLOR_BGR2Lab), bgr):
        search.addImage(image)
    for k in (25, 50, 100):
        search.addGraphSegmentation(segmentation.createGraphSegmentation(0.8, float(k), 20))
    color = segmentation.createSelectiveSearchSegmentationStrategyColor()
    size = segmentation.createSelectiveSearchSegmentationStrategySize()
    fill = segmentation.createSelectiveSearchSegmentationStrategyFill()
    for parts in ((color, size, fill), (size, fill)):
        search.addStrategy(segmentation.createSelectiveSearchSegmentationStrategyMultiple(*parts))


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            "selective search needs OpenCV with its contrib modules: "
            "pip install opencv-contrib-python-headless"
        ) from error
    if not hasattr(cv2, "ximgproc"):
        raise ImportError(
            "this OpenCV has no contrib modules (cv2.ximgproc), which selective search "
            "needs: pip uninstall opencv-python opencv-python-headless, then "
            "pip install --force-reinstall opencv-contrib-python-headless"
        )
    return cv2


# ----------------------------------------------------------------------------------------- the file


class ProposalStore:
    """The proposals of many images, read from a file of `write_proposals` (or `np.savez`).

    `store[image_id]` is a read-only (P, 4) float32 view of the mapped file; `in`, `len`, iteration
    and `keys` go by image id. `settings` is what the file says about how it was made, or None;
    `fingerprints[image_id]` tells of which image file, or is empty.

    Raises FileNotFoundError when there is no file, ValueError when it is no uncompressed .npz, and
    ValueError naming image and file when an image is not in it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                members = {m.filename.removesuffix(".npy"): m for m in archive.infolist()}
                comment = archive.comment
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.path}: no such proposal file; `fastrcnn-engine proposals` makes one"
            ) from None
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.path}: not an .npz file ({error})") from None
        packed = [m.filename for m in members.values() if m.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(
                f"{self.path}: {packed[0]} is compressed and cannot be mapped; write the file "
                "with write_proposals or numpy.savez"
            )
        self.settings: dict[str, Any] | None = json.loads(comment) if comment else None
        self.fingerprints = {image_id: m.comment.decode() for image_id, m in members.items()}
        self._offsets = {image_id: m.header_offset for image_id, m in members.items()}
        self._arrays: dict[str, np.ndarray] = {}
        with open(self.path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, image_id: str) -> np.ndarray:
        if image_id not in self._arrays:
            if image_id not in self._offsets:
                raise ValueError(
                    f"{self.path}: no proposals for image {image_id!r} among the "
                    f"{len(self)} images in it; compute them with `fastrcnn-engine proposals`"
                )
            self._arrays[image_id] = self._map(image_id)
        return self._arrays[image_id]

    def _map(self, image_id: str) -> np.ndarray:
        # A zip member is a 30-byte header, its name, an extra field, then the bytes: here an .npy
        # file.
        start = self._offsets[image_id]
        name_length, extra_length = struct.unpack_from("<HH", self._bytes, start + 26)
        start += 30 + name_length + extra_length
        # 128 bytes hold the .npy header of any (P, 4) array; longer ones are something else.
        header = io.BytesIO(self._bytes[start : start + 256])
        try:
            version = np.lib.format.read_magic(header)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(header)
        except (ValueError, KeyError) as error:
            raise ValueError(f"{self.path}: {image_id}.npy is no array ({error})") from None
        if len(shape) != 2 or shape[1] != 4 or dtype != np.float32 or (fortran and shape[0] > 1):
            raise ValueError(
                f"{self.path}: proposals of {image_id!r} must be (P, 4) float32 in C order, "
                f"got {shape} {dtype}{' in Fortran order' if fortran else ''}"
            )
        if shape[0] == 0:
            return np.zeros((0, 4), np.float32)
        flat = np.frombuffer(self._bytes, np.float32, shape[0] * 4, start + header.tell())
        return flat.reshape(shape)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def keys(self) -> Iterable[str]:
        return self._offsets.keys()


def write_proposals(
    path: str | os.PathLike[str],
    items: Iterable[tuple[str, np.ndarray]],
    *,
    settings: Mapping[str, Any] | None = None,
    fingerprints: Mapping[str, str] | None = None,
) -> None:
    """Writes (image id, boxes (P, 4)) pairs as a proposal file, whole or not at all.

    The same items and settings give the same bytes. `settings` (plain values) and `fingerprints` (a
    short text for each image id) are kept in the file.

    Raises ValueError for an id that comes twice or boxes that are not (P, 4) finite numbers with
    x1 <= x2 and y1 <= y2.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    seen: set[str] = set()
    try:
        with open(unfinished, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                if settings is not None:
                    archive.comment = json.dumps(dict(settings), sort_keys=True).encode()
                for image_id, boxes in items:
                    if image_id in seen:
                        raise ValueError(f"proposals of image {image_id!r} come twice")
                    seen.add(image_id)
                    member = io.BytesIO()
                    np.lib.format.write_array(member, _checked(image_id, boxes), version=(1, 0))
                    info = _aligned_member(f"{image_id}.npy", file.tell())
                    info.comment = (fingerprints or {}).get(image_id, "").encode()
                    archive.writestr(info, member.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _checked(image_id: str, boxes: np.ndarray) -> np.ndarray:
    boxes = np.ascontiguousarray(boxes, dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"proposals of image {image_id!r} must be (P, 4), got {boxes.shape}")
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, :2] <= boxes[:, 2:]).all(axis=1)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"proposals of image {image_id!r}, row {row}: expected finite x1 <= x2 and "
            f"y1 <= y2, got {boxes[row].tolist()}"
        )
    return boxes


def _aligned_member(name: str, offset: int) -> zipfile.ZipInfo:
    # The date is fixed so that equal contents are equal files. The extra field is padding: the
    # array's bytes (the .npy header is a multiple of 64) then start at a multiple of ALIGNMENT.
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    padding = -(offset + 30 + len(name.encode()) + 4) % ALIGNMENT
    info.extra = struct.pack("<HH", 0xFFFF, padding) + bytes(padding)
    return info


# ------------------------------------------------------------------------------------ many images


def compute_proposals(
    items: Iterable[tuple[str, str | os.PathLike[str]]],
    out_path: str | os.PathLike[str],
    *,
    mode: str = "fine",
    short_side: int | None = 200,
    min_size: int = 16,
    workers: int | None = None,
    progress: bool = True,
    parts: Sequence[Path] = (),
) -> ProposalStore:
    """Runs `selective_search` on (image id, image path) pairs, `workers` at once (None: all cores).

    Images that are in the file already are kept and not searched again, so an interrupted run goes
    on where it stopped: on Ctrl-C and on errors what is done is written first. An image whose file
    has changed since (by its checksum) is searched again. The file does not depend on `workers`.
    What is in `parts`, files made with the same settings, goes into the file as if found here.

    Threads, not processes: OpenCV lets go of Python's lock while it searches, so they fill the
    cores, and they work from any script and beside any thread pool of torch.

    Raises ValueError when a file was made with other settings or an id comes twice, and what
    `load_image` and `selective_search` raise.
    """
    cv2 = _opencv()
    paths: dict[str, str | os.PathLike[str]] = {}
    for image_id, path in items:
        if image_id in paths:
            raise ValueError(f"image {image_id!r} comes twice among the images to search")
        paths[image_id] = path
    settings = {
        "method": "selective search",
        "mode": mode,
        "short_side": short_side,
        "min_size": min_size,
    }
    out_path = Path(out_path)
    fingerprints = {image_id: _fingerprint(path) for image_id, path in paths.items()}
    kept: dict[str, np.ndarray] = {}
    written = 0  # how many of them are in the file itself
    for path in (out_path, *parts):
        if path.exists():
            old = ProposalStore(path)
            if old.settings != settings:
                raise ValueError(
                    f"{path}: holds proposals made with {old.settings}, asked for are "
                    f"{settings}; give another file or remove this one"
                )
            fingerprints = old.fingerprints | fingerprints
            kept |= {i: old[i] for i in old if fingerprints[i] == old.fingerprints[i]}
        written = len(kept) if path == out_path else written
    missing = [image_id for image_id in paths if image_id not in kept]
    if not missing and len(kept) == written and out_path.exists():
        return ProposalStore(out_path)

    def save() -> None:
        found = {i: f.result() for i, f in futures.items() if _succeeded(f)}
        if found or len(kept) > written or not out_path.exists():
            found = kept | found
            ids = [i for i in kept if i not in paths] + [i for i in paths if i in found]
            items = ((i, found[i]) for i in ids)
            write_proposals(out_path, items, settings=settings, fingerprints=fingerprints)

    def search(image_id: str) -> np.ndarray:
        return selective_search(
            load_image(paths[image_id]), mode=mode, short_side=short_side, min_size=min_size
        )

    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one search, one core: the pool below is the only one
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    futures: dict[str, Future[np.ndarray]] = {}
    saved = time.monotonic()
    try:
        for image_id in missing:  # inside: the first searches can be done before the last is queued
            futures[image_id] = pool.submit(search, image_id)
        with progress_bar(progress) as bar:
            task = bar.add_task("proposals", total=len(paths), completed=len(kept.keys() & paths))
            for future in as_completed(futures.values()):
                future.result()
                bar.advance(task)
                if time.monotonic() - saved > SAVE_SECONDS:
                    save()
                    saved = time.monotonic()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        cv2.setNumThreads(threads_before)
        save()
    return ProposalStore(out_path)


def _succeeded(future: Future[np.ndarray]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _fingerprint(path: str | os.PathLike[str]) -> str:
    try:
        return f"{zlib.crc32(Path(path).read_bytes()):08x}"
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such image file") from None


def progress_bar(shown: bool) -> Progress:
    """A live line of images done, their speed and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        disable=not shown,
    )


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "- images/s")


# ----------------------------------------------------------------------------- published proposals


def read_voc_mat(path: str | os.PathLike[str], layout: str) -> list[np.ndarray]:
    """Reads published selective-search boxes (a MATLAB file), one (P, 4) float32 array per image.

    `layout` "set": a file for a whole split (`voc_2007_trainval.mat`): `boxes` is a cell of arrays,
    in the order of the split, 1-based y1 x1 y2 x2 (original code, lib/datasets/pascal_voc.py).
    "image": a file for one image, such as the demo of the original code: `boxes` is an array,
    0-based x1 y1 x2 y2.

    Raises FileNotFoundError, and ValueError for a file of the other layout.
    """
    from scipy.io import loadmat

    if layout not in ("set", "image"):
        raise ValueError(f"layout must be 'set' or 'image', got {layout!r}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = loadmat(path)
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        raise ValueError(f"{path}: not readable as a MATLAB file ({error})") from None
    if "boxes" not in content:
        names = sorted(name for name in content if not name.startswith("__"))
        raise ValueError(f"{path}: has no variable `boxes`, only {names}")
    boxes = content["boxes"]
    if (boxes.dtype == object) != (layout == "set"):
        found = "a cell (layout 'set')" if boxes.dtype == object else "one array (layout 'image')"
        raise ValueError(f"{path}: asked for layout {layout!r}, but `boxes` is {found}")
    arrays = list(boxes.ravel()) if layout == "set" else [boxes]
    return [
        _from_mat(array, layout, f"{path}, image {row}")
        for row, array in enumerate(arrays, start=1)
    ]


def _from_mat(array: np.ndarray, layout: str, where: str) -> np.ndarray:
    if array.size == 0:
        return np.zeros((0, 4), np.float32)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{where}: boxes must be (P, 4), got {array.shape}")
    boxes = array.astype(np.float32)  # before any subtraction: the files hold unsigned numbers
    if layout == "set":
        boxes = boxes[:, [1, 0, 3, 2]] - 1
    if boxes.min() < 0 or (boxes[:, :2] > boxes[:, 2:]).any():
        raise ValueError(
            f"{where}: boxes with x1 > x2, y1 > y2 or below 0; the file is not of layout {layout!r}"
        )
    return boxes


# ------------------------------------------------------------------------------------------ recall


def proposal_recall(
    records: Sequence[ImageRecord],
    store: Mapping[str, np.ndarray] | ProposalStore,
    thresholds: Sequence[float] = (0.5, 0.7),
) -> dict[str, Any]:
    """The share of objects that some proposal overlaps with IoU >= threshold: a bound on any
    detector.

    Difficult objects are not counted, as in the evaluation. Returns `images`, `objects`,
    `mean_boxes` (per image), `recall` {threshold: share} and `recall_by_label` {label: {threshold:
    share}}; a share of no objects is None.

    Raises ValueError for an image without an entry in the store.
    """
    from fastrcnn_engine.ops import box_iou

    best: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    count = 0
    for record in records:
        proposals = store[record.image_id]
        count += len(proposals)
        objects = record.boxes[~record.difficult]
        iou = box_iou(objects, np.array(proposals), inclusive=True)  # (G, P)
        best.append(np.max(iou, axis=1, initial=0))
        labels.append(record.labels[~record.difficult])
    all_best = np.concatenate(best) if best else np.zeros(0)
    all_labels = np.concatenate(labels) if labels else np.zeros(0, np.int64)

    def shares(values: np.ndarray) -> dict[float, float | None]:
        return {t: float(np.mean(values >= t)) if len(values) else None for t in thresholds}

    return {
        "images": len(records),
        "objects": len(all_best),
        "mean_boxes": count / len(records) if records else 0.0,
        "recall": shares(all_best),
        "recall_by_label": {
            int(k): shares(all_best[all_labels == k]) for k in np.unique(all_labels)
        },
    }
