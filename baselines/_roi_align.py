"""RoIAlign (Mask R-CNN, section 3) in torch: average and maximum pooling with their gradients.

For the average, a bin's bilinear samples are a weighted sum of pixels whose weights are a product of one for
the row and one for the column. All bins together are one `embedding_bag` over the pixels, and the gradient is
the transposed one. CPU and CUDA; the caller gives float32 or float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_WEIGHTS_AT_ONCE = 1 << 21
"""About how many pixel weights are held at a time: bounds the temporaries to some 100 MB."""
_NO_SAMPLE = -10000.0
"""What the compiled operator's maximum starts from, and leaves where a bin has no larger sample."""


@dataclass(frozen=True)
class Pooling:
    """How regions are pooled.

    Attributes:
        scale: Size of the feature map over size of the image.
        height: Bins downwards, P.
        width: Bins across, Q.
        sampling_ratio: Samples a bin and direction; 0 or less takes one a pixel of the bin, rounded up.
        aligned: Whether coordinates are shifted by half a pixel, to where pixel centres are.
    """

    scale: float
    height: int
    width: int
    sampling_ratio: int
    aligned: bool


@dataclass(frozen=True)
class _Geometry:
    """Start (K, 2), bin size (K, 2) and samples a bin (K, 2) of the regions; x, then y."""

    start: Tensor
    bin_size: Tensor
    count: Tensor

    @classmethod
    def of(cls, rois: Tensor, pooling: Pooling) -> _Geometry:
        """Computes it, rounding as the compiled operator does.

        Raises:
            RuntimeError: A region is not finite or, where `aligned` forbids it, of negative size.
        """
        half = 0.5 if pooling.aligned else 0.0
        start, end = rois[:, 1:3] * pooling.scale - half, rois[:, 3:5] * pooling.scale - half
        size = end - start
        if not bool(size.isfinite().all()) or (pooling.aligned and bool((size < 0).any())):
            raise RuntimeError("RoIAlign takes finite RoIs and, with aligned=True, none of negative size.")
        if not pooling.aligned:
            size = size.clamp(min=1.0)
        bin_size = size / size.new_tensor([pooling.width, pooling.height])
        fixed = pooling.sampling_ratio > 0
        return cls(
            start, bin_size, torch.full_like(size, pooling.sampling_ratio) if fixed else bin_size.ceil()
        )

    def coordinates(self, part: Tensor, axis: int, pooled: int) -> Tensor:
        """Where some of the regions (k,) are sampled on one axis: (k, pooled, G).

        G is the most samples of any of them; where a region has fewer, -2 (outside) fills up.
        """
        start, bin_size, count = (
            tensor[part, axis, None, None] for tensor in (self.start, self.bin_size, self.count)
        )
        sample = torch.arange(int(count.max()), device=start.device)
        place = start + torch.arange(pooled, device=start.device)[:, None] * bin_size
        return torch.where(sample < count, place + (sample + 0.5) * bin_size / count, -2.0)


def average(features: Tensor, rois: Tensor, pooling: Pooling) -> Tensor:
    """Averages the samples of each bin; differentiable in `features`.

    Args:
        features: (N, C, H, W).
        rois: (K, 5) image index, x1, y1, x2, y2 in the image.
        pooling: How.

    Returns:
        (K, C, P, Q), not contiguous.

    Raises:
        RuntimeError: A region is not finite or, with `aligned`, of negative size.
    """
    pixels = _channels_last(features)
    sums = [
        F.embedding_bag(pixel, pixels, begin, mode="sum", per_sample_weights=weight)
        for pixel, weight, begin, _ in _bags(features.shape, rois, pooling)
    ]
    pooled = sums[0] if len(sums) == 1 else torch.cat([pixels[:0], *sums])
    return pooled.view(len(rois), pooling.height, pooling.width, features.shape[1]).permute(0, 3, 1, 2)


def average_gradient(gradient: Tensor, shape: torch.Size, rois: Tensor, pooling: Pooling) -> Tensor:
    """The gradient (N, C, H, W) = `shape` of `average` in its features, for an output gradient (K, C, P, Q)."""
    images, channels, height, width = shape
    bins = _channels_last(gradient)
    result = bins.new_zeros(images * height * width, channels)
    done = 0
    for pixel, weight, begin, owner in _bags(shape, rois, pooling):
        # Turned round: one bag for each pixel, of the bins that it went into.
        order = pixel.argsort(stable=True)
        turned = torch.searchsorted(pixel[order], torch.arange(len(result), device=pixel.device))
        part = bins[done : done + len(begin)]
        done += len(begin)
        result += F.embedding_bag(owner[order], part, turned, mode="sum", per_sample_weights=weight[order])
    return result.view(images, height, width, channels).permute(0, 3, 1, 2)


def _channels_last(tensor: Tensor) -> Tensor:
    """(N, C, H, W) as contiguous rows (N * H * W, C)."""
    return tensor.permute(0, 2, 3, 1).reshape(-1, tensor.shape[1]).contiguous()


