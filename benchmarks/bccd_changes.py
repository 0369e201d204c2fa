"""What each change of settings brings on the blood cells (BCCD), and the learning curve of each.

    python benchmarks/bccd_changes.py --data BCCD        # two hours on one CPU core

Needs pip install '.[train]'. Every step is `fastrcnn-engine train` with `tiny` from random weights
on the train split, tested on the val split as it goes: the test split takes no part in choosing
settings. The first steps change one thing after the other; those after the preset `bccd-tiny`
change one thing of it each. Runs lie in --work; what is finished is not run again. One seed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from rich import box
from rich.table import Table

import harness
from harness import console

SEARCH_SIDE = 200  # short side of the images that proposals are searched in


@dataclass(frozen=True)
class Step:
    """One training. `of` is the step it changes, None for the first."""

    name: str
    change: str
    of: str | None = None
    mode: str = "fine"  # of selective search
    short_side: int = 480
    iterations: int = 3000
    options: tuple[str, ...] = ()


STEPS = (
    Step("paper-rate-240-1000", "the paper's learning rate, 0.001", None, "fast", 240, 1000,
         ("--learning-rate", "0.001", "--warmup", "0")),
    Step("fast-240-1000", "0.02 after a warm-up", "paper-rate-240-1000", "fast", 240, 1000),
    Step("fine-240-1000", "finer search", "fast-240-1000", "fine", 240, 1000),
    Step("fine-240-3000", "3000 iterations", "fine-240-1000", "fine", 240),
    Step("fine-480-3000", "short side 480: the preset", "fine-240-3000"),
    Step("seed4", "another seed", "fine-480-3000", options=("--seed", "4")),
    Step("noflip", "no mirrored images", "fine-480-3000", options=("--no-flip",)),
    Step("fine-480-6000", "6000 iterations", "fine-480-3000", iterations=6000),
)  # fmt: skip
PRESET = "fine-480-3000"


def run(command: str, *arguments: str | Path) -> None:
    """One command of the package, its output left where it is."""
    command_line = [sys.executable, "-m", "fastrcnn_engine", command, *map(str, arguments)]
    subprocess.run(command_line, check=True)


def proposals_of(mode: str, data: Path, work: Path) -> Path:
    """Proposals of the train and val images, searched once."""
    path = work / f"{mode}.npz"
    if not path.exists():
        run("proposals", "--data", data, "--split", "train", "val", "--mode", mode,
            "--short-side", str(SEARCH_SIDE), "--out", path)  # fmt: skip
    return path


def curve_of(folder: Path) -> dict[int, float]:
    """mAP on the val split by iteration, as far as the run got."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    tests = (line for line in map(json.loads, lines) if "val_mAP" in line)
    return {line["iteration"]: line["val_mAP"] for line in tests}


def trained(step: Step, data: Path, work: Path) -> dict[int, float]:
    """The step's curve; trains first where it is not whole."""
    folder = work / step.name
    if step.iterations not in curve_of(folder):
        run("train", "--data", data, "--split", "train", "--val-split", "val",
            "--val-every", str(step.iterations // 6 if step.iterations > 1000 else 250),
            "--network", "tiny", "--proposals", proposals_of(step.mode, data, work),
            "--short-side", str(step.short_side), "--iterations", str(step.iterations),
            *step.options, "--out", folder)  # fmt: skip
    return curve_of(folder)


def show(curves: dict[str, dict[int, float]]) -> None:
    """A row a step: its last mAP, and how far that is from the step it changes."""
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("change", "val mAP@0.5", "difference"):
        table.add_column(name, justify="left" if name == "change" else "right")
    last = {name: list(curve.values())[-1] for name, curve in curves.items()}
    for step in STEPS:
        difference = f"{100 * (last[step.name] - last[step.of]):+.1f}" if step.of else ""
        table.add_row(step.change, f"{100 * last[step.name]:.1f} %", difference)
    console.print(table)


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    """The curves up to the preset, and those that change one thing of it, side by side."""
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    at = [step.name for step in STEPS].index(PRESET)
    shades = plt.get_cmap("viridis")
    for axis, steps, title in (
        (axes[0], STEPS[: at + 1], "one change after the other"),
        (axes[1], STEPS[at:], "one change of the preset each"),
    ):
        for i, step in enumerate(steps):
            curve = curves[step.name]
            axis.plot(list(curve), [100 * ap for ap in curve.values()], "o-", markersize=4,
                      color=shades(0.85 * i / (len(steps) - 1)), label=step.change)  # fmt: skip
        axis.set(xlabel="iteration", title=title)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    axes[0].set_ylabel("mAP@0.5 on the val split, %")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    console.print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="BCCD, in VOC layout")
    parser.add_argument("--work", type=Path, default=Path("runs/bccd-changes"), help="the runs")
    today = harness.RESULTS / f"bccd-changes-{datetime.date.today()}.json"
    parser.add_argument("--out", type=Path, default=today, help="result file; a picture beside it")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    curves = {step.name: trained(step, options.data, options.work) for step in STEPS}
    show(curves)
    steps = [vars(step) | {"val_mAP": curves[step.name]} for step in STEPS]
    head = {"benchmark": "bccd-changes", "date": datetime.date.today().isoformat()}
    harness.save({**head, "torch": torch.__version__, "steps": steps}, options.out)
    draw(curves, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
