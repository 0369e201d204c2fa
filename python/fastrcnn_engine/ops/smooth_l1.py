"""The box loss of the multi-task loss (paper equations 1 to 3)."""

from __future__ import annotations

from typing import Any

from fastrcnn_engine import _core
from fastrcnn_engine.ops._arrays import (
    AnyArray,
    Array,
    Arrays,
    arrays_of,
    is_tensor,
    is_traced,
    number_of,
    require_no_gradient,
    widened,
)


def smooth_l1(
    deltas: Array,
    targets: AnyArray,
    labels: AnyArray | None = None,
    *,
    weights: AnyArray | None = None,
    beta: float = 1.0,
    normalizer: float | None = None,
) -> Array:
    """Weighted smooth L1, class-specific without building targets as wide as the predictions.

    loss = 1 / normalizer * sum over r, d of
           weights[r, d] * smooth_l1(deltas[r, D * labels[r] + d] - targets[r, d])

    Differentiable in `deltas` alone, for torch tensors. The sum runs in float64 in a fixed order.

    Args:
        deltas: (R, D * (K + 1)) predictions, float32 or float64; (R, D) without labels.
        targets: (R, D), the same dtype; D is 4 for boxes.
        labels: (R,) integers in 0..K. A row uses the columns of its label; label 0 (background)
            contributes nothing. None: every row counts.
        weights: (R, D) factors, None for 1.
        beta: where the square turns into a line, >= 0; the paper's 1 is the default.
        normalizer: what the sum is divided by; default R, foreground and background alike, as the
            original does. A number; where torch traces the call, a tensor is a TypeError.

    Returns:
        A scalar, of NumPy arrays a 0-d array. 0 when there are no rows.

    Raises:
        ValueError: shapes or dtypes that do not fit, a negative beta, a normalizer that is not
            positive, targets or weights that require a gradient, or (host memory) a label outside
            0..K, naming the row. On a GPU such a row contributes nothing.
        TypeError: an argument that is no array.

    Source: paper section 2.3, equations 1 to 3; divided by the number of RoIs as in the original
    code.
    """
    require_no_gradient("smooth_l1", ("targets", "weights"), targets, weights)
    beta = number_of(beta, "beta")
    if is_traced(deltas):
        from fastrcnn_engine.ops import torch_ops

        return torch_ops.call(
            "smooth_l1", widened(deltas), widened(targets), labels, widened(weights), beta,
            _traced(normalizer),
        )  # fmt: skip
    normalizer = _number_or_none(normalizer)
    if getattr(deltas, "requires_grad", False):
        from fastrcnn_engine.ops import autograd

        if autograd.is_enabled():
            return autograd.SmoothL1Function.apply(
                widened(deltas), targets, labels, weights, beta, normalizer
            )
    arrays = arrays_of(deltas, "deltas")
    operands = take_operands(arrays, deltas, targets, labels, weights)
    return loss_of(arrays, operands, beta, normalizer)


def smooth_l1_backward(
    grad_loss: AnyArray,
    deltas: Array,
    targets: AnyArray,
    labels: AnyArray | None = None,
    *,
    weights: AnyArray | None = None,
    beta: float = 1.0,
    normalizer: float | None = None,
) -> Array:
    """Gradient of `smooth_l1` in its deltas, times `grad_loss` (one number, the dtype of deltas).
    Outside autograd: tensors that require a gradient are taken, and the result requires none.

    Returns:
        (R, D * (K + 1)), zero outside each row's own columns.

    Other arguments, errors and source: as `smooth_l1`.
    """
    beta = number_of(beta, "beta")
    if is_traced(deltas):
        from fastrcnn_engine.ops import torch_ops

        return torch_ops.call(
            "smooth_l1_backward", grad_loss, deltas, targets, labels, weights, beta,
            _traced(normalizer), detached=True,
        )  # fmt: skip
    arrays = arrays_of(deltas, "deltas")
    operands = take_operands(arrays, deltas, targets, labels, weights)
    return gradient_of(arrays, grad_loss, operands, beta, _number_or_none(normalizer))


Operands = tuple[Any, Any, Any, Any]  # deltas, targets, labels or None, weights or None


def take_operands(arrays: Arrays, deltas: Any, targets: Any, labels: Any, weights: Any) -> Operands:
    """The four array arguments of `smooth_l1` as the engine takes them."""
    return (
        arrays.take_signed(deltas, "deltas"),
        arrays.take_signed(targets, "targets"),
        None if labels is None else arrays.take(labels, "labels", "int64"),
        None if weights is None else arrays.take_signed(weights, "weights"),
    )


def _number_or_none(normalizer: Any) -> float | None:
    return None if normalizer is None else number_of(normalizer, "normalizer")


def _traced(normalizer: Any) -> Any:
    if is_tensor(normalizer):  # whose number nobody knows yet
        raise TypeError("normalizer must be a number where torch traces the call, got a tensor: "
                        "divide the loss by it instead, with normalizer=1")
    return _number_or_none(normalizer)


def loss_of(arrays: Arrays, operands: Operands, beta: float, normalizer: float | None) -> Any:
    """`smooth_l1` of operands that are taken, outside autograd."""
    deltas = operands[0]
    loss = arrays.empty((), deltas.dtype, deltas)
    _core.smooth_l1_forward(*operands, beta, normalizer, loss, arrays.stream)
    return arrays.give(loss)


def gradient_of(
    arrays: Arrays, grad_loss: Any, operands: Operands, beta: float, normalizer: float | None
) -> Any:
    """`smooth_l1_backward` of operands that are taken."""
    upstream = arrays.take_signed(grad_loss, "grad_loss")
    gradient = arrays.empty_like(operands[0])
    _core.smooth_l1_backward(*operands, beta, normalizer, upstream, gradient, arrays.stream)
    return arrays.give(gradient)
