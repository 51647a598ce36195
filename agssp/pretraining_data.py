"""Views of corpus images for pretraining, with anomaly maps that follow each view exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from baselines import openmmlab

openmmlab.activate()

from mmengine.dist import get_rank, get_world_size
from mmpretrain.datasets.transforms import SimMIMMaskGenerator
from torchvision.transforms import v2

from agssp.map_store import MapStore
from agssp.recipes import BackbonePretraining, Crop, Masking, Photometry, Plan
from agssp.upsampling import upsample
from datasets_builders.errors import UserError
from datasets_builders.images import ImageError, decode_image
from datasets_builders.storage import content_key

if TYPE_CHECKING:
    import datasets

Image = NDArray[np.uint8]
Map = NDArray[np.float32]

KEPT_BYTES = 2 * 2**30
"""Most memory for decoded images, over all data-loading processes; what does not fit is decoded at every draw."""


@dataclass(frozen=True)
class Geometry:
    """Which rectangle of an image a view shows, in whole pixels, and whether mirrored.

    Images and maps go through the same `apply`, so a map stays where its image is.
    """

    left: int
    top: int
    width: int
    height: int
    flip: bool

    @property
    def rows(self) -> slice:
        """Rows of the image."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Columns of the image."""
        return slice(self.left, self.left + self.width)

    def resize(self, rectangle: NDArray[Any], size: int) -> NDArray[Any]:
        """Turns the rectangle's values, (height, width) or (height, width, channels), into a view's.

        Area interpolation where both sides shrink, else bilinear.
        """
        shrinks = self.width >= size and self.height >= size
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        resized = cv2.resize(rectangle, (size, size), interpolation=interpolation)
        return resized[:, ::-1] if self.flip else resized

    def of_image(self, image: NDArray[Any], size: int) -> NDArray[Any]:
        """Returns a view of an image, (size, size[, channels])."""
        return self.resize(image[self.rows, self.columns], size)

    def of_map(self, values: Map, image_size: tuple[int, int], size: int) -> Map:
        """Returns the same view of a map on its grid, which covers an image of (width, height) pixels."""
        return self.resize(upsample(values, image_size, self.rows, self.columns), size)


def draw(crop: Crop, image_size: tuple[int, int], view_size: int) -> Geometry:
    """Draws a view's geometry from NumPy's global generator.

    Args:
        crop: Its bounds.
        image_size: (width, height).
        view_size: Side of the view.
    """
    width, height = image_size
    if crop.resize is not None:
        # A square of `side` pixels cut at `view_size` shows this share of each side of the image.
        side = np.random.randint(crop.resize[0], crop.resize[1] + 1)
        share = min(view_size / side, 1.0)
        shown = (width * share, height * share)
    else:
        assert crop.area is not None
        area = width * height * np.random.uniform(*crop.area)
        aspect = np.exp(np.random.uniform(np.log(3 / 4), np.log(4 / 3)))
        shown = (np.sqrt(area * aspect), np.sqrt(area / aspect))
    across, down = (min(max(round(s), 1), whole) for s, whole in zip(shown, image_size, strict=True))
    left = np.random.randint(width - across + 1)
    top = np.random.randint(height - down + 1)
    return Geometry(int(left), int(top), across, down, bool(np.random.random() < crop.flip))


class Corpus(Dataset[dict[str, Any]]):
    """Draws views of a corpus's images.

    An item is asked for by (image, number of the draw), as `EndlessSampler` gives them. What is drawn depends on the
    seed and these two alone: not on workers, ranks, or interruptions.

    Args:
        corpus: Rows with `image`, `image_id` and `category`.
        maps: Anomaly maps of at least these images; None without guidance.
        recipe: How views are made.
        masking: For SimMIM; None for other methods.
        seed: Of the draws.
        kept_bytes: Most memory for decoded images in this process.

    Raises:
        UserError: An image has no map.
    """

    def __init__(
        self,
        corpus: datasets.Dataset,
        maps: MapStore | None,
        recipe: BackbonePretraining,
        masking: Masking | None,
        seed: int,
        kept_bytes: int = KEPT_BYTES,
    ):
        import datasets

        self._rows = corpus.select_columns(["image", "image_id", "category"]).cast_column(
            "image", datasets.Image(decode=False)
        )
        self._recipe, self._seed = recipe, seed
        self._maps = None if maps is None else _Maps(corpus["image_id"][:], maps)
        self._photometry = [_photometry(view.photometry) for view in recipe.views]
        self._masks = None
        if masking is not None:
            self._masks = SimMIMMaskGenerator(recipe.image_size, masking.block, 4, masking.ratio)
        self._kept: dict[int, tuple[Image, int]] = {}
        self._room = kept_bytes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """Draws once: `views` (each (3, S, S) uint8), `labels`, and `maps` (S, S) and `masks` where asked for."""
        index, number = place
        # The model draws from torch's generator too (stochastic depth): it is not to notice.
        with torch.random.fork_rng(devices=[]):
            seed = int(content_key([self._seed, number])[:8], 16)
            np.random.seed(seed)
            # torch.manual_seed also seeds GPUs, which are not drawn from, and takes a millisecond for that.
            torch.default_generator.manual_seed(seed)
            return self._draw(index)

    def _draw(self, index: int) -> dict[str, Any]:
        image, label = self._image(index)
        size = self._recipe.image_size
        extent = (image.shape[1], image.shape[0])
        views: list[torch.Tensor] = []
        drawn: dict[str, Any] = {"views": views, "labels": label}
        for place, view in enumerate(self._recipe.views):
            geometry = draw(view.crop, extent, size)
            pixels = np.ascontiguousarray(geometry.of_image(image, size).transpose(2, 0, 1))
            views.append(self._photometry[place](torch.from_numpy(pixels)))
            if place == 0 and self._maps is not None:
                values = self._maps.values[index].astype(np.float32)
                drawn["maps"] = np.ascontiguousarray(geometry.of_map(values, extent, size))
        if self._masks is not None:
            drawn["masks"] = self._masks.transform({})["mask"]
        return drawn

    def _image(self, index: int) -> tuple[Image, int]:
        if index in self._kept:
            return self._kept[index]
        row = self._rows[index]
        try:
            image = decode_image(row["image"]["bytes"])
        except ImageError as error:
            raise UserError(
                f"Image {row['image_id']!r} of the corpus cannot be read: {error}. Prepare the corpus again."
            ) from error
        if self._maps is not None:
            self._maps.check(index, row["image_id"], (image.shape[1], image.shape[0]))
        image = _bounded(image, self._recipe.kept_side)
        found = (image, int(row["category"]))
        if image.nbytes <= self._room:
            self._room -= image.nbytes
            self._kept[index] = found
        return found


