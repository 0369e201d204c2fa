"""The one list of hard RoI pooling cases.

It feeds every check of the operator: reference = CPU, CPU = CUDA, kernels emulated on the CPU,
gradients. Features are drawn in float64 and cast by the check; RoIs are always float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRIDE_16 = 1 / 16
INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class RoiPoolCase:
    name: str
    features: np.ndarray  # (N, C, H, W) float64
    rois: np.ndarray  # (R, 5) float32: batch index, x1, y1, x2, y2
    output_size: tuple[int, int] = (7, 7)
    scale: float = 1.0
    smooth: bool = True  # False where ties or non-finite cells make finite differences meaningless


def _noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _relu(*shape: int, seed: int = 0) -> np.ndarray:
    """Like a map after ReLU: mostly zeros, the rest coarse, so ties are everywhere."""
    return np.maximum(np.round(_noise(*shape, seed=seed)), 0.0)


def _ramps(height: int, width: int) -> np.ndarray:
    """Three channels that give away a bin's last cell, its first cell, and any other change."""
    ramp = np.arange(height * width, dtype=np.float64).reshape(height, width)
    return np.stack([ramp, -ramp, _noise(height, width, seed=9)])[None]


def _rois(*rows: tuple[float, ...], batch: float = 0) -> np.ndarray:
    """RoIs of one image from (x1, y1, x2, y2) rows."""
    boxes = np.array(rows, np.float32).reshape(-1, 4)
    return np.hstack([np.full((len(boxes), 1), batch, np.float32), boxes])


def _random_rois(count: int, images: int, width: float, height: float, seed: int) -> np.ndarray:
    """Proposal-like RoIs in image pixels: all sizes, some hanging over the border."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0, 1, (count, 2)) * (width, height)
    side = np.exp(rng.uniform(np.log(4), np.log(max(width, height)), (count, 2)))
    boxes = np.hstack([centre - side / 2, centre + side / 2])
    index = rng.integers(0, images, (count, 1))
    return np.hstack([index, boxes]).astype(np.float32)


def _voc_grid(count: int, seed: int) -> np.ndarray:
    """Integer VOC corners times 1.6: at stride 16 one coordinate in ten is exactly a half."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(0, 500, (count, 2)), rng.integers(0, 375, (count, 2))
    x.sort(axis=1)
    y.sort(axis=1)
    return _rois(*np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1) * 1.6)


def _signed_zeros() -> np.ndarray:
    signs = np.random.default_rng(5).integers(0, 2, (1, 4, 9, 11))
    return np.where(signs == 0, 0.0, -0.0)


def _signed_zeros_among_negatives() -> np.ndarray:
    """The maximum of most bins is a zero, of either sign, and not their first cell."""
    return np.random.default_rng(6).choice([-0.0, 0.0, -1.0], (1, 4, 9, 11), p=[0.2, 0.2, 0.6])


def _two_zeros(minus: tuple[int, int], plus: tuple[int, int]) -> np.ndarray:
    """A -0 and a +0 in different cells, and nothing else that is not less."""
    x = np.full((1, 3, 6, 7), -1.0)
    x[(..., *minus)], x[(..., *plus)] = -0.0, 0.0
    return x


def _scattered(value: float, seed: int) -> np.ndarray:
    """Noise in which every third cell is `value`."""
    x = _noise(2, 5, 9, 11, seed=seed)
    x[np.random.default_rng(seed).uniform(size=x.shape) < 1 / 3] = value
    return x


def _first_cell_nan() -> np.ndarray:
    x = _noise(1, 3, 8, 8, seed=21)
    x[:, :, ::4, ::4] = NAN
    return x


def _one_among(value: float, channels: int, seed: int) -> np.ndarray:
    """A map after ReLU with one `value`: the channels beside it must not feel it."""
    x = _relu(1, channels, 10, 12, seed=seed)
    x[0, channels - 20, 4, 5] = value
    return x


_BELOW_HALF = float(np.nextafter(np.float32(0.5), np.float32(0)))
_FULL = _rois((0, 0, 10, 8), (2, 1, 9, 7), (3, 3, 5, 5), (4, 4, 4, 4), (-3, -2, 14, 12))

