"""The weights in a `.caffemodel` file, as NumPy arrays.

Such a file is one protobuf message (NetParameter of Caffe's caffe.proto). Python's protobuf makes
an object of every number, 138 million for VGG16. Little of the wire format is needed here, so the
fields are walked and the numbers are viewed where they lie: nothing is copied, and a length that
leads out of the file is an error before anything is allocated.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
FIXED_SIZES = {FIXED64: 8, FIXED32: 4}
# Fields of NetParameter that are layers, of the version 1 format and of the present one, and the
# fields of each that are its name and its blobs.
LAYERS = {2: (4, 6), 100: (1, 7)}
# BlobProto: num, channels, height and width before there were shapes; then the numbers.
LEGACY_SHAPE, SHAPE, DATA, DOUBLE_DATA = (1, 2, 3, 4), 7, 5, 8
MAX_AXES, MAX_NAME = 32, 1000  # the first is Caffe's own limit


class _Malformed(Exception):
    """Something else than expected at a byte of the file."""

    layer = ""

    def __init__(self, at: int, expected: str, got: object):
        super().__init__(f"byte {at}: expected {expected}, got {got}")


class _Field(NamedTuple):
    """One field of a message, or a run of fixed-size fields with one number."""

    number: int
    wire: int
    value: int  # of a varint
    start: int  # of its content
    end: int
    step: int  # bytes from one value of a run to the next


def read_caffemodel(path: Path) -> dict[str, list[np.ndarray]]:
    """Read the layers with weights of a `.caffemodel`, in the order of the file.

    Returns:
        Layer name -> its blobs (for convolutions and fully connected layers the weight and then the
        bias), float32 or float64 with the shape written in the file: (out, in/group, kh, kw) for
        convolutions, (out, in) or the older (1, 1, out, in), (N,) or (1, 1, 1, N). They are
        read-only views of the mapped file, and not aligned.

    Raises:
        ValueError: no such file, cut off, malformed, or not a caffemodel; file, layer and byte are
            named.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is not a readable caffemodel: it is empty")
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    layers: dict[str, list[np.ndarray]] = {}
    try:
        for field in _fields(data, 0, len(data)):
            if field.number not in LAYERS or field.wire != LENGTH:
                continue
            name, blobs = _layer(data, field)
            if blobs and (not name or name in layers):
                got = f"{name!r} again" if name else "none"
                raise _Malformed(field.start, "a layer with a name of its own", got)
            if blobs:
                layers[name] = blobs
    except _Malformed as error:
        raise ValueError(f"{path} is not a readable caffemodel: {error.layer}{error}") from None
    if not layers:
        raise ValueError(f"{path} is not a caffemodel with weights: no layer in it has any")
    return layers


def _layer(data: memoryview, layer: _Field) -> tuple[str, list[np.ndarray]]:
    """The name and the blobs of a layer; data layers, ReLU and so on have no blobs."""
    name_field, blob_field = LAYERS[layer.number]
    name, blobs = "", []
    try:
        for field in _fields(data, layer.start, layer.end):
            if field.number == name_field and field.wire == LENGTH:
                name = _text(data, field)
            elif field.number == blob_field and field.wire == LENGTH:
                blobs.append(_blob(data, field))
    except _Malformed as error:
        error.layer = f"layer {name!r}, " if name else ""
        raise
    return name, blobs


def _blob(data: memoryview, blob: _Field) -> np.ndarray:
    legacy = dict.fromkeys(LEGACY_SHAPE, 0)
    shape = None
    numbers: dict[int, np.ndarray] = {}
    for field in _fields(data, blob.start, blob.end):
        if field.number in legacy and field.wire == VARINT:
            legacy[field.number] = field.value
        elif field.number == SHAPE and field.wire == LENGTH:
            shape = _dimensions(data, field)
        elif field.number in (DATA, DOUBLE_DATA):
            if field.number in numbers:
                raise _Malformed(field.start, "the numbers of a blob in one piece", "a second one")
            kind = ("<f4", FIXED32) if field.number == DATA else ("<f8", FIXED64)
            numbers[field.number] = _numbers(data, field, *kind)
    shape = tuple(legacy.values()) if shape is None else shape
    values = numbers.get(DOUBLE_DATA, numbers.get(DATA, np.empty(0, np.float32)))
    if math.prod(shape) != len(values) or len(values) == 0:
        raise _Malformed(
            blob.start, f"as many numbers as the shape {shape} holds, at least one", len(values)
        )
    return values.reshape(shape)


