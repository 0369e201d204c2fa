"""The Fast R-CNN network: a convolutional backbone, RoI max pooling, two sibling output layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import nn

from fastrcnn_engine.data.preparation import Preprocessing
from fastrcnn_engine.data.records import checked_classes
from fastrcnn_engine.ops import roi_pool


class FullyConnectedHead(nn.Sequential):
    """Two hidden layers, fc6 and fc7, with ReLU and dropout: (R, C, P, P) -> (R, outputs).

    ``outputs`` None means as many as ``hidden``. Flattening is channel, then row, then column, the
    order of Caffe and of torchvision's VGG16.
    """

    fc6: nn.Linear
    fc7: nn.Linear

    def __init__(
        self,
        channels: int,
        pooled_size: int,
        hidden: int,
        outputs: int | None = None,
        *,
        dropout: float = 0.5,
    ):
        super().__init__(
            OrderedDict(
                flatten=nn.Flatten(),
                fc6=nn.Linear(channels * pooled_size**2, hidden),
                relu6=nn.ReLU(inplace=True),
                drop6=nn.Dropout(dropout),
                fc7=nn.Linear(hidden, outputs or hidden),
                relu7=nn.ReLU(inplace=True),
                drop7=nn.Dropout(dropout),
            )
        )


class FastRCNN(nn.Module):
    """Fast R-CNN (paper, figure 1) around any backbone.

    Args:
        backbone: module (N, 3, H, W) -> (N, C, H/stride, W/stride).
        stride: input pixels per cell of the backbone's map; RoI pooling uses the scale 1/stride.
        head: module (R, C, P, P) -> (R, F) that runs on every pooled RoI.
        head_features: F.
        classes: names of the K foreground classes; label 0 is the background, label k is
            ``classes[k - 1]``.
        pooled_size: P, the side of the pooled window (paper: 7 for VGG16).
        preprocessing: how images must be prepared; it travels with the weights.
        frozen: names of submodules that are never trained, e.g. ``("backbone.conv1_1",)``. Their
            parameters require no gradient and they stay in evaluation mode.
        name: what ``build_network`` calls this network; anything for your own.

    Raises:
        ValueError: classes that are no list of different names, a stride or pooled size that is no
            whole number above 0, or a frozen name that is not a submodule.

    The box deltas the network puts out are normalised per class (original code,
    lib/roi_data_layer/roidb.py). ``delta_mean`` and ``delta_std`` undo that; they are buffers, set
    by training (``renormalise``), and are never folded into the weights: a folded checkpoint cannot
    be resumed.

    ``box_regression`` says whether ``bbox_pred`` is of any use. Training without box regression
    turns it off, and detection then keeps the proposals as they are.

    ``classifier`` says what ``cls_score`` puts out: "softmax", logits that become probabilities, or
    "svm", the scores of one linear SVM for each class, which are used as they are (paper table 8).
    """

    delta_mean: torch.Tensor
    delta_std: torch.Tensor
    resting: tuple[str, ...] = ()  # see rest
    _at_rest: Sequence[nn.Parameter] = ()

    def __init__(
        self,
        backbone: nn.Module,
        *,
        stride: int,
        head: nn.Module,
        head_features: int,
        classes: Sequence[str],
        pooled_size: int = 7,
        preprocessing: Preprocessing | None = None,
        frozen: Sequence[str] = (),
        name: str = "custom",
    ):
        super().__init__()
        self.classes = checked_classes(classes)
        for what, value, of in (("stride", stride, "pixels per cell of the map"),
                                ("pooled_size", pooled_size, "bins a side")):  # fmt: skip
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{what} must be a whole number from 1 on, {of}, got {value!r}")
        outputs = len(self.classes) + 1
        self.name = name
        self.stride = stride
        self.pooled_size = pooled_size
        self.preprocessing = preprocessing or Preprocessing()
        self.backbone = backbone
        self.head = head
        self.cls_score = nn.Linear(head_features, outputs)
        self.bbox_pred = nn.Linear(head_features, 4 * outputs)
        self.register_buffer("delta_mean", torch.zeros(4 * outputs))
        self.register_buffer("delta_std", torch.ones(4 * outputs))
        # Paper 2.3: zero-mean Gaussians of 0.01 and 0.001, biases 0.
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
        self.box_regression = True
        self.classifier: Literal["softmax", "svm"] = "softmax"
        self.frozen: tuple[str, ...] = ()
        self.freeze(frozen)

    def freeze(self, names: Sequence[str]) -> None:
        """Never train these submodules from now on, in addition to ``frozen``.

        Raises ValueError for a name that is not a submodule.
        """
        modules = dict(self.named_modules())
        for name in names:
            if not name or name not in modules:
                raise ValueError(f"frozen names {name!r}, which is not a submodule of the network")
            modules[name].requires_grad_(False)
            ours = {id(parameter) for parameter in modules[name].parameters()}
            self._at_rest = [p for p in self._at_rest if id(p) not in ours]
        self.frozen = (*self.frozen, *names)

    def rest(self, names: Sequence[str]) -> None:
        """Do not train these submodules until the next call, beside those that are ``frozen`` for
        good; what rested before learns again. For a training of one task of the two.
        """
        for parameter in self._at_rest:
            parameter.requires_grad_(True)
        parameters = [p for name in names for p in self.get_submodule(name).parameters()]
        self._at_rest = [p for p in parameters if p.requires_grad]
        for parameter in self._at_rest:
            parameter.requires_grad_(False)
        self.resting = tuple(names)

    def train(self, mode: bool = True) -> FastRCNN:
        """As ``nn.Module.train``; modules that are frozen or at rest stay in evaluation mode (batch
        statistics)."""
        super().train(mode)
        for name in (*self.frozen, *self.resting):
            self.get_submodule(name).eval()
        return self

    def check_types(self) -> None:
        """Raise ValueError unless all weights are float32, as images and boxes are (autocast
        computes in 16 bits beside them)."""
        for name, parameter in self.named_parameters():
            if parameter.dtype != torch.float32:
                given = str(parameter.dtype).removeprefix("torch.")
                raise ValueError(
                    f"{name} must be float32, got {given}: model.float() makes it so, "
                    "torch.set_default_dtype(torch.float32) models to come"
                )

    @torch.no_grad()
    def check_parts(self) -> None:
        """Raise ValueError unless backbone and head are what the constructor was told of them.

        Cells of the backbone's map are ``stride`` pixels wide and high: with another stride
        everything runs, and RoI pooling looks beside the objects. Two images are looked at, as the
        difference of their maps does not depend on padding. The head takes a pooled window of such
        a map and makes ``head_features`` numbers of it.
        """
        self.check_types()
        training = self.training
        self.eval()
        try:
            self._check_head(self._checked_map())
        finally:
            self.train(training)

    def _checked_map(self) -> torch.Tensor:
        small, large = 16 * self.stride, 32 * self.stride
        device = self.cls_score.weight.device
        maps = [
            self.backbone(torch.zeros(1, 3, side, side, device=device)) for side in (small, large)
        ]
        for one in maps:
            if not isinstance(one, torch.Tensor) or one.ndim != 4:
                raise ValueError(
                    f"the backbone must make one map (N, C, h, w) of images, got {_shown(one)}; "
                    "wrap it in a module that returns one"
                )
        cells = [one.shape[2:] for one in maps]
        if any(abs(b - a - 16) > 1 for a, b in zip(*cells, strict=True)):
            height, width = cells[1]
            raise ValueError(
                f"stride is {self.stride}, but the backbone makes a map of {height} x {width} "
                f"cells of an image of {large} x {large} pixels; give FastRCNN the input pixels "
                "per cell"
            )
        return maps[1]

    def _check_head(self, features: torch.Tensor) -> None:
        last = 32 * self.stride - 1
        roi = torch.tensor([[0.0, 0, 0, last, last]], device=features.device)
        pooled = self.pool(features, roi)
        channels, side = features.shape[1], self.pooled_size
        try:
            hidden = self.head(pooled)
        except (RuntimeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise ValueError(
                f"the head does not take windows of {channels} x {side} x {side}: the backbone's "
                f"map has {channels} channels and pooled_size is {side}; make the head for these "
                f"({reason})"
            ) from error
        wanted = self.cls_score.in_features
        if not isinstance(hidden, torch.Tensor) or hidden.shape != (1, wanted):
            raise ValueError(
                f"head_features is {wanted}, but of one window the head makes {_shown(hidden)}; it "
                f"must be (1, {wanted})"
            )

    def pool(self, features: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool each RoI's window: features (N, C, h, w), rois (R, 5) -> (R, C, P, P)."""
        return roi_pool(features, rois, self.pooled_size, 1.0 / self.stride)

    def classify(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the head: pooled (R, C, P, P) -> logits (R, K+1), normalised deltas (R, 4(K+1))."""
        hidden = self.head(pooled)
        return self.cls_score(hidden), self.bbox_pred(hidden)

    def forward(
        self, images: torch.Tensor, rois: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Score every RoI and predict its box deltas for every class.

        Args:
            images: (N, 3, H, W) float32, prepared by ``self.preprocessing``.
            rois: (R, 5) float32 rows of (image index, x1, y1, x2, y2) in pixels of ``images``.

        Returns:
            logits (R, K+1), column 0 the background, or SVM scores, see ``classifier``; and deltas
            (R, 4(K+1)), normalised: class c owns columns 4c .. 4c+3. ``unnormalise`` turns them
            into what ``decode_boxes`` takes.
        """
        return self.classify(self.pool(self.backbone(images), rois))

    def unnormalise(self, deltas: torch.Tensor) -> torch.Tensor:
        """Undo the per-class normalisation of deltas (R, 4(K+1))."""
        return deltas * self.delta_std + self.delta_mean

    @torch.no_grad()
    def renormalise(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Normalise by other statistics of the targets, (4(K+1),) each, from now on.

        What a network that has learned predicts stays the same: ``bbox_pred`` is rescaled, as it
        puts out normalised deltas. Where it has learned, a mean of 0 with a std of 1, of a class
        that the new data do not have, leaves the old statistics. A new network has nothing to keep.
        """
        old_mean, old_std = self.delta_mean.clone(), self.delta_std.clone()
        unknown = (mean == 0) & (std == 1)
        self.delta_mean.copy_(torch.where(unknown, old_mean, mean))
        self.delta_std.copy_(torch.where(unknown, old_std, std))
        learned = bool((old_mean != 0).any() or (old_std != 1).any())
        changed = (self.delta_mean != old_mean) | (self.delta_std != old_std)
        if learned and bool(changed.any()):
            scale = old_std / self.delta_std
            shift = (old_mean - self.delta_mean) / self.delta_std
            weight, bias = self.bbox_pred.weight, self.bbox_pred.bias
            weight.copy_(torch.where(changed[:, None], weight * scale[:, None], weight))
            bias.copy_(torch.where(changed, bias * scale + shift, bias))


def _shown(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
