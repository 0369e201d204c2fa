"""Reads arrays, numbers and containers out of a pickle, and runs nothing that it names.

A pickle is a program: it calls what it likes, with what it likes. Here every name it uses is looked
up in a short list, and what stands there is never the thing itself but a stand-in that takes the
few arguments of an honest file and builds plain data of them.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DTYPE = re.compile(r"[biufSU]\d{1,4}")  # truth values, numbers, texts; never Python objects


def read_pickle(path: str | os.PathLike[str]) -> Any:
    """What a pickle holds: containers, numbers, texts and NumPy arrays of these.

    Objects of mmengine's InstanceData become dicts, a BoxMode its number. Files of Python 2 are
    read too.

    A hostile file can fill the memory, as one of any format can; it cannot run, read or write.

    Raises FileNotFoundError, and ValueError naming the file where it is no pickle or asks for
    anything else, named as well.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            return _DataUnpickler(file).load()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except Exception as error:  # a broken pickle can raise anything; what it names is never called
        raise ValueError(f"{path}: not readable as a pickle of plain data: {error}") from None


class _DataUnpickler(pickle.Unpickler):
    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")  # of Python 2: array bytes are texts there
        self._known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which is no array, number or container"
            ) from None


class _StandIn:
    """Calls a function of ours. A pickle cannot change it (BUILD) as it could a function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes what it calls")


class _DType:
    """A NumPy dtype in two steps: its code, then its state, of which the byte order is taken."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(f"it holds an array of type {code!r}, not of numbers")
        self._code, self._order = code, "|"

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds numbers of byte order {state[1]!r}")
        self._order = state[1]

    def array(self, raw: Any, shape: Any, *, fortran: bool) -> np.ndarray:
        """The bytes as an array, if there are as many as the shape says."""
        raw = raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))
        dtype = np.dtype(self._order + self._code)
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")


class _Array(np.ndarray):
    """An array in two steps: empty, then its state."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError(f"it holds an array of type {dtype!r}")
        full = dtype.array(raw, shape, fortran=bool(fortran))
        own = (1, full.shape, full.dtype, bool(fortran), full.tobytes("A"))
        super().__setstate__(own)  # type: ignore[arg-type]  # NumPy's stub wants its own bool


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What a pickle may ask for, by module and name; new ones for each file."""

    def empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
        if kind is not array_kind:
            raise pickle.UnpicklingError(f"it makes an array of {kind!r}")
        return np.empty(0, np.uint8).view(_Array)

    def from_buffer(raw: Any, dtype: _DType, shape: Any, order: Any = "C") -> np.ndarray:
        return dtype.array(raw, shape, fortran=order == "F").view(_Array)

    def scalar(dtype: _DType, raw: Any) -> Any:
        return dtype.array(raw, (), fortran=False).item()

    def encoded(text: str, encoding: str) -> bytes:  # how Python 3 writes bytes for Python 2
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"it encodes a text as {encoding!r}")
        return text.encode("latin1")

    def no_bytes() -> bytes:
        return b""

    def box_mode(number: int) -> int:
        return int(number)

    box_modes = {"XYXY_ABS": 0, "XYWH_ABS": 1, "XYXY_REL": 2, "XYWH_REL": 3, "XYWHA_ABS": 4}

    def member(kind: Any, name: Any) -> int:  # how Python 3.11.0 to 3.11.4 write that of an enum
        if kind is not box_mode_kind or name not in box_modes:
            raise pickle.UnpicklingError(f"it asks for {name!r} of {kind!r}")
        return box_modes[name]

    class InstanceData(dict):
        def __setstate__(self, state: dict[str, Any]) -> None:
            self.update(state)

    array_kind = _StandIn(lambda *_: None)
    box_mode_kind = _StandIn(box_mode)
    known: dict[tuple[str, str], Any] = {
        ("_codecs", "encode"): _StandIn(encoded),
        ("detectron2.structures.boxes", "BoxMode"): box_mode_kind,
        ("mmengine.structures.instance_data", "InstanceData"): InstanceData,
        ("numpy", "ndarray"): array_kind,
        ("numpy", "dtype"): _StandIn(_DType),
    }
    for module in ("builtins", "__builtin__"):
        known[module, "bytes"] = _StandIn(no_bytes)
        known[module, "getattr"] = _StandIn(member)
        known[module, "set"] = set
        known[module, "frozenset"] = frozenset
    for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        known[f"{core}.multiarray", "_reconstruct"] = _StandIn(empty_array)
        known[f"{core}.multiarray", "scalar"] = _StandIn(scalar)
        known[f"{core}.numeric", "_frombuffer"] = _StandIn(from_buffer)
    return known
