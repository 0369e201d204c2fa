"""RoI max pooling inside jax.jit, with its gradient.

    pip install jax
    python examples/jax_roi_pool.py

JAX's arrays go in and come out of every operator as they are, but `jit` and `grad` do not see what
happens inside. `pure_callback` calls an operator from a compiled function, `custom_vjp` says what
its gradient is.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import fastrcnn_engine as fe

SIZE, SCALE = 7, 1 / 16


@jax.custom_vjp
def roi_pool(features: jax.Array, rois: jax.Array) -> jax.Array:
    """(N, C, H, W) features and (R, 5) RoIs to (R, C, 7, 7)."""
    return _forward(features, rois)[0]


def _forward(features: jax.Array, rois: jax.Array) -> tuple[jax.Array, tuple]:
    shape = (rois.shape[0], features.shape[1], SIZE, SIZE)
    results = (
        jax.ShapeDtypeStruct(shape, features.dtype),
        jax.ShapeDtypeStruct(shape, jnp.int32),
    )
    pooled, argmax = jax.pure_callback(_pool, results, features, rois)
    return pooled, (argmax, rois, features)


def _backward(kept: tuple, gradient: jax.Array) -> tuple[jax.Array, None]:
    argmax, rois, features = kept
    scatter = partial(_scatter, shape=features.shape)  # the features themselves need not come along
    result = jax.ShapeDtypeStruct(features.shape, features.dtype)
    return jax.pure_callback(scatter, result, gradient, argmax, rois), None


roi_pool.defvjp(_forward, _backward)


def _pool(features: jax.Array, rois: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    return fe.roi_pool_with_argmax(np.asarray(features), np.asarray(rois), SIZE, SCALE)


def _scatter(*arrays: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
    gradient, argmax, rois = map(np.asarray, arrays)
    return fe.roi_pool_backward(gradient, argmax, rois, shape)


def main() -> None:
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.standard_normal((2, 16, 38, 63)), jnp.float32)
    rois = jnp.asarray([[0, 16, 32, 200, 300], [1, 0, 0, 999, 599]], jnp.float32)

    @jax.jit
    def loss(features: jax.Array) -> jax.Array:
        return (roi_pool(features, rois) ** 2).mean()

    value, gradient = jax.value_and_grad(loss)(features)
    moved = loss(features - 100 * gradient)
    print(f"loss {value:.4f}, after a step against its gradient {moved:.4f}")
    assert moved < value


if __name__ == "__main__":
    main()
