"""The operators of `mmcv._ext` that the detectors use, without anything compiled of mmcv's.

Signatures and semantics are those of mmcv's extension module: results go into tensors that the caller
allocated, except where mmcv returns them. `baselines.openmmlab` puts these functions where mmcv looks for the
compiled ones. float16 and bfloat16 are computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from baselines import _roi_align
from baselines._nms import greedy_keep
from baselines._roi_align import Pooling


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression.

    On the CPU, equal scores stand in the order of `scores.sort(descending=True)`, as in mmcv's compiled
    operator; torchvision's kernel sorts stably and so differs there, hence is not used. CUDA tensors go to
    torchvision's kernel where it has one and `offset` is 0, else they are decided on the CPU.

    Args:
        boxes: (N, 4) floating point, x1 y1 x2 y2.
        scores: (N,).
        iou_threshold: A box that overlaps a better one by more, in the boxes' precision, goes.
        offset: 0, or 1 where x2 and y2 are the last pixel inside (sizes are then `x2 - x1 + 1`).

    Returns:
        int64 indices of the kept boxes, best first, on the device of `boxes`.
    """
    boxes, scores = at_least_float32(boxes), scores.detach()
    if offset == 0 and boxes.is_cuda and _torchvision_runs("nms", boxes):
        # mmcv compares with a float32 threshold, torchvision with a float64 one.
        threshold = float(np.float32(iou_threshold)) if boxes.dtype == torch.float32 else iou_threshold
        return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), threshold)
    return _keep_in_order(boxes, scores.sort(0, descending=True).indices, iou_threshold, offset)


def torchvision_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression as `torchvision.ops.nms` has it on the CPU.

    It differs from mmcv's in two details: equal scores keep their order, and the threshold is a float64.

    Args:
        boxes: (N, 4) floating point, x1 y1 x2 y2.
        scores: (N,).
        iou_threshold: A box that overlaps a better one by more goes.

    Returns:
        int64 indices of the kept boxes, best first, on the device of `boxes`.
    """
    boxes = at_least_float32(boxes)
    if boxes.dtype == torch.float32 and float(rounded := np.float32(iou_threshold)) > iou_threshold:
        # The same comparison in float32: with the largest float32 that is not above the threshold.
        iou_threshold = float(np.nextafter(rounded, np.float32(-np.inf)))
    return _keep_in_order(boxes, scores.sort(dim=0, descending=True, stable=True).indices, iou_threshold, 0)


def _keep_in_order(boxes: Tensor, order: Tensor, iou_threshold: float, offset: int) -> Tensor:
    keep = greedy_keep(boxes.detach()[order].cpu().numpy(), iou_threshold, offset)
    return order[torch.from_numpy(keep).to(order.device)]


def at_least_float32(tensor: Tensor) -> Tensor:
    """Leaves float64, makes anything else float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _torchvision_runs(operator: str, tensor: Tensor) -> bool:
    """Whether torchvision's own compiled operator is loaded, with a kernel for the tensor's device."""
    import torchvision

    return bool(torchvision.extension._has_ops()) and torch._C._dispatch_has_kernel_for_dispatch_key(
        f"torchvision::{operator}", tensor.device.type.upper()
    )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign, by torchvision's kernel where there is one for the average.

    Args:
        input: (N, C, H, W) floating point.
        rois: (K, 5) image index, x1, y1, x2, y2 in the image.
        output: (K, C, aligned_height, aligned_width), receives the result.
        argmax_y: Like `output` for the maximum: receives where the largest sample lies. Else unused.
        argmax_x: The same, x.
        aligned_height: Bins downwards.
        aligned_width: Bins across.
        spatial_scale: Size of the feature map over size of the image.
        sampling_ratio: Samples a bin and direction; 0 takes one a pixel of the bin, rounded up.
        pool_mode: 0 for the maximum, 1 for the average.
        aligned: Whether coordinates are shifted by half a pixel.

    Raises:
        RuntimeError: A region is not finite or, with `aligned`, of negative size.
    """
    features = at_least_float32(input)
    rois = rois.to(features.dtype)
    pooling = Pooling(spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
    if pool_mode == 0:
        results = _roi_align.maximum(features, rois, pooling)
        for target, result in zip((output, argmax_y, argmax_x), results, strict=True):
            target.copy_(result)
    elif _torchvision_runs("roi_align", features):
        output.copy_(
            torch.ops.torchvision.roi_align(
                features, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
            )
        )
    else:
        output.copy_(_roi_align.average(features, rois, pooling))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Adds RoIAlign's gradient to `grad_input` (N, C, H, W); the rest as in `roi_align_forward`."""
    gradient = at_least_float32(grad_output)
    rois = rois.to(gradient.dtype)
    shape = grad_input.shape
    if pool_mode == 0:
        y, x = at_least_float32(argmax_y), at_least_float32(argmax_x)
        result = _roi_align.maximum_gradient(gradient, shape, rois, y, x)
    elif _torchvision_runs("_roi_align_backward", gradient):
        result = torch.ops.torchvision._roi_align_backward(
            gradient, rois, spatial_scale, aligned_height, aligned_width, *shape, sampling_ratio, aligned
        )
    else:
        pooling = Pooling(spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
        result = _roi_align.average_gradient(gradient, shape, rois, pooling)
    grad_input += result.to(grad_input.dtype)


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, equation 3), differentiable.

    Args:
        value: (B, S, M, D) floating point, the pixels of all levels.
        value_spatial_shapes: (L, 2) int64 height and width of the levels.
        value_level_start_index: (L,) int64 where in S each level begins.
        sampling_locations: (B, Q, M, L, P, 2) x, y; a level spans 0 to 1, beyond it is zero.
        attention_weights: (B, Q, M, L, P).
        im2col_step: Images at once in the compiled operator; without effect here.

    Returns:
        (B, Q, M * D), dtype of `value`.
    """
    batch, _, heads, depth = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    pixels = at_least_float32(value).permute(0, 2, 3, 1)
    grids = (2 * at_least_float32(sampling_locations) - 1).permute(0, 2, 3, 1, 4, 5)
    weights = at_least_float32(attention_weights).permute(0, 2, 3, 1, 4)
    total = pixels.new_zeros(batch * heads, depth, queries)
    starts = value_level_start_index.tolist()
    for level, (height, width) in enumerate(value_spatial_shapes.tolist()):
        sampled = F.grid_sample(
            pixels[..., starts[level] : starts[level] + height * width].reshape(-1, depth, height, width),
            grids[:, :, level].reshape(-1, queries, points, 2),
            align_corners=False,
        )
        total = total + (sampled * weights[:, :, level].reshape(-1, 1, queries, points)).sum(dim=-1)
    return total.view(batch, heads * depth, queries).transpose(1, 2).contiguous().to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Writes the gradients of `ms_deform_attn_forward` in its values, locations and weights to `grad_*`."""
    inputs = [tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            inputs[0], value_spatial_shapes, value_level_start_index, inputs[1], inputs[2], im2col_step
        )
    gradients = torch.autograd.grad(output, inputs, grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients, strict=True):
        target.copy_(gradient)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (Lin et al. 2017, equation 5) of the sigmoid of each class.

    Args:
        input: (N, C) logits.
        target: (N,) int64 class 0 to C - 1; any other value is background.
        weight: (C,) factor by target class, or empty; background has factor 1.
        output: (N, C), receives the loss.
        gamma: Focusing exponent.
        alpha: Weight of the target's class; every other class has `1 - alpha`.
    """
    p, positive, factor, log_p, log_not_p = _focal_terms(input, target, weight)
    hit = -alpha * (1 - p).pow(gamma) * log_p
    miss = -(1 - alpha) * p.pow(gamma) * log_not_p
    output.copy_(torch.where(positive, hit, miss) * factor)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes the derivative of `sigmoid_focal_loss_forward` in its logits to `grad_input` (N, C)."""
    p, positive, factor, log_p, log_not_p = _focal_terms(input, target, weight)
    hit = -alpha * (1 - p).pow(gamma) * (1 - p - gamma * p * log_p)
    miss = -(1 - alpha) * p.pow(gamma) * (gamma * (1 - p) * log_not_p - p)
    grad_input.copy_(torch.where(positive, hit, miss) * factor)


