"""The torch half of the operators: gradients and the module. Imported only beside torch."""

from __future__ import annotations

import math
from typing import Any

import torch

from fastrcnn_engine.ops._arrays import arrays_of, is_traced
from fastrcnn_engine.ops.box_codec import clip
from fastrcnn_engine.ops.roi_pool import pool, roi_pool, roi_pool_backward, scatter
from fastrcnn_engine.ops.smooth_l1 import gradient_of, loss_of, take_operands

# torch.fx leaves the call in RoIPool alone, as it does torchvision's.
torch.fx.wrap("roi_pool")


def is_enabled() -> bool:
    """Whether torch records gradients at this point."""
    return torch.is_grad_enabled()


class RoIPoolFunction(torch.autograd.Function):
    """`roi_pool` with its gradient by argmax (paper equation 4)."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        boxes: torch.Tensor,
        output_size: tuple[int, int],
        spatial_scale: float,
    ) -> torch.Tensor:
        arrays = arrays_of(input, "input")
        # Nobody sees this argmax: the narrow type saves a quarter of the memory.
        cells = math.prod(input.shape[2:])
        narrow = cells < 65536
        output, argmax = pool(
            arrays, input, boxes, output_size, spatial_scale,
            argmax_dtype="uint16" if narrow else "int32",
        )  # fmt: skip
        ctx.save_for_backward(argmax, boxes)
        ctx.input_shape, ctx.spatial_scale = input.shape, spatial_scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        argmax, boxes = ctx.saved_tensors
        gradient = roi_pool_backward(
            gradients[0], argmax, boxes, ctx.input_shape, ctx.spatial_scale
        )
        return gradient, None, None, None


class RoIPoolBackwardFunction(torch.autograd.Function):
    """`roi_pool_backward`, which is linear in the gradient it is given."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: torch.Tensor,
        argmax: torch.Tensor,
        boxes: torch.Tensor,
        input_shape: tuple[int, ...],
        spatial_scale: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(argmax, boxes)
        return scatter(grad_output, argmax, boxes, input_shape, spatial_scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradients_of_maxima(gradients[0], *ctx.saved_tensors), None, None, None, None


def gradients_of_maxima(
    grad_gradient: torch.Tensor, argmax: torch.Tensor, boxes: torch.Tensor
) -> torch.Tensor:
    """What `roi_pool_backward` does, the other way round: each output gets what is at its argmax.

    Args:
        grad_gradient: (N, C, H, W). argmax: (R, C, PH, PW). boxes: (R, 5).

    Returns:
        (R, C, PH, PW), 0 for an empty bin. Made of torch's own operators, so it can be
        differentiated again.
    """
    n, c, h, w = grad_gradient.shape
    if n * h * w == 0:  # no cell, so nothing but empty bins
        return grad_gradient.sum().expand(argmax.shape)
    cell = argmax.long()
    image = boxes[:, 0].long()
    usable = (cell >= 0) & (cell < h * w) & ((image >= 0) & (image < n)).view(-1, 1, 1, 1)
    plane = image.view(-1, 1) * c + torch.arange(c, device=boxes.device)
    place = torch.where(usable, plane[:, :, None, None] * (h * w) + cell, 0)
    return torch.where(usable, grad_gradient.reshape(-1)[place], 0)


class SmoothL1Function(torch.autograd.Function):
    """`smooth_l1` with its gradient in the deltas."""

    @staticmethod
    def forward(
        ctx: Any,
        deltas: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor | None,
        weights: torch.Tensor | None,
        beta: float,
        normalizer: float | None,
    ) -> torch.Tensor:
        arrays = arrays_of(deltas, "deltas")
        operands = take_operands(arrays, deltas, targets, labels, weights)
        ctx.save_for_backward(*operands, deltas)
        ctx.beta, ctx.normalizer = beta, normalizer
        return loss_of(arrays, operands, beta, normalizer)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_loss,) = gradients
        saved = ctx.saved_tensors
        operands, deltas = saved[:4], saved[4]
        # Traced: many gradients at once. Recorded: the registered operator, which belongs to the
        # graph, says that it has no derivative.
        if torch.is_grad_enabled() or is_traced(grad_loss):
            from fastrcnn_engine.ops import torch_ops

            gradient = torch_ops.call(
                "smooth_l1_backward", grad_loss, deltas, *operands[1:], ctx.beta, ctx.normalizer
            )
        else:
            arrays = arrays_of(grad_loss, "grad_loss")
            gradient = gradient_of(arrays, grad_loss, operands, ctx.beta, ctx.normalizer)
        return gradient, None, None, None, None, None


class ClipFunction(torch.autograd.Function):
    """`clip_boxes_to_image`; the gradient passes where a side was not moved."""

    @staticmethod
    def forward(
        ctx: Any, boxes: torch.Tensor, size: tuple[float, float], inclusive: bool
    ) -> torch.Tensor:
        clipped = clip(boxes, size, inclusive)
        ctx.save_for_backward(clipped == boxes)
        return clipped

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return torch.where(kept, gradients[0], 0), None, None


class RoIPool(torch.nn.Module):
    """`roi_pool` as a module. Signature of `torchvision.ops.RoIPool`.

    Args:
        output_size: (PH, PW), or one number for both.
        spatial_scale: map cells per image pixel.
    """

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(
        self, input: torch.Tensor, rois: torch.Tensor | list[torch.Tensor]
    ) -> torch.Tensor:
        """(N, C, H, W) features and (R, 5) RoIs -> (R, C, PH, PW)."""
        return roi_pool(input, rois, self.output_size, self.spatial_scale)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"
