"""The operators, for any detector: torch tensors, NumPy arrays and other DLPack arrays alike."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fastrcnn_engine.ops.box_codec import clip_boxes_to_image, decode_boxes, encode_boxes
from fastrcnn_engine.ops.build_info import build_info
from fastrcnn_engine.ops.detections import detections, detections_padded
from fastrcnn_engine.ops.nms import batched_nms, box_iou, nms, nms_padded
from fastrcnn_engine.ops.results import Detections, PaddedDetections, PaddedIndices
from fastrcnn_engine.ops.roi_pool import roi_pool, roi_pool_backward, roi_pool_with_argmax
from fastrcnn_engine.ops.smooth_l1 import smooth_l1, smooth_l1_backward
from fastrcnn_engine.ops.spp_pool import spp_pool
from fastrcnn_engine.ops.threads import get_num_threads, set_num_threads

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
    "roi_pool",
    "roi_pool_backward",
    "roi_pool_with_argmax",
    "set_num_threads",
    "smooth_l1",
    "smooth_l1_backward",
    "spp_pool",
]


if hasattr(getattr(sys.modules.get("torch"), "library", None), "register_autograd"):
    # torch.ops.fastrcnn_engine is there for programs that were saved. Else it comes with the first
    # call that needs it. A torch before 2.4 does without.
    from fastrcnn_engine.ops import torch_ops  # noqa: F401


if TYPE_CHECKING:
    from fastrcnn_engine.ops.autograd import RoIPool as RoIPool
    from fastrcnn_engine.ops.onnx_ops import onnx_translations as onnx_translations
else:

    def __getattr__(name: str) -> object:
        if name == "RoIPool":  # a torch module: looked up only when asked for
            try:
                from fastrcnn_engine.ops.autograd import RoIPool
            except ModuleNotFoundError as error:
                raise ImportError(
                    f"RoIPool is a torch module: {error}; roi_pool takes NumPy arrays"
                ) from error
            return RoIPool
        if name == "onnx_translations":  # needs onnxscript
            from fastrcnn_engine.ops.onnx_ops import onnx_translations

            return onnx_translations
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
