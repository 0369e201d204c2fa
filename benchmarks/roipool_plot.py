"""The picture of a RoI pooling result: speed against the number of RoIs."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

from fastrcnn_engine.report.text import several
from harness import FLOOR, OURS, console
from roipool_peers import ARGMAX_FRESH, GRADIENT, VALUES_KEPT

BLUE, LIGHT_BLUE, GREY = "#1258b5", "#3d9be0", "#8a8a8a"
OTHERS = {"torchvision": "#c2410c", "openvino": "#6d28d9", "onnxruntime": "#4d7c0f"}
# Of ours and the floor, the lines worth a look: label, colour, line style.
LINES = {
    (OURS, VALUES_KEPT): (f"{OURS}, kept memory", BLUE, "-"),
    (OURS, ARGMAX_FRESH): (f"{OURS}, argmax, plain call", BLUE, "--"),
    (OURS, GRADIENT): (OURS, BLUE, "-"),
    (f"{OURS}, channels-last", VALUES_KEPT): (f"{OURS}, kept, channels-last", LIGHT_BLUE, "-"),
    (f"{OURS}, channels-last", GRADIENT): (f"{OURS}, channels-last", LIGHT_BLUE, "-"),
    (FLOOR, VALUES_KEPT): ("floor: memory alone", GREY, ":"),
    (FLOOR, GRADIENT): ("floor: memory alone", GREY, ":"),
}


def plot(result: dict, path: Path) -> None:
    """Draws the vgg workloads, a panel for each device and pass."""
    records = [r for r in result["results"] if r["workload"] == "vgg"]
    panels = list(dict.fromkeys((r["device"], r["pass"]) for r in records))
    figure, axes = plt.subplots(len(panels) // 2, 2, figsize=(12, 2.5 * len(panels)), squeeze=False)
    for axis, (device, name) in zip(axes.flat, panels, strict=True):
        _draw(axis, [r for r in records if (r["device"], r["pass"]) == (device, name)])
        threads = f", {several(result['threads'], 'thread')}" if device == "cpu" else ""
        axis.set_title(f"{name}, {device}{threads}", loc="left", fontweight="bold")
    chips = " and ".join(filter(None, (result["cpu"], result["gpu"])))
    figure.suptitle(
        f"RoI max pooling of a 512 x 38 x 63 float32 map to 7 x 7. {chips}, {result['date']}.\n"
        f"Beside a peer: how many times as fast {OURS} does the same, in the same kind of memory.",
        x=0.01, ha="left", fontsize=9.5,
    )  # fmt: skip
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    console.print(f"wrote {path}")


def _draw(axis: Axes, records: list[dict]) -> None:
    lines: dict = {}
    for r in records:
        lines.setdefault((r["who"], r["job"]), {})[r["R"]] = r["best_ms"]
    labels = []
    for (who, job), times in lines.items():
        ours = who.startswith(OURS)
        if (who, job) in LINES:
            text, color, style = LINES[who, job]
        elif ours or who == FLOOR:
            continue
        else:
            ratios = [ms / lines[OURS, job][count] for count, ms in times.items()]
            span = sorted({f"{min(ratios):.1f}", f"{max(ratios):.1f}"}, key=float)
            text, color, style = f"{who}  {' to '.join(span)}x", OTHERS.get(who, "#a16207"), "-"
        marker, width = (None if who == FLOOR else "o"), (2.6 if ours else 1.5)
        speeds = [count / ms for count, ms in times.items()]  # thousands a second
        axis.plot(list(times), speeds, style, color=color, lw=width, marker=marker, ms=2.5 * width)
        labels.append((speeds[-1], text, color, "bold" if ours else "normal"))
    axis.set(xscale="log", yscale="log", xlabel="RoIs", ylabel="thousand RoIs a second")
    axis.xaxis.set(major_locator=FixedLocator(sorted({r["R"] for r in records})))
    axis.xaxis.set(minor_locator=NullLocator(), major_formatter=StrMethodFormatter("{x:.0f}"))
    axis.yaxis.set(minor_formatter=NullFormatter(), major_formatter=StrMethodFormatter("{x:g}"))
    axis.grid(axis="y", color="#e5e5e5")
    axis.spines[["top", "right"]].set_visible(False)

    labels.sort()
    heights = _apart([axis.transData.transform((1, label[0]))[1] for label in labels], gap=14)
    for (_, text, color, weight), height in zip(labels, heights, strict=True):
        y = axis.transAxes.inverted().transform((0, height))[1]
        axis.text(1.02, y, text, color=color, weight=weight, fontsize=8.5, va="center",
                  transform=axis.transAxes)  # fmt: skip


def _apart(heights: list[float], gap: float) -> list[float]:
    """Rising heights, moved as little as keeps them `gap` apart: halfway between up and down."""
    up, down = list(heights), list(heights)
    for i in range(1, len(heights)):
        up[i] = max(up[i], up[i - 1] + gap)
        down[-1 - i] = min(down[-1 - i], down[-i] - gap)
    return [(a + b) / 2 for a, b in zip(up, down, strict=True)]
