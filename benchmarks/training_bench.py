"""One training iteration of a whole network: what pays, and beside torchvision's operators.

    python benchmarks/training_bench.py --threads 2     # some minutes; keep the machine quiet

Forward pass, multi-task loss, backward pass and a step of the optimiser, as `fastrcnn-engine train`
does them, on one batch of random images: float32; bfloat16 by autocast (`--amp bf16`); the images
one after the other (`--accumulate 2`); the convolutions through torch.compile; channels-last maps.
The last row is the same network with torchvision's RoI pooling and torch's smooth L1. Before
anything is timed, each has to find the float32 losses: within 0.1 % (sums in another order),
in bfloat16, whose numbers have 8 bits, within 2 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import harness
from fastrcnn_engine.models import FastRCNN, build_network
from fastrcnn_engine.training import TrainConfig
from fastrcnn_engine.training.batches import Batch
from fastrcnn_engine.training.loop import build_optimiser, multi_task_loss
from harness import OURS, Row, Section
from roipool_peers import TorchVision

CLASSES = tuple(f"class {i}" for i in range(1, 21))
IMAGES, ROIS = 2, 128  # paper 2.3
SIZES = {"tiny": (480, 640), "caffenet": (600, 800)}  # height and width by network


class Iteration:
    """A network, a batch it learns from, and one way to take a step."""

    def __init__(self, network: str, device: str) -> None:
        torch.manual_seed(0)
        self.model = build_network(network, CLASSES, freeze_to=None).to(device).train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # so that all ways find the same losses
        config = TrainConfig(data=Path(), proposals=Path(), network=network, learning_rate=1e-6)
        self.optimiser = build_optimiser(self.model, config.resolved())
        self.batch = random_batch(*SIZES[network]).to(torch.device(device))
        self.device = device
        self.backbone: Callable[[torch.Tensor], torch.Tensor] = self.model.backbone
        self.pool: Callable[..., torch.Tensor] = self.model.pool
        self.loss = multi_task_loss
        self.bf16, self.parts = False, 1

    def forward(self, part: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(part.images)
            return self.model.classify(self.pool(features, part.rois))

    def losses(self, *, learn: bool = True) -> list[float]:
        """A step, if it shall learn, and the two losses before it."""
        self.optimiser.zero_grad(set_to_none=True)
        found = torch.zeros(2)
        for part in self.batch.parts(self.parts):
            logits, deltas = self.forward(part)
            both = torch.stack(self.loss(logits.float(), deltas.float(), part.labels, part.targets))
            share = len(part.labels) / len(self.batch.labels)
            found += share * both.detach().cpu()
            (share * both.sum()).backward()
        if learn:
            self.optimiser.step()
        return found.tolist()


def random_batch(height: int, width: int) -> Batch:
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 0.7, (ROIS, 2)) * (width, height)
    size = rng.uniform(0.1, 0.5, (ROIS, 2)) * (width, height)
    end = np.minimum(corner + size, (width - 1, height - 1))
    image = np.repeat(np.arange(IMAGES), ROIS // IMAGES)[:, None]
    labels = rng.integers(1, len(CLASSES) + 1, ROIS)
    labels[rng.random(ROIS) < 0.75] = 0  # background
    return Batch(
        torch.from_numpy(rng.standard_normal((IMAGES, 3, height, width), dtype=np.float32)),
        torch.from_numpy(np.hstack([image, corner, end]).astype(np.float32)),
        torch.from_numpy(labels),
        torch.from_numpy(rng.standard_normal((ROIS, 4), dtype=np.float32)),
        tuple(map(str, range(IMAGES))),
    )


def torchvision_pool(model: FastRCNN, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    size = model.pooled_size
    return torch.ops.torchvision.roi_pool(features, rois, 1.0 / model.stride, size, size)[0]


def torch_losses(
    logits: torch.Tensor, deltas: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As torchvision's detectors have them: columns of the foreground's classes, gathered."""
    rows = torch.nonzero(labels > 0)[:, 0]
    columns = deltas.view(len(labels), -1, 4)[rows, labels[rows]]
    box = F.smooth_l1_loss(columns, targets[rows], beta=1.0, reduction="sum") / len(labels)
    return F.cross_entropy(logits, labels), box


def ways(network: str, device: str, peers: Sequence) -> dict[str, Iteration]:
    found = {}

    def another(who: str) -> Iteration:
        found[who] = Iteration(network, device)
        return found[who]

    another(f"{OURS}, float32")
    another(f"{OURS}, bfloat16").bf16 = True
    if network != "tiny":  # whose batch normalisation sees a part at a time
        another(f"{OURS}, in two parts").parts = 2
    compiled = another(f"{OURS}, compiled convolutions")
    compiled.backbone = torch.compile(compiled.model.backbone)
    last = another(f"{OURS}, channels-last")
    last.model.to(memory_format=torch.channels_last)
    images = last.batch.images.to(memory_format=torch.channels_last)
    last.batch = dataclasses.replace(last.batch, images=images)
    if peers:
        theirs = another("torchvision's operators")
        theirs.pool = partial(torchvision_pool, theirs.model)
        theirs.loss = torch_losses
    return found


def same_losses(found: dict[str, Iteration]) -> str:
    expected = next(iter(found.values())).losses(learn=False)
    for who, iteration in found.items():
        # Convolutions of another layout or compiler add in another order.
        bound = 0.02 if iteration.bf16 else 1e-3
        if not np.allclose(iteration.losses(learn=False), expected, rtol=bound):
            raise SystemExit(f"{who}: other losses than {expected}")
    return f"{len(found)} times the same losses, {expected[0]:.4f} and {expected[1]:.4f}"


def sections(peers: list, device: str) -> list[Section]:
    made = []
    for network, (height, width) in SIZES.items():
        found = ways(network, device, peers)
        rows = [Row(who, "iteration", iteration.losses) for who, iteration in found.items()]
        title = f"{network}, {IMAGES} images of {width} x {height}, {ROIS} RoIs"
        made.append(Section(title, rows, partial(same_losses, found)))
    return made


if __name__ == "__main__":
    harness.run_sections("training", __doc__, (TorchVision,), sections)
