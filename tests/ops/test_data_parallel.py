"""DistributedDataParallel: an image without RoIs stays in the graph, and nobody waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import fastrcnn_engine as fe

RANKS = 2
STEPS = 2  # DDP complains of parameters without a gradient at the next step


class Detector(nn.Module):
    """A convolution, RoI pooling, and the two heads of Fast R-CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.cls_score = nn.Linear(4 * 2 * 2, 3)
        self.bbox_pred = nn.Linear(4 * 2 * 2, 4 * 3)

    def forward(self, image, rois, labels, targets):
        pooled = fe.roi_pool(self.backbone(image), rois, 2, 0.5).flatten(1)
        scores = self.cls_score(pooled)
        classes = nn.functional.cross_entropy(scores, labels, reduction="sum")
        return classes + fe.smooth_l1(self.bbox_pred(pooled), targets, labels)


def batch(rank: int, rows: int):
    generator = torch.Generator().manual_seed(rank)
    corner = 8 * torch.rand(rows, 2, generator=generator)
    rois = torch.cat([torch.zeros(rows, 1), corner, corner + 6], dim=1)
    targets = torch.randn(rows, 4, generator=generator)
    image = torch.randn(1, 3, 8, 8, generator=generator)
    return image, rois, torch.arange(rows) % 3, targets


def new_detector() -> Detector:
    torch.manual_seed(0)
    return Detector()


def gradients(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def train(rank: int, folder: str, rows: int) -> None:
    """One process of the group; saves its own gradients of the last step."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    model = nn.parallel.DistributedDataParallel(new_detector())
    for _ in range(STEPS):
        model.zero_grad()
        model(*batch(rank, rows)).backward()
    torch.save(gradients(model), f"{folder}/{rank}.pt")
    os._exit(0)  # how to part is training/distributed.py's; else torch now and then aborts here


def test_a_rank_without_rois_gives_zero_gradients_and_holds_nobody_up(tmp_path: Path) -> None:
    rows = (5, 0)
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path), str(rows[rank])],
                         stderr=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]  # fmt: skip
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    alone = new_detector()
    alone(*batch(0, rows[0])).backward()
    for left, right, own in zip(first, second, gradients(alone), strict=True):
        assert torch.equal(left, right)  # DDP's mean
        torch.testing.assert_close(left, own / RANKS)
        assert own.abs().sum() > 0


def test_gradients_without_rois_are_zero_and_there() -> None:
    model = new_detector()
    loss = model(*batch(1, 0))
    loss.backward()
    assert loss == 0
    assert all(grad is not None and (grad == 0).all() for grad in gradients(model))


if __name__ == "__main__":
    train(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
