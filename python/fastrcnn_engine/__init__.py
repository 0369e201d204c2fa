"""Fast R-CNN: its operators for any detector, and the detector itself.

The operators live in `fastrcnn_engine.ops` and are all reachable from here. They take torch
tensors, NumPy arrays or anything else with DLPack, and importing them needs NumPy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrcnn_engine import ops
from fastrcnn_engine.ops import (
    Detections,
    PaddedDetections,
    PaddedIndices,
    batched_nms,
    box_iou,
    build_info,
    clip_boxes_to_image,
    decode_boxes,
    detections,
    detections_padded,
    encode_boxes,
    get_num_threads,
    nms,
    nms_padded,
    roi_pool,
    roi_pool_backward,
    roi_pool_with_argmax,
    set_num_threads,
    smooth_l1,
    smooth_l1_backward,
    spp_pool,
)
from fastrcnn_engine.ops.build_info import VERSION

# Not from build_info(): that asks the driver, which must not wake up because of an import.
__version__ = VERSION

# Not RoIPool and onnx_translations: `import *` asks for every name, and those need torch.
__all__ = [
    "Detections",
    "PaddedDetections",
    "PaddedIndices",
    "batched_nms",
    "box_iou",
    "build_info",
    "clip_boxes_to_image",
    "decode_boxes",
    "detections",
    "detections_padded",
    "encode_boxes",
    "get_num_threads",
    "nms",
    "nms_padded",
    "ops",
    "roi_pool",
    "roi_pool_backward",
    "roi_pool_with_argmax",
    "set_num_threads",
    "smooth_l1",
    "smooth_l1_backward",
    "spp_pool",
]


if TYPE_CHECKING:
    from fastrcnn_engine.ops.autograd import RoIPool as RoIPool
    from fastrcnn_engine.ops.onnx_ops import onnx_translations as onnx_translations
else:

    def __getattr__(name: str) -> object:
        if name in ("RoIPool", "onnx_translations"):  # they need torch: looked up when asked for
            return getattr(ops, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
