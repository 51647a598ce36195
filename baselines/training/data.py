"""Images and boxes on their way into a detector: decoded once, kept at training size, augmented per draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from baselines import openmmlab

openmmlab.activate()

from mmdet.datasets.transforms import PackDetInputs, RandomFlip
from mmengine.dataset import BaseDataset, Compose, DefaultSampler, pseudo_collate
from mmyolo.datasets.transforms import (
    LetterResize,
    LoadAnnotations,
    Mosaic,
    YOLOv5HSVRandomAug,
    YOLOv5RandomAffine,
)
from mmyolo.datasets.utils import yolov5_collate
from torch.utils.data import DataLoader

from baselines.training.recipes import Augmentation, DetectorTraining
from datasets_builders.images import decode_image

if TYPE_CHECKING:
    import datasets

# Whole: mmyolo spreads an int over the three channels, of a float it makes (114, 0, 0).
_GREY = 114
# The collation of each detector's training batches; evaluation has mmengine's plain one.
_COLLATE = {"yolov8": yolov5_collate}
_META = ("img_id", "ori_shape", "img_shape", "flip", "flip_direction", "scale_factor", "pad_param")


KEPT_BYTES = 4 * 2**30
"""Decoded images of a split are kept in memory up to so many bytes; beyond, each draw decodes its image again."""


class DefectDataset(BaseDataset):
    """A split of a labelled dataset, for mmengine.

    Every image is decoded once and kept in memory at training size (a split too large for that is decoded at each draw;
    the pixels are the same): its longer side is `image_size` pixels (area interpolation when it shrinks, bilinear when
    it grows), uint8, BGR as mmyolo's transforms expect. Boxes are scaled with it; predictions go back to the original
    pixels through `scale_factor` and `ori_shape`.

    Args:
        split: Rows in the detection schema, sorted by the caller if order matters.
        image_size: Side of the square that the detector sees, in pixels.
        pipeline: Transforms of one draw.
        test_mode: Whether the split is evaluated (no access to other images).
    """

    def __init__(self, split: datasets.Dataset, image_size: int, pipeline: list[Any], *, test_mode: bool):
        import datasets

        self._encoded = split.select_columns("image").cast_column("image", datasets.Image(decode=False))
        self._annotations = split.select_columns(["width", "height", "objects"])
        self._image_size = image_size
        self._images: list[np.ndarray] | None = None
        classes = tuple(split.features["objects"]["category"].feature.names)
        super().__init__(
            metainfo={"classes": classes}, pipeline=[], test_mode=test_mode, serialize_data=False
        )
        self.pipeline = Compose(pipeline)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Returns what mmengine needs of each row, and decodes the images where they fit into memory."""
        rows = []
        pixels = 0
        for index, row in enumerate(self._annotations):
            size = _fitted_size(row["width"], row["height"], self._image_size)
            pixels += size[0] * size[1]
            scale = (size[0] / row["width"], size[1] / row["height"])
            objects = row["objects"]
            factors = np.array([scale[0], scale[1], scale[0], scale[1]])
            instances = [
                {"bbox": _corners(box) * factors, "bbox_label": label, "ignore_flag": 0}
                for box, label in zip(objects["bbox"], objects["category"], strict=True)
            ]
            rows.append(
                {
                    "img_id": index,
                    "ori_shape": (row["height"], row["width"]),
                    "scale_factor": scale,
                    "instances": instances,
                }
            )
        if 3 * pixels <= KEPT_BYTES:
            self._images = [self._decode(index) for index in range(len(rows))]
        return rows

    def _decode(self, index: int) -> np.ndarray:
        image = decode_image(self._encoded[index]["image"]["bytes"])
        size = _fitted_size(image.shape[1], image.shape[0], self._image_size)
        if size != (image.shape[1], image.shape[0]):
            shrinks = self._image_size < max(image.shape[:2])
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        bgr.setflags(write=False)
        return bgr

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Returns a row with its image (H, W, 3), uint8, BGR."""
        info = super().get_data_info(idx)
        image = self._images[idx] if self._images is not None else self._decode(idx)
        # The kept image is read-only. Training transforms make new ones; the letterbox may hand the same one on.
        image = image.copy() if self.test_mode else image
        info.update(img=image, img_shape=image.shape[:2], height=image.shape[0], width=image.shape[1])
        if not self.test_mode:
            del info["scale_factor"]
        return info

    def prepare_data(self, idx: int) -> Any:
        """Runs the transforms on a row; in training they may draw other rows too (mosaic)."""
        info = self.get_data_info(idx)
        if not self.test_mode:
            info["dataset"] = self
        return self.pipeline(info)


def _corners(box: list[float]) -> np.ndarray:
    x, y, w, h = box
    return np.array([x, y, x + w, y + h])


def _fitted_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Returns (width, height) of an image whose longer side becomes `size` pixels."""
    ratio = size / max(height, width)
    return max(round(width * ratio), 1), max(round(height * ratio), 1)