_ROUNDING = [
    RoiPoolCase(
        "halves",
        _noise(1, 4, 9, 10),
        _rois(*[(8 + 16 * i, 8 + 16 * (i % 3), 72 + 16 * (i % 5), 88 + 8 * i) for i in range(8)]),
        scale=STRIDE_16,
    ),
    RoiPoolCase(
        "negative-halves",
        _noise(1, 4, 9, 10, seed=1),
        _rois((-8, -24, 40, 56), (-40, -8, -8, 72), (-56, -72, -8, -8), (-8, -8, -8, -8)),
        scale=STRIDE_16,
    ),
    RoiPoolCase(
        "just-below-a-half",
        _ramps(6, 6),
        _rois(
            (_BELOW_HALF, _BELOW_HALF, 4, 4),
            (-_BELOW_HALF, -_BELOW_HALF, 4, 4),
            (0, 0, 4 + _BELOW_HALF, _BELOW_HALF),
            (1e-45, -1e-45, 1e-40, 5),
        ),
        (2, 2),
    ),
    RoiPoolCase(
        # fl32(5 * 0.7f) is 3.5 and rounds to 4; in double it is 3.49999994 and rounds to 3.
        "product-in-float32",
        _ramps(12, 12),
        _rois(*[(x, 0, x, 9) for x in (5, 15)], *[(0, y, 9, y) for y in (5, 15)]),
        (2, 2),
        0.7,
    ),
    RoiPoolCase(
        "voc-corners-times-1.6", _noise(1, 3, 38, 50, seed=2), _voc_grid(40, 3), scale=1 / 16
    ),
    RoiPoolCase(
        # floor(x + 0.5) is off by one for odd numbers beyond 2^23.
        "odd-beyond-2^23",
        _ramps(5, 5),
        _rois(
            (-8388609, -8388609, 8388611, 8388611), (8388609, 0, 8388611, 4), (-8388609, 0, 3, 4)
        ),
        (3, 3),
    ),
]

_TIES = [
    RoiPoolCase(
        "ties-after-relu", _relu(2, 6, 13, 17), _random_rois(20, 2, 17, 13, 1), smooth=False
    ),
    RoiPoolCase("all-equal", np.full((1, 3, 9, 11), 0.25), _FULL, (3, 3), smooth=False),
    RoiPoolCase("all-zero", np.zeros((1, 3, 9, 11)), _FULL, (3, 3), smooth=False),
    RoiPoolCase("signed-zeros", _signed_zeros(), _FULL, (3, 3), smooth=False),
    RoiPoolCase(
        "signed-zeros-among-negatives",
        _signed_zeros_among_negatives(),
        _random_rois(20, 1, 11, 9, 5),
        (3, 3),
        smooth=False,
    ),
    # Each where an order by columns would come to the other zero first.
    *[
        RoiPoolCase(name, _two_zeros(minus, plus), _rois((0, 0, 6, 5)), (3, 3), smooth=False)
        for name, minus, plus in (
            ("minus-zero-in-the-last-row", (5, 2), (4, 3)),
            ("minus-zero-in-the-last-column", (4, 6), (5, 5)),
        )
    ],
]

_BIN_ARITHMETIC = [
    # As in roi_pooling_layer.cu, fl32(r / P) rounds up: the last bin reaches one cell beyond the
    # RoI.
    *[
        RoiPoolCase(f"overshoot-{side}x7", _ramps(3, side + 4), _rois((1, 0, side, 2)))
        for side in (57, 114, 121)
    ],
    *[
        RoiPoolCase(f"overshoot-7x{side}", _ramps(side + 4, 3), _rois((0, 1, 2, side)))
        for side in (57, 114, 121)
    ],
    RoiPoolCase("overshoot-both-axes", _ramps(60, 61), _rois((1, 1, 57, 57), (2, 0, 58, 56))),
    RoiPoolCase("overshoot-at-the-border", _ramps(57, 57), _rois((0, 0, 56, 56))),
    RoiPoolCase("14-bins-of-62", _ramps(65, 65), _rois((1, 1, 62, 62)), (14, 14)),
    RoiPoolCase(
        "13-bins",
        _ramps(3, 130),
        _rois(*[(1, 0, side, 2) for side in (7, 14, 28, 56, 112, 115, 125)]),
        (2, 13),
    ),
    RoiPoolCase(
        # In double these sizes overshoot and in float32 they do not.
        "sizes-odd-in-float64",
        _ramps(3, 130),
        _rois(*[(1, 0, side, 2) for side in (29, 58, 116, 123)]),
        (2, 7),
    ),
    RoiPoolCase("fewer-cells-than-bins", _noise(1, 3, 9, 9), _rois((2, 2, 4, 3), (5, 5, 5, 8))),
    *[
        RoiPoolCase(
            f"pool-{h}x{w}", _noise(1, 3, 19, 23, seed=h), _random_rois(12, 1, 23, 19, w), (h, w)
        )
        for h, w in ((1, 1), (1, 9), (2, 5), (6, 6), (7, 3), (14, 14), (33, 1))
    ],
]

