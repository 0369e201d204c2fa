"""Pickles are read as data: what they ask for beyond that is refused, and nothing of it runs."""

from __future__ import annotations

import enum
import os
import pickle
import pickletools
import subprocess
import sys
import types

import numpy as np
import pytest

from fastrcnn_engine.data.proposals import read_proposals
from fastrcnn_engine.data.proposals.pickles import read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def module(monkeypatch, name, **content):
    """A module of another program, as far as pickles know it; its classes are named after it."""
    made = types.ModuleType(name)
    for key, value in content.items():
        value.__module__ = name
        setattr(made, key, value)
    parts = name.split(".")
    for end in range(1, len(parts)):
        parent = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, made)


def written(path, content, protocol):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_and_arrays_come_back(tmp_path, protocol):
    rng = np.random.default_rng(0)
    content = {
        "list": [1, 2.5, None, True, "text", b"bytes", b"", (1, (2,)), {3, 4}, frozenset([5])],
        "float32": rng.random((7, 4)).astype(np.float32),
        "fortran": np.asfortranarray(rng.random((3, 5))),
        "big": rng.random((2, 4)).astype(">f4"),
        "ints": [np.arange(5), np.arange(6, dtype=np.uint8).reshape(2, 3)],
        "empty": np.zeros((0, 5), np.float32),
        "texts": np.array(["000005", "000139"]),
        "bytes": np.array([b"000005", b"7"]),
        "truths": np.array([True, False]),
        "strided": rng.random((6, 4))[::2],
    }
    found = read_pickle(written(tmp_path / "p.pkl", content, protocol))
    assert found.keys() == content.keys() and found["list"] == content["list"]
    for name, values in content.items():
        if isinstance(values, np.ndarray):
            # In the byte order of this machine.
            assert found[name].dtype.newbyteorder("=") == values.dtype.newbyteorder("=")
            assert found[name].shape == values.shape
            np.testing.assert_array_equal(found[name], values)
    np.testing.assert_array_equal(found["ints"][1], content["ints"][1])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_numpy_become_numbers(tmp_path, protocol):
    content = [np.float32(0.5), np.int64(139), np.str_("000005"), np.bool_(True)]
    found = read_pickle(written(tmp_path / "p.pkl", content, protocol))
    assert found == [0.5, 139, "000005", True]
    assert [type(one) for one in found] == [float, int, str, bool]


def test_an_array_that_comes_twice_is_one(tmp_path):
    array = np.arange(4)
    first, second = read_pickle(written(tmp_path / "p.pkl", [array, array], 4))
    assert first is second


def test_arrays_of_python_2_are_read(tmp_path):
    # As NumPy 1.6 wrote it: bytes are 8-bit texts, and the dtype's flags are numbers.
    raw = np.float32([[1, 2, 3, 4]]).tobytes()
    stream = (
        b"\x80\x02}U\x05boxescnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        b"U\x01b\x87R(K\x01K\x01K\x04\x86cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff"
        b"\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U" + bytes([len(raw)]) + raw + b"tbs."
    )
    (tmp_path / "old.pkl").write_bytes(stream)
    assert read_pickle(tmp_path / "old.pkl")["boxes"].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_box_mode_is_its_number(tmp_path, monkeypatch, protocol):
    mode = enum.IntEnum("BoxMode", {"XYXY_ABS": 0, "XYWH_ABS": 1})
    module(monkeypatch, "detectron2.structures.boxes", BoxMode=mode)
    path = written(tmp_path / "p.pkl", {"bbox_mode": mode.XYWH_ABS}, protocol)
    found = read_pickle(path)["bbox_mode"]
    assert found == 1 and type(found) is int


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))  # mmengine takes 2
def test_instance_data_is_a_dict(tmp_path, monkeypatch, protocol):
    class InstanceData:
        pass

    InstanceData.__qualname__ = "InstanceData"
    module(monkeypatch, "mmengine.structures.instance_data", InstanceData=InstanceData)
    one = InstanceData()
    one._data_fields, one.bboxes = {"bboxes"}, np.ones((1, 4), np.float32)
    found = read_pickle(written(tmp_path / "p.pkl", one, protocol))
    assert found["_data_fields"] == {"bboxes"} and found["bboxes"].tolist() == [[1, 1, 1, 1]]


