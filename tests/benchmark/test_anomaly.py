"""The anomaly benchmark from end to end, on images made here and a detector whose answers are known."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import datasets_builders
from agssp import map_inputs
from agssp.map_inputs import EncodedImage, MapInput
from agssp.map_sources import AnomalyMaps, MapSource, SourceOptions
from benchmark import anomaly
from benchmark.anomaly_data import read_truths
from benchmark.anomaly_metrics import Truth
from benchmark.anomaly_outputs import Outputs
from benchmark.anomaly_records import read_record
from benchmark.verify import Verdict, verify_anomaly, verify_paths
from datasets_builders.errors import UserError
from datasets_builders.images import encode_png

PROJECT = Path(__file__).parents[2]
DATASET = "neu_det"


class MadeImages:
    """Grey images of 40 x 30; every other one with a bright square of 8 x 8, every third square without a mask."""

    def __init__(self, name: str, split: str) -> None:
        self.name, self.split = name, split
        self.ids = [f"{split}-{index:02d}" for index in range(12)]
        self.categories = [DATASET] * 12
        rng = np.random.default_rng(len(split))
        self._rows = []
        for index, image_id in enumerate(self.ids):
            pixels = rng.integers(90, 110, (30, 40, 3), dtype=np.uint8)
            mask = np.zeros((30, 40), np.uint8)
            if index % 2:
                pixels[4 + index : 12 + index, 10:18] = 250
                mask[4 + index : 12 + index, 10:18] = 255
            stored = encode_png(mask) if index % 2 and index % 3 else None
            self._rows.append(EncodedImage(image_id, DATASET, encode_png(pixels), stored))

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "split": self.split, "fingerprint": "f" * 64}

    def read(self, rows: Sequence[int]) -> list[EncodedImage]:
        return [self._rows[row] for row in rows]

    def mask(self, image: EncodedImage) -> NDArray[np.bool_]:
        from datasets_builders.images import decode_mask

        assert image.mask is not None
        return decode_mask(image.mask) > 0

    def labelled_normals(self) -> list[str]:
        return self.ids[::2]


class Brightness(MapSource):
    """Mean brightness of each cell of a 6 x 8 grid, less that of the normal images."""

    name = "memory:brightness"
    needs_normals = True
    batch_size = 5

    def __init__(self) -> None:
        self.fitted: list[int] = []

    def identity(self) -> dict[str, Any]:
        return {"method": "brightness"}

    def fit(self, category: str, normals: Sequence[NDArray[np.uint8]]) -> Any:
        self.fitted.append(len(normals))
        return float(np.mean([image.mean() for image in normals])) if normals else 0.0

    def score(self, batch: Sequence[MapInput], model: Any) -> AnomalyMaps:
        cells = [one.image.reshape(6, 5, 8, 5, 3).mean(axis=(1, 3, 4)) - model for one in batch]
        maps = (np.stack(cells) / 160).astype(np.float32)
        return AnomalyMaps(maps, maps.max(axis=(1, 2)))

    def rate(self, category: str, batch: Sequence[MapInput]) -> NDArray[np.float32]:
        return np.array([one.image.max() for one in batch], np.float32)

    def embed(self, batch: Sequence[MapInput]) -> NDArray[np.float32]:
        angles = [float(one.image.mean()) for one in batch]
        return np.array([[np.cos(a), np.sin(a)] for a in angles], np.float32)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Brightness:
    made = Brightness()
    monkeypatch.setattr(anomaly, "open_images", MadeImages)
    monkeypatch.setattr(map_inputs, "open_images", MadeImages)
    monkeypatch.setattr(anomaly, "open_source", lambda *_, **__: made)
    monkeypatch.setattr(datasets_builders, "fingerprint", lambda _: "f" * 64)
    return made


def _run(results: Path, **changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "detector": "memory",
        "encoder": "brightness",
        "dataset": DATASET,
        "shots": 3,
        "seeds": [0, 1],
        "normals": "labelled",
        "device": "cpu",
        "results": results,
        "options": SourceOptions(),
    }
    return anomaly.run_anomaly(**asked | changes)


def test_it_measures_and_records_what_the_detector_answers(source: Brightness, tmp_path: Path) -> None:
    outcome = _run(tmp_path)
    assert source.fitted == [3, 3]
    assert [row["status"] for row in outcome["records"]] == ["recorded", "recorded"]
    for row in outcome["records"]:
        record = read_record(Path(row["record"]))
        metrics = record.metrics
        assert metrics.image is not None
        assert metrics.pixel is not None
        assert metrics.image.auroc == metrics.image.f1_max == 100.0  # every square is brighter than any noise
        assert metrics.pixel.auroc > 95
        assert (metrics.images, metrics.anomalous_images) == (12, 6)
        assert metrics.pixel_images == 10  # two squares have no mask
        assert record.images_per_second > 0
        assert record.cost["score"].peak_ram_mib > 0
        assert record.cost["score"].peak_gpu_mib is None
        # Normal images come from the training split, without defects.
        assert len(record.normals[DATASET]) == 3
        assert set(record.normals[DATASET]) <= set(MadeImages(DATASET, "train").ids[::2])
        # The outputs are the detector's own.
        outputs = Outputs.load(Path(row["record"]).parent / "outputs.parquet")
        images, train = MadeImages(DATASET, "validation"), MadeImages(DATASET, "train")
        chosen = [i for i, name in enumerate(train.ids) if name in record.normals[DATASET]]
        model = Brightness().fit(DATASET, [one.decode().image for one in train.read(chosen)])
        expected = Brightness().score([one.decode() for one in images.read(range(12))], model)
        assert outputs.image_ids == tuple(images.ids)
        assert np.allclose(outputs.maps, expected.maps, atol=1e-6)
        assert np.allclose(outputs.scores, expected.image_scores, atol=1e-6)
    json.dumps(outcome, allow_nan=False)


def test_seeds_draw_other_normal_images(source: Brightness, tmp_path: Path) -> None:
    rows = _run(tmp_path, seeds=[0, 1, 2, 3])["records"]
    assert len({read_record(Path(row["record"])).normals[DATASET] for row in rows}) > 1


def test_what_is_finished_is_not_run_again(source: Brightness, tmp_path: Path) -> None:
    first = _run(tmp_path, seeds=[0])
    second = _run(tmp_path, seeds=[0, 1])
    assert source.fitted == [3, 3]
    assert [row["status"] for row in second["records"]] == ["already recorded", "recorded"]
    assert second["records"][0]["metrics"] == first["records"][0]["metrics"]


@pytest.mark.parametrize("changes", [{"shots": 2}, {"seeds": [5]}, {"dataset": "neu_det/mini50"}])
def test_another_experiment_has_another_key(
    source: Brightness, tmp_path: Path, changes: dict[str, Any]
) -> None:
    _run(tmp_path, seeds=[0])
    (row,) = _run(tmp_path, **{"seeds": [0]} | changes)["records"]
    assert row["status"] == "recorded"


def test_zero_shot_uses_no_normal_images_and_one_seed(source: Brightness, tmp_path: Path) -> None:
    rows = _run(tmp_path, shots=0, seeds=[3, 4])["records"]
    assert source.fitted == [0]
    assert len(rows) == 1
    assert read_record(Path(rows[0]["record"])).normals == {}


def test_a_list_of_normal_images_is_used_as_it_is(source: Brightness, tmp_path: Path) -> None:
    listed = tmp_path / "normals.txt"
    listed.write_text("train-01\ntrain-03\n")
    (row,) = _run(tmp_path, shots=2, seeds=[0], normals=str(listed))["records"]
    assert set(read_record(Path(row["record"])).normals[DATASET]) == {"train-01", "train-03"}


@pytest.mark.parametrize("seed", range(3))
def test_the_automatic_choice_takes_what_looks_sound(source: Brightness, tmp_path: Path, seed: int) -> None:
    # One sample: the four images without a bright square that rate lowest are short-listed.
    (row,) = _run(tmp_path, shots=1, seeds=[seed], normals="auto")["records"]
    assert set(read_record(Path(row["record"])).normals[DATASET]) <= set(
        MadeImages(DATASET, "train").ids[::2]
    )


def test_without_defect_free_training_images_it_says_what_to_give(
    source: Brightness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MadeImages, "labelled_normals", lambda self: [])
    with pytest.raises(UserError, match="--normals auto"):
        _run(tmp_path)
    # Pixels are still measured, and the image-level numbers are not made up.
    (row,) = _run(tmp_path, shots=0)["records"]
    assert row["metrics"]["image"] is None
    assert row["metrics"]["pixel"] is not None


def test_unknown_names_are_refused_before_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Unknown dataset"):
        _run(tmp_path, dataset="neu_dett")
    with pytest.raises(UserError, match="--encoder tiny"):
        _run(tmp_path, detector="kead", encoder="")


def test_a_set_on_which_nothing_can_be_measured_is_refused_before_work(
    source: Brightness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = [Truth(True, None)] * 12
    monkeypatch.setattr(anomaly, "read_truths", lambda images: bare)
    with pytest.raises(UserError, match="Nothing can be measured"):
        _run(tmp_path)
    assert source.fitted == []


def test_verification_computes_the_numbers_again(
    source: Brightness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(_run(tmp_path, seeds=[0])["records"][0]["record"])
    assert verify_anomaly(path).verdict is Verdict.EQUAL
    assert verify_paths([tmp_path]) == verify_paths([path]) == verify_paths([path.parent]) == 0
    assert f"equal: {path}" in capsys.readouterr().out
    content = json.loads(path.read_text())
    content["metrics"]["pixel"]["aupro"] -= 1
    content["metrics"]["mask_iou"]["fixed"][3]["iou"] += 0.5
    path.write_text(json.dumps(content))
    found = verify_anomaly(path)
    assert found.verdict is Verdict.DIFFERENT
    assert [reason.split(" is ")[0] for reason in found.reasons] == [
        "metrics.mask_iou.fixed.3.iou",
        "metrics.pixel.aupro",
    ]
    assert verify_paths([tmp_path]) == 1


def test_verification_notices_other_outputs_and_other_data(
    source: Brightness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(_run(tmp_path, seeds=[0])["records"][0]["record"])
    file = path.parent / "outputs.parquet"
    outputs = Outputs.load(file)
    Outputs(outputs.image_ids, outputs.scores, outputs.maps[:, ::-1].copy()).save(file)
    assert verify_anomaly(path).verdict is Verdict.DIFFERENT
    file.unlink()
    assert verify_anomaly(path).verdict is Verdict.IMPOSSIBLE
    outputs.save(file)
    assert verify_anomaly(path).verdict is Verdict.EQUAL
    monkeypatch.setattr(datasets_builders, "fingerprint", lambda _: "e" * 64)
    found = verify_anomaly(path)
    assert found.verdict is Verdict.IMPOSSIBLE
    assert "the dataset differs" in found.reasons[0]


def _write_tiles(raw: Path) -> None:
    """Writes magnetic tiles as their owner lays them out: sound ones, and ones with a hole and its mask."""
    rng = np.random.default_rng(0)
    for kind in ("Blowhole", "Break", "Crack", "Fray", "Free", "Uneven"):
        folder = raw / f"MT_{kind}" / "Imgs"
        folder.mkdir(parents=True)
        for number in range(12 if kind in ("Blowhole", "Free") else 1):
            pixels = rng.integers(90, 110, (40, 50, 3), dtype=np.uint8)
            mask = np.zeros((40, 50), np.uint8)
            if kind != "Free":
                pixels[number : number + 10, 20:30], mask[number : number + 10, 20:30] = 250, 255
            Image.fromarray(pixels).save(folder / f"{kind}_{number}.jpg", quality=95)
            Image.fromarray(mask).save(folder / f"{kind}_{number}.png")


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, python: str, fresh_home: Path) -> None:
    _write_tiles(tmp_path / "raw")
    datasets_builders.prepare("magnetic_tile", raw=tmp_path / "raw", partial=True)
    results = tmp_path / "results"

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, "-m", "benchmark", *words], cwd=PROJECT, capture_output=True, text=True
        )

    done = command(
        "anomaly", "--detector", "oracle", "--dataset", "magnetic_tile", "--results", str(results), "--json"
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["records"]
    assert row["metrics"]["image"]["auroc"] == 100.0
    assert row["metrics"]["pixel"]["auroc"] > 99
    assert Path(row["record"]).is_file()
    done = command("verify", str(results))
    assert (done.returncode, done.stdout) == (0, f"equal: {row['record']}\n")


@pytest.mark.slow
@pytest.mark.real_data
def test_half_of_neu_det_counts_for_pixels(raw_data: Path) -> None:
    datasets_builders.prepare("neu_det", raw=raw_data / "raw" / "neu_det")
    images = map_inputs.open_images("neu_det", "validation")
    truths = read_truths(images)
    assert len(truths) == 533
    assert all(truth.anomalous for truth in truths)
    # SD-saliency-900 drew inclusions, patches and scratches.
    drawn = [name for name, truth in zip(images.ids, truths, strict=True) if truth.mask is not None]
    assert len(drawn) == 257
    assert {name.rsplit("_", 1)[0] for name in drawn} == {"inclusion", "patches", "scratches"}
    assert all(truth.mask.any() for truth in truths if truth.mask is not None)