_PLACES = [
    RoiPoolCase(
        "over-each-border",
        _noise(1, 4, 9, 11),
        _rois((-4, 2, 5, 6), (6, 2, 17, 6), (2, -5, 6, 4), (2, 5, 6, 15), (-9, -9, 20, 20)),
    ),
    RoiPoolCase(
        "wholly-outside",
        _noise(1, 4, 9, 11),
        _rois((-9, 2, -2, 6), (11, 2, 17, 6), (2, -9, 6, -1), (2, 9, 6, 15), (40, 40, 50, 50)),
    ),
    RoiPoolCase(
        "touching-the-border",
        _noise(1, 4, 9, 11),
        _rois((0, 0, 0, 8), (10, 0, 10, 8), (0, 8, 10, 8), (10, 8, 10, 8), (10, 8, 30, 30)),
    ),
    RoiPoolCase(
        # Pools the one start cell; the ends are not swapped.
        "inverted",
        _noise(1, 4, 9, 11),
        _rois((6, 6, 2, 2), (6, 2, 2, 6), (2, 6, 6, 2), (9, 7, -30, -30), (-1, -1, -5, -5)),
    ),
    RoiPoolCase(
        "zero-size", _noise(1, 4, 9, 11), _rois((3, 3, 3, 3), (0, 0, 0, 0), (2.4, 5, 2.4, 5))
    ),
    RoiPoolCase(
        "tiny-scale", _noise(1, 4, 9, 11), _rois((0, 0, 499, 499), (600, 0, 9e3, 7e3)), scale=1e-3
    ),
    RoiPoolCase(
        "1x1-map", _noise(1, 4, 1, 1), _rois((0, 0, 0, 0), (-5, -5, 5, 5), (1, 0, 3, 0)), (2, 3)
    ),
    RoiPoolCase(
        "one-column", _noise(1, 4, 17, 1), _rois((0, 0, 0, 16), (-2, 3, 5, 12), (1, 0, 2, 9))
    ),
    RoiPoolCase("one-row", _noise(1, 4, 1, 17), _rois((0, 0, 16, 0), (3, -2, 12, 5), (0, 1, 9, 2))),
]

_HUGE_CORNERS = [
    RoiPoolCase(
        f"corners-{value:g}",
        _noise(1, 3, 6, 7),
        _rois(
            (-value, -value, value, value),
            (value, value, -value, -value),
            (value, 2, value, 5),
            (-value, 2, 3, 5),
            (2, -value, 5, 3),
            (2, 2, value, value),
            (1, 2, value, 4),
        ),
        (3, 3),
        scale,
    )
    for value, scale in ((1e9, 1.0), (3e9, 1.0), (1e30, STRIDE_16), (3e38, 16.0), (INF, STRIDE_16))
] + [
    RoiPoolCase(
        "corners-nan",
        _noise(1, 3, 6, 7),
        _rois(
            (NAN, NAN, NAN, NAN), (NAN, 1, 4, 4), (1, NAN, 4, 4), (1, 1, NAN, 4), (1, 1, 4, NAN),
            (NAN, -INF, INF, 4), (-INF, NAN, 3, INF),
        ),
        (3, 3),
    ),
]  # fmt: skip

