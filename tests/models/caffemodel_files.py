"""Writes `.caffemodel` files, from the protobuf encoding guide and Caffe's caffe.proto.

Independent of the reader: nothing of the package is imported.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np


def varint(value: int) -> bytes:
    value &= 2**64 - 1  # a negative int32 is written as 64 bits
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def integer(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def piece(number: int, content: bytes) -> bytes:
    """A field of strings, messages or packed numbers."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def floats(number: int, values: Iterable[float], *, packed: bool) -> bytes:
    values = list(values)
    if packed:
        return piece(number, struct.pack(f"<{len(values)}f", *values))
    return b"".join(varint(number << 3 | 5) + struct.pack("<f", value) for value in values)


def doubles(number: int, values: Iterable[float], *, packed: bool) -> bytes:
    values = list(values)
    if packed:
        return piece(number, struct.pack(f"<{len(values)}d", *values))
    return b"".join(varint(number << 3 | 1) + struct.pack("<d", value) for value in values)


def blob(
    array: np.ndarray, *, legacy: bool = False, packed: bool = True, double: bool = False
) -> bytes:
    """A BlobProto: the numbers, and the shape as dimensions or as the former four axes."""
    if legacy:
        axes = (1,) * (4 - array.ndim) + array.shape
        content = b"".join(integer(number, axis) for number, axis in enumerate(axes, start=1))
    elif packed:
        content = piece(7, piece(1, b"".join(varint(axis) for axis in array.shape)))
    else:
        content = piece(7, b"".join(integer(1, axis) for axis in array.shape))
    values = array.ravel().tolist()
    if double:
        return content + doubles(8, values, packed=packed)
    # The gradient (field 6) is written by some tools, and is no weight.
    return content + floats(5, values, packed=packed) + floats(6, [9.0], packed=packed)


def layer(name: str, blobs: Iterable[bytes], *, version: int) -> bytes:
    """A layer of version 1 (field `layers`) or 2 (field `layer`), as a field of the network."""
    if version == 1:
        content = piece(2, b"data") + piece(3, name.encode()) + piece(4, name.encode())
        content += integer(5, 4) + b"".join(piece(6, one) for one in blobs)
        return piece(2, content + floats(7, [1.0, 2.0], packed=False))
    content = piece(1, name.encode()) + piece(2, b"Convolution") + piece(3, b"data")
    return piece(100, content + b"".join(piece(7, one) for one in blobs))


def network(layers: dict[str, list[np.ndarray]], *, version: int = 2, **options: bool) -> bytes:
    """A NetParameter with these blobs, a data layer and a ReLU around them."""
    content = piece(1, b"a network") + piece(3, b"data") + integer(4, 10)
    content += layer("data", [], version=version)
    for name, blobs in layers.items():
        written = [blob(one, **options) for one in blobs]
        content += layer(name, written, version=version)
    return content + layer("relu", [], version=version)
