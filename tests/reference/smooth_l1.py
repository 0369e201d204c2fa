"""Smooth L1 of the paper (Eq. 2 and 3): value and gradient, class-specific columns, one loop."""

from __future__ import annotations

import math

import numpy as np


def element(difference: float, beta: float) -> tuple[float, float]:
    """(loss, slope) of one difference; the quadratic part ends just before |d| = beta."""
    size = abs(difference)
    if size < beta:
        return 0.5 * difference * difference / beta, difference / beta
    return size - 0.5 * beta, float(np.sign(difference))


def smooth_l1(
    deltas: np.ndarray,
    targets: np.ndarray,
    labels: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    beta: float = 1.0,
    normalizer: float | None = None,
) -> tuple[float, np.ndarray]:
    """(loss, gradient (R, D * groups)) in float64 of deltas against targets (R, D).

    With labels (R,) row r uses the D columns of its class, and class 0, the background, none.
    """
    rows, width = targets.shape
    divisor = float(rows if normalizer is None else normalizer)
    gradient = np.zeros(deltas.shape, np.float64)
    terms = []
    for r in range(rows):
        if labels is not None and labels[r] == 0:
            continue
        first = 0 if labels is None else width * int(labels[r])
        for d in range(width):
            weight = 1.0 if weights is None else float(weights[r, d])
            # The difference is formed in the type of the operands, as any implementation must.
            loss, slope = element(float(deltas[r, first + d] - targets[r, d]), beta)
            terms.append(weight * loss)
            gradient[r, first + d] = weight * slope / divisor
    return (math.fsum(terms) / divisor if rows else 0.0), gradient
