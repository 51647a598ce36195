"""Images on their way into a detector: kept or decoded per draw, the same pixels and boxes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from baselines.training import data
from datasets_builders.schema import detection_features


def split():
    import datasets

    rng = np.random.default_rng(0)
    rows = []
    for number, (width, height) in enumerate([(40, 30), (64, 64), (20, 90)]):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(buffer, "PNG")
        rows.append(
            {
                "image": {"bytes": buffer.getvalue(), "path": None},
                "image_id": str(number),
                "width": width,
                "height": height,
                "objects": {"id": [1], "bbox": [[4.0, 6.0, 10.0, 12.0]], "area": [120.0], "category": [0]},
                "mask": None,
            }
        )
    return datasets.Dataset.from_list(rows, features=detection_features(["defect"]))


def test_images_decoded_per_draw_equal_kept_ones(monkeypatch) -> None:
    kept = data.DefectDataset(split(), 64, [], test_mode=True)
    monkeypatch.setattr(data, "KEPT_BYTES", 0)
    drawn = data.DefectDataset(split(), 64, [], test_mode=True)
    assert drawn._images is None
    for index in range(3):
        one, other = kept.get_data_info(index), drawn.get_data_info(index)
        np.testing.assert_array_equal(one["img"], other["img"])
        np.testing.assert_array_equal(one["instances"][0]["bbox"], other["instances"][0]["bbox"])


@pytest.mark.parametrize(("index", "shape"), [(0, (48, 64)), (1, (64, 64)), (2, (64, 14))])
def test_longer_side_and_boxes_take_the_training_size(index, shape) -> None:
    info = data.DefectDataset(split(), 64, [], test_mode=True).get_data_info(index)
    assert info["img"].shape == (*shape, 3)
    height, width = info["ori_shape"]
    np.testing.assert_allclose(
        info["instances"][0]["bbox"],
        np.array([4, 6, 14, 18]) * np.tile([shape[1] / width, shape[0] / height], 2),
    )
    assert info["scale_factor"] == (shape[1] / width, shape[0] / height)


@pytest.mark.parametrize("pipeline", ["train", "test"])
def test_the_border_of_a_letterbox_is_grey(pipeline) -> None:
    from mmengine.dataset import Compose

    from benchmark import protocol

    augmentation = protocol.load("mini-v1").finetune.augmentation.model_copy(
        update={"hsv": (0.0, 0.0, 0.0), "scale": 0.0, "flip": 0.0}
    )
    steps = (
        data.test_pipeline(64) if pipeline == "test" else data.train_pipeline(64, augmentation, mosaic=False)
    )
    dataset = data.DefectDataset(split(), 64, [], test_mode=True)
    info = dataset.get_data_info(2) | {"dataset": dataset}  # 14 pixels wide in a square of 64
    shown = Compose(steps)(info)["inputs"]
    assert shown.shape == (3, 64, 64)
    assert (shown[:, :, :20] == 114).all()
    assert (shown[:, :, 44:] == 114).all()
