"""The box loss and its gradient against the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import fastrcnn_engine as fe
from fastrcnn_engine import _core
from ops.checks import FACES, give, take
from reference import smooth_l1 as reference

every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
every_face = pytest.mark.parametrize("face", FACES)
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class LossCase:
    name: str
    deltas: np.ndarray  # (R, D * classes)
    targets: np.ndarray  # (R, D)
    labels: np.ndarray | None = None  # (R,)
    weights: np.ndarray | None = None  # (R, D)
    options: dict = field(default_factory=dict)  # beta, normalizer


def _random(name, rows, width=4, classes=1, labels=None, weights=False, **options) -> LossCase:
    rng = np.random.default_rng(rows + width)
    chosen = rng.integers(0, classes, rows) if isinstance(labels, str) else labels
    return LossCase(
        name,
        2 * rng.standard_normal((rows, width * classes)),
        rng.standard_normal((rows, width)),
        chosen,
        rng.uniform(0, 2, (rows, width)) if weights else None,
        options,
    )


_AT_BETA = np.float64([[1, -1, 0, np.nextafter(1, 0)], [2, -2, 0.5, -0.5]])

LOSS_CASES = [
    _random("plain", 9),
    _random("one-row", 1),
    _random("one-column", 9, width=1),
    _random("three-columns", 9, width=3, classes=3, labels="any"),
    _random("voc-classes", 128, classes=21, labels="any"),
    _random("weighted", 64, classes=5, labels="any", weights=True),
    _random("weighted-without-labels", 64, weights=True),
    _random("all-background", 16, classes=4, labels=np.zeros(16, np.int64)),
    _random("last-class", 16, classes=4, labels=np.full(16, 3)),
    _random("only-the-background-class", 5, classes=1, labels=np.zeros(5, np.int64)),
    _random("beta-one-ninth", 64, beta=1 / 9),
    _random("beta-zero", 64, beta=0.0),
    _random("beta-beyond-every-difference", 64, beta=100.0),
    _random("normalizer", 64, classes=3, labels="any", normalizer=7.5),
    _random("more-rows-than-lanes", 1025, classes=3, labels="any"),
    _random("no-rows", 0),
    _random("no-rows-classes", 0, classes=21, labels=np.zeros(0, np.int64), weights=True),
    LossCase("difference-exactly-beta", _AT_BETA, np.zeros((2, 4))),
    LossCase("difference-exactly-2", 2 * _AT_BETA, np.zeros((2, 4)), None, None, {"beta": 2.0}),
    LossCase("no-difference", np.ones((3, 4)), np.ones((3, 4)), None, None, {"beta": 0.0}),
    LossCase("weight-zero", np.ones((1, 4)), np.zeros((1, 4)), None, np.float64([[0, 1, 2, -1]])),
    LossCase("huge-difference", np.full((2, 4), 1e30), np.full((2, 4), -1e30)),
]  # fmt: skip
every_case = pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case.name)


def operands(case: LossCase, dtype, face) -> tuple[list, dict]:
    labels = None if case.labels is None else give(case.labels.astype(np.int64), face)
    weights = None if case.weights is None else give(case.weights.astype(dtype), face)
    arrays = [give(x.astype(dtype), face) for x in (case.deltas, case.targets)]
    return [*arrays, labels], {"weights": weights, **case.options}


def expected_of(case: LossCase, dtype) -> tuple[float, np.ndarray]:
    weights = None if case.weights is None else case.weights.astype(dtype)
    beta = float(dtype(case.options.get("beta", 1.0)))
    options = {**case.options, "beta": beta}
    return reference.smooth_l1(
        case.deltas.astype(dtype), case.targets.astype(dtype), case.labels, weights, **options
    )


@every_case
@every_dtype
@every_face
def test_value_and_gradient_equal_the_reference(case: LossCase, dtype, face):
    arrays, options = operands(case, dtype, face)
    loss = fe.smooth_l1(*arrays, **options)
    expected_loss, expected_gradient = expected_of(case, dtype)
    assert tuple(loss.shape) == ()
    assert take(loss).dtype == dtype
    # The sum runs in float64: what remains is the rounding of each term, of the result, and of the
    # dozen additions that a term goes through.
    eps = np.finfo(dtype).eps
    tolerance = 4 * eps + 16 * np.finfo(np.float64).eps
    np.testing.assert_allclose(float(loss), expected_loss, rtol=tolerance)
    one = give(np.array(1, dtype), face)
    gradient = take(fe.smooth_l1_backward(one, *arrays, **options))
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient, expected_gradient, rtol=4 * eps)


@every_case
@every_dtype
def test_autograd_equals_the_reference(case: LossCase, dtype):
    arrays, options = operands(case, dtype, "torch")
    arrays[0].requires_grad_()
    loss = fe.smooth_l1(*arrays, **options)
    assert loss.requires_grad
    (3 * loss).backward()
    expected = 3 * expected_of(case, dtype)[1]
    np.testing.assert_allclose(arrays[0].grad.numpy(), expected, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["plain", "voc-classes", "weighted", "three-columns"])
def test_gradient_is_the_finite_difference(name):
    case = next(case for case in LOSS_CASES if case.name == name)
    arrays, options = operands(case, np.float64, "torch")
    arrays[0].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda deltas: fe.smooth_l1(deltas, *arrays[1:], **options), arrays[:1], nondet_tol=0.0
    )


@every_face
def test_float32_is_summed_in_float64(face):
    """Ones that a sum in float32 loses: in one row, in rows of one lane, in several lanes."""
    for places in ([0, 1, 2], [0, 4 * 256, 4 * 512], [0, 4, 8]):
        deltas = np.zeros((513, 4), np.float32)
        deltas.reshape(-1)[places] = 2**24, 1, 1
        targets = give(np.zeros_like(deltas), face)
        loss = fe.smooth_l1(give(deltas, face), targets, beta=0.0, normalizer=1.0)
        assert float(loss) == 2**24 + 2


def test_agrees_with_torch():
    rng = np.random.default_rng(5)
    deltas, targets = (torch.from_numpy(rng.standard_normal((200, 4)) * 2) for _ in range(2))
    for beta in (0.0, 0.3, 1.0):
        plain = torch.nn.functional.smooth_l1_loss(deltas, targets, reduction="sum", beta=beta)
        torch.testing.assert_close(fe.smooth_l1(deltas, targets, beta=beta), plain / 200)


def test_loss_is_divided_by_all_rows():
    """Foreground and background alike; not by the foreground rows, not by the elements."""
    deltas, targets = torch.full((8, 8), 3.0), torch.zeros(8, 4)
    labels = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0])
    assert fe.smooth_l1(deltas, targets, labels) == 4 * 2.5 / 8


def test_only_the_columns_of_the_label_get_a_gradient():
    deltas = torch.full((3, 12), 3.0, requires_grad=True)
    fe.smooth_l1(deltas, torch.zeros(3, 4), torch.tensor([2, 0, 1])).backward()
    where = torch.nonzero(deltas.grad).tolist()
    assert where == [[0, c] for c in range(8, 12)] + [[2, c] for c in range(4, 8)]


def test_no_rows_give_zero_within_the_graph():
    """A rank without RoIs must still take part in the backward of a data-parallel step."""
    deltas = torch.zeros(0, 84, requires_grad=True)
    loss = fe.smooth_l1(deltas, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert loss == 0
    loss.backward()
    assert deltas.grad.shape == (0, 84)


@every_dtype
def test_nan_stays_nan(dtype):
    deltas = np.array([[NAN, 2.0, 0.0, 0.0]], dtype)
    assert np.isnan(fe.smooth_l1(deltas, np.zeros((1, 4), dtype)))
    gradient = fe.smooth_l1_backward(np.array(1, dtype), deltas, np.zeros((1, 4), dtype))
    assert np.isnan(gradient[0, 0])
    assert gradient[0, 1:].tolist() == [1, 0, 0]
    # In background rows it is never read.
    assert fe.smooth_l1(deltas, np.zeros((1, 4), dtype), np.array([0])) == 0


@pytest.mark.cuda
def test_cuda_equals_cpu(cuda_device):
    for case in LOSS_CASES:
        for dtype in (np.float32, np.float64):
            arrays, options = operands(case, dtype, "torch")
            there = [x if x is None else x.to(cuda_device) for x in arrays]
            weights = options.pop("weights")
            weights_there = weights if weights is None else weights.to(cuda_device)
            loss = fe.smooth_l1(*there, weights=weights_there, **options)
            assert loss.cpu() == fe.smooth_l1(*arrays, weights=weights, **options), case.name
            one = torch.ones((), dtype=arrays[0].dtype)
            gradient = fe.smooth_l1_backward(
                one.to(cuda_device), *there, weights=weights_there, **options
            )
            expected = fe.smooth_l1_backward(one, *arrays, weights=weights, **options)
            assert torch.equal(gradient.cpu(), expected), case.name
            for operands_, weights_ in ((arrays, weights), (there, weights_there)):
                operands_[0].requires_grad_()
                (3 * fe.smooth_l1(*operands_, weights=weights_, **options)).backward()
            assert torch.equal(there[0].grad.cpu(), arrays[0].grad), case.name


def test_gradients_of_a_kept_graph_are_not_one_tensor():
    deltas = torch.full((2, 4), 3.0, requires_grad=True)
    loss = fe.smooth_l1(deltas, torch.zeros(2, 4))
    (first,) = torch.autograd.grad(loss, deltas, retain_graph=True)
    first.mul_(5)
    (second,) = torch.autograd.grad(loss, deltas)
    assert second.tolist() == [[0.5] * 4] * 2


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
@every_face
def test_labels_of_other_integers_are_accepted(dtype, face):
    case = next(case for case in LOSS_CASES if case.name == "voc-classes")
    arrays, _ = operands(case, np.float32, face)
    labels = case.labels.astype(dtype)
    wide = fe.smooth_l1(*arrays[:2], give(labels.astype(np.int64), face))
    assert fe.smooth_l1(*arrays[:2], give(labels, face)) == wide


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@every_face
def test_labels_of_other_numbers_are_refused(dtype, face):
    deltas, targets, labels = (give(x, face) for x in (D, T, L.astype(dtype)))
    with pytest.raises(ValueError, match=f"labels must be integers, got {np.dtype(dtype)}"):
        fe.smooth_l1(deltas, targets, labels)


@pytest.mark.parametrize("label", [-1, 3, 10**12])
@every_face
def test_label_out_of_range_names_the_row(label, face):
    labels = np.array([0, 1, 2, label, 1])
    deltas, targets = np.zeros((5, 12), np.float32), np.zeros((5, 4), np.float32)
    says = rf"labels\[3\] must be in \[0, 3\), got {label}"
    given = [give(x, face) for x in (deltas, targets, labels)]
    with pytest.raises(ValueError, match=says):
        fe.smooth_l1(*given)
    with pytest.raises(ValueError, match=says):
        fe.smooth_l1_backward(give(np.array(1, np.float32), face), *given)


D, T, L = np.zeros((5, 12), np.float32), np.zeros((5, 4), np.float32), np.zeros(5, np.int64)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: fe.smooth_l1(D, T), r"without labels deltas must be \(R, 4\), got \(5, 12\)"),
        (lambda: fe.smooth_l1(D[:4], T, L), r"deltas.*targets \(5\), got 4"),
        (lambda: fe.smooth_l1(D[:, :11], T, L),
         r"deltas must be \(R, 4 \* classes\), got \(5, 11\)"),
        (lambda: fe.smooth_l1(D, T, L[:3]), "labels must have 5 elements, got 3"),
        (lambda: fe.smooth_l1(D, T, L, weights=T[:, :3]), "weights must have the shape of targets"),
        (lambda: fe.smooth_l1(D, T, L, weights=T[:4]), "weights must have the shape of targets"),
        (lambda: fe.smooth_l1(D, T.astype(np.float64), L), "targets must be float32, got float64"),
        (lambda: fe.smooth_l1(D.astype(np.float16), T, L), "deltas must be .*, got float16"),
        (lambda: fe.smooth_l1(D, T, L, beta=-1), "beta must be a number >= 0, got -1"),
        (lambda: fe.smooth_l1(D, T, L, beta=NAN), "beta.*nan"),
        (lambda: fe.smooth_l1(D, T, L, normalizer=0),
         "normalizer must be a positive number, got 0"),
        (lambda: fe.smooth_l1(D, T, L, normalizer=INF),
         "normalizer must be a positive number, got inf"),
        (lambda: fe.smooth_l1(D, T, L, normalizer=1e-46), "normalizer .* inverse .*, got 1e-46"),
        (lambda: fe.smooth_l1(D, T, L, normalizer=1e-39), "normalizer .* inverse .*, got 1e-39"),
        (lambda: _core.smooth_l1_backward(D, T, L, None, 1, 1, np.float32(1), D[:4].copy(), 0),
         r"grad_deltas must be \(5, 12\), got \(4, 12\)"),
        (lambda: fe.smooth_l1_backward(T[0, :2], D, T, L),
         r"grad_loss must be one number, got shape \(2,\)"),
        (lambda: fe.smooth_l1(D, T[:, 0], L), "targets must have 2 dimensions"),
        (lambda: fe.smooth_l1(D[0], T, L), "deltas must have 2 dimensions"),
        (lambda: fe.smooth_l1(D, T[:, :0], L), "targets must be .*D > 0"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, says):
    with pytest.raises(ValueError, match=says):
        call()
