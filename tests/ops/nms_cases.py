"""Hard cases for non-maximum suppression: (name, boxes, scores, threshold, inclusive)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class NmsCase:
    name: str
    boxes: np.ndarray  # (B, 4) float32
    scores: np.ndarray  # (B,) float32
    threshold: float = 0.5
    inclusive: bool = False


def _case(name: str, boxes: list, scores: list, threshold: float = 0.5, inclusive: bool = False):
    return NmsCase(
        name,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        threshold,
        inclusive,
    )


def random_boxes(count: int, seed: int, extent: float = 100.0) -> np.ndarray:
    """Boxes that crowd together, so that most are suppressed by something."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, extent, (count, 2))
    return np.hstack([low, low + rng.uniform(1, extent / 2, (count, 2))]).astype(np.float32)


def _random(count: int, seed: int, threshold: float, inclusive: bool, name: str = "") -> NmsCase:
    scores = np.random.default_rng(seed + 1).uniform(0, 1, count).astype(np.float32)
    name = name or f"random-{count}{'-inclusive' if inclusive else ''}-{threshold}"
    return NmsCase(name, random_boxes(count, seed), scores, threshold, inclusive)


def _below(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(0)))


_UNIT, _DOUBLE = [0, 0, 1, 1], [0, 0, 2, 1]  # IoU exactly 1/2
_THREE_OF_TEN = [[0, 0, 10, 1], [0, 0, 3, 1]]  # IoU fl32(0.3), which is more than the double 0.3



def _disjoint_then_duplicates(count: int) -> NmsCase:
    """`count` boxes are kept, and each of the others is suppressed by another of them."""
    corner = 3 * np.stack(np.divmod(np.arange(count), 40), axis=1)
    boxes = np.hstack([corner, corner + 2]).astype(np.float32)
    scores = np.concatenate([np.arange(count) + count, np.random.default_rng(1).permutation(count)])
    return NmsCase(f"{count}-disjoint-then-duplicates", np.tile(boxes, (2, 1)), np.float32(scores))