def _focal_terms(
    logits: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Probabilities, where the class is the target's, each row's factor (N, 1), and log p, log(1 - p)."""
    p = at_least_float32(logits).sigmoid()
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    factor = p.new_ones(len(target), 1)
    if weight.numel():
        known = (target >= 0) & (target < len(weight))
        factor[known, 0] = weight.to(p.dtype)[target[known]]
    smallest = torch.finfo(torch.float32).tiny  # also for float64, as in the compiled operator
    return p, positive, factor, p.clamp(min=smallest).log(), (1 - p).clamp(min=smallest).log()


def get_compiler_version() -> str:
    """What stands in for the compiler in mmcv's environment report."""
    return "none (baselines._ops)"


def get_compiling_cuda_version() -> str:
    """That no CUDA was compiled against, in mmcv's words."""
    return "not available"


OPERATORS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        nms,
        roi_align_forward,
        roi_align_backward,
        ms_deform_attn_forward,
        ms_deform_attn_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        get_compiler_version,
        get_compiling_cuda_version,
    )
}
"""All that `mmcv._ext` offers here, by mmcv's names."""


def missing(name: str) -> Callable[..., None]:
    """Makes the stand-in of an operator that is not written here.

    Args:
        name: Its name in `mmcv._ext`.

    Returns:
        A function that raises NotImplementedError, naming the operator and what to do.
    """

    def operator(*_args: Any, **_kwargs: Any) -> None:
        raise NotImplementedError(
            f"mmcv's operator {name!r} is not available: this mmcv was installed without its compiled "
            "extension, and the benchmark's detectors do not use it. If you need it, compile mmcv (C++ "
            "compiler, 15 to 30 minutes): pip install --no-build-isolation --no-binary onedl-mmcv --no-deps "
            "--force-reinstall onedl-mmcv"
        )

    operator.__name__ = operator.__qualname__ = name
    return operator
