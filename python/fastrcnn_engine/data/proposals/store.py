"""The file that proposals are kept in.

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
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastrcnn_engine.data.proposals.boxes import bad_row, well_formed
from fastrcnn_engine.files import crc32_of, whole_file

ALIGNMENT = 64  # bytes, of each array in the file: mapped arrays are as good as allocated ones


class ProposalStore:
    """The proposals of many images, read from a file of `write_proposals` (or `np.savez`).

    `store[image_id]` is a read-only (P, 4) float32 view of the mapped file; `in`, `len`, iteration
    and `keys` go by image id. `settings` is what the file says about how it was made, or None;
    `fingerprints[image_id]` tells of which image file, or is empty. Several threads may read it.

    Raises FileNotFoundError when there is no file, ValueError when it is no uncompressed .npz, and
    ValueError naming image and file when an image is not in it or a box (row) has a number that is
    not finite.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # a pipe would be waited for
            raise ValueError(f"{self.path}: not a regular file; proposals are mapped from one")
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = archive.infolist()
                settings = json.loads(archive.comment) if archive.comment else None
            members = {m.filename.removesuffix(".npy"): m for m in found}
            self.fingerprints = {image_id: m.comment.decode() for image_id, m in members.items()}
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{self.path}: no such proposal file; `fastrcnn-engine proposals` makes one"
            ) from None
        except OSError:
            raise
        except Exception as error:  # of a broken file zipfile and json raise much
            raise ValueError(f"{self.path}: not an .npz file ({error})") from None
        if len(members) < len(found):
            raise ValueError(f"{self.path}: two arrays have one name; write the file anew")
        if not isinstance(settings, dict | None):
            raise ValueError(
                f"{self.path}: its comment must be settings of a search, got {settings!r:.60}; "
                "write the file with write_proposals or numpy.savez"
            )
        packed = [m.filename for m in members.values() if m.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(
                f"{self.path}: {packed[0]} is compressed and cannot be mapped; write the file "
                "with write_proposals or numpy.savez"
            )
        self.settings: dict[str, Any] | None = settings
        self._offsets = {image_id: m.header_offset for image_id, m in members.items()}
        self._arrays: dict[str, np.ndarray] = {}
        with open(self.path, "rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __getitem__(self, image_id: str) -> np.ndarray:
        if image_id not in self._arrays:
            if image_id not in self._offsets:
                known = next((f", such as {name!r}" for name in self), "")
                raise ValueError(
                    f"{self.path}: no proposals for image {image_id!r}; images in it: "
                    f"{len(self)}{known}; compute them with `fastrcnn-engine proposals`"
                )
            self._arrays[image_id] = self._map(image_id)
        return self._arrays[image_id]

    def _map(self, image_id: str) -> np.ndarray:
        # A zip member is a 30-byte header, its name, an extra field, then the bytes: here an .npy
        # file.
        start = self._offsets[image_id]
        try:
            name_length, extra_length = struct.unpack_from("<HH", self._bytes, start + 26)
            start += 30 + name_length + extra_length
            # 128 bytes hold the .npy header of any (P, 4) array; longer ones are something else.
            header = io.BytesIO(self._bytes[start : start + 256])
            version = np.lib.format.read_magic(header)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, fortran, dtype = read(header)
        except Exception as error:  # NumPy has a header read by ast and tokenize
            raise ValueError(f"{self.path}: {image_id}.npy is no array ({error})") from None
        if len(shape) != 2 or shape[1] != 4 or dtype != np.float32 or (fortran and shape[0] > 1):
            raise ValueError(
                f"{self.path}: proposals of {image_id!r} must be (P, 4) float32 in C order, "
                f"got {shape} {dtype}{' in Fortran order' if fortran else ''}; write_proposals "
                "converts other types and orders"
            )
        rows, start = int(shape[0]), start + header.tell()
        if rows == 0:
            return np.zeros((0, 4), np.float32)
        if not 0 < rows <= (len(self._bytes) - start) // 16:
            raise ValueError(
                f"{self.path}: proposals of {image_id!r} are said to be {rows}, more than are in "
                "the file; it is cut off or damaged, write it anew"
            )
        boxes = np.frombuffer(self._bytes, np.float32, rows * 4, start).reshape(-1, 4)
        bad = bad_row(boxes, np.all(np.isfinite(boxes), axis=1), "finite x1 y1 x2 y2")
        if bad is not None:
            raise ValueError(
                f"{self.path}: proposals of image {image_id!r}, {bad}; write the file anew without "
                "such rows"
            )
        return boxes

    def is_of(self, image_id: str, path: str | os.PathLike[str]) -> bool:
        """Whether the boxes are of the image file as it is now; True if nothing tells of which."""
        known = self.fingerprints[image_id]
        return not known or known == fingerprint(path)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __len__(self) -> int:
        return len(self._offsets)

    def __reduce__(self) -> tuple[type[ProposalStore], tuple[Path]]:
        """Another process, or a copy, maps the file for itself."""
        return ProposalStore, (self.path,)

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

    Raises ValueError for an id that comes twice or has a zero byte, boxes that are not (P, 4)
    finite numbers with x1 <= x2 and y1 <= y2, or a text that is too long for the file (64 KB).
    """
    seen: set[str] = set()
    with whole_file(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        if settings is not None:
            text = json.dumps(dict(settings), sort_keys=True, allow_nan=False)
            archive.comment = _fitting("settings", text)
        for image_id, boxes in items:
            if image_id in seen:
                raise ValueError(f"proposals of image {image_id!r} come twice")
            seen.add(image_id)
            member = io.BytesIO()
            np.lib.format.write_array(member, _checked(image_id, boxes), version=(1, 0))
            if "\0" in image_id:
                raise ValueError(f"an image id must have no zero byte, got {image_id!r}")
            _fitting("an image id", f"{image_id}.npy")
            info = _aligned_member(f"{image_id}.npy", file.tell())
            info.comment = _fitting(
                f"the fingerprint of image {image_id!r}", (fingerprints or {}).get(image_id, "")
            )
            archive.writestr(info, member.getvalue())


def _fitting(what: str, text: str) -> bytes:
    """The text as a zip file has it: with its length in 16 bits."""
    data = text.encode()
    if len(data) > 65535:
        raise ValueError(f"{what} must have at most 65535 bytes, got {len(data)}: {text:.60}...")
    return data


def _checked(image_id: str, boxes: np.ndarray) -> np.ndarray:
    boxes = np.ascontiguousarray(boxes, dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"proposals of image {image_id!r} must be (P, 4), got {boxes.shape}")
    bad = bad_row(boxes, well_formed(boxes), "finite x1 <= x2 and y1 <= y2")
    if bad is not None:
        raise ValueError(f"proposals of image {image_id!r}, {bad}")
    return boxes


def _aligned_member(name: str, offset: int) -> zipfile.ZipInfo:
    # The date is fixed so that equal contents are equal files. The extra field is padding: the
    # array's bytes (the .npy header is a multiple of 64) then start at a multiple of ALIGNMENT.
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    padding = -(offset + 30 + len(name.encode()) + 4) % ALIGNMENT
    info.extra = struct.pack("<HH", 0xFFFF, padding) + bytes(padding)
    return info


def fingerprint(path: str | os.PathLike[str]) -> str:
    """The checksum by which a changed image file is known."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    return crc32_of(path)
