"""The operators of `mmcv._ext` that the detectors use, without anything compiled.

Signatures are those of mmcv's extension module: results go into tensors that the caller allocated, except where
mmcv returns them. `baselines.openmmlab` puts this module's functions in the place of the compiled ones.

Half precision (float16, bfloat16) is computed in float32 and rounded once at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from baselines._nms import greedy_keep

_CHUNK_ELEMENTS = 1 << 23
"""Largest temporary of RoIAlign, in elements."""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression.

    On the CPU equal scores keep the order of `scores.sort(descending=True)`, as in mmcv's compiled operator
    (torchvision's kernel sorts stably, hence differs there). CUDA tensors take torchvision's kernel where it is
    compiled and `offset` is 0; else they are decided on the CPU.

    Args:
        boxes: (N, 4) floating point, x1 y1 x2 y2.
        scores: (N,).
        iou_threshold: Boxes above it (compared in the boxes' precision) go.
        offset: 0, or 1 where x2 and y2 are the last pixel inside.

    Returns:
        int64 indices of the kept boxes, best first, on the device of `boxes`.
    """
    if not len(boxes):
        return torch.empty(0, dtype=torch.int64, device=boxes.device)
    boxes, scores = _compute(boxes.detach()), _compute(scores.detach())
    if boxes.is_cuda and offset == 0 and torchvision_has_ops():
        threshold = float(np.float32(iou_threshold)) if boxes.dtype == torch.float32 else iou_threshold
        return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype), threshold)
    order = scores.sort(0, descending=True).indices
    keep = greedy_keep(boxes[order].cpu().numpy(), iou_threshold, offset)
    return order[torch.from_numpy(keep).to(order.device)]


def torchvision_has_ops() -> bool:
    """Whether torchvision's own compiled operators are loaded."""
    import torchvision

    return bool(torchvision.extension._has_ops())


