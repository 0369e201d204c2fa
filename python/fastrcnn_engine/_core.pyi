# The C++ module (bindings/): operators on arrays that the caller allocated. Private; use
# fastrcnn_engine.ops. Positional, as it takes no keywords; arrays are anything with DLPack or the
# buffer protocol, `stream` a CUDA stream's address, `new_bytes` gives a GPU temporary memory.
from collections.abc import Callable
from typing import Any, TypeAlias

NewBytes: TypeAlias = Callable[[int], Any] | None

def build_info() -> dict[str, Any]: ...
def why_no_cuda_device() -> str: ...
def num_threads() -> int: ...
def set_num_threads(threads: int, /) -> None: ...
def roi_pool_forward(
    input: Any, boxes: Any, spatial_scale: float, out: Any, argmax_out: Any, stream: int,
    threads: int, /,
) -> None: ...
def roi_pool_backward(
    grad_output: Any, argmax: Any, boxes: Any, spatial_scale: float, grad_input: Any, stream: int,
    threads: int, new_bytes: NewBytes, /,
) -> None: ...
def smooth_l1_forward(
    deltas: Any, targets: Any, labels: Any, weights: Any, beta: float, normalizer: float | None,
    loss: Any, stream: int, /,
) -> None: ...
def smooth_l1_backward(
    deltas: Any, targets: Any, labels: Any, weights: Any, beta: float, normalizer: float | None,
    grad_loss: Any, grad_deltas: Any, stream: int, /,
) -> None: ...
MAX_LOG_RATIO: float

def encode_boxes(reference_boxes: Any, proposals: Any, out: Any, stream: int, /) -> None: ...
def decode_boxes(
    deltas: Any, boxes: Any, max_log_ratio: float, out: Any, stream: int, /
) -> None: ...
def clip_boxes(
    boxes: Any, height: float, width: float, inclusive: bool, out: Any, stream: int, /
) -> None: ...
def box_iou(boxes1: Any, boxes2: Any, inclusive: bool, out: Any, stream: int, /) -> None: ...

# How many results there are, or None where they are counted in the array `count`.
def nms(
    boxes: Any, scores: Any, idxs: Any, iou_threshold: float, inclusive: bool, keep: Any,
    count: Any, stream: int, new_bytes: NewBytes, /,
) -> int | None: ...
def detect_boxes(
    boxes: Any, scores: Any, deltas: Any, height: float, width: float, max_log_ratio: float,
    score_threshold: float, nms_threshold: float, inclusive: bool, out_boxes: Any,
    out_scores: Any, out_labels: Any, out_rows: Any, count: Any, stream: int,
    new_bytes: NewBytes, /,
) -> int | None: ...
