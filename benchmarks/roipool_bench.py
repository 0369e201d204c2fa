"""RoI max pooling against every other implementation that can be imported: checked, then timed.

    python benchmarks/roipool_bench.py            # all workloads, minutes; keep the machine quiet
    python benchmarks/roipool_bench.py --quick    # half a minute; writes only what it is told to
    python benchmarks/roipool_bench.py --threads 2

The floor of a job: reading its input once and writing its output once, in the same kind of memory.
A plain call forward has none: ours asks for huge pages, and torch.empty_like does not.
Ratios are best against best. Where there is a GPU, it is timed after the CPU, beside torchvision.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastrcnn_engine as engine
import harness
from harness import FLOOR, OURS, Row, console
from roipool_peers import (
    ARGMAX_FRESH,
    ARGMAX_KEPT,
    GRADIENT,
    GRADIENT_16_BIT,
    PEERS,
    VALUES_16_BIT,
    VALUES_FRESH,
    VALUES_KEPT,
)
from roipool_plot import plot
from roipool_workloads import QUICK, SCALE, WORKLOADS, Problem, Workload

LAYOUTS = {OURS: torch.contiguous_format, f"{OURS}, channels-last": torch.channels_last}


def forward_rows(problem: Problem) -> list[Row]:
    """Our forward pass in every way it can be called, and the floor of the jobs that have one."""
    out, argmax = problem.out, problem.argmax
    arguments = {"boxes": problem.rois, "output_size": problem.workload.p, "spatial_scale": SCALE}
    rows = []
    for who, layout in LAYOUTS.items():
        x = problem.x.contiguous(memory_format=layout)
        kept = [torch.empty_like(t, memory_format=layout) for t in (out, argmax)]
        values = partial(engine.roi_pool, x, **arguments)
        both = partial(engine.roi_pool_with_argmax, x, **arguments)
        rows += [
            Row(who, VALUES_KEPT, partial(values, out=kept[0])),
            Row(who, VALUES_FRESH, values),
            Row(who, ARGMAX_KEPT, partial(both, out=kept[0], argmax_out=kept[1])),
            Row(who, ARGMAX_FRESH, both),
        ]
    for dtype in (torch.float16, torch.bfloat16):
        for who, layout in LAYOUTS.items():
            x = problem.x.to(dtype).contiguous(memory_format=layout)
            kept = torch.empty_like(out, dtype=dtype, memory_format=layout)
            values = partial(engine.roi_pool, x, **arguments, out=kept)
            name = str(dtype).removeprefix("torch.")
            rows.append(Row(f"{who}, {name}", VALUES_16_BIT, values))
    rows.append(Row(FLOOR, VALUES_16_BIT, partial(floor, [x], kept=[kept])))
    read = [problem.x]
    return rows + [
        Row(FLOOR, VALUES_KEPT, partial(floor, read, kept=[out])),
        Row(FLOOR, ARGMAX_KEPT, partial(floor, read, kept=[out, argmax])),
    ]


def backward_rows(problem: Problem) -> list[Row]:
    """Our gradient in both layouts, and its floor (ones for argmax: floats are summed faster)."""
    grad, rois, x = problem.grad, problem.rois, problem.x
    _, argmax = engine.roi_pool_with_argmax(x, rois, problem.workload.p, SCALE)
    kinds = {
        GRADIENT: (argmax, torch.ones_like(grad)),
        GRADIENT_16_BIT: (argmax.to(torch.uint16), torch.ones_like(grad)[::2]),
    }
    rows = []
    for job, (cells, as_many_bytes) in kinds.items():
        rows.append(Row(FLOOR, job, partial(floor, [grad, as_many_bytes], fresh=[x])))
        for who, layout in LAYOUTS.items():
            given = [t.contiguous(memory_format=layout) for t in (grad, cells)]
            gradient = partial(engine.roi_pool_backward, *given, rois, x.shape, SCALE)
            rows.append(Row(who, job, gradient))
    return rows


def floor(read: Sequence, kept: Sequence = (), fresh: Sequence = ()) -> list[torch.Tensor]:
    """Reads tensors, writes over others, and writes into new ones like `fresh`."""
    for tensor in read:
        tensor.sum()
    written = [*kept, *map(torch.empty_like, fresh)]
    for tensor in written:
        harness.write_once(tensor)
    return written


def expected_forward(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Our plain result on the CPU, which every other call and peer confirms, on the device."""
    x, rois = problem.x.cpu(), problem.rois.cpu()
    results = engine.roi_pool_with_argmax(x, rois, problem.workload.p, SCALE)
    return tuple(result.to(problem.x.device) for result in results)


def check_forward(problem: Problem, rows: list[Row], peers: dict[str, Any]) -> list[str]:
    """Runs every row once; SystemExit where a result differs without a known reason."""
    expected, where = expected_forward(problem)
    notes = [f"{OURS}: the same from every call and layout, bit for bit"]
    for row in rows:
        result = row.run()
        if row.who == FLOOR:
            continue
        output, argmax = result if isinstance(result, tuple) else (torch.as_tensor(result), where)
        require(torch.equal(argmax, where), f"{row.who}, {row.job}: another argmax")
        # Rounding keeps the order: the maximum of rounded features is the rounded maximum.
        differ = (output != expected.to(output.dtype)).flatten(1).any(1)
        peer = peers.get(row.who)
        unexplained = differ & ~problem.overshoots if peer and peer.exact_bins else differ
        count = int(unexplained.sum())
        require(count == 0, f"{row.who}, {row.job}: {count} RoIs differ without a known reason")
        if peer:
            also = ", argmax equal" if isinstance(result, tuple) else ""
            reason = " (exact bins, no float32 overshoot)" if differ.any() else ""
            notes.append(
                f"{row.who}: {int(differ.sum())} of {len(differ)} RoIs differ{reason}{also}"
            )
    return notes


