"""JAX's arrays in and out of every operator, and the example that puts one into jax.jit.

JAX starts threads that stay, and tests beside these fork: both run as programs of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from build.steps import ROOT, run

PROGRAM = """
import gc
import jax
import jax.numpy as jnp
import numpy as np
import fastrcnn_engine as fe
from ops.test_arrays import BOXES, CALLS, FEATURES, ROIS, SCORES, VALUES, results_of

for operator in CALLS:
    # Without JAX's 64-bit types, indices are int32 there.
    given, expected = results_of(operator, jnp.asarray), results_of(operator, np.asarray)
    for left, right in zip(given, expected, strict=True):
        assert isinstance(left, jax.Array), (operator, type(left))
        assert left.shape == right.shape and left.dtype.kind == right.dtype.kind, operator
        np.testing.assert_array_equal(np.asarray(left), right, operator)

# Results live on when all they were made of is gone, and are the same memory all the time.
features, rois = jnp.asarray(FEATURES), jnp.asarray(ROIS)
kept = [fe.roi_pool(features + 0, rois + 0, 2) for _ in range(200)]
gc.collect()
junk = [np.full(VALUES.shape, -7, np.float32) for _ in range(1000)]
for pooled in kept:
    np.testing.assert_array_equal(np.asarray(pooled), VALUES)

for kind in (jnp.bfloat16, jnp.float16):
    narrow = features.astype(kind)
    pooled, argmax = fe.roi_pool_with_argmax(narrow, rois.astype(kind), 2)
    wide, where = fe.roi_pool_with_argmax(narrow.astype(jnp.float32), rois, 2)
    assert pooled.dtype == kind and (pooled == wide).all() and (argmax == where).all()
    gradient = fe.roi_pool_backward(pooled, argmax, rois, features.shape)
    wide = fe.roi_pool_backward(wide, where, rois, features.shape)
    assert gradient.dtype == kind and (gradient == wide.astype(kind)).all()
    assert fe.spp_pool(narrow, rois, (1, 2)).dtype == kind

def refused(error, says, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except error as problem:
        assert says in str(problem), problem
    else:
        raise AssertionError(f"not refused: {says}")

# Nothing is written into an array that JAX takes for unchangeable.
refused(ValueError, "out must be a writable array", fe.roi_pool, features, rois, 2,
        out=jnp.zeros((2, 3, 2, 2)))
refused(ValueError, "boxes must be float32 or float64, got bfloat16", fe.nms,
        jnp.asarray(BOXES, jnp.bfloat16), jnp.asarray(SCORES), 0.5)
refused(ValueError, "input cannot be read by DLPack (float8_e5m2)", fe.roi_pool,
        features.astype(jnp.float8_e5m2), rois, 2)
refused(TypeError, "input must be an array", jax.jit(lambda x: fe.roi_pool(x, rois, 2)), features)
print("every operator")
"""


@pytest.mark.parametrize("wide", ["0", "1"])  # whether JAX has 64-bit types
def test_jax_in_jax_out(wide: str) -> None:
    tests = str(Path(__file__).parents[1])
    result = run(sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{PROGRAM}",
                 JAX_ENABLE_X64=wide, JAX_PLATFORMS="cpu")  # fmt: skip
    assert result.returncode == 0 and "every operator" in result.stdout, result.stderr


def test_the_example_learns_through_jit() -> None:
    result = run(sys.executable, ROOT / "examples/jax_roi_pool.py", JAX_PLATFORMS="cpu")
    assert result.returncode == 0 and "after a step" in result.stdout, result.stderr
