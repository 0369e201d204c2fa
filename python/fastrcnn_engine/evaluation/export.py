"""A trained detector as one ONNX file, from a prepared image and its proposals to detections."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import math
import warnings
from pathlib import Path

import torch
from torch import nn

import fastrcnn_engine.ops as ops
from fastrcnn_engine.evaluation.detect import SCORE_THRESHOLDS, check_score_threshold
from fastrcnn_engine.files import write_whole
from fastrcnn_engine.models import FastRCNN

INPUTS = {
    "image": "float32 (1, 3, h, w), prepared",
    "proposals": "float32 (P, 4), x1, y1, x2, y2 in pixels of the image before that",
    "scale": "float64 (), from those pixels to pixels of the prepared image",
    "size": "float32 (2,), height and width before the preparation",
}
OUTPUTS = {
    "boxes": "float32 (M, 4), in pixels of the image before the preparation",
    "scores": "float32 (M,), falling",
    "labels": "int64 (M,), 1 for the first class",
    "rows": "int64 (M,), the proposal each came from",
}


class DetectionGraph(nn.Module):
    """``detect_image`` without the preparation of the image, in operators that ONNX has.

    RoIs with equal windows are not merged: the detections are the same.
    """

    def __init__(
        self, model: FastRCNN, score_threshold: float, nms_threshold: float, max_detections: int
    ):
        super().__init__()
        self.model = model
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections

    def forward(
        self,
        image: torch.Tensor,
        proposals: torch.Tensor,
        scale: torch.Tensor,
        size: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """``INPUTS`` to ``OUTPUTS``."""
        scaled = (proposals.double() * scale).float()
        rois = torch.cat([torch.zeros_like(scaled[:, :1]), scaled], dim=1)
        logits, deltas = self.model(image, rois)
        scores = logits.softmax(dim=1) if self.model.classifier == "softmax" else logits
        boxes = proposals[:, None].expand(-1, scores.shape[1], -1)
        if self.model.box_regression:
            boxes = ops.decode_boxes(self.model.unnormalise(deltas), proposals)
            boxes = boxes.unflatten(1, (-1, 4))
        boxes = torch.minimum(boxes.clamp(min=0), (size - 1).flip(0).repeat(2))
        rows, labels = (scores[:, 1:] > self.score_threshold).nonzero(as_tuple=True)
        labels = labels + 1
        boxes, scores = boxes[rows, labels], scores[rows, labels]
        keep = ops.batched_nms(boxes, scores, labels, self.nms_threshold, inclusive=True)
        keep = keep[: self.max_detections]
        return boxes[keep], scores[keep], labels[keep], rows[keep]


def export_onnx(
    model: FastRCNN,
    path: Path,
    *,
    score_threshold: float | None = None,
    nms_threshold: float = 0.3,
    max_detections: int = 100,
) -> None:
    """Write a detector to an ONNX file of standard operators (opset 18).

    ``INPUTS`` and ``OUTPUTS`` say what it takes and gives; height, width and the number of
    proposals are free. The classes, the preprocessing and the settings are in the file's metadata
    (``fastrcnn_engine``, JSON). Where the map of the backbone has negative numbers, RoI pooling is
    rounded twice, see ``ops.onnx_ops``; boxes may differ in the last places of exp().

    Args:
        model: in evaluation mode, with one short side; it stays on its device.
        path: of the file.
        score_threshold, nms_threshold, max_detections: as for ``detect_image``.

    Raises:
        ValueError: the model is in training mode, or makes an image pyramid; a setting is out of
            range.
        ModuleNotFoundError: onnx and onnxscript are not installed.
    """
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() first")
    if len(model.preprocessing.levels()) > 1:
        raise ValueError(
            f"short_side is {model.preprocessing.short_side}: an image pyramid does not fit in one "
            "file; choose one of them"
        )
    if score_threshold is None:
        score_threshold = SCORE_THRESHOLDS[model.classifier]
    if not score_threshold < math.inf:  # which nan is not either
        raise ValueError(f"score_threshold must be a number below infinity, got {score_threshold}")
    check_score_threshold(score_threshold, model.classifier)
    if not 0 <= nms_threshold <= 1:
        raise ValueError(f"nms_threshold must be in [0, 1], got {nms_threshold}")
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}")
    for package in ("onnx", "onnxscript"):  # torch tells of them late, and only the first time
        importlib.import_module(package)
    translations = ops.onnx_translations()
    if model.delta_mean.device.type != "cpu":  # where the example is
        model = copy.deepcopy(model).cpu()
    graph = DetectionGraph(model, score_threshold, nms_threshold, max_detections).eval()
    # Two proposals that every class likes, so that nothing is empty while torch looks.
    example = (
        torch.zeros(1, 3, 320, 416),
        torch.tensor([[0.0, 0, 99, 99], [50, 60, 200, 220]]),
        torch.tensor(1.25, dtype=torch.float64),
        torch.tensor([256.0, 333.0]),
    )
    dynamic = torch.export.Dim.DYNAMIC
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it says what else is not installed
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph, example, dynamo=True, verbose=False, opset_version=18,
                input_names=list(INPUTS), output_names=list(OUTPUTS),
                dynamic_shapes=({2: dynamic, 3: dynamic}, {0: dynamic}, None, None),
                custom_translation_table=translations,
            )  # fmt: skip
    finally:
        exporter.setLevel(level)
    assert program is not None  # None is what the older exporter returns
    program.model.metadata_props["fastrcnn_engine"] = json.dumps(
        {
            "network": model.name,
            "classes": list(model.classes),
            "preprocessing": model.preprocessing.to_dict(),
            # JSON has no infinity, which is the threshold of SVM scores.
            "score_threshold": score_threshold if math.isfinite(score_threshold) else None,
            "nms_threshold": nms_threshold,
            "max_detections": max_detections,
        },
        allow_nan=False,
    )
    write_whole(path, program.model_proto.SerializeToString())