def _compute(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# --- RoIAlign ---------------------------------------------------------------------------------------------------


def roi_align(
    features: Tensor,
    rois: Tensor,
    spatial_scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign with average pooling (Mask R-CNN, section 3), differentiable in `features`.

    A bin's average of bilinear samples is a weighted sum of pixels, and its weights are a product of one for the
    row and one for the column: the sums are one `embedding_bag` over the pixels.

    Args:
        features: (N, C, H, W) floating point.
        rois: (K, 5) batch index, x1, y1, x2, y2 in the image.
        spatial_scale: Size of the feature map over size of the image.
        pooled_height: Bins downwards, P.
        pooled_width: Bins across, Q.
        sampling_ratio: Samples a bin and direction; 0 or less takes one a pixel of the bin, rounded up.
        aligned: Shifts by half a pixel, so that pixel centres are where the samples expect them.

    Returns:
        (K, C, P, Q), dtype of `features`.
    """
    _, channels, height, width = features.shape
    pixels = _compute(features).permute(0, 2, 3, 1).reshape(-1, channels)
    pooled = [features.new_zeros(0, channels, dtype=pixels.dtype)]
    for pixel, weight, bags in _roi_bags(
        features.shape,
        rois.to(pixels.dtype),
        spatial_scale,
        pooled_height,
        pooled_width,
        sampling_ratio,
        aligned,
    ):
        pooled.append(F.embedding_bag(pixel, pixels, bags, mode="sum", per_sample_weights=weight))
    result = torch.cat(pooled).view(len(rois), pooled_height, pooled_width, channels).permute(0, 3, 1, 2)
    return result.to(features.dtype).contiguous()


def _roi_align_gradient(
    gradient: Tensor,
    shape: torch.Size,
    rois: Tensor,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """The gradient of `roi_align` in its features, of the given shape; `gradient` is (K, C, P, Q)."""
    batch, channels, height, width = shape
    pooled_height, pooled_width = gradient.shape[2:]
    rows = gradient.permute(0, 2, 3, 1).reshape(-1, channels)
    result = rows.new_zeros(batch * height * width, channels)
    done = 0
    for pixel, weight, bags in _roi_bags(
        shape, rois.to(rows.dtype), spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned
    ):
        # The transposed sum: a bag per pixel, holding the bins it went into.
        bag = torch.bucketize(torch.arange(len(pixel), device=pixel.device), bags, right=True) - 1
        order = pixel.argsort(stable=True)
        begin = torch.searchsorted(pixel[order], torch.arange(len(result), device=pixel.device))
        result += F.embedding_bag(
            bag[order], rows[done : done + len(bags)], begin, mode="sum", per_sample_weights=weight[order]
        )
        done += len(bags)
    return result.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _roi_bags(
    shape: torch.Size,
    rois: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields, for a part of the RoIs, the pixels and weights of its bins and where each bin's pixels begin."""
    height, width = shape[2:]
    start, bins, counts = _roi_geometry(rois, scale, pooled_height, pooled_width, sampling_ratio, aligned)
    most = max(1, int(counts.max())) if len(rois) else 1
    largest = most * max(
        4 * most * pooled_height * pooled_width, pooled_height * height, pooled_width * width
    )
    for part in torch.arange(len(rois), device=rois.device).split(max(1, _CHUNK_ELEMENTS // largest)):
        x, y = (
            _coordinates(start[part, axis], bins[part, axis], counts[part, axis], pooled)
            for axis, pooled in enumerate((pooled_width, pooled_height))
        )
        samples = counts[part].prod(dim=1).clamp(min=1)
        rows, columns = _pixel_weights(y, height) / samples[:, None, None], _pixel_weights(x, width)
        yield _cross(rows, columns, width, rois[part, 0].long() * (height * width))


def _roi_geometry(
    rois: Tensor, scale: float, pooled_height: int, pooled_width: int, sampling_ratio: int, aligned: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Start, bin size and samples a bin of each RoI, x and y: three times (K, 2).

    Raises:
        RuntimeError: A RoI is not finite or, where `aligned` forbids it, of negative size.
    """
    half = 0.5 if aligned else 0.0
    start, end = rois[:, 1:3] * scale - half, rois[:, 3:5] * scale - half
    size = end - start
    if not bool(size.isfinite().all()) or (aligned and bool((size < 0).any())):
        raise RuntimeError("RoIAlign takes finite RoIs, and with aligned=True none of negative size.")
    if not aligned:
        size = size.clamp(min=1.0)
    bins = size / size.new_tensor([pooled_width, pooled_height])
    return start, bins, torch.full_like(bins, sampling_ratio) if sampling_ratio > 0 else bins.ceil()


def _coordinates(start: Tensor, bin_size: Tensor, count: Tensor, pooled: int) -> Tensor:
    """Sampling coordinates (k, P, G) in one direction; -2 (outside) fills up where a RoI has less than G samples."""
    start, bin_size, count = (tensor[:, None, None] for tensor in (start, bin_size, count))
    sample = torch.arange(int(count.max()), device=start.device)
    # In this order of operations the coordinates round as in the compiled operator.
    place = (
        start
        + torch.arange(pooled, device=start.device)[:, None] * bin_size
        + (sample + 0.5) * bin_size / count
    )
    return torch.where(sample < count, place, -2.0)


def _pixel_weights(coordinate: Tensor, size: int) -> Tensor:
    """Sums the bilinear weights of samples (k, P, G) on the pixels of one direction: (k, P, size).

    Samples from -1 to `size` count at the nearest place inside, samples beyond that not at all.
    """
    inside = (coordinate >= -1) & (coordinate <= size)
    place = coordinate.clamp(0, size - 1)[..., None]
    weight = (1 - (place - torch.arange(size, device=place.device)).abs()).clamp(min=0)
    return (weight * inside[..., None]).sum(dim=2)


def _cross(rows: Tensor, columns: Tensor, width: int, first_pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiplies row weights (k, P, H) and column weights (k, Q, W) into one bag of pixels a bin.

    Returns:
        Pixel indices and weights of all bags in a row, and where each of the k * P * Q bags begins.
    """
    k, p, q = len(rows), rows.shape[1], columns.shape[1]
    device = rows.device
    row_roi, row_bin, row = rows.nonzero(as_tuple=True)
    column_roi, column_bin, column = columns.nonzero(as_tuple=True)
    row_weight, column_weight = rows[row_roi, row_bin, row], columns[column_roi, column_bin, column]
    row_count, column_count = (rows != 0).sum(-1), (columns != 0).sum(-1)
    row_begin = (row_count.flatten().cumsum(0) - row_count.flatten()).view(k, p, 1).expand(k, p, q).flatten()
    column_begin = (column_count.flatten().cumsum(0) - column_count.flatten()).view(k, 1, q).expand(k, p, q)
    column_begin = column_begin.flatten()
    across = column_count[:, None, :].expand(k, p, q).flatten()
    size = row_count[:, :, None].expand(k, p, q).flatten() * across
    bags = size.cumsum(0) - size
    owner = torch.repeat_interleave(torch.arange(k * p * q, device=device), size)
    inside = torch.arange(len(owner), device=device) - bags[owner]
    r = row_begin[owner] + inside // across[owner]
    c = column_begin[owner] + inside % across[owner]
    return first_pixel[row_roi[r]] + row[r] * width + column[c], row_weight[r] * column_weight[c], bags


def roi_align_forward(
    input: Tensor,  # noqa: A002
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
    """mmcv's RoIAlign (`pool_mode` 0: largest sample, with its coordinates in `argmax_*`; 1: average)."""
    features = _compute(input)
    rois = rois.to(features.dtype)
    arguments = (spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
    if pool_mode == 0:
        for target, value in zip(
            (output, argmax_y, argmax_x), _roi_max(features, rois, *arguments), strict=True
        ):
            target.copy_(value)
    elif torchvision_has_ops():
        output.copy_(torch.ops.torchvision.roi_align(features, rois, *arguments))
    else:
        output.copy_(roi_align(features, rois, *arguments))


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
    """Adds RoIAlign's gradient to `grad_input` (N, C, H, W)."""
    gradient = _compute(grad_output)
    rois = rois.to(gradient.dtype)
    if pool_mode == 0:
        result = _roi_max_gradient(gradient, grad_input.shape, rois, _compute(argmax_y), _compute(argmax_x))
    elif torchvision_has_ops():
        result = torch.ops.torchvision._roi_align_backward(
            gradient,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    else:
        result = _roi_align_gradient(gradient, grad_input.shape, rois, spatial_scale, sampling_ratio, aligned)
    grad_input += result.to(grad_input.dtype)


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The four pixels around each sample in the compiled operator's order: row, column, bilinear weight."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor().long(), x.floor().long()
    down, right = y - top, x - left
    for row, row_weight in ((top, 1 - down), ((top + 1).clamp(max=height - 1), down)):
        for column, weight in ((left, 1 - right), ((left + 1).clamp(max=width - 1), right)):
            yield row, column, row_weight * weight * inside


def _roi_max(
    features: Tensor,
    rois: Tensor,
    scale: float,
    pooled_height: int,
    pooled_width: int,
    sampling_ratio: int,
    aligned: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest sample a bin with its y and x, each (K, C, P, Q); -10000 at (-1, -1) where a bin has no larger one."""
    shape = (len(rois), features.shape[1], pooled_height, pooled_width)
    output, argmax_y, argmax_x = (features.new_full(shape, fill) for fill in (-10000.0, -1.0, -1.0))
    start, bins, counts = _roi_geometry(rois, scale, pooled_height, pooled_width, sampling_ratio, aligned)
    for roi, image in enumerate(rois[:, 0].long().tolist()):
        if not counts[roi].all():
            continue
        one = slice(roi, roi + 1)
        x = _coordinates(start[one, 0], bins[one, 0], counts[one, 0], pooled_width)[0]
        y = _coordinates(start[one, 1], bins[one, 1], counts[one, 1], pooled_height)[0]
        # Samples of a bin in one direction: (P, Q, samples down, samples across), flattened.
        y, x = (grid.flatten(2) for grid in torch.broadcast_tensors(y[:, None, :, None], x[None, :, None, :]))
        values = torch.zeros((), device=x.device)
        for row, column, weight in _corners(y, x, *features.shape[2:]):
            values = values + weight * features[image][:, row, column]
        value, best = values.max(dim=-1)
        found = value > -10000
        output[roi] = torch.where(found, value, -10000.0)
        for target, coordinate in ((argmax_y, y), (argmax_x, x)):
            chosen = coordinate.expand(len(best), -1, -1, -1).gather(-1, best[..., None])[..., 0]
            target[roi] = torch.where(found, chosen, -1.0)
    return output, argmax_y, argmax_x


def _roi_max_gradient(gradient: Tensor, shape: torch.Size, rois: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Puts each bin's gradient on the pixels around its largest sample."""
    _, channels, height, width = shape
    result = gradient.new_zeros(shape)
    image = rois[:, 0].long()[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    for row, column, weight in _corners(y, x, height, width):
        place = ((image * channels + channel) * height + row) * width + column
        result.view(-1).index_add_(0, place.flatten(), (gradient * weight * (y != -1)).flatten())
    return result


# --- Multi-scale deformable attention ---------------------------------------------------------------------------


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
        value: (B, S, M, D), the levels' pixels one after the other.
        value_spatial_shapes: (L, 2) height and width of each level.
        value_level_start_index: (L,) where each level begins in S.
        sampling_locations: (B, Q, M, L, P, 2) x, y with 0 to 1 across each level; outside is zero.
        attention_weights: (B, Q, M, L, P).
        im2col_step: Images at once in the compiled operator; no effect here.

    Returns:
        (B, Q, M * D).
    """
    batch, _, heads, depth = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    grids = (2 * sampling_locations - 1).permute(0, 2, 3, 1, 4, 5)
    weights = attention_weights.permute(0, 2, 3, 1, 4)
    total = value.new_zeros(batch * heads, depth, queries)
    starts = value_level_start_index.tolist()
    for level, (height, width) in enumerate(value_spatial_shapes.tolist()):
        pixels = value[:, starts[level] : starts[level] + height * width].permute(0, 2, 3, 1)
        sampled = F.grid_sample(
            pixels.reshape(batch * heads, depth, height, width),
            grids[:, :, level].reshape(batch * heads, queries, points, 2),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        total = total + (sampled * weights[:, :, level].reshape(batch * heads, 1, queries, points)).sum(-1)
    return total.view(batch, heads * depth, queries).transpose(1, 2).contiguous()


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
    """Writes the gradients of `ms_deform_attn_forward` in value, locations and weights."""
    with torch.enable_grad():
        value, locations, weights = (
            tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)
        )
        output = ms_deform_attn_forward(
            value, value_spatial_shapes, value_level_start_index, locations, weights, im2col_step
        )
        gradients = torch.autograd.grad(output, (value, locations, weights), grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients, strict=True):
        target.copy_(gradient)


# --- Sigmoid focal loss -----------------------------------------------------------------------------------------


def sigmoid_focal_loss_forward(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor,
    output: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Focal loss (Lin et al. 2017, equation 5) of each class's sigmoid.

    Args:
        input: (N, C) logits.
        target: (N,) int64 class 0 to C - 1; any other value is background.
        weight: (C,) factor by target class, or empty; background has factor 1.
        output: (N, C), receives the loss.
        gamma: Focusing exponent.
        alpha: Weight of the positive class, 1 - alpha for the negative.
    """
    p, positive, factor, log_p, log_not_p = _focal_terms(input, target, weight)
    loss = torch.where(positive, -alpha * (1 - p).pow(gamma) * log_p, -(1 - alpha) * p.pow(gamma) * log_not_p)
    output.copy_(loss * factor)


def sigmoid_focal_loss_backward(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    gamma: float,
    alpha: float,
) -> None:
    """Writes the derivative of `sigmoid_focal_loss_forward` in its logits to `grad_input` (N, C)."""
    p, positive, factor, log_p, log_not_p = _focal_terms(input, target, weight)
    slope = torch.where(
        positive,
        -alpha * (1 - p).pow(gamma) * (1 - p - gamma * p * log_p),
        -(1 - alpha) * p.pow(gamma) * (gamma * (1 - p) * log_not_p - p),
    )
    grad_input.copy_(slope * factor)


def _focal_terms(
    logits: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Probability, whether the class is the target's, the row's factor (N, 1), and both logarithms, clamped."""
    p = _compute(logits).sigmoid()
    classes = torch.arange(logits.shape[1], device=logits.device)
    positive = target[:, None] == classes
    factor = p.new_ones(len(target), 1)
    if weight.numel():
        known = (target >= 0) & (target < len(weight))
        factor[known, 0] = weight.to(p.dtype)[target[known]]
    smallest = torch.finfo(torch.float32).tiny
    return p, positive, factor, p.clamp(min=smallest).log(), (1 - p).clamp(min=smallest).log()


# --- What the build says of itself ------------------------------------------------------------------------------


def get_compiler_version() -> str:
    """Names what stands in for the compiler in mmcv's environment report."""
    return "none (operators of baselines._ops)"


def get_compiling_cuda_version() -> str:
    """Says, as mmcv does, that no CUDA was compiled against."""
    return "not available"


def missing(name: str) -> Any:
    """Makes the stand-in of an operator that is not written here.

    Args:
        name: Its name in `mmcv._ext`.

    Returns:
        A function that raises NotImplementedError, naming the operator and what to do.
    """

    def operator(*_args: Any, **_kwargs: Any) -> None:
        raise NotImplementedError(
            f"mmcv's operator {name!r} needs mmcv's compiled extension, which this installation does not have and "
            "AGSSP-Bench's detectors do not use. To compile it: pip install --no-build-isolation --no-binary "
            ":all: --force-reinstall --no-deps onedl-mmcv (needs a C++ compiler, takes 15 to 30 minutes)."
        )

    operator.__name__ = operator.__qualname__ = name
    return operator