def _pairs_at_the_threshold(name: str, threshold: float) -> NmsCase:
    """IoU exactly 1/2 within each of many pairs, of every scale that is exact."""
    pair = np.array([[8, 0, 10, 1], [8, 0, 9, 1]])
    scale = 2.0 ** (np.arange(1200) % 80 - 40)
    apart = np.stack([np.zeros(1200), np.arange(1200) // 80 * 2.0], axis=1)
    boxes = (pair + np.tile(apart, 2)[:, None]) * scale[:, None, None]
    scores = np.arange(2400, 0, -1, np.float32)
    return NmsCase(name, np.float32(boxes.reshape(-1, 4)), scores, threshold)


def _every_size(threshold: float) -> NmsCase:
    """Boxes from one corner, their areas from the smallest numbers there are to the largest."""
    rng = np.random.default_rng(12)
    sides = 2 ** (rng.uniform(-72, 62, (1500, 1)) + rng.uniform(-1, 1, (1500, 2)))
    boxes = np.hstack([np.zeros((1500, 2)), sides]).astype(np.float32)
    return NmsCase(f"every-size-{threshold}", boxes, np.float32(rng.permutation(1500)), threshold)


NMS_CASES: list[NmsCase] = [
    _case("no-boxes", [], []),
    _case("one-box", [_UNIT], [0.3]),
    _case("one-box-of-zero-score", [_UNIT], [0.0]),
    _case("negative-scores", [_UNIT, _UNIT, [5, 5, 6, 6]], [-0.5, -0.2, -0.9]),
    _case("ties-keep-the-lower-index", [_UNIT, _DOUBLE, _UNIT, _DOUBLE], [0.5] * 4, 0.4),
    _case("signed-zero-scores-tie", [_UNIT, _UNIT], [-0.0, 0.0]),
    _case("iou-at-the-threshold-stays", [_DOUBLE, _UNIT], [0.9, 0.8], 0.5),
    _case("iou-just-above-goes", [_DOUBLE, _UNIT], [0.9, 0.8], _below(0.5)),
    _case("threshold-in-float32", _THREE_OF_TEN, [0.9, 0.8], 0.3),
    _case("threshold-in-float32-just-below", _THREE_OF_TEN, [0.9, 0.8], _below(0.3)),
    _case("iou-at-the-threshold-inclusive", [[0, 0, 1, 0], [0, 0, 0, 0]], [0.9, 0.8], 0.5, True),
    _case("inclusive-decides", [[0, 0, 4, 4], [2, 0, 6, 4]], [0.9, 0.8], 0.4, True),
    _case("inclusive-decides-not", [[0, 0, 4, 4], [2, 0, 6, 4]], [0.9, 0.8], 0.4, False),
    _case("threshold-0-touching", [[0, 0, 2, 2], [2, 0, 4, 2], [1, 1, 3, 3]], [0.9, 0.8, 0.7], 0.0),
    _case("threshold-1-keeps-duplicates", [_UNIT] * 3, [0.9, 0.8, 0.7], 1.0),
    _case("duplicates", [_UNIT] * 5, [0.1, 0.5, 0.3, 0.5, 0.2]),
    _case("zero-area-duplicates-both-stay", [[3, 3, 3, 3]] * 3, [0.9, 0.8, 0.7], 0.0),
    _case("zero-area-duplicates-inclusive", [[3, 3, 3, 3]] * 3, [0.9, 0.8, 0.7], 0.0, True),
    _case("zero-area-inside-a-box", [[0, 0, 9, 9], [3, 3, 3, 3]], [0.9, 0.8], 0.0),
    _case(
        "inverted-boxes",
        [[5, 5, 1, 1], [1, 1, 5, 5], [5, 1, 1, 5], [5, 5, 1, 1]],
        [4, 3, 2, 1],
        0.1,
    ),
    _case("inverted-inclusive", [[5, 5, 1, 1], [1, 1, 5, 5], [5, 1, 1, 5]], [4, 3, 2], 0.1, True),
    _case("nan-score-never-stays", [_UNIT, _UNIT, [5, 5, 6, 6]], [NAN, 0.9, NAN]),
    _case("nan-score-suppresses-nothing", [_UNIT, _UNIT], [NAN, -1.0]),
    _case("only-nan-scores", [_UNIT, _UNIT], [NAN, NAN]),
    _case("masked-scores", [_UNIT, [3, 3, 4, 4], [5, 5, 6, 6], _UNIT], [-INF, 0.5, -INF, -INF]),
    _case("infinite-scores", [_UNIT, _UNIT, [5, 5, 6, 6], _UNIT], [-INF, INF, -INF, INF]),
    _case("nan-boxes", [[NAN, 0, 1, 1], _UNIT, [0, 0, NAN, 1], _UNIT], [0.9, 0.8, 0.7, 0.6]),
    _case("infinite-boxes", [[-INF, -INF, INF, INF], _UNIT, [0, 0, INF, 1], _UNIT], [4, 3, 2, 1]),
    _case(
        "far-away", [[1e6, 1e6, 1e6 + 8, 1e6 + 8], [1e6, 1e6, 1e6 + 8, 1e6 + 6]] * 2, [1, 2, 3, 4]
    ),
    _case("area-overflows", [[0, 0, 1e30, 1e30], [0, 0, 1e30, 1e30]], [0.9, 0.8]),
    _case("chain", [[i, 0, i + 4, 4] for i in range(12)], list(np.linspace(0.9, 0.1, 12)), 0.3),
    *[_random(count, count, 0.5, False) for count in (2, 15, 16, 17, 63, 64, 65, 129)],
    *[_random(64, 7, threshold, True) for threshold in (0.0, 0.3, 0.7)],
    _random(2000, 8, 0.3, False),
    _random(2000, 9, 0.5, True),
    _random(1500, 13, 0.7, False),
    *[_disjoint_then_duplicates(count) for count in (15, 16, 17, 31, 32, 33, 511, 512, 600)],
    _pairs_at_the_threshold("many-pairs-at-the-threshold", 0.5),
    _pairs_at_the_threshold("many-pairs-just-above", _below(0.5)),
    *[_every_size(threshold) for threshold in (0.0, 1e-30, 0.05, 0.3, 0.5, 0.7, 0.999, 1.0)],
    NmsCase(
        "many-tied-scores",
        random_boxes(400, 10),
        np.random.default_rng(11).integers(0, 5, 400).astype(np.float32) / 5,
        0.3,
    ),
]
assert len({case.name for case in NMS_CASES}) == len(NMS_CASES)