class Calls:
    """Pickled as a call of something."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def named(stream):
    """What a pickle asks for, module and name."""
    texts = []
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name == "GLOBAL":
            return argument.replace(" ", ".")
        if opcode.name == "STACK_GLOBAL":
            return ".".join(texts[-2:])
        if isinstance(argument, str):
            texts.append(argument)
    raise AssertionError("it asks for nothing")


def marker(path):
    return f"open({str(path)!r}, 'w').write('ran')"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_hostile_pickle_is_named_and_does_not_run(tmp_path, protocol):
    ran = tmp_path / "ran"
    code = marker(ran)
    attacks = {
        "system": Calls(os.system, f"touch {ran}"),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "import": Calls(__import__, "os"),
        "popen": Calls(subprocess.Popen, ["touch", str(ran)]),
        "save": Calls(np.save, str(ran), [1]),
        "load": Calls(np.load, str(ran), None, True),
        "memmap": Calls(np.memmap, str(ran), "u1", "w+", 0, (9,)),
        "fromfile": Calls(np.fromfile, str(ran)),
        "bytearray": Calls(bytearray, 5),
        "loads": Calls(pickle.loads, pickle.dumps(Calls(eval, code), protocol)),
    }
    for name, attack in attacks.items():
        # Hidden deep in what else is honest.
        content = {"ids": [5], "boxes": [np.ones((1, 4)), {"deep": [attack]}]}
        path = written(tmp_path / f"{name}.pkl", content, protocol)
        asked = named(pickle.dumps(attack, protocol))
        for read in (read_pickle, read_proposals):
            with pytest.raises(ValueError, match=rf"{name}\.pkl: .*it asks for {asked}, which"):
                read(path)
    assert not ran.exists()
    # They do run where pickles are trusted: the test would notice.
    pickle.loads((tmp_path / "eval.pkl").read_bytes())
    assert ran.read_text() == "ran"


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE = b"cnumpy\ndtype\n(V\x00%s\nI0\nI1\ntR(I3\nV<\nNNNI-1\nI-1\nI0\ntb".replace(b"\x00", b"")
NDARRAY = RECONSTRUCT + b"(cnumpy\nndarray\n(I0\ntVb\ntR"


@pytest.mark.parametrize(
    "stream, message",
    [
        (RECONSTRUCT + b"(cbuiltins\nset\n(I0\ntVb\ntR.", "it makes an array of"),
        (DTYPE % b"O8" + b".", "array of type 'O8'"),
        (DTYPE % b"V8" + b".", "array of type 'V8'"),
        (DTYPE % b"f4,O" + b".", "array of type 'f4,O'"),
        (DTYPE.replace(b"V<", b"VO,") % b"f4" + b".", "numbers of byte order 'O,'"),
        # A state with another number of bytes than the shape says, and one without a dtype.
        (NDARRAY + b"(I1\n(I1000\nt" + DTYPE % b"f4" + b"I00\nVabcd\ntb.", "reshape"),
        (NDARRAY + b"(I1\n(I1\ntVf4\nI00\nVabcd\ntb.", "array of type 'f4'"),
        (NDARRAY + b"(I1\n(I1\nt" + DTYPE % b"f4" + b"I00\n(lp0\ntb.", "list"),
        # Some versions of Python write the member of an enum so.
        (b"cbuiltins\ngetattr\n(Vtext\nVupper\ntR.", "asks for 'upper' of 'text'"),
        (b"cbuiltins\ngetattr\n(cdetectron2.structures.boxes\nBoxMode\nV__class__\ntR.",
         "asks for '__class__' of"),
        (b"c_codecs\nencode\n(Vtext\nVrot13\ntR.", "encodes a text as 'rot13'"),
        (b"cbuiltins\nbytes\n(I1000000\ntR.", "takes 0 positional arguments"),
        # BUILD sets attributes: of what is called, and of the classes.
        (RECONSTRUCT + b"}V__call__\nI1\nsb.", "changes what it calls"),
        (RECONSTRUCT + b"(N}V_function\nI1\nstb.", "changes what it calls"),
        (b"cmmengine.structures.instance_data\nInstanceData\n}V__call__\nI1\nsb.", "not readable"),
        (b"cbuiltins\nset\n(N}Vadd\nI1\nstb.", "immutable type"),
        (b"cnumpy\nndarray\n}V__call__\nI1\nsb.", "changes what it calls"),
        (b"\x80\x02\x82\x01.", "unregistered extension"),
        (b"P1\n.", "persistent"),
        (b"\x80\x04.", "not readable"),
        (b"\x80\x04", "not readable"),
        (b"hello", "not readable"),
        (b"", "not readable"),
        (b"\x80\x63.", "unsupported pickle protocol"),
    ],
)
def test_what_an_honest_file_would_not_do_is_refused(tmp_path, stream, message):
    path = tmp_path / "p.pkl"
    path.write_bytes(stream)
    with pytest.raises(ValueError, match=rf"(?s)p\.pkl: .*{message}"):
        read_pickle(path)
    # Nothing of it stays behind.
    honest = written(tmp_path / "honest.pkl", [np.arange(3), {1}], 2)
    assert read_pickle(honest)[0].tolist() == [0, 1, 2]


def test_the_member_of_an_enum_as_some_versions_of_python_write_it(tmp_path):
    path = tmp_path / "p.pkl"
    path.write_bytes(b"cbuiltins\ngetattr\n(cdetectron2.structures.boxes\nBoxMode\nVXYWH_ABS\ntR.")
    assert read_pickle(path) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pkl: no such file"):
        read_pickle(tmp_path / "none.pkl")
