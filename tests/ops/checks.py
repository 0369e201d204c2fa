"""How the operator tests compare and hand over arrays."""

from __future__ import annotations

import numpy as np
import torch

BITS = {np.dtype(np.float32): np.uint32, np.dtype(np.float64): np.uint64}
FACES = ("numpy", "torch")


def channels_last(array: np.ndarray) -> np.ndarray:
    """The same (N, C, H, W) array, dense as (N, H, W, C) in memory."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def give(array: np.ndarray, face: str) -> np.ndarray | torch.Tensor:
    """The array as the face under test wants it; strides are kept."""
    return torch.from_numpy(array) if face == "torch" else array


def take(array: np.ndarray | torch.Tensor) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array


def assert_same_bits(actual: np.ndarray, expected: np.ndarray, what: str = "arrays") -> None:
    """Equal type, shape and bits, the sign of zero included; a NaN matches any NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype not in BITS:
        np.testing.assert_array_equal(actual, expected, err_msg=what)
        return
    bits = BITS[actual.dtype]
    equal = np.ascontiguousarray(actual).view(bits) == np.ascontiguousarray(expected).view(bits)
    equal |= np.isnan(actual) & np.isnan(expected)
    if not equal.all():
        first = np.unravel_index(np.flatnonzero(~equal)[0], actual.shape)
        raise AssertionError(
            f"{what}: {(~equal).sum()} of {actual.size} differ, first at "
            f"{tuple(map(int, first))}: got {actual[first]!r}, expected {expected[first]!r}"
        )


def assert_no_worse(actual: np.ndarray, plain: np.ndarray, exact: np.ndarray) -> None:
    """At most twice the error of plain code in the same type, plus two ulps at each value.

    `exact` is the same computation in float64.
    """
    assert actual.dtype == plain.dtype
    assert actual.shape == plain.shape == exact.shape
    allowed = 2 * np.abs(plain - exact).max(initial=0.0)
    allowed = allowed + 2 * np.finfo(plain.dtype).eps * np.abs(exact)
    excess = np.abs(actual - exact) - allowed
    assert (excess <= 0).all(), f"error exceeds the plain implementation's by {excess.max()}"
