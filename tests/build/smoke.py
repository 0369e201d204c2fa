"""Does an installed wheel work here? `python smoke.py`, with NumPy alone or beside any torch, with
the GIL or without.

Needs nothing of the checkout. Prints what it ran beside; an operator that is wrong is an error.
"""

import functools
import importlib.util
import sys
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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


def every_operator(own: Callable) -> Callable[[], list[bytes]]:
    """A function that gives the bits of what each operator makes of the same arrays, which are of
    the kind that `own` makes.
    """
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (2, 300, 2)).astype(np.float32)
    boxes, others = (own(rows) for rows in np.concatenate([corners, corners + 9], axis=2))
    images = rng.integers(0, 2, (300, 1))
    rois = own(np.hstack([images, corners[0], corners[0] + 9]).astype(np.float32))
    classes = own(rng.integers(0, 4, 300))
    shapes = (300,), (300, 4), (300, 16), (2, 60, 40, 40), (2, 40, 40, 60)
    numbers = [rng.standard_normal(shape, np.float32) for shape in shapes]
    scores, tables, deltas, maps = (own(array) for array in numbers[:4])
    cells = own(numbers[4].transpose(0, 3, 1, 2))  # channels-last
    one = own(np.ones((), np.float32))

    def run() -> list[bytes]:
        made = []
        for features in (maps, cells):
            pooled, argmax = fe.roi_pool_with_argmax(features, rois, 5)
            gradient = fe.roi_pool_backward(pooled, argmax, rois, features.shape)
            made += [pooled, argmax, gradient]
            made += [fe.roi_pool(features, rois, 5), fe.spp_pool(features, rois, (1, 4))]
        made += [fe.smooth_l1(deltas, boxes, classes)]
        made += [fe.smooth_l1_backward(one, deltas, boxes, classes)]
        made += [fe.encode_boxes(boxes, others), fe.decode_boxes(deltas, boxes)]
        made += [fe.clip_boxes_to_image(boxes, (20, 20)), fe.box_iou(boxes, others)]
        made += [fe.nms(boxes, scores, 0.3), fe.batched_nms(boxes, scores, classes, 0.3)]
        made += fe.nms_padded(boxes, scores, 0.3, 50)
        made += fe.detections(boxes, tables, deltas, (30, 30))
        made += fe.detections_padded(boxes, tables, deltas, (30, 30))
        return [np.asarray(array).tobytes() for array in made]

    return run


def from_many_threads(own: Callable) -> None:
    """The operators let go of the GIL, and there may be none: calls run beside each other."""
    run, together = every_operator(own), threading.Barrier(8)

    def several(number: int) -> list[list[bytes]]:
        together.wait()
        made = []
        for turn in range(5):
            fe.set_num_threads(1 + (number + turn) % 3)
            made.append(run())
        return made

    before = fe.get_num_threads()
    with ThreadPoolExecutor(8) as pool:
        made = sum(pool.map(several, range(8)), [])
    fe.set_num_threads(1)
    expected = run()
    fe.set_num_threads(before)
    assert all(bits == expected for bits in made)


def beside_torch() -> list[str]:
    """What this torch can do with the operators."""
    import torch

    from_many_threads(torch.from_numpy)
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
    from_many_threads(np.asarray)
    numpy_alone()
    done = [f"Python {sys.version.split()[0]}", f"numpy {np.__version__}"]
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert not sys._is_gil_enabled(), "an import brought the GIL back"
        done.append("no GIL")
    if importlib.util.find_spec("torch"):
        done += beside_torch()
    print(f"fastrcnn_engine {fe.__version__} works:", "; ".join(done))
