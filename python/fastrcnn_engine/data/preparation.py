"""From pixels to the network's input (original code, lib/utils/blob.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from fastrcnn_engine.data.images import check_image

BoxArray = TypeVar("BoxArray", np.ndarray, torch.Tensor)


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants done to its images. It belongs to the weights and is saved with them.

    `mean` and `std` are on the scale 0..255, in the order of `channel_order`. The defaults are
    those of the original code (lib/fast_rcnn/config.py): BGR, Caffe's ImageNet means, no division,
    short side 600 unless the long side would pass 1000.

    Several short sides, rising, make an image pyramid (paper 5.2: 480, 576, 688, 864 and 1200 with
    a long side up to 2000): training draws one for each image, detection takes for each proposal
    the one that brings it closest to 224 x 224 pixels. One short side is always a plain number.
    """

    channel_order: str = "BGR"
    mean: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    short_side: int | tuple[int, ...] = 600
    max_side: int = 1000

    def __post_init__(self) -> None:
        if self.channel_order not in ("BGR", "RGB"):
            raise ValueError(f"channel_order must be 'BGR' or 'RGB', got {self.channel_order!r}")
        for name in ("mean", "std"):
            values = tuple(float(value) for value in getattr(self, name))
            if len(values) != 3 or not np.isfinite(values).all():
                raise ValueError(f"{name} must be three finite numbers, got {values}")
            object.__setattr__(self, name, values)
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        sides = np.atleast_1d(self.short_side).tolist()
        rising = all(a < b for a, b in zip(sides, sides[1:], strict=False))
        if not sides or not rising or not 0 < sides[0] <= sides[-1] <= self.max_side:
            raise ValueError(
                "short_side must be one or several rising numbers above 0 and not above max_side, "
                f"got short_side={self.short_side}, max_side={self.max_side}"
            )
        object.__setattr__(self, "short_side", tuple(sides) if len(sides) > 1 else sides[0])

    @property
    def short_sides(self) -> tuple[int, ...]:
        """Those of the levels of the image pyramid, smallest first."""
        return self.short_side if isinstance(self.short_side, tuple) else (self.short_side,)

    def levels(self) -> tuple[Preprocessing, ...]:
        """The levels of the image pyramid, smallest first: this with each short side alone."""
        return tuple(replace(self, short_side=side) for side in self.short_sides)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values, fit for a checkpoint or JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Raises ValueError when a key is missing or unknown, or a value
        of another kind."""
        expected = set(cls.__dataclass_fields__)
        if not isinstance(values, dict) or set(values) != expected:
            got = sorted(map(str, values)) if isinstance(values, dict) else repr(values)
            raise ValueError(f"preprocessing must have the keys {sorted(expected)}, got {got}")
        try:
            return cls(**values)
        except TypeError:
            raise ValueError(f"preprocessing has a value of another kind: {values}") from None

    def scale(self, height: int, width: int) -> float:
        """The factor s from image pixels to input pixels for an image of that size.

        Raises ValueError when there are several short sides: ask one of `levels()`.
        """
        if isinstance(self.short_side, tuple):
            raise ValueError(
                f"short_side is {self.short_side}: an image has one factor for each of them; "
                "use one of levels()"
            )
        short, long = min(height, width), max(height, width)
        factor = self.short_side / short
        if round(factor * long) > self.max_side:
            factor = self.max_side / long
        return factor


def prepare_image(
    image: np.ndarray, preprocessing: Preprocessing, *, flip: bool = False
) -> tuple[torch.Tensor, float]:
    """Makes the network input of one image, (H, W, 3) uint8 RGB, mirrored left to right if `flip`.

    Returns the (3, h, w) float32 tensor and the factor s that takes image coordinates to input
    coordinates. In the order of the original code (lib/utils/blob.py): subtract the mean (and
    divide by std), then resize bilinearly by s, h = round(H s) and w = round(W s) with halves to
    even and 1 at least, half-pixel centres, no anti-aliasing; the same as cv2.resize with
    fx = fy = s and INTER_LINEAR.

    Raises ValueError for another shape or dtype, and for a preprocessing with several short sides,
    of which `levels()` gives each.
    """
    check_image(image)
    height, width = image.shape[:2]
    if flip:
        image = image[:, ::-1]
    if preprocessing.channel_order == "BGR":
        image = image[:, :, ::-1]
    factor = preprocessing.scale(height, width)
    # A copy in any case: NumPy calls an axis of length 1 contiguous though its stride is negative,
    # and torch refuses that.
    pixels = torch.from_numpy(image.copy()).float()  # (H, W, 3)
    pixels -= torch.tensor(preprocessing.mean)
    if preprocessing.std != (1.0, 1.0, 1.0):
        pixels /= torch.tensor(preprocessing.std)
    planes = pixels.permute(2, 0, 1)  # (3, H, W), channels last in memory: resized faster
    if factor == 1.0:
        return planes.contiguous(), factor
    # The operator below interpolate(): it takes both the size and the factor. From the size alone
    # the factor would be (rounded size) / H, and every sample would sit a little beside the
    # original's. It copies an axis whose size stays the same, though the factor is not 1: ask for
    # one line more there and leave it out.
    size = [max(round(n * factor), 1) for n in (height, width)]
    asked = [n + (n == old) for n, old in zip(size, (height, width), strict=True)]
    resized = torch.ops.aten.upsample_bilinear2d(planes[None], asked, False, factor, factor)[0]
    return resized[:, : size[0], : size[1]].contiguous(), factor


# Of an image 16 times as long as it is wide too little may be left of its width for the layers of a
# network: those of model M need 25 pixels.
LEAST_SIDE = 32


def batch_images(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stacks (3, h_i, w_i) tensors into (N, 3, H, W), the largest h and w and at least 32, zeros
    right and below."""
    if not images:
        raise ValueError("images is empty; a batch needs at least one image")
    if any(image.ndim != 3 or image.shape[0] != images[0].shape[0] for image in images):
        raise ValueError(f"images must all be (C, h, w), got {[tuple(i.shape) for i in images]}")
    height = max(LEAST_SIDE, *(image.shape[1] for image in images))
    width = max(LEAST_SIDE, *(image.shape[2] for image in images))
    if len(images) == 1 and images[0].shape[1:] == (height, width):
        return images[0][None]
    batch = images[0].new_zeros((len(images), images[0].shape[0], height, width))
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


def flip_boxes(boxes: BoxArray, width: int) -> BoxArray:
    """Boxes (R, 4) of the image mirrored left to right: x1' = W - 1 - x2, x2' = W - 1 - x1
    (inclusive).

    NumPy arrays and tensors alike; the input is not changed.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (R, 4), got shape {tuple(boxes.shape)}")
    flipped = boxes[:, [2, 1, 0, 3]]
    mirrored: Any = width - 1 - flipped[:, [0, 2]]  # Any: of whichever kind `flipped` is
    flipped[:, [0, 2]] = mirrored
    return flipped
