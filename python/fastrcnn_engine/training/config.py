"""Everything a training run can be told, each number with where it comes from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import numpy as np

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.models import FreezeTo

Config = TypeVar("Config", bound="TrainConfig")

# Paper 2.3 and 5.2, for all of its networks.
PAPER: dict[str, Any] = {
    "iterations": 40_000,
    "learning_rate": 0.001,
    "warmup": 0,
    "background_low": 0.1,
    "short_side": 600,
    "max_side": 1000,
}
# Numbers that belong to a network rather than to the method. For tiny they were tried out in short
# runs on the drawn demo set and on BCCD (train against val).
RECIPES: dict[str, dict[str, Any]] = {
    "caffenet": PAPER,
    "vgg_cnn_m_1024": PAPER,
    "vgg16": PAPER,
    "tiny": {
        "iterations": 3_000,
        "learning_rate": 0.02,
        "warmup": 100,
        "background_low": 0.0,
        "short_side": 480,
        "max_side": 800,
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    "Paper" is Fast R-CNN, section 2.3 unless named; "code" is the author's released code where the
    paper is silent. A field that is None takes the value of the network's recipe. Paths may be
    given as text.
    """

    data: Path
    """Directory of a data set. VOC: JPEGImages, Annotations, ImageSets/Main. COCO: the file
    annotations/instances_SPLIT.json and the images in SPLIT."""
    proposals: Path
    """Proposal file (.npz) holding every image of the split."""
    output: Path = Path("runs/train")
    """Directory for checkpoint.pt and log.jsonl."""
    split: str = "trainval"
    """Split to train on: ImageSets/Main/SPLIT.txt or annotations/instances_SPLIT.json."""
    classes: tuple[str, ...] | None = None
    """Foreground classes in label order. None: of VOC all names in the annotations, sorted; of COCO
    all categories by id."""
    difficult: bool = True
    """Learn from objects marked difficult too (paper, but for the rows "07\\diff" of table 1); else
    images that have no others are left out. COCO has none."""
    network: Literal["caffenet", "vgg_cnn_m_1024", "vgg16", "tiny"] = "vgg16"
    """S, M and L of the paper are caffenet, vgg_cnn_m_1024 and vgg16; tiny trains from scratch
    on a CPU."""
    weights: Path | None = None
    """ImageNet weights for S, M or L: its .caffemodel, for vgg16 also a torchvision state dict.
    None starts from random ones."""
    weights_style: Literal["torchvision", "caffe", "caffe-rgb"] | None = None
    """How images were prepared for those weights: RGB with torchvision's mean and deviation, or
    Caffe's BGR minus the mean, or the same in RGB. None goes by the file; a state dict with
    torchvision's names may hold Caffe's weights."""
    freeze_to: FreezeTo | None = None
    """Everything up to this stage stays as it is (paper 4.5; conv5 is ">= fc6" of table 5); None is
    the network's own: conv1 for S and M, conv2 (conv1_1 to conv2_2) for L, none for tiny."""
    init: Path | None = None
    """Checkpoint of a detector of the same network and classes to start from, or the folder of its
    run: with its weights and the way its images are prepared except for their size."""
    tasks: Literal["both", "classification", "boxes"] = "both"
    """What is learned (paper 2.3: both). classification: no box regression, detection keeps the
    proposals (paper 5.1, table 6, first columns). boxes: the box regression alone, everything else
    stays as it is in init (stage-wise training, third columns)."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:1."""
    seed: int = 3
    """Seed of the weights, the image order, the RoI sampling and dropout (code: 3)."""
    resume: bool = False
    """Go on from the checkpoint.pt that the run has left."""

    iterations: int | None = None
    """Length of training (paper: 40 000 for VOC07; tiny: 3 000)."""
    learning_rate: float | None = None
    """Base learning rate (paper: 0.001; tiny: 0.02). Biases learn at twice the rate (paper)."""
    learning_rate_steps: tuple[int, ...] | None = None
    """Iterations at which the rate drops; None is 3/4 of the run (paper: 30 000 of 40 000)."""
    learning_rate_drop: float = 0.1
    """Factor of each drop (paper)."""
    warmup: int | None = None
    """Iterations over which the rate rises linearly from 0 (paper: none; tiny: 100)."""
    momentum: float = 0.9
    """Momentum of SGD (paper)."""
    weight_decay: float = 0.0005
    """L2 decay of weights (paper); biases have none (code)."""

    images_per_batch: int = 2
    """N, images in a batch (paper)."""
    rois_per_batch: int = 128
    """R, RoIs in a batch, R/N from each image (paper)."""
    foreground_fraction: float = 0.25
    """Share of R/N that is foreground when there is enough of it (paper)."""
    foreground_iou: float = 0.5
    """A RoI with at least this IoU with an object is foreground (paper)."""
    background_low: float | None = None
    """A RoI whose best IoU lies in [low, foreground_iou) is background (paper: 0.1; tiny: 0)."""
    flip: bool = True
    """Add every image mirrored left to right (paper)."""
    short_side: int | tuple[int, ...] | None = None
    """Images are scaled to this short side, in pixels (paper 5.2: 600; tiny: 480). Several: one is
    drawn for each image (paper 5.2: 480 576 688 864 1200, with a max_side of 2000)."""
    max_side: int | None = None
    """... unless the long side would pass this (paper 5.2: 1000; tiny: 800)."""

    log_every: int = 20
    """Iterations between lines of the log (code)."""
    checkpoint_every: int = 1000
    """Iterations between checkpoints; the last iteration always writes one."""
    keep: int = 0
    """How many of the newest checkpoints to keep as checkpoint-ITERATION.pt too."""
    val_split: str | None = None
    """Split to test on during the training, not the one whose results you report: the network with
    the highest mAP is kept as best.pt."""
    val_every: int = 1000
    """Iterations between two tests on val_split."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """An image that cannot be read stops the run, or another one drawn takes its place; the log
    names it. Where its header cannot be read either, its size is the one that is stated."""

    amp: Literal["bf16", "fp16"] | None = None
    """Convolutions and fully connected layers in 16 bits (torch.autocast); weights, losses and box
    coordinates stay float32. fp16 scales the loss."""
    accumulate: int = 1
    """Work through the images of a batch in so many parts, one after the other: less memory, the
    same batch (batch normalisation, in tiny's head, sees a part at a time)."""
    cache_megabytes: int = 2048
    """Decoded images are kept in memory up to this; the rest are decoded each time."""
    loader_threads: int = 1
    """Threads that decode and scale the images of coming batches."""
    profile: bool = False
    """Measure where the time of an iteration goes."""
    tensorboard: bool = False
    """Write the numbers of log.jsonl for TensorBoard too, into the folder tensorboard beside it.
    Needs the package of that name."""

    def __post_init__(self) -> None:
        paths = ("data", "proposals", "output", "weights", "init")
        for name in (field.name for field in dataclasses.fields(self)):
            value = _plain(getattr(self, name))
            is_path = name in paths and isinstance(value, str)
            object.__setattr__(self, name, Path(value) if is_path else value)

    def resolved(self) -> ResolvedConfig:
        """The same settings with every recipe value filled in, checked.

        Raises:
            ValueError: unknown network, or a number out of its range.
        """
        if self.network not in RECIPES:
            raise ValueError(f"network is {self.network!r}; known are {', '.join(RECIPES)}")
        recipe = {k: v for k, v in RECIPES[self.network].items() if getattr(self, k) is None}
        config = cast("ResolvedConfig", dataclasses.replace(self, **recipe))
        config._check_kinds()
        if config.learning_rate_steps is None:
            steps = _three_quarters(config.iterations)
            config = dataclasses.replace(config, learning_rate_steps=steps)
        config._check()
        return config

    def unresolved(self: Config) -> Config:
        """The same settings, None where ``resolved`` would fill in what is there."""
        filled = [k for k, v in RECIPES[self.network].items() if getattr(self, k) == v]
        if self.iterations and self.learning_rate_steps == _three_quarters(self.iterations):
            filled.append("learning_rate_steps")
        return dataclasses.replace(self, **dict.fromkeys(filled))

    def _need(self, good: bool, field: str, rule: str) -> None:
        if not good:
            raise ValueError(f"{field} is {getattr(self, field)!r}; it must be {rule}")

    def _check_kinds(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), str(field.type).removesuffix(" | None")
            if value is not None and kind in _KINDS:
                kinds, rule = _KINDS[kind]
                is_kind = isinstance(value, kinds) and (isinstance(value, bool) == (kind == "bool"))
                self._need(is_kind, field.name, rule)
        sides, steps = self.short_side, self.learning_rate_steps
        sides = sides if isinstance(sides, tuple) else (sides,)
        self._need(all(type(side) is int for side in sides), "short_side", "whole numbers")
        whole = isinstance(steps, tuple) and all(type(step) is int for step in steps)
        self._need(steps is None or whole, "learning_rate_steps", "a tuple of whole numbers")

    def _check(self) -> None:
        config, need = cast("ResolvedConfig", self), self._need
        for field in ("iterations", "images_per_batch", "rois_per_batch", "log_every",
                      "checkpoint_every", "val_every", "accumulate", "loader_threads"):  # fmt: skip
            need(getattr(self, field) >= 1, field, "at least 1")
        for field, known in (("on_bad_image", ("stop", "skip")), ("amp", (None, "bf16", "fp16"))):
            need(getattr(self, field) in known, field, f"one of {', '.join(map(str, known))}")
        # Their rules are these.
        Preprocessing(short_side=config.short_side, max_side=config.max_side)
        for field in ("seed", "warmup", "weight_decay", "keep", "cache_megabytes"):
            need(getattr(self, field) >= 0, field, "at least 0")
        need(self.seed < 2**64, "seed", "below 2^64")
        if self.network == "tiny":
            if self.weights is not None:
                raise ValueError(
                    f"weights is {str(self.weights)!r}; tiny takes none, only "
                    "caffenet, vgg_cnn_m_1024 and vgg16 do"
                )
            need(self.freeze_to in (None, "none"), "freeze_to", "none for tiny")
        stages = (None, *get_args(FreezeTo))
        need(self.freeze_to in stages, "freeze_to", f"one of {', '.join(map(str, stages[1:]))}")
        if self.weights is not None and self.init is not None:
            raise ValueError(
                f"weights is {str(self.weights)!r} and init is {str(self.init)!r}; a run starts "
                "from one of them"
            )
        tasks = ("both", "classification", "boxes")
        need(self.tasks in tasks, "tasks", f"one of {', '.join(tasks)}")
        if self.tasks == "boxes" and self.init is None and not self.resume:
            raise ValueError(
                "tasks is 'boxes', which trains the box regression of a finished detector; init, "
                "its checkpoint, is missing"
            )
        need(0 < config.learning_rate < math.inf, "learning_rate", "positive and finite")
        need(self.weight_decay < math.inf, "weight_decay", "finite")
        need(0 < self.learning_rate_drop <= 1, "learning_rate_drop", "in (0, 1]")
        steps = config.learning_rate_steps
        rising = all(a < b for a, b in zip((0, *steps), steps, strict=False))
        need(rising, "learning_rate_steps", "positive and rising")
        need(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        need(0 < self.foreground_fraction <= 1, "foreground_fraction", "in (0, 1]")
        need(0 < self.foreground_iou <= 1, "foreground_iou", "in (0, 1]")
        need(
            0 <= config.background_low < self.foreground_iou,
            "background_low",
            "at least 0 and below foreground_iou",
        )
        need(
            self.rois_per_batch % self.images_per_batch == 0,
            "rois_per_batch",
            f"a multiple of images_per_batch ({self.images_per_batch})",
        )
        per_image = self.rois_per_batch // self.images_per_batch
        need(
            round(self.foreground_fraction * per_image) > 0,
            "foreground_fraction",
            f"above {0.5 / per_image:g}, or none of the {per_image} RoIs of an image "
            "(rois_per_batch / images_per_batch) would be foreground",
        )

    def learning_rate_at(self, iteration: int) -> float:
        """The base learning rate of iteration 0, 1, 2, ... of a resolved config."""
        config = cast("ResolvedConfig", self)
        drops = sum(iteration >= step for step in config.learning_rate_steps)
        rate = config.learning_rate * config.learning_rate_drop**drops
        return rate * min(1.0, (iteration + 1) / (config.warmup + 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for checkpoints and logs."""
        plain = dataclasses.asdict(self)
        for key, value in plain.items():
            if isinstance(value, Path):
                plain[key] = str(value)
            elif isinstance(value, tuple):
                plain[key] = list(value)
        return plain


# Of a field's type, what its value must be.
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "int": (int, "a whole number"),
    "float": ((int, float), "a number"),
    "bool": (bool, "True or False"),
}


def _plain(value: Any) -> Any:
    """NumPy's numbers and texts as Python's, lists as tuples: a checkpoint holds no others."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _three_quarters(iterations: int) -> tuple[int, ...]:
    return (max(iterations * 3 // 4, 1),)


if TYPE_CHECKING:

    @dataclass(frozen=True)
    class ResolvedConfig(TrainConfig):
        """What `resolved` gives: what a recipe has is not None there. For type checkers alone."""

        iterations: int = 0
        learning_rate: float = 0.0
        learning_rate_steps: tuple[int, ...] = ()
        warmup: int = 0
        background_low: float = 0.0
        short_side: int | tuple[int, ...] = 0
        max_side: int = 0

else:
    ResolvedConfig = TrainConfig
