"""Calls in which little is computed, from torch in eager mode: what a call costs.

    python benchmarks/small_calls_bench.py      # a minute; keep the machine quiet

Tiny operators beside torchvision's C++ operators, and the box loss (forward and backward) beside
torch's own: on the columns of each foreground row's class, and on (R, 84) targets and weights as in
the original code. Milliseconds per call, by 300 calls in a row. The box loss has other labels in
every call, as in training: the same 2000 would be learned by branch prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.functional import smooth_l1_loss

import fastrcnn_engine as engine
import harness
from harness import OURS, Row, Section, small_clock, synchronised_clock
from roipool_peers import TorchVision

CLOCKS = {"cpu": small_clock, "cuda": partial(synchronised_clock, calls=300)}


def equal(rows: list[Row], calls: int = 1) -> str:
    for _ in range(calls):
        results = [row.run() for row in rows]
        results = [r[0] if isinstance(r, tuple) else r for r in results]
        for row, result in zip(rows, results, strict=True):
            if not torch.allclose(result, results[0], rtol=1e-4, atol=1e-6):
                raise SystemExit(f"{row.who}: another result")
    return f"{len(rows)} times the same"


def gradient(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable:
    """A call that runs forward and backward, from a loss or from the sum of anything larger."""
    x = x.clone().requires_grad_()
    if run(x).dim() == 0:
        return lambda: torch.autograd.grad(run(x), x)[0]
    return lambda: torch.autograd.grad(run(x).sum(), x)[0]


def tiny(peers: list, device: str) -> list[Section]:
    x, rois = torch.randn(1, 4, 5, 5), torch.tensor([[0.0, 0, 0, 3, 3]])
    boxes, scores = torch.tensor([[0.0, 0, 3, 3], [1, 1, 4, 4]]), torch.tensor([0.9, 0.8])
    x, rois, boxes, scores = (t.to(device) for t in (x, rois, boxes, scores))
    pool = partial(engine.roi_pool, boxes=rois, output_size=2)
    rows = {
        "roi_pool": [Row(OURS, "call", partial(pool, x))],
        "roi_pool, forward and backward": [Row(OURS, "call", gradient(pool, x))],
        "nms": [Row(OURS, "call", partial(engine.nms, boxes, scores, 0.5))],
    }
    for peer in peers:
        op = peer.op.roi_pool
        calls = [
            lambda op=op: op(x, rois, 1.0, 2, 2),
            gradient(lambda x, op=op: op(x, rois, 1.0, 2, 2)[0], x),
            partial(peer.op.nms, boxes, scores, 0.5),
        ]
        for list_, call in zip(rows.values(), calls, strict=True):
            list_.append(Row(peer.name, "call", call))
    clock = CLOCKS[device]
    return [Section(f"tiny {name}", r, partial(equal, r), clock) for name, r in rows.items()]


LABEL_SETS = 32


@dataclass
class Targets:
    """Of one call: targets and labels by row, and in the columns of every class."""

    narrow: torch.Tensor
    labels: torch.Tensor
    wide: torch.Tensor
    wide_weights: torch.Tensor


def random_targets(count: int, classes: int, device: str, generator: torch.Generator) -> Targets:
    narrow = torch.randn(count, 4, generator=generator)
    labels = torch.randint(1, classes, (count,), generator=generator)
    labels[torch.rand(count, generator=generator) < 0.75] = 0  # the paper's share of background
    wide, wide_weights = torch.zeros(2, count, classes, 4)
    foreground = labels.nonzero()[:, 0]
    wide[foreground, labels[foreground]] = narrow[foreground]
    wide_weights[foreground, labels[foreground]] = 1
    tensors = narrow, labels, wide.flatten(1), wide_weights.flatten(1)
    return Targets(*(t.to(device) for t in tensors))


def box_loss(count: int, device: str) -> Section:
    classes = 21  # of VOC, with the background
    generator = torch.Generator().manual_seed(count)
    deltas = torch.randn(count, 4 * classes, generator=generator).to(device)
    weights = torch.ones(count, 4, device=device)
    sets = [random_targets(count, classes, device, generator) for _ in range(LABEL_SETS)]

    def ours(x: torch.Tensor, t: Targets) -> torch.Tensor:
        return engine.smooth_l1(x, targets=t.narrow, labels=t.labels, weights=weights)

    def gathered(x: torch.Tensor, t: Targets) -> torch.Tensor:
        rows = torch.nonzero(t.labels > 0)[:, 0]
        columns = x.view(count, -1, 4)[rows, t.labels[rows]]
        loss = smooth_l1_loss(columns, t.narrow[rows], reduction="none", beta=1.0)
        return (loss * weights[rows]).sum() / count

    def wide(x: torch.Tensor, t: Targets) -> torch.Tensor:
        loss = smooth_l1_loss(x, t.wide, reduction="none", beta=1.0)
        return (loss * t.wide_weights).sum() / count

    def row(who: str, loss: Callable[[torch.Tensor, Targets], torch.Tensor]) -> Row:
        turns = itertools.cycle(sets)
        return Row(who, "loss and gradient", gradient(lambda x: loss(x, next(turns)), deltas))

    losses = {OURS: ours, "torch, class columns": gathered, "torch, wide targets": wide}
    rows = [row(who, loss) for who, loss in losses.items()]
    title = f"box loss, forward and backward, ({count}, {4 * classes})"
    return Section(title, rows, partial(equal, rows, calls=LABEL_SETS), CLOCKS[device])


def sections(peers: list, device: str) -> list[Section]:
    return [*tiny(peers, device), box_loss(128, device), box_loss(2000, device)]


if __name__ == "__main__":
    harness.run_sections("small-calls", __doc__, (TorchVision,), sections)