def _dimensions(data: memoryview, shape: _Field) -> tuple[int, ...]:
    """The dimensions of a BlobShape, packed or one field each."""
    dimensions: list[int] = []
    for field in _fields(data, shape.start, shape.end):
        if field.number != 1:
            continue
        at = field.start
        if field.wire == VARINT:
            dimensions.append(field.value)
        while field.wire == LENGTH and at < field.end and len(dimensions) <= MAX_AXES:
            value, at = _varint(data, at, field.end)
            dimensions.append(value)
        if len(dimensions) > MAX_AXES:
            raise _Malformed(shape.start, f"a shape of at most {MAX_AXES} axes", "more")
    return tuple(dimensions)


def _numbers(data: memoryview, field: _Field, dtype: str, wire: int) -> np.ndarray:
    """A view of the numbers of a field, packed (one after the other) or not (a run of fields)."""
    size, length = FIXED_SIZES[wire], field.end - field.start
    if field.wire == wire:
        count = (length - size) // field.step + 1
        return np.ndarray((count,), dtype, data, field.start, (field.step,))
    if field.wire != LENGTH or length % size:
        got = f"{length} bytes" if field.wire == LENGTH else f"wire type {field.wire}"
        raise _Malformed(field.start, f"numbers of {size} bytes each", got)
    return np.frombuffer(data, dtype, length // size, field.start)


def _text(data: memoryview, field: _Field) -> str:
    content = bytes(data[field.start : min(field.end, field.start + MAX_NAME + 1)])
    try:
        if len(content) <= MAX_NAME:
            return content.decode()
    except UnicodeDecodeError:
        pass
    raise _Malformed(field.start, f"a name of at most {MAX_NAME} bytes of UTF-8", "other bytes")


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    """The fields of the message data[start:end]."""
    at = start
    while at < end:
        tag_at = at
        tag, at = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise _Malformed(tag_at, "a field number of at least 1", 0)
        if wire == VARINT:
            value, at = _varint(data, at, end)
            yield _Field(number, wire, value, at, at, 0)
            continue
        size_at = at
        if wire == LENGTH:
            size, at = _varint(data, at, end)
        elif wire in FIXED_SIZES:
            size = FIXED_SIZES[wire]
        else:
            raise _Malformed(tag_at, "wire type 0, 1, 2 or 5", f"{wire} (field {number})")
        if size > end - at:
            raise _Malformed(size_at, f"{size} bytes of field {number}", f"{end - at} to the end")
        # Numbers that are not packed are fields of their own, millions of them: one run at once.
        step = at + size - tag_at
        count = _run(data, tag_at, step, end) if wire != LENGTH and at - tag_at == 1 else 1
        stop = at + step * (count - 1) + size
        yield _Field(number, wire, 0, at, stop, step)
        at = stop


def _run(data: memoryview, at: int, step: int, end: int) -> int:
    """How many records of ``step`` bytes follow each other from ``at`` with one first byte."""
    tags = np.ndarray(((end - at) // step,), np.uint8, data, at, (step,))
    count = 1
    # Looks twice as far each time, so that many short runs do not each read the whole rest.
    while count < len(tags):
        others = np.flatnonzero(tags[count : 2 * count] != tags[0])
        if len(others):
            return count + int(others[0])
        count = min(2 * count, len(tags))
    return count


def _varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The integer at ``at``, seven bits a byte, and where it ends."""
    value = 0
    for count in range(10):
        if at + count >= end:
            raise _Malformed(at, "an integer", "the end")
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise _Malformed(at, "an integer of at most 10 bytes", "more")
