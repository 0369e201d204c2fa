"""Curves as SVG text, drawn by matplotlib without a display."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastrcnn_engine.evaluation.voc import ClassResult
from fastrcnn_engine.report.draw import class_colour
from fastrcnn_engine.report.text import spelt_out

_INK = "#334155"
_FAINT = "#e2e8f0"
_STYLE: Any = {
    "font.size": 11,
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _FAINT,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "svg.hashsalt": "fastrcnn_engine",  # the same curve gives the same file
}


def precision_recall_svg(result: ClassResult, label: int, *, score: float | None = None) -> str:
    """Precision over recall of one class, with the envelope that the area metric integrates.

    label: 1..K, for the colour. score: marks the point reached by the detections at or above it.
    """
    colour = hex_colour(label)
    with _axes(3.4, 2.7) as (axes, svg):
        if len(result.recall) and result.npos:
            envelope = np.maximum.accumulate(result.precision[::-1])[::-1]
            recall = np.concatenate([[0.0], result.recall])
            filled = np.concatenate([envelope[:1], envelope])
            axes.fill_between(
                recall, filled, step="pre", color=colour, alpha=0.16, linewidth=0
            )
            axes.plot(result.recall, result.precision, color=colour, linewidth=2)
            count = int((result.scores >= score).sum()) if score is not None else 0
            if count:
                axes.plot(
                    result.recall[count - 1], result.precision[count - 1], "o", color=colour,
                    markersize=8, markeredgecolor="white", markeredgewidth=1.5, clip_on=False,
                    zorder=5,
                )  # fmt: skip
        else:
            words = "no ground truth" if result.npos == 0 else "no detections"
            axes.text(0.5, 0.5, words, ha="center", va="center", color="#94a3b8")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    return svg[0]


def curves_svg(log: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> str:
    """Columns of a training log over the iteration: each row faint, a running mean on top.

    log: one mapping per logged iteration. keys: column -> name in the legend. Rows without a column
    or with null in it are left out of its curve.
    """
    palette = ("#2563eb", "#db2777", "#059669", "#b45309")
    with _axes(5.4, 3.2) as (axes, svg):
        top = 0.0
        for (key, name), colour in zip(keys.items(), palette, strict=False):
            rows = [(row["iteration"], row[key]) for row in log if row.get(key) is not None]
            if not rows:
                continue
            steps, values = np.array(rows, np.float64).T
            smooth = running_mean(values, max(len(values) // 20, 1))
            axes.plot(steps, values, color=colour, alpha=0.22, linewidth=1)
            axes.plot(steps, smooth, color=colour, linewidth=2.2, label=name)
            # The first few rows may be far above all others; they must not flatten the curve.
            top = max(top, float(np.percentile(values, 98)), float(smooth.max()))
        axes.set(xlabel="iteration", ylim=(0, top * 1.08 or 1.0))
        axes.margins(x=0.01)
        if axes.has_data():
            axes.legend(frameon=False, loc="upper right")
    return svg[0]


def runs_svg(logs: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> str:
    """One column of several training logs over the iteration, a curve each; losses are smoothed.

    logs: name of a run -> its rows. Rows without the column are left out.
    """
    with _axes(5.4, 3.2) as (axes, svg):
        top = 0.0
        for place, (name, log) in enumerate(logs.items()):
            rows = [(row["iteration"], row[key]) for row in log if row.get(key) is not None]
            if rows:
                steps, values = np.array(rows, np.float64).T
                # The first few rows may be far above all others; they must not flatten the curve.
                top = max(top, float(np.percentile(values, 98)))
                curve = running_mean(values, len(values) // 20) if key == "loss" else values
                axes.plot(steps, curve, color=run_colour(place), linewidth=2, label=_legend(name))
        axes.set(xlabel="iteration", ylim=(0, top * 1.08 or 1.0))
        axes.margins(x=0.01)
        if axes.has_data():
            axes.legend(frameon=False)
    return svg[0]


def run_colour(place: int) -> str:
    """The colour of the first, second, ... run of a comparison, for a style sheet."""
    return hex_colour(place + 1)


def sizes_svg(sizes: Mapping[int, np.ndarray], classes: Sequence[str]) -> str:
    """How many objects there are of each size, a stack of the classes in their colours.

    sizes: label 1..K -> sides of squares of the objects' areas in pixels, (n,). The scale is
    logarithmic, three bars for each doubling.
    """
    with _axes(5.4, 3.2) as (axes, svg):
        every = np.concatenate([*sizes.values(), np.zeros(0)])
        if len(every):
            low, high = np.floor(np.log2(every.min())), np.ceil(np.log2(every.max()) + 1e-9)
            edges = 2.0 ** np.linspace(low, high, 3 * round(high - low) + 1)
            labels = list(sizes)
            axes.hist(
                [sizes[label] for label in labels], edges, stacked=True,
                color=[hex_colour(label) for label in labels],
                label=[_legend(classes[label - 1]) for label in labels],
            )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            if len(labels) <= 10:
                axes.legend(frameon=False)
        axes.set(xlabel="size of an object, pixels (square root of its area)", ylabel="objects")
    return svg[0]


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over the 2 * half + 1 neighbours of each value, fewer at the ends. (L,) -> (L,)"""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Any, list[str]]]:
    """Axes of a figure (inches); the list holds its SVG text once the block is left."""
    import matplotlib  # here: 0.2 s that most commands, which draw no curve, do not need
    from matplotlib.figure import Figure

    svg: list[str] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot, no display
        yield figure.subplots(), svg
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        svg.append(buffer.getvalue())


def hex_colour(label: int) -> str:
    """The colour of class `label`, as a style sheet and matplotlib take it."""
    return "#{:02x}{:02x}{:02x}".format(*class_colour(label))


def _legend(name: str) -> str:
    """A name for a legend: matplotlib reads $ as mathematics and leaves out what begins with _."""
    return " " * name.startswith("_") + spelt_out(name).replace("$", r"\$")
