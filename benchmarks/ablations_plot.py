"""The pictures of ablations.py: ours beside the paper's, as differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import numpy as np

from ablations_cells import Experiment
from fastrcnn_engine.report.text import several
from scene import save_figure, spread

BLUE, LIGHT_BLUE, ORANGE, GREY = "#1258b5", "#3d9be0", "#c2410c", "#8a8a8a"


def points(results: list[dict], cell: str) -> list[float]:
    """mAP in % of a cell, a number for each seed."""
    return [100 * result["mean_ap"] for result in results if result["cell"] == cell]


def against(results: list[dict], cell: str, reference: str) -> list[float]:
    """By how many points of mAP a cell is above the reference of the same seed."""
    pairs = zip(points(results, cell), points(results, reference), strict=True)
    return [own - other for own, other in pairs]


def draw(experiment: Experiment, found: dict, counts: Sequence[int], path: Path) -> None:
    """Differences to the reference, ours and the paper's; test times or figure 3 beside them."""
    results = found["results"]
    curve = any(cell.name.startswith("search-") for cell in experiment.cells)
    panels = 1 + (curve or experiment.timed)
    height = 1.4 + 0.42 * len(experiment.cells)
    figure, axes = plt.subplots(1, panels, figsize=(6.5 * panels, height), squeeze=False)
    left = axes[0, 0]
    reference, paper = experiment.reference, experiment.paper
    rows = range(len(experiment.cells))
    left.axvline(0, color=GREY, linewidth=0.8)
    for y, cell in zip(rows, experiment.cells, strict=True):
        differences = against(results, cell.name, reference)
        left.plot(differences, [y] * len(differences), "o", color=LIGHT_BLUE, markersize=4)
        left.plot(mean(differences), y, "o", color=BLUE, markersize=8, label="ours")
        if cell.name in paper:
            left.plot(
                paper[cell.name] - paper[reference], y, "D", color=ORANGE, markersize=7,
                markerfacecolor="none", label=f"the paper's {experiment.network}",
            )  # fmt: skip
    handles, names = left.get_legend_handles_labels()
    unique = dict(zip(names, handles, strict=True))
    left.legend(unique.values(), unique.keys(), frameon=False, fontsize=8)
    labels = [
        f"{cell.label}: {spread(points(results, cell.name), '.1f')} %" for cell in experiment.cells
    ]
    left.set_yticks(rows, labels)
    label = next(cell.label for cell in experiment.cells if cell.name == reference)
    left.set_title(f'mAP, points above "{label}"', fontsize=10)
    if experiment.timed:
        right = axes[0, 1]
        times = {result["label"]: result["test_ms"] for result in results}
        right.barh(list(times), times.values(), color=BLUE, height=0.5)
        for y, value in enumerate(times.values()):
            right.text(value, y, f" {value:.1f}", va="center")
        right.set_yticks(rows, [""] * len(rows))
        right.set_title("test, ms an image", fontsize=10)
    for axis in axes[0, : 1 + experiment.timed]:
        axis.set_ylim(len(rows) - 0.5, -0.5)
    if curve:
        draw_curve(axes[0, 1], experiment, results, counts)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    caption = (
        f"{experiment.title}. {found['settings']['train_images']} drawn images, "
        f"{found['settings']['iterations']} iterations, {several(found['rounds'], 'seed')}, "
        f"{found['date']}."
    )
    save_figure(figure, caption, path)
    plt.close(figure)


def draw_curve(
    axis: plt.Axes, experiment: Experiment, results: list[dict], counts: Sequence[int]
) -> None:
    """mAP and recall over the number of proposals, selective search's joined by lines."""
    values: dict[str, tuple[float, ...]] = {}
    for cell in experiment.cells:
        boxes = [result["proposals"] for result in results if result["cell"] == cell.name]
        values[cell.name] = (
            mean(b["an_image"] for b in boxes),
            mean(points(results, cell.name)),
            *(100 * mean(b[key] for b in boxes) for key in ("recall", "average_recall")),
        )
    ours = [cell.name for cell in experiment.cells if cell.training.boxes.startswith("search-")]
    search = np.array([values[name] for name in (*ours, "base")]).T
    for row, label, colour, style in ((1, "mAP", BLUE, "o-"), (2, "recall at 0.5", GREY, "s--"),
                                      (3, "average recall", GREY, "^:")):  # fmt: skip
        axis.plot(search[0], search[row], style, color=colour, markersize=5, label=label)
    others = [cell for cell in experiment.cells if cell.name not in (*ours, "base")]
    for marker, cell in zip("DPX*", others, strict=True):
        number, score, recall, average = values[cell.name]
        axis.plot(number, score, marker, color=ORANGE, markersize=7, label=f"mAP, {cell.label}")
        axis.plot([number] * 2, [recall, average], marker, color=GREY, markersize=4)
    axis.set_xscale("log")
    ticks = [*counts, round(search[0].max()), round(values["dense"][0])]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_ylim(0, 105)
    axis.set_title("% by number of boxes an image", fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
