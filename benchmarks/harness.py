"""What every benchmark shares: peers, interleaved timing, the table, the result file."""

from __future__ import annotations

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import fastrcnn_engine

OURS = "fastrcnn_engine"  # begins every row of ours
FLOOR = "floor"
RESULTS = Path(__file__).parent / "results"
console = Console(highlight=False)
if not console.is_terminal:
    console = Console(highlight=False, width=150)  # a log is not 80 columns wide


@dataclass
class Row:
    """One timed call. Rows with the same `job` give the same results in the same kind of memory."""

    who: str
    job: str
    run: Callable[[], Any]


def load_peers(kinds: Sequence[type], threads: int) -> tuple[list, dict[str, str]]:
    """The peers that can be used here, and what to do about each of the others."""
    peers, missing = [], {}
    for kind in kinds:
        try:
            peers.append(kind(threads))
            console.print(f"peer {kind.name} {peers[-1].version}")
        except Exception as error:  # broken is as good as absent, and is named
            missing[kind.name] = f"{type(error).__name__}: {error}. To add it: {kind.install}"
            console.print(f"peer {kind.name} [yellow]left out[/yellow], {missing[kind.name]}")
    return peers, missing


LAYER = torch.ones(512, 2048)  # 4 MiB, several times a core's own caches


def something_else() -> None:
    """What a network does between: branches that nobody foresees, and a layer of other numbers.

    A core's own caches are then full of them; the cache of all cores has room for what the layer
    before an operator wrote.
    """
    torch.rand(16, 8192).sort()
    torch.nn.functional.linear(LAYER[:1], LAYER)


def wall_clock(run: Callable[[], Any]) -> float:
    """Seconds of one call, after an untimed one and `something_else`, whatever is called.

    A virtual machine returns memory that was idle for seconds to its host. Getting it back took up
    to six times as long as the call, so the untimed one does. Right after it, a short call would
    find its data in the caches and its branches foretold, and take a third of the time.
    """
    run()
    something_else()
    if torch.get_num_threads() > 1:
        time.sleep(0.01)  # lets the threads of the library before stop spinning
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    del result  # freeing it is not part of the time
    return seconds


def small_clock(run: Callable[[], Any], calls: int = 300) -> float:
    """Seconds per call of something that takes microseconds, by `calls` in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def cuda_clock(run: Callable[[], Any], calls: int) -> float:
    """Seconds per call, by events around `calls` of them."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000_000)  # about 10 ms, in which the host queues the calls ahead
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def synchronised_clock(run: Callable[[], Any], calls: int = 30) -> float:
    """Seconds per call of a GPU's operator, as a program sees it: `calls` in a row, then a wait.

    Where one takes more than a millisecond, only as many as 50 ms hold.
    """

    def in_a_row(count: int) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            run()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / count

    one = in_a_row(1)
    return in_a_row(calls if one < 1e-3 else max(1, min(calls, int(0.05 / one))))