def check_backward(problem: Problem, rows: list[Row], peers: dict[str, Any]) -> list[str]:
    """As check_forward. Ours sums in the order of (RoI, bin), as scatter_add_ does below."""
    w, x = problem.workload, problem.x
    _, where = expected_forward(problem)
    expected = torch.zeros(w.n, w.c, w.h * w.w)
    in_turn = problem.rois[:, 0].int(), where.flatten(2).long(), problem.grad.flatten(2)
    for image, cells, grad in zip(*(t.cpu() for t in in_turn), strict=True):
        expected[image].scatter_add_(1, cells, grad)
    expected = expected.view(x.shape).to(x.device)
    notes = []
    for row in rows:
        if row.who == FLOOR:
            continue
        gradient = row.run()
        exact = torch.equal(gradient, expected)
        # Another order of the sums is a peer's right.
        close = row.who in peers and torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4)
        require(exact or close, f"{row.who}: another gradient")
        notes.append(f"{row.who}: equal {'bit for bit' if exact else 'to 1e-4'} to scatter_add_")
    return notes


def require(holds: bool, message: str) -> None:
    if not holds:
        raise SystemExit(f"check failed, so nothing more is timed: {message}")


PASSES = {"forward": (forward_rows, check_forward), "backward": (backward_rows, check_backward)}


def run_pass(
    name: str, workload: Workload, peers: list, rounds: int, device: str
) -> tuple[list[str], list[dict]]:
    """Checks, times and shows one pass of one workload: the notes of the check, the records."""
    ours, check = PASSES[name]
    peers = [peer for peer in peers if device in peer.devices and hasattr(peer, name)]

    def rows_of(problem: Problem) -> list[Row]:
        return ours(problem) + [row for p in peers if (row := getattr(p, name)(problem))]

    problem = Problem(workload, device)
    rows, clock = rows_of(problem), harness.wall_clock
    title = f"{name}, {device}, {workload}"
    console.print(f"\n[bold]{title}")
    notes = check(problem, rows, {peer.name: peer for peer in peers})
    console.print(*(f"  check: {note}" for note in notes), sep="\n")
    if device == "cuda":  # cold: as many copies in turn as push the first out of the L2 cache
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        # Twice the cache in rows of 16 bits, which have half of these bytes.
        copies = 2 + 4 * cache // (problem.x.nbytes + problem.out.nbytes)
        sets = [rows, *(rows_of(Problem(workload, device)) for _ in range(copies - 1))]
        rows = [
            Row(same[0].who, same[0].job, rotate([row.run for row in same]))
            for same in zip(*sets, strict=True)
        ]
        clock = partial(harness.cuda_clock, calls=2 * copies)
    records = harness.interleave(rows, rounds, clock)
    harness.show(records, "last columns: how many times as fast as that peer, best against best")
    label = {"pass": name, "device": device, "workload": workload.name, "R": workload.r}
    return [f"{title}: {note}" for note in notes], [label | record for record in records]


def rotate(calls: list[Callable[[], Any]]) -> Callable[[], Any]:
    """A call that makes the next of `calls` each time and keeps its result until its next turn.

    Of memory that is let go at once torch makes the next result, while it is in the cache.
    """
    turns = itertools.cycle(range(len(calls)))
    results: list[Any] = [None] * len(calls)

    def run() -> Any:
        k = next(turns)
        results[k] = calls[k]()
        return results[k]

    return run


def main() -> None:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two workloads, five rounds")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: every one there is")
    parser.add_argument("--threads", type=int, default=1, help="of every library; default 1")
    parser.add_argument("--rounds", type=int, help="samples of every row; default 15")
    parser.add_argument("--peers", nargs="*", choices=names, default=names, help="default: all")
    parser.add_argument("--out", type=Path, help="result file; default in benchmarks/results")
    parser.add_argument("--plot", type=Path, help="picture; default beside the result file")
    args = parser.parse_args()
    if not args.quick and args.out is None:
        name = f"roipool-{args.threads}-threads-{datetime.date.today()}.json"
        args.out = harness.RESULTS / name
    if not args.quick and args.plot is None:
        args.plot = args.out.with_suffix(".png")
    rounds = args.rounds or (5 if args.quick else 15)

    torch.set_num_threads(args.threads)
    wanted = [peer for peer in PEERS if peer.name in args.peers]
    peers, missing = harness.load_peers(wanted, args.threads)
    result = harness.document("roipool", args.threads, rounds, peers, missing)
    devices = harness.devices_of(args.device)
    for device, workload in itertools.product(devices, QUICK if args.quick else WORKLOADS):
        for name in PASSES:
            notes, records = run_pass(name, workload, peers, rounds, device)
            result["checks"] += notes
            result["results"] += records
    if args.out:
        harness.save(result, args.out)
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()
