"""The one shape of a detection dataset."""

from __future__ import annotations

from collections.abc import Sequence

from datasets import ClassLabel, Features, Image, List, Value

SPLITS = ("train", "validation")


def detection_features(classes: Sequence[str]) -> Features:
    """Returns the features of a detection dataset with the given classes.

    `bbox` is `[x, y, width, height]` in pixels of the decoded image, in continuous coordinates: the left edge
    of the first pixel is 0, the right edge of the last is the image's width. `area` is in pixels: the
    object's exact mask where there is one, else width x height. `mask` is an 8-bit single-channel PNG of the
    image's size, or None; its values are described by `DatasetCard.masks`. Images without defects have empty
    lists.

    Args:
        classes: Class names in index order.
    """
    return Features(
        {
            "image": Image(mode="RGB"),
            "image_id": Value("string"),
            "width": Value("int32"),
            "height": Value("int32"),
            "objects": {
                "id": List(Value("int64")),
                "bbox": List(List(Value("float32"), length=4)),
                "area": List(Value("float32")),
                "category": List(ClassLabel(names=list(classes))),
            },
            "mask": Image(),
        }
    )