def replayed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The call captured in a CUDA graph: replays it and returns the same tensors each time."""
    run()  # what is set up once must not be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def devices_of(chosen: str | None) -> list[str]:
    """The device that was chosen, or every one that can be used."""
    built = fastrcnn_engine.build_info()["cuda_device"] == "available"
    every = ["cpu", "cuda"] if built and torch.cuda.is_available() else ["cpu"]
    return [chosen] if chosen else every


def interleave(rows: Sequence[Row], rounds: int, clock: Callable = wall_clock) -> list[dict]:
    """Times every row once a round, in rotating order, so that a busy machine hurts all alike.

    Returns a record a row: who, job, best_ms, median_ms, of_floor (the multiple of the same job's
    floor) and the speedup over each peer. Ratios are best against best.
    """
    for row in rows:
        clock(row.run)  # warm-up
    seconds: list[list[float]] = [[] for _ in rows]
    gc.collect()
    gc.disable()
    for turn in range(rounds):
        for i in range(len(rows)):
            k = (i + turn) % len(rows)
            seconds[k].append(clock(rows[k].run))
    gc.enable()
    records = [
        {"who": row.who, "job": row.job, "best_ms": min(s) * 1e3, "median_ms": median(s) * 1e3}
        for row, s in zip(rows, seconds, strict=True)
    ]
    floors = {r["job"]: r["best_ms"] for r in records if r["who"] == FLOOR}
    peers: dict[str, dict[str, float]] = {}
    for r in records:
        if not r["who"].startswith((OURS, FLOOR)):
            peers.setdefault(r["who"], {})[r["job"]] = r["best_ms"]
    for r in records:
        r["of_floor"] = r["best_ms"] / floors[r["job"]] if r["job"] in floors else None
        # Against the same job, or against the nearest that the peer can do: its only one.
        best = {who: jobs.get(r["job"], min(jobs.values())) for who, jobs in peers.items()}
        r["speedup"] = {who: ms / r["best_ms"] for who, ms in best.items()}
    return records


def write_once(tensor: torch.Tensor) -> None:
    """Fills a dense tensor as fast as this machine can. Some write zeros faster than anything."""
    if tensor.is_cuda or torch.get_num_threads() > 1:
        tensor.fill_(1)
    else:  # past the caches, which fill_ does not
        ctypes.memset(tensor.data_ptr(), 1, tensor.nbytes)


def show(records: list[dict], caption: str) -> None:
    """Prints the records of one section, fastest first, the floor last."""
    peers = list(records[0]["speedup"])
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left")
    for heading in ("who", "job"):
        table.add_column(heading, no_wrap=True)
    for heading in ("best ms", "median ms", "of floor", *peers):
        table.add_column(heading, justify="right", no_wrap=True)
    for r in sorted(records, key=lambda r: (r["who"] == FLOOR, r["best_ms"])):
        style = "bold" if r["who"].startswith(OURS) else "dim" if r["who"] == FLOOR else ""
        cells = [f"{r['best_ms']:.4g}", f"{r['median_ms']:.4g}"]
        cells.append("" if r["of_floor"] is None else f"{r['of_floor']:.1f}x")
        cells += ["" if r["who"] == FLOOR else f"{r['speedup'][peer]:.2f}x" for peer in peers]
        table.add_row(r["who"], r["job"], *cells, style=style)
    console.print(table)


def cpu_name() -> str:
    """The processor, with the family and model that tell its generation where the name does not."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    of = dict(re.split(r"\s*:\s*", line, maxsplit=1) for line in reversed(lines) if ":" in line)
    if "model name" not in of:
        return platform.machine()
    return f"{of['model name']} (family {of.get('cpu family')}, model {of.get('model')})"


def commit() -> str:
    """What is timed; empty where git, which a borrowed machine may lack, knows nothing of it."""
    git = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        return ""


def document(name: str, threads: int, rounds: int, peers: list, missing: dict) -> dict:
    """The head of a result file: machine, versions, date, commit. `results` is for the records."""
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"[yellow]The machine is busy (load {load:.1f}): trust no time below.")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "threads": threads,
        "rounds": rounds,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "engine": fastrcnn_engine.build_info(),
        "versions": versions | {peer.name: peer.version for peer in peers},
        "left_out": missing,
        "checks": [],
        "results": [],
    }


@dataclass
class Section:
    """Calls that are checked, timed beside each other and shown in one table."""

    title: str
    rows: list[Row]
    check: Callable[[], str]  # raises where a result is wrong; says what it found
    clock: Callable | None = None  # None: wall_clock, on a GPU synchronised_clock


def run_sections(
    name: str,
    description: str,
    kinds: Sequence[type],
    sections: Callable[[list, str], list[Section]],
    devices: Sequence[str] = ("cpu", "cuda"),
) -> None:
    """The command line of a benchmark that is a list of sections, made for (peers, device)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="of every library; default 1")
    parser.add_argument("--rounds", type=int, default=15, help="samples of every row; default 15")
    parser.add_argument("--device", choices=devices, help="default: every one there is")
    parser.add_argument("--out", type=Path, help="result file; default in benchmarks/results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peers, missing = load_peers(kinds, args.threads)
    result = document(name, args.threads, args.rounds, peers, missing)
    chosen = [device for device in devices_of(args.device) if device in devices]
    found = [
        (device, section)
        for device in chosen
        for section in sections([peer for peer in peers if device in peer.devices], device)
    ]
    for device, section in found:
        title = f"{section.title}, {device}"
        console.print(f"\n[bold]{title}")
        note = section.check()
        console.print(f"  check: {note}")
        clock = section.clock or (wall_clock if device == "cpu" else synchronised_clock)
        records = interleave(section.rows, args.rounds, clock)
        show(records, "last columns: how many times as fast as that, best against best")
        result["checks"].append(f"{title}: {note}")
        label = {"section": section.title, "device": device}
        result["results"] += [label | record for record in records]
    date = datetime.date.today()
    save(result, args.out or RESULTS / f"{name}-{args.threads}-threads-{date}.json")


def save(result: dict, path: Path) -> None:
    """Writes a result file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"wrote {path}")
