"""The detection step, from the network's outputs to an image's detections: checked, then timed.

    python benchmarks/detections_bench.py       # half a minute; keep the machine quiet

Proposals come in clusters, as in nms_bench.py. `undecided`: three or four classes of a
proposal pass the threshold, as early in training. `decided`: the background leads, one or two pass.
torchvision has no such operator, only its NMS; OpenVINO has one, whose results need two more steps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

import fastrcnn_engine as engine
import harness
import nms_bench
import roipool_peers
from fastrcnn_engine.ops.box_codec import MAX_LOG_RATIO
from harness import OURS, Row, Section, replayed
from nms_bench import clustered

PROPOSALS, CLASSES = 2000, 21
IMAGE = (1000, 1000)  # of clustered()
SCORE_THRESHOLD, IOU_THRESHOLD, MOST = 0.05, 0.3, 100
LEAD = {"undecided": 0.0, "decided": 6.0}  # of the background's logits


def network_outputs(lead: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Proposals, class probabilities and deltas of one image."""
    generator = torch.Generator().manual_seed(5)
    boxes, _ = clustered(PROPOSALS)
    logits = 2.5 * torch.randn(PROPOSALS, CLASSES, generator=generator)
    logits[:, 0] += lead
    deltas = 0.1 * torch.randn(PROPOSALS, 4 * CLASSES, generator=generator)
    return boxes, logits.softmax(1), deltas


def torch_detections(
    suppress: Any, boxes: torch.Tensor, scores: torch.Tensor, deltas: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same step in torch, as torchvision's and detectron2's box heads do it."""
    deltas = deltas.view(len(boxes), -1, 4)
    size = (boxes[:, 2:] - boxes[:, :2])[:, None]
    centre = boxes[:, None, :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp()
    decoded = torch.cat([centre - half, centre + half], -1)
    limit = decoded.new_tensor([IMAGE[1], IMAGE[0]] * 2)
    decoded = torch.minimum(decoded.clamp(min=0), limit)
    rows, labels = (scores[:, 1:] > SCORE_THRESHOLD).nonzero(as_tuple=True)
    labels = labels + 1
    chosen, ranks = decoded[rows, labels], scores[rows, labels]
    keep = suppress(chosen, ranks, labels, IOU_THRESHOLD)[:MOST]
    return chosen[keep], ranks[keep], labels[keep]


class TorchVision(nms_bench.TorchVision):
    def detections(self, *outputs: torch.Tensor) -> Row:
        run = partial(torch_detections, self.batched_nms, *outputs)
        return Row(f"torch + {self.name}", "detections", run)


class OpenVino(roipool_peers.OpenVino):
    """ExperimentalDetectronDetectionOutput: corners name pixels, and sizes have one more.

    So the far corners go in, and come out, one pixel nearer than here. It clips at the left and top
    only: the right and bottom follow in NumPy, when boxes have been suppressed as they were.
    """

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        from openvino.utils.node_factory import NodeFactory  # no function of opset6 makes it

        self.create = partial(NodeFactory("opset6").create, "ExperimentalDetectronDetectionOutput")

    def detections(self, boxes: torch.Tensor, scores: torch.Tensor, deltas: torch.Tensor) -> Row:
        far = np.float32([0, 0, 1, 1])
        limit = np.float32([IMAGE[1], IMAGE[0]] * 2)
        attributes = {
            "score_threshold": SCORE_THRESHOLD,
            "nms_threshold": IOU_THRESHOLD,
            "max_delta_log_wh": MAX_LOG_RATIO,
            "num_classes": CLASSES,
            "post_nms_count": PROPOSALS,
            "max_detections_per_image": MOST,
            "class_agnostic_box_regression": False,
            "deltas_weights": [1.0] * 4,
        }
        arrays = [boxes.numpy() - far, deltas.numpy(), scores.numpy(), np.float32([[*IMAGE, 1]])]
        infer = self.model(arrays, lambda *inputs: self.create(inputs, attributes).outputs())

        def run() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            found, labels, ranks = infer()
            found = np.minimum(found + far, limit)
            return torch.from_numpy(found), torch.from_numpy(ranks), torch.from_numpy(labels)

        return Row(self.name, "detections, clipped last", run)


def check_detections(rows: list[Row]) -> str:
    boxes, scores, labels = rows[0].run()[:3]
    for row in rows[1:]:
        other = [x[: len(scores)] for x in row.run()[:3]]  # what is behind is padding
        same = torch.equal(labels, other[2].long()) and torch.equal(scores, other[1])
        if not (same and torch.allclose(boxes, other[0], rtol=1e-4, atol=1e-3)):
            raise SystemExit(f"{row.who}: other detections")
    return f"the same {len(labels)} detections, boxes to 1e-3 of a pixel"


def sections(peers: list, device: str) -> list[Section]:
    found = []
    for name, lead in LEAD.items():
        outputs = [x.to(device) for x in network_outputs(lead)]
        options = {"score_threshold": SCORE_THRESHOLD, "nms_threshold": IOU_THRESHOLD}
        rows = [Row(OURS, "detections", partial(engine.detections, *outputs, IMAGE, **options))]
        if device == "cuda":
            padded = partial(engine.detections_padded, *outputs, IMAGE, **options)
            rows += [
                Row(f"{OURS}, padded", "detections", padded),
                Row(f"{OURS}, padded, in a CUDA graph", "detections", replayed(padded)),
            ]
        rows += [peer.detections(*outputs) for peer in peers]
        title = f"detections, {PROPOSALS} proposals x {CLASSES} classes to the best {MOST}, {name}"
        found.append(Section(title, rows, partial(check_detections, rows)))
    return found


if __name__ == "__main__":
    harness.run_sections("detections", __doc__, (TorchVision, OpenVino), sections)