def _bags(
    shape: torch.Size, rois: Tensor, pooling: Pooling
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Turns the bins of some of the regions at a time into bags of pixels.

    Yields:
        Pixel and weight of each entry, the entry at which each bag begins, and the bag of each entry.
    """
    if not len(rois):
        return
    height, width = shape[2:]
    geometry = _Geometry.of(rois, pooling)
    most = geometry.count.amax(dim=1).clamp(min=1)
    dense = most * max(pooling.height * height, pooling.width * width)
    entries = torch.maximum(4 * most * most * (pooling.height * pooling.width), dense)
    border = (entries.double().cumsum(0) / _WEIGHTS_AT_ONCE).floor().diff().nonzero()[:, 0] + 1
    for part in torch.arange(len(rois), device=rois.device).tensor_split(border.cpu()):
        columns = _pixel_weights(geometry.coordinates(part, 0, pooling.width), width)
        rows = _pixel_weights(geometry.coordinates(part, 1, pooling.height), height)
        rows = rows / geometry.count[part].prod(dim=1).clamp(min=1)[:, None, None]
        yield _cross(rows, columns, width, rois[part, 0].long() * (height * width))


def _pixel_weights(coordinate: Tensor, size: int) -> Tensor:
    """Sums the bilinear weights of samples (k, P, G) on the pixels of one axis: (k, P, size).

    Samples from -1 to `size` count at the nearest place inside, those beyond not at all.
    """
    inside = (coordinate >= -1) & (coordinate <= size)
    distance = (coordinate.clamp(0, size - 1)[..., None] - torch.arange(size, device=coordinate.device)).abs()
    return ((1 - distance).clamp(min=0) * inside[..., None]).sum(dim=2)


def _cross(
    rows: Tensor, columns: Tensor, width: int, first_pixel: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Multiplies row weights (k, P, H) by column weights (k, Q, W): a bag for each of the k * P * Q bins."""
    k, p, q = len(rows), rows.shape[1], columns.shape[1]
    roi, row_bin, row = rows.nonzero(as_tuple=True)
    row_weight, row_pixel = rows[roi, row_bin, row], first_pixel[roi] + row * width
    roi, column_bin, column = columns.nonzero(as_tuple=True)
    column_weight = columns[roi, column_bin, column]

    def per_bin(weights: Tensor, view: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        count = (weights != 0).sum(dim=-1)
        begin = (count.flatten().cumsum(0) - count.flatten()).view_as(count)
        return count.view(view).expand(k, p, q).flatten(), begin.view(view).expand(k, p, q).flatten()

    down, row_begin = per_bin(rows, (k, p, 1))
    across, column_begin = per_bin(columns, (k, 1, q))
    size = down * across
    begin = size.cumsum(0) - size
    owner = torch.repeat_interleave(size)
    place = torch.arange(len(owner), device=owner.device) - begin[owner]
    r = row_begin[owner] + place // across[owner]
    c = column_begin[owner] + place % across[owner]
    return row_pixel[r] + column[c], row_weight[r] * column_weight[c], begin, owner


def maximum(features: Tensor, rois: Tensor, pooling: Pooling) -> tuple[Tensor, Tensor, Tensor]:
    """Takes the largest sample of each bin.

    Args:
        features: (N, C, H, W).
        rois: (K, 5) image index, x1, y1, x2, y2 in the image.
        pooling: How.

    Returns:
        Values and the y and x of their samples, each (K, C, P, Q); -10000 at (-1, -1) where none is larger.

    Raises:
        RuntimeError: A region is not finite or, with `aligned`, of negative size.
    """
    shape = (len(rois), features.shape[1], pooling.height, pooling.width)
    result, best_y, best_x = (features.new_full(shape, fill) for fill in (_NO_SAMPLE, -1.0, -1.0))
    geometry = _Geometry.of(rois, pooling)
    for roi in geometry.count.all(dim=1).nonzero()[:, 0]:
        x = geometry.coordinates(roi[None], 0, pooling.width)[0]
        y = geometry.coordinates(roi[None], 1, pooling.height)[0]
        y, x = (grid.flatten(2) for grid in torch.broadcast_tensors(y[:, None, :, None], x[None, :, None, :]))
        image = features[rois[roi, 0].long()]
        sample = torch.zeros((), dtype=image.dtype, device=image.device)
        for row, column, weight in _corners(y, x, *image.shape[1:]):
            sample = sample + weight * image[:, row, column]
        value, index = sample.max(dim=-1)
        found = value > _NO_SAMPLE
        result[roi] = torch.where(found, value, _NO_SAMPLE)
        for target, grid in ((best_y, y), (best_x, x)):
            chosen = grid.expand(len(index), -1, -1, -1).gather(-1, index[..., None])[..., 0]
            target[roi] = torch.where(found, chosen, -1.0)
    return result, best_y, best_x


def maximum_gradient(gradient: Tensor, shape: torch.Size, rois: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The gradient (N, C, H, W) = `shape` of `maximum`, from the output gradient and the samples' y and x."""
    _, channels, height, width = shape
    result = gradient.new_zeros(shape)
    image = rois[:, 0].long()[:, None, None, None]
    plane = (image * channels + torch.arange(channels, device=x.device)[:, None, None]) * height
    for row, column, weight in _corners(y, x, height, width):
        share = gradient * weight * (y != -1)
        result.view(-1).index_add_(0, ((plane + row) * width + column).flatten(), share.flatten())
    return result


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The four pixels around each sample, in the compiled operator's order: row, column, bilinear weight."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor().long(), x.floor().long()
    down, right = y - top, x - left
    for row, row_weight in ((top, 1 - down), ((top + 1).clamp(max=height - 1), down)):
        for column, weight in ((left, 1 - right), ((left + 1).clamp(max=width - 1), right)):
            yield row, column, row_weight * weight * inside
