"""The reader of `.caffemodel` files: both layer formats, and anything else is a ValueError."""

from __future__ import annotations

import numpy as np
import pytest

from fastrcnn_engine.models import read_caffemodel

from .caffemodel_files import blob, doubles, floats, integer, layer, network, piece, varint

RNG = np.random.default_rng(0)
LAYERS = {
    "conv1": [RNG.normal(size=(2, 3, 5, 5)).astype("f4"), RNG.normal(size=2).astype("f4")],
    "fc6": [RNG.normal(size=(7, 11)).astype("f4"), RNG.normal(size=7).astype("f4")],
}
ARRAY = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a file."""

    def read(content: bytes) -> dict[str, list[np.ndarray]]:
        path = tmp_path / "net.caffemodel"
        path.unlink(missing_ok=True)  # an array of an earlier file may still be mapped
        path.write_bytes(content)
        return read_caffemodel(path)

    return read


def assert_same(read, expected, legacy=False):
    assert list(read) == list(expected)
    for name, blobs in expected.items():
        for got, array in zip(read[name], blobs, strict=True):
            shape = (1,) * (4 - array.ndim) + array.shape if legacy else array.shape
            assert got.shape == shape
            np.testing.assert_array_equal(got.reshape(array.shape), array)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("double", [False, True])
def test_what_was_written_is_read(read, version, legacy, packed, double):
    content = network(LAYERS, version=version, legacy=legacy, packed=packed, double=double)
    layers = read(content)
    assert_same(layers, LAYERS, legacy)
    assert layers["fc6"][0].dtype == ("<f8" if double else "<f4")
    assert not layers["fc6"][0].flags.writeable


def test_many_numbers_in_fields_of_their_own(read):
    # One run, found by looking twice as far each time.
    values = np.arange(3 * 7 * 1001, dtype="f4").reshape(3, 7, 1001)
    assert_same(read(network({"x": [values]}, packed=False)), {"x": [values]})


def test_order_of_fields_does_not_matter(read):
    numbers, shape = floats(5, [1, 2], packed=False), piece(7, piece(1, varint(2)))
    for content in (numbers + shape, shape + numbers, integer(12, 5) + numbers + shape):
        layers = read(piece(100, piece(7, content) + piece(1, b"late")))
        assert layers["late"][0].tolist() == [1, 2]


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_not_known_is_passed_over(read, version):
    """Numbers of our fields with content of another kind, far numbers, layers without blobs."""

    def other(*numbers: int) -> bytes:
        return b"".join(floats(number, [1], packed=False) for number in numbers)

    content = blob(ARRAY, legacy=version == 1) + piece(1, b"x") + integer(7, 9) + other(16, 2048)
    content += other(2) + piece(6, piece(1, b"5"))
    written = layer("x", [content], version=version)
    number, name = (2, 4) if version == 1 else (100, 1)
    nameless = piece(number, other(name, 6 if version == 1 else 7))
    layers = read(other(2, 100) + written + nameless + layer("x", [], version=version))
    assert_same(layers, {"x": [ARRAY]}, legacy=version == 1)


def test_of_two_types_of_numbers_the_wider_one_counts(read):
    shape = piece(7, piece(1, varint(2)) + integer(2, 9))  # and a field that shapes have not
    numbers = floats(5, [1, 2], packed=True) + doubles(8, [3, 4], packed=True)
    layers = read(layer("x", [shape + numbers], version=2))
    assert layers["x"][0].tolist() == [3, 4] and layers["x"][0].dtype == "<f8"


def test_both_formats_may_be_mixed_and_blobs_may_be_many(read):
    one = [np.float32([i]) for i in range(5)]
    content = network({"a": one}, version=1) + network({"b": one}, version=2)
    assert_same(read(content), {"a": one, "b": one})


def test_a_number_without_axes_is_one_number(read):
    layers = read(layer("scale", [piece(7, b"") + floats(5, [3], packed=True)], version=2))
    assert layers["scale"][0].shape == () and layers["scale"][0] == 3


def test_empty_and_missing_files(read, tmp_path):
    with pytest.raises(ValueError, match="net.caffemodel is not a readable caffemodel: it is empt"):
        read(b"")
    with pytest.raises(ValueError, match="weights file .*none.caffemodel does not exist"):
        read_caffemodel(tmp_path / "none.caffemodel")
    with pytest.raises(ValueError, match="does not exist"):
        read_caffemodel(tmp_path)
    with pytest.raises(ValueError, match="not a caffemodel with weights: no layer in it has any"):
        read(network({}))


BAD = {
    "byte 0: expected wire type 0, 1, 2 or 5, got 4": b"<!DOCTYPE html>",
    "byte 0: expected a field number of at least 1": b"\x00\x01",
    "byte 1: expected an integer, got the end": b"\x08",
    "byte 1: expected an integer of at most 10 bytes": b"\x08" + b"\xff" * 10 + b"\x01",
    "layer 'x', byte 7: expected an integer, got the end": (  # of the layer
        piece(100, piece(1, b"x") + b"\x28\x80") + b"\x01"
    ),
    r"layer 'x', byte \d+: expected an integer, got the end": layer(  # of the shape
        "x", [piece(7, piece(1, b"\x80")) + b"\x01"], version=2
    ),
    "byte 1: expected 1152921504606846976 bytes of field 1, got 3 to the end": (
        b"\x0a" + varint(2**60) + b"abc"
    ),
    "byte 1: expected 8 bytes of field 9, got 7 to the end": b"\x49" + b"1234567",
    r"layer 'x', byte \d+: expected as many numbers as the shape \(2, 4\) holds.*, got 6": layer(
        "x", [piece(7, piece(1, b"\x02\x04")) + floats(5, range(6), packed=True)], version=2
    ),
    r"shape \(1099511627776, 2, 3\) holds": layer(
        "x", [blob(ARRAY) + piece(7, piece(1, varint(2**40) + b"\x02\x03"))], version=2
    ),
    r"shape \(0, 3\) holds, at least one, got 0": layer(
        "x", [blob(np.zeros((0, 3), "f4"))], version=1
    ),
    r"shape \(0, 0, 0, 0\) holds, at least one, got 0": layer("x", [b""], version=1),
    r"shape \(2, 18446744073709551615, 0, 0\) holds": layer(
        "x", [integer(1, 2) + integer(2, -1) + floats(5, range(6), packed=True)], version=1
    ),
    "expected a shape of at most 32 axes": layer(
        "x", [piece(7, piece(1, b"\x01" * 33)) + floats(5, [1], packed=True)], version=2
    ),
    "expected numbers of 4 bytes each, got 7 bytes": layer("x", [piece(5, b"1234567")], version=2),
    "expected numbers of 4 bytes each, got wire type 0": layer("x", [integer(5, 1)], version=2),
    "expected numbers of 8 bytes each, got wire type 5": layer(
        "x", [floats(8, [1], packed=False)], version=2
    ),
    "expected the numbers of a blob in one piece": layer(
        "x", [blob(ARRAY) + floats(5, [1], packed=True)], version=2
    ),
    "expected a layer with a name of its own, got none": piece(100, piece(7, blob(ARRAY))),
    "expected a layer with a name of its own, got 'x' again": network({"x": [ARRAY]}) * 2,
    "expected a name of at most 1000 bytes of UTF-8": piece(2, piece(4, b"\xff\xfe")),
    "name of at most 1000 bytes": piece(2, piece(4, b"a" * 1001)),
}


@pytest.mark.parametrize("says", BAD)
def test_malformed_files_say_where_and_what(read, says):
    with pytest.raises(ValueError, match=rf"net.caffemodel is not a readable caffemodel: .*{says}"):
        read(BAD[says])


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [True, False])
def test_a_file_cut_off_anywhere_is_refused_or_lacks_layers(read, version, packed):
    content = network(LAYERS, version=version, packed=packed)
    whole = {0}
    for end in range(1, len(content)):
        try:
            layers = read(content[:end])
        except ValueError as error:
            assert "net.caffemodel" in str(error)
        else:  # cut between two layers, which nobody can see
            whole.add(len(layers))
            assert_same(layers, {name: LAYERS[name] for name in layers})
    assert whole == {0, 1, 2}


def test_corrupted_bytes_are_refused_or_give_numbers_of_the_file(read):
    rng = np.random.default_rng(1)
    refused = 0
    for packed in (True, False):
        for version in (1, 2):
            good = network(LAYERS, version=version, packed=packed)
            for _ in range(500):
                bad = bytearray(good)
                for at in rng.integers(len(bad), size=rng.integers(1, 4)):
                    bad[at] = rng.integers(256)
                try:
                    layers = read(bytes(bad))
                except ValueError:
                    refused += 1
                    continue
                assert sum(b.nbytes for blobs in layers.values() for b in blobs) <= len(bad)
    assert 0 < refused < 2000  # most bytes are weights, which may be anything


def test_noise_is_refused(read):
    rng = np.random.default_rng(2)
    for _ in range(500):
        with pytest.raises(ValueError, match="net.caffemodel"):
            read(rng.bytes(int(rng.integers(1, 200))))


def test_many_short_runs_take_no_time_of_their_own(read):
    # Two fields in turn: were each run sought to the end of the file, this would take an hour.
    noise = (floats(9, [1], packed=False) + doubles(10, [1], packed=False)) * 50_000
    layers = read(piece(100, piece(1, b"x") + piece(7, blob(ARRAY) + noise)))
    assert_same(layers, {"x": [ARRAY]})
