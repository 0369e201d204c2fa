"""The torch half of the operators: gradients and the module. Imported only beside torch."""

from __future__ import annotations

from typing import Any

import torch

from fastrcnn_engine.ops.box_codec import clip_boxes_to_image
from fastrcnn_engine.ops.roi_pool import roi_pool, roi_pool_backward, roi_pool_with_argmax
from fastrcnn_engine.ops.smooth_l1 import smooth_l1, smooth_l1_backward


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
        output, argmax = roi_pool_with_argmax(input, boxes, output_size, spatial_scale)
        ctx.save_for_backward(argmax, boxes)
        ctx.input_shape = input.shape
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        argmax, boxes = ctx.saved_tensors
        return roi_pool_backward(grad_output, argmax, boxes, ctx.input_shape), None, None, None


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
        ctx.save_for_backward(deltas, targets, labels, weights)
        ctx.beta, ctx.normalizer = beta, normalizer
        return smooth_l1(
            deltas.detach(), targets, labels, weights=weights, beta=beta, normalizer=normalizer
        )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        deltas, targets, labels, weights = ctx.saved_tensors
        gradient = smooth_l1_backward(
            grad_loss, deltas, targets, labels,
            weights=weights, beta=ctx.beta, normalizer=ctx.normalizer,
        )  # fmt: skip
        return gradient, None, None, None, None, None


class ClipFunction(torch.autograd.Function):
    """`clip_boxes_to_image`; the gradient passes where a side was not moved."""

    @staticmethod
    def forward(
        ctx: Any, boxes: torch.Tensor, size: tuple[int, int], inclusive: bool
    ) -> torch.Tensor:
        clipped = clip_boxes_to_image(boxes.detach(), size, inclusive=inclusive)
        ctx.save_for_backward(clipped == boxes)
        return clipped

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_clipped: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return grad_clipped * kept, None, None


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