_VALUES = [
    RoiPoolCase("minus-infinity-map", np.full((1, 3, 9, 11), -INF), _FULL, (3, 3), smooth=False),
    RoiPoolCase("nan-map", np.full((1, 3, 9, 11), NAN), _FULL, (3, 3), smooth=False),
    RoiPoolCase(
        "nan-in-first-cell",
        _first_cell_nan(),
        _rois((0, 0, 7, 7), (4, 4, 7, 7)),
        (2, 2),
        smooth=False,
    ),
    RoiPoolCase(
        "scattered-nan", _scattered(NAN, 31), _random_rois(12, 2, 11, 9, 2), (4, 4), smooth=False
    ),
    RoiPoolCase(
        "scattered-minus-inf",
        _scattered(-INF, 32),
        _random_rois(12, 2, 11, 9, 3),
        (9, 9),
        smooth=False,
    ),
    RoiPoolCase(
        "scattered-inf", _scattered(INF, 33), _random_rois(12, 2, 11, 9, 4), (3, 3), smooth=False
    ),
    RoiPoolCase(
        "nan-and-minus-inf",
        np.where(_noise(1, 4, 9, 11) < 0, NAN, -INF),
        _FULL,
        (3, 3),
        smooth=False,
    ),
    *[
        RoiPoolCase(
            f"one-{value}-among-{channels}-channels",
            _one_among(value, channels, channels),
            _random_rois(9, 1, 12, 10, channels),
            (3, 4),
            smooth=False,
        )
        for value, channels in ((NAN, 150), (-0.0, 200), (-INF, 90))
    ],
    # In float64 every cell lies below -FLT_MAX; cast to float32 the map is -inf.
    RoiPoolCase(
        "below-minus-flt-max", -1e300 * (2 + _relu(1, 3, 9, 11)), _FULL, (3, 3), smooth=False
    ),
    RoiPoolCase(
        "lowest-float", np.full((1, 3, 9, 11), -3.4028234663852886e38), _FULL, (3, 3), smooth=False
    ),
    # Of each type those that a GPU could take for zeros.
    *[
        RoiPoolCase(name, size * _noise(1, 3, 9, 11), _FULL, (3, 3), smooth=False)
        for name, size in (
            ("denormals", 1e-42),
            ("denormals-of-bfloat16", 1e-39),
            ("denormals-of-float16", 1e-6),
            ("denormals-of-float64", 1e-310),
        )
    ],
]

_SHAPES = [
    RoiPoolCase("no-rois", _noise(2, 3, 5, 6), np.zeros((0, 5), np.float32)),
    RoiPoolCase("no-rois-no-images", _noise(0, 3, 5, 6), np.zeros((0, 5), np.float32)),
    RoiPoolCase("no-channels", _noise(2, 0, 5, 6), _random_rois(4, 2, 6, 5, 0)),
    *[
        RoiPoolCase(
            f"channels-{c}", _noise(2, c, 10, 12, seed=c), _random_rois(9, 2, 12, 10, c), (3, 4)
        )
        for c in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 70, 127, 128, 260)
    ],
    # Cells are counted beyond what 16 bits hold with a sign.
    RoiPoolCase("many-cells", _noise(1, 2, 210, 170, seed=17), _random_rois(9, 1, 170, 210, 18)),
    RoiPoolCase("images-unordered", _noise(3, 5, 10, 12, seed=7), _random_rois(30, 3, 12, 10, 8)),
    RoiPoolCase(
        "fractional-batch-index",
        _noise(3, 2, 5, 6),
        np.array(
            [
                [1.9, 0, 0, 5, 4],
                [0.999, 0, 0, 5, 4],
                [2.0, 1, 1, 4, 4],
                [2.5, 0, 0, 3, 3],
                [-0.5, 0, 0, 5, 4],
            ],
            np.float32,
        ),
        (2, 2),
    ),
    RoiPoolCase("same-roi-twice", _noise(1, 3, 9, 11), np.repeat(_FULL, 4, axis=0), (3, 3)),
    RoiPoolCase(
        "voc-like",
        _noise(2, 6, 38, 50, seed=11),
        _random_rois(60, 2, 800, 600, 12),
        scale=STRIDE_16,
    ),
    RoiPoolCase(
        "voc-like-relu",
        _relu(2, 6, 38, 50, seed=13),
        _random_rois(40, 2, 800, 600, 14),
        (6, 6),
        STRIDE_16,
        smooth=False,
    ),
]

ROI_POOL_CASES: list[RoiPoolCase] = [
    *_ROUNDING,
    *_TIES,
    *_BIN_ARITHMETIC,
    *_PLACES,
    *_HUGE_CORNERS,
    *_VALUES,
    *_SHAPES,
]
assert len({case.name for case in ROI_POOL_CASES}) == len(ROI_POOL_CASES)