def train_pipeline(image_size: int, augmentation: Augmentation, *, mosaic: bool) -> list[Any]:
    """Returns the training transforms (YOLOv8's, without Albumentations' four transforms of probability 0.01).

    Without mosaic, affine scale and HSV gains what is left is mmdet's usual flip of the resized image.

    Args:
        image_size: Side of the result, in pixels.
        augmentation: The protocol's settings.
        mosaic: Whether this phase of the training mixes four images.
    """
    scale = (1 - augmentation.scale, 1 + augmentation.scale)
    hue, saturation, value = augmentation.hsv
    affine = {
        "max_rotate_degree": 0.0,
        "max_shear_degree": 0.0,
        "scaling_ratio_range": scale,
        "max_aspect_ratio": 100,
        "border_val": (_GREY, _GREY, _GREY),
    }
    letterbox = LetterResize(scale=(image_size, image_size), allow_scale_up=True, pad_val={"img": _GREY})
    plain = [letterbox, YOLOv5RandomAffine(**affine)] if augmentation.scale else [letterbox]
    mix = [
        Mosaic(
            img_scale=(image_size, image_size), pad_val=_GREY, pre_transform=[LoadAnnotations(with_bbox=True)]
        ),
        YOLOv5RandomAffine(border=(-image_size // 2, -image_size // 2), **affine),
    ]
    geometry = (
        _Either(mix, plain, augmentation.mosaic) if mosaic and augmentation.mosaic > 0 else Compose(plain)
    )
    colour = [YOLOv5HSVRandomAug(hue_delta=hue, saturation_delta=saturation, value_delta=value)]
    return [
        LoadAnnotations(with_bbox=True),
        geometry,
        *(colour if any(augmentation.hsv) else []),
        RandomFlip(prob=augmentation.flip),
        _height_and_width,
        PackDetInputs(meta_keys=_META),
    ]


def _height_and_width(results: dict[str, Any]) -> dict[str, Any]:
    """Leaves the channels out of `img_shape`, where mmyolo's transforms put them and DINO does not expect them."""
    results["img_shape"] = results["img_shape"][:2]
    return results


class _Either:
    """Runs the first chain with a probability, else the second: an image without mosaic still fits the canvas."""

    def __init__(self, first: list[Any], second: list[Any], probability: float):
        self._first, self._second, self._probability = Compose(first), Compose(second), probability

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        chosen = self._first if np.random.random() < self._probability else self._second
        return chosen(results)


def test_pipeline(image_size: int) -> list[Any]:
    """Returns the transforms of evaluation: letterbox to a square of `image_size` pixels."""
    return [
        LoadAnnotations(with_bbox=True),
        LetterResize(scale=(image_size, image_size), allow_scale_up=False, pad_val={"img": _GREY}),
        _height_and_width,
        PackDetInputs(meta_keys=_META),
    ]


def train_loader(
    split: datasets.Dataset, recipe: DetectorTraining, *, workers: int, seed: int, detector: str = "yolov8"
) -> DataLoader:
    """Returns the loader of a detector's training batches, shuffled by (seed, epoch)."""
    pipeline = train_pipeline(recipe.image_size, recipe.augmentation, mosaic=True)
    dataset = DefectDataset(split, recipe.image_size, pipeline, test_mode=False)
    return DataLoader(
        dataset,
        batch_size=recipe.batch_size,
        sampler=DefaultSampler(dataset, shuffle=True, seed=seed),
        collate_fn=_COLLATE.get(detector, pseudo_collate),
        num_workers=workers,
        worker_init_fn=_seed_worker if workers else None,
        pin_memory=torch.cuda.is_available(),
    )


def validation_loader(split: datasets.Dataset, recipe: DetectorTraining) -> DataLoader:
    """Returns the loader of validation images in the split's order."""
    dataset = DefectDataset(split, recipe.image_size, test_pipeline(recipe.image_size), test_mode=True)
    return DataLoader(
        dataset,
        batch_size=recipe.batch_size,
        sampler=DefaultSampler(dataset, shuffle=False),
        collate_fn=pseudo_collate,
        pin_memory=torch.cuda.is_available(),
    )


def _seed_worker(_: int) -> None:
    # torch gives every worker of every epoch a seed of its own, drawn from the generator seeded for the epoch.
    seed_everything(torch.initial_seed() % 2**32)


def seed_everything(seed: int) -> None:
    """Seeds the global generators that mmyolo's and mmdet's transforms draw from."""
    import random

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
