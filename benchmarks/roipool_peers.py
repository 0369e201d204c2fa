"""RoI max pooling as other libraries have it: each peer's fastest way to the result, as a Row.

A peer with `exact_bins` lacks the float32 overshoot of Caffe, torchvision and this package
(roipool_workloads.py) and differs in those RoIs; no other difference is known on finite features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from harness import Row
from roipool_workloads import SCALE, Problem, map_corners

VALUES_KEPT = "values, kept"  # kept: written into memory that is there
VALUES_16_BIT = "16-bit values, kept"  # float16, bfloat16: half the bytes
VALUES_FRESH = "values, fresh"
ARGMAX_KEPT = "values+argmax, kept"
ARGMAX_FRESH = "values+argmax, fresh"
GRADIENT = "gradient, fresh"
GRADIENT_16_BIT = "from 16-bit argmax"  # as autograd keeps it


class TorchVision:
    name = "torchvision"
    install = "pip install torchvision (the build for the installed torch)"
    exact_bins = False
    devices = ("cpu", "cuda")

    def __init__(self, threads: int) -> None:
        import torchvision

        self.version, self.op = torchvision.__version__, torch.ops.torchvision

    def forward(self, problem: Problem) -> Row:
        x, rois, p = problem.x, problem.rois, problem.workload.p
        return Row(self.name, ARGMAX_FRESH, lambda: self.op.roi_pool(x, rois, SCALE, p, p))

    def backward(self, problem: Problem) -> Row:
        grad, rois, p = problem.grad, problem.rois, problem.workload.p
        argmax = self.op.roi_pool(problem.x, rois, SCALE, p, p)[1]
        arguments = (grad, rois, argmax, SCALE, p, p, *problem.x.shape)
        return Row(self.name, GRADIENT, lambda: self.op._roi_pool_backward(*arguments))


class TorchAdaptive:
    """Torch alone: crop every RoI, pool it adaptively. Channels-last, where it is fastest."""

    name = "torch-adaptive"
    install = "comes with torch"
    exact_bins = True
    devices = ("cpu",)

    def __init__(self, threads: int) -> None:
        self.version = torch.__version__

    def _pool(self, x: torch.Tensor, problem: Problem) -> Callable[[], torch.Tensor]:
        corners, p = map_corners(problem.rois.numpy()) + [0, 0, 1, 1], problem.workload.p
        crops = list(zip(problem.rois[:, 0].int().tolist(), corners.tolist(), strict=True))
        pool = torch.nn.functional.adaptive_max_pool2d
        return lambda: torch.cat(
            [pool(x[n : n + 1, :, y1:y2, x1:x2], p) for n, (x1, y1, x2, y2) in crops]
        )

    def forward(self, problem: Problem) -> Row:
        x = problem.x.contiguous(memory_format=torch.channels_last)
        return Row(self.name, VALUES_FRESH, self._pool(x, problem))

    def backward(self, problem: Problem) -> Row | None:
        if problem.workload.r > 300:  # autograd makes a whole map for every crop: seconds
            return None
        x = problem.x.clone(memory_format=torch.channels_last).requires_grad_()
        grad = problem.grad.contiguous(memory_format=torch.channels_last)
        y = self._pool(x, problem)()
        run = torch.autograd.grad
        return Row(self.name, GRADIENT, lambda: run(y, x, grad, retain_graph=True)[0])


class OpenVino:
    name = "openvino"
    install = "pip install openvino"
    exact_bins = True
    devices = ("cpu",)

    def __init__(self, threads: int) -> None:
        import openvino

        self.ov, self.version = openvino, openvino.__version__.partition("-")[0]
        self.options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def model(
        self, arrays: list[np.ndarray], outputs_of: Callable[..., list]
    ) -> Callable[[], list[np.ndarray]]:
        """Computes, from the arrays, the outputs that `outputs_of` makes of an input for each."""
        inputs = [self.ov.opset1.parameter(array.shape, np.float32) for array in arrays]
        model = self.ov.Model(outputs_of(*inputs), inputs)
        request = self.ov.Core().compile_model(model, "CPU", self.options).create_infer_request()
        for i, array in enumerate(arrays):
            request.set_input_tensor(i, self.ov.Tensor(array, shared_memory=True))

        def run(_alive: list = arrays) -> list[np.ndarray]:  # the request only points at them
            request.infer()
            return [tensor.data for tensor in request.output_tensors]

        return run

    def forward(self, problem: Problem) -> Row:
        p = problem.workload.p
        options = {"output_roi": [p, p], "spatial_scale": SCALE, "method": "max"}
        run = self.model(
            [problem.x.numpy(), problem.rois.numpy()],
            lambda *inputs: [self.ov.opset2.roi_pooling(*inputs, **options)],
        )
        return Row(self.name, VALUES_KEPT, lambda: run()[0])


class OnnxRuntime:
    name = "onnxruntime"
    install = "pip install onnxruntime onnx"
    exact_bins = False
    devices = ("cpu",)

    def __init__(self, threads: int) -> None:
        import onnx
        import onnxruntime

        self.helper, self.float = onnx.helper, onnx.TensorProto.FLOAT
        self.ort, self.version = onnxruntime, onnxruntime.__version__
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def forward(self, problem: Problem) -> Row:
        x, rois, out, p = problem.x, problem.rois, problem.out, problem.workload.p
        tensors = {"x": x, "rois": rois, "out": out}
        value = self.helper.make_tensor_value_info
        values = [value(name, self.float, list(t.shape)) for name, t in tensors.items()]
        size = {"pooled_shape": [p, p], "spatial_scale": SCALE}
        node = self.helper.make_node("MaxRoiPool", ["x", "rois"], ["out"], **size)
        graph = self.helper.make_graph([node], "pool", values[:2], values[2:])
        opset = self.helper.make_opsetid("", 21)
        model = self.helper.make_model(graph, opset_imports=[opset], ir_version=10)
        session = self.ort.InferenceSession(model.SerializeToString(), self.options)
        binding = session.io_binding()
        binding.bind_cpu_input("x", x.numpy())
        binding.bind_cpu_input("rois", rois.numpy())
        binding.bind_output("out", "cpu", 0, np.float32, tuple(out.shape), out.data_ptr())

        def run() -> torch.Tensor:
            session.run_with_iobinding(binding)
            return out

        return Row(self.name, VALUES_KEPT, run)


PEERS = (TorchVision, TorchAdaptive, OpenVino, OnnxRuntime)
