"""RoI pooling where it is used, between a convolution and a linear layer: is it as fast there?

    python benchmarks/sequence_bench.py --threads 2     # two minutes; keep the machine quiet

The threads of torch's operators wait for the next one by spinning. An operator with threads of its
own has to share the cores with them: fast alone, it is slow in a network. The whole network is
timed, and the pooling inside it beside the same pooling after a rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

import fastrcnn_engine as engine
import harness
from harness import OURS, Row, Section
from roipool_peers import TorchVision
from roipool_workloads import SCALE, WORKLOADS, Problem, Workload

FEATURES = 256  # of the linear layer


class Network:
    """conv -> ReLU -> RoI pooling -> linear, on one workload's map."""

    def __init__(self, workload: Workload) -> None:
        torch.manual_seed(1)
        self.problem = Problem(workload)
        self.conv = torch.nn.Conv2d(workload.c, workload.c, 3, padding=1)
        self.linear = torch.nn.Linear(workload.c * workload.p**2, FEATURES)
        self.features = self.conv(self.problem.x).relu_().detach()

    @torch.no_grad()
    def whole(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return self.linear(pool(self.conv(self.problem.x).relu_()).flatten(1))

    @torch.no_grad()
    def seconds_of_pooling(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """In the network, right after the convolution and before the linear layer."""
        features = self.conv(self.problem.x).relu_()
        start = time.perf_counter()
        pooled = pool(features)
        seconds = time.perf_counter() - start
        self.linear(pooled.flatten(1))
        return seconds

    @torch.no_grad()
    def seconds_after_a_rest(self, pool: Callable[[torch.Tensor], torch.Tensor]) -> float:
        time.sleep(0.02)
        start = time.perf_counter()
        pool(self.features)
        return time.perf_counter() - start


def pools_of(problem: Problem, peers: list) -> dict[str, Callable]:
    rois, p = problem.rois, problem.workload.p
    pools = {OURS: partial(engine.roi_pool, boxes=rois, output_size=p, spatial_scale=SCALE)}
    for peer in peers:
        pools[peer.name] = lambda x, op=peer.op: op.roi_pool(x, rois, SCALE, p, p)[0]
    return pools


def same_results(network: Network, pools: dict[str, Callable]) -> str:
    results = [network.whole(pool) for pool in pools.values()]
    for name, result in zip(pools, results, strict=True):
        if not torch.equal(result, results[0]):
            raise SystemExit(f"{name}: another result")
    return f"{len(results)} times the same, bit for bit"


def sections(peers: list, device: str) -> list[Section]:
    del device  # the CPU's threads are what this is about
    found = []
    for workload in WORKLOADS[1:3]:
        network = Network(workload)
        pools = pools_of(network.problem, peers)
        check = partial(same_results, network, pools)
        rows = [Row(name, "whole", partial(network.whole, pool)) for name, pool in pools.items()]
        found.append(Section(f"conv, roi_pool, linear; {workload}", rows, check))
        rows = [
            Row(name, job, partial(seconds, pool))
            for name, pool in pools.items()
            for job, seconds in {
                "pooling, in the network": network.seconds_of_pooling,
                "pooling, after a rest": network.seconds_after_a_rest,
            }.items()
        ]
        found.append(Section(f"roi_pool; {workload}", rows, check, lambda run: run()))
    return found


if __name__ == "__main__":
    harness.run_sections("sequence", __doc__, (TorchVision,), sections, devices=("cpu",))
