"""Does an installed wheel work here? `python smoke.py`, with NumPy alone or beside any torch.

Needs nothing of the checkout. Prints what it ran beside; an operator that is wrong is an error.
"""

import functools
import importlib.util
import sys

import numpy as np

import fastrcnn_engine as fe

FEATURES = np.arange(2 * 3 * 8 * 8, dtype=np.float32).reshape(2, 3, 8, 8)
ROIS = np.array([[1, 0, 0, 7, 7], [0, 2, 2, 5, 5]], np.float32)
BOXES = np.array([[0, 0, 9, 9], [1, 0, 9, 9], [20, 20, 30, 30]], np.float32)
SCORES = np.array([0.8, 0.9, 0.1], np.float32)
# A window's largest number is its last. Of the first RoI: rows 3 and 7, columns 3 and 7 of image 1.
MAXIMA = FEATURES[1][:, [3, 7]][:, :, [3, 7]]


def numpy_alone() -> None:
    pooled, argmax = fe.roi_pool_with_argmax(FEATURES, ROIS, 2)
    assert (pooled[0] == MAXIMA).all() and argmax[0, 0].tolist() == [[27, 31], [59, 63]]
    gradient = fe.roi_pool_backward(np.ones_like(pooled), argmax, ROIS, FEATURES.shape)
    assert gradient.sum() == pooled.size and gradient[1, 0, 7, 7] == 1
    assert fe.nms(BOXES, SCORES, 0.5).tolist() == [1, 2]
    assert "torch" not in sys.modules


def beside_torch() -> list[str]:
    """What this torch can do with the operators."""
    import torch

    features = torch.from_numpy(FEATURES).requires_grad_()
    rois, boxes, scores = (torch.from_numpy(x) for x in (ROIS, BOXES, SCORES))
    pooled = fe.roi_pool(features, rois, 2)
    pooled.sum().backward()
    assert (pooled[0].detach().numpy() == MAXIMA).all()
    assert features.grad is not None and features.grad.sum() == pooled.numel()
    loss = fe.smooth_l1(boxes.requires_grad_(), boxes.detach() + 2)
    loss.backward()
    assert loss.item() == 4 * 1.5 and fe.nms(boxes.detach(), scores, 0.5).tolist() == [1, 2]
    done = [f"torch {torch.__version__}: pooling, its gradient, loss, nms"]
    if hasattr(torch.library, "register_autograd"):  # torch 2.4
        compiled = functools.partial(torch.compile, fullgraph=True, backend="aot_eager")
        assert torch.equal(
            compiled(lambda x, r: fe.roi_pool(x, r, 2) * 2)(features, rois), pooled * 2
        )
        assert torch.equal(compiled(fe.smooth_l1)(boxes, boxes.detach() + 2), loss)
        results = torch.library.opcheck(
            torch.ops.fastrcnn_engine.roi_pool.default, (features, rois, [2, 2], 1.0)
        )
        assert set(results.values()) == {"SUCCESS"}, results
        done.append("torch.compile, opcheck")
    return done


if __name__ == "__main__":
    numpy_alone()
    done = [f"Python {sys.version.split()[0]}", f"numpy {np.__version__}"]
    if importlib.util.find_spec("torch"):
        done += beside_torch()
    print(f"fastrcnn_engine {fe.__version__} works:", "; ".join(done))
