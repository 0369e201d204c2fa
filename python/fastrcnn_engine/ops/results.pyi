# For type checkers: every field is an array of the caller's kind. Python has generic named tuples
# since 3.11 only, so results.py cannot say it.
from typing import Generic, NamedTuple

from fastrcnn_engine.ops._arrays import Array

class PaddedIndices(NamedTuple, Generic[Array]):
    indices: Array
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]

class Detections(NamedTuple, Generic[Array]):
    boxes: Array
    scores: Array
    labels: Array
    rows: Array

class PaddedDetections(NamedTuple, Generic[Array]):
    boxes: Array
    scores: Array
    labels: Array
    rows: Array
    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
