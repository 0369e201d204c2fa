"""The cells of ablations.py: which detectors stand in which table, and the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The paper's five scales are 0.8 to 2 times its one scale (5.2). Three of them do here.
SCALES = (0.8, 1.0, 1.4)
# A pyramid pools a box where its area is nearest to 224 x 224 pixels of the network's input, at
# one scale of 600. Images here are smaller, and so is that area: the same share of the scale.
TARGET_SHARE = 224 / 600
COUNTS = (25, 50, 100, 200, 400, 800)  # boxes of selective search, drawn from some 1400


@dataclass(frozen=True)
class Training:
    """How a detector is made. The defaults are the paper's own way."""

    name: str = "base"
    boxes: str = "search"  # a kind of AblationScene.boxes_of
    split: str = "once"
    frozen: tuple[str, ...] = ()
    tasks: str = "both"
    init: Training | None = None
    scales: tuple[float, ...] = (1.0,)  # of settings.short_side
    length: float = 1.0  # of settings.iterations


@dataclass(frozen=True)
class Cell:
    """One number of a table: a training, and how its detector is tested."""

    name: str
    label: str
    training: Training = Training()
    box_regression: bool = True
    scales: tuple[float, ...] | None = None  # None: those it was trained at
    target_share: float | None = TARGET_SHARE  # None: 224 x 224 pixels all the same
    svm: bool = False


@dataclass(frozen=True)
class Experiment:
    """A table of the paper, or its figure."""

    title: str
    cells: tuple[Cell, ...]
    reference: str  # name of the cell that the others are compared with
    network: str  # of the paper's figures
    paper: Mapping[str, float]  # mAP in % by cell
    timed: bool = False  # what a test takes


CLASSES = Training("classes", tasks="classification")
SEVERAL = Training("several", scales=SCALES)
DENSE = Training("dense", boxes="dense")
EXPERIMENTS = {
    "5": Experiment(
        "Table 5: which layers learn",
        (
            Cell("fc6", "fc6 and up", Training("fc6", frozen=("backbone",))),
            Cell("stage16", "third stage and up",
                 Training("stage16", frozen=("backbone.stem", "backbone.stage8"))),
            Cell("stage8", "second stage and up", Training("stage8", frozen=("backbone.stem",))),
            Cell("base", "all"),
        ),
        "stage8", "L", {"fc6": 61.4, "stage16": 66.9, "stage8": 67.2}, timed=True,
    ),
    "6": Experiment(
        "Table 6: one task or two",
        (
            Cell("classes", "classification only", CLASSES),
            Cell("base-off", "both, boxes not moved at test", box_regression=False),
            Cell("stage-wise", "one task after the other",
                 Training("stage-wise", tasks="boxes", init=CLASSES)),
            Cell("base", "both"),
        ),
        "base", "M", {"classes": 54.7, "base-off": 55.5, "stage-wise": 56.6, "base": 59.2},
    ),
    "7": Experiment(
        "Table 7: one scale or several",
        (
            Cell("base", "one scale"),
            Cell("several", "three scales", SEVERAL),
            Cell("several-224", "three scales, areas near 224 x 224", SEVERAL, target_share=None),
            Cell("one-on-several", "one scale, tested on three", scales=SCALES),
            Cell("larger", "one scale, the largest", Training("larger", scales=SCALES[-1:])),
        ),
        "base", "M", {"base": 59.2, "several": 60.7}, timed=True,
    ),
    "8": Experiment(
        "Table 8: SVMs or softmax",
        (Cell("base-svm", "SVMs", svm=True), Cell("base", "softmax")),
        "base", "M", {"base-svm": 58.7, "base": 59.2},
    ),
    "f3": Experiment(
        "Figure 3: how many proposals, and which",
        (
            *(
                Cell(f"search-{n}", f"{n} of selective search",
                     Training(f"search-{n}", boxes=f"search-{n}"))
                for n in COUNTS
            ),
            Cell("base", "all of selective search"),
            Cell("nearest", "nearest dense box of each", Training("nearest", boxes="nearest")),
            Cell("search+dense", "all, and dense boxes",
                 Training("search+dense", boxes="search+dense")),
            Cell("dense", "dense boxes alone", DENSE),
            Cell("dense-svm", "dense boxes alone, SVMs", DENSE, svm=True),
        ),
        "base", "M",
        {"base": 59.2, "nearest": 57.7, "search+dense": 53.0, "dense": 52.9, "dense-svm": 49.3},
    ),
    "data": Experiment(
        "Section 5.3: more training data",
        (
            Cell("half", "half the images", Training("half", split="half")),
            Cell("base", "all as elsewhere"),
            Cell("twice", "twice the images", Training("twice", split="twice")),
            Cell("short", "half the iterations", Training("short", length=0.5)),
            Cell("long", "twice the iterations", Training("long", length=2.0)),
        ),
        "base", "L", {"base": 66.9, "twice": 70.0},
    ),
}  # fmt: skip