class _Maps:
    """The maps in the order of the images, (N, rows, columns); 16 bits, since a corpus may be large."""

    def __init__(self, image_ids: Sequence[str], maps: MapStore):
        self._folder = maps.folder
        self.values = np.empty((len(image_ids), *maps.grid), np.float16)
        self._sizes = np.empty((len(image_ids), 2), np.int32)
        places = {image_id: place for place, image_id in enumerate(image_ids)}
        for row in maps:
            place = places.pop(row.image_id, None)
            if place is not None:
                self.values[place] = row.map
                self._sizes[place] = row.width, row.height
        if places:
            raise UserError(
                f"{maps.folder} has no anomaly map of {len(places)} of the corpus's {len(image_ids)} images, such "
                f"as {next(iter(places))!r}.\n"
                f"  Make maps of this corpus: python -m agssp maps CORPUS --out {maps.folder}"
            )

    def check(self, index: int, image_id: str, size: tuple[int, int]) -> None:
        """Refuses an image of another size than the one that was mapped."""
        width, height = (int(side) for side in self._sizes[index])
        if (width, height) != size:
            raise UserError(
                f"{self._folder}: the map of {image_id!r} is of an image of {width} x {height} pixels, in the corpus "
                f"it has {size[0]} x {size[1]}.\n"
                f"  Make maps of this corpus: python -m agssp maps CORPUS --out {self._folder}"
            )


def _bounded(image: Image, side: int) -> Image:
    """Shrinks an image whose longer side has more than `side` pixels."""
    height, width = image.shape[:2]
    ratio = side / max(height, width)
    if ratio >= 1:
        return image
    fitted = (max(round(width * ratio), 1), max(round(height * ratio), 1))
    return cv2.resize(image, fitted, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _photometry(settings: Photometry) -> v2.Transform:
    """Builds the changes of a view's values, (3, S, S) uint8."""
    parts: list[v2.Transform] = []
    if settings.distort:
        parts.append(v2.RandomPhotometricDistort(p=settings.distort))
    if settings.jitter:
        parts.append(v2.RandomApply([v2.ColorJitter(*settings.jitter_strength)], p=settings.jitter))
    if settings.grey:
        parts.append(v2.RandomGrayscale(settings.grey))
    if settings.blur:
        parts.append(v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=settings.blur))
    if settings.solarize:
        parts.append(v2.RandomSolarize(128, p=settings.solarize))
    return v2.Compose(parts) if parts else v2.Identity()


class EndlessSampler(Sampler[tuple[int, int]]):
    """Passes over a corpus again and again, shuffled anew each time; an epoch is a piece of a set length of that.

    Gives (image, number of the draw). What an epoch draws depends on the seed and its number alone; several ranks
    share each epoch.

    Args:
        images: Of the corpus.
        epoch_images: Of an epoch, over all ranks.
        seed: Of the order.
    """

    def __init__(self, images: int, epoch_images: int, seed: int):
        self._images, self._epoch_images, self._seed = images, epoch_images, seed
        self._rank, self._ranks = get_rank(), get_world_size()
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the piece that the next iteration gives; mmengine calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._epoch_images // self._ranks

    def __iter__(self) -> Iterator[tuple[int, int]]:
        start = self._epoch * self._epoch_images
        known = -1
        order: NDArray[np.int64] = np.arange(0)
        for position in range(start + self._rank, start + self._epoch_images, self._ranks):
            number, place = divmod(position, self._images)
            if number != known:
                generator = np.random.default_rng(int(content_key([self._seed, number])[:16], 16))
                known, order = number, generator.permutation(self._images)
            yield int(order[place]), position


def loader(
    corpus: datasets.Dataset,
    maps: MapStore | None,
    recipe: BackbonePretraining,
    plan: Plan,
    *,
    masking: Masking | None,
    workers: int,
    seed: int,
) -> DataLoader[dict[str, Any]]:
    """Returns the loader of one device's batches."""
    dataset = Corpus(corpus, maps, recipe, masking, seed, KEPT_BYTES // max(workers, 1))
    images = plan.device_batch * plan.accumulation * plan.steps_per_epoch * get_world_size()
    return DataLoader(
        dataset,
        batch_size=plan.device_batch,
        sampler=EndlessSampler(len(dataset), images, seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
