"""How good KeAD's maps are with an encoder: `python -m agssp.tiny_clip.measure`, the numbers of docs/kead.md.

Procedural sets: all validation images; the normal images are the first defect-free ones of the training split. Of the
real sets only those with masks: NEU-DET's 900 pictures of three classes (no normal images: zero-shot only), and samples
of Magnetic-Tile (normal images: its defect-free samples, which then are not scored).
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from agssp.kead.encoder import Encoder, load_encoder
from agssp.kead.kead import KeAD, KeADSettings
from agssp.map_quality import box_recall
from agssp.map_sources import AnomalyMaps
from agssp.pseudo_boxes import BoxSettings, boxes_from_map
from agssp.upsampling import upsample
from datasets_builders.errors import UserError
from datasets_builders.synthetic.scenes import config_names, load_config, render

NEU = {"inclusion": "In", "patches": "Pa", "scratches": "Sc"}


@dataclass(frozen=True)
class Labelled:
    """Images of one category with their masks.

    Attributes:
        category: Its name in KeAD's knowledge.
        images: RGB uint8 (rows, columns, 3) each.
        masks: bool (rows, columns) each, true on defects.
        boxes: (n, 4) each: left, top, width, height of the defects.
        normals: Defect-free images besides these.
    """

    category: str
    images: list[NDArray[np.uint8]]
    masks: list[NDArray[np.bool_]]
    boxes: list[NDArray[np.float64]]
    normals: list[NDArray[np.uint8]]


def procedural(name: str, shots: int = 4) -> Labelled:
    """Renders the validation split of a procedural dataset, and `shots` defect-free images of its training split."""
    scenes = [render(name, index, "validation") for index in range(load_config(name)["splits"]["validation"])]
    sound = (scene for index in itertools.count() if not (scene := render(name, index, "train")).masks)
    images = [scene.image for scene in scenes]
    none = np.zeros(images[0].shape[:2], bool)
    return Labelled(
        name,
        images,
        [np.any(scene.masks, axis=0) if scene.masks else none for scene in scenes],
        [np.array([_box(mask) for mask in scene.masks]).reshape(-1, 4) for scene in scenes],
        [scene.image for scene in itertools.islice(sound, shots)],
    )


def neu_det(raw: Path) -> Labelled:
    """Reads the pictures of NEU-DET that have pixel masks (SD-saliency-900)."""
    masks = sorted((raw / "sd900_masks").rglob("*.png"))
    if not masks:
        raise UserError(
            f"No masks of NEU-DET in {raw / 'sd900_masks'}. Put SD-saliency-900 there, or leave --raw out."
        )
    full = {short: name for name, short in NEU.items()}
    pictures = []
    for mask in masks:
        short, number = mask.stem.split("_")
        pictures.append(
            next(
                p
                for part in ("IMAGES", "Validation_Images")
                if (p := raw / "neu_det" / part / f"{full[short]}_{number}.jpg").is_file()
            )
        )
    return _from_files("neu_det", list(zip(pictures, masks, strict=True)), [])


def magnetic_tile(raw: Path) -> Labelled:
    """Reads the samples of Magnetic-Tile."""
    folder = raw / "samples" / "magnetic_tile"
    pictures = sorted(folder.rglob("*.jpg"))
    normals = [path for path in pictures if path.parent.parent.name == "MT_Free"]
    pairs = [(path, path.with_suffix(".png")) for path in pictures if path not in normals]
    return _from_files("magnetic_tile", pairs, normals)


def _from_files(category: str, pairs: list[tuple[Path, Path]], normals: list[Path]) -> Labelled:
    masks = [_read(mask)[..., 0] > 127 for _, mask in pairs]
    boxes = [
        cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:, :4].astype(float) for mask in masks
    ]
    return Labelled(
        category, [_read(path) for path, _ in pairs], masks, boxes, [_read(path) for path in normals]
    )


def _read(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def thinned(data: Labelled, count: int) -> Labelled:
    """Keeps at most `count` of the images, evenly spread."""
    kept = slice(None, None, max(1, -(-len(data.images) // count)))
    return replace(data, images=data.images[kept], masks=data.masks[kept], boxes=data.boxes[kept])


def _box(mask: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    left, top, width, height = cv2.boundingRect(mask)
    return left, top, width, height


def quality(data: Labelled, found: AnomalyMaps) -> dict[str, Any]:
    """Compares maps with the truth: image AUROC (None without sound images) and pixel AUROC, recall of pseudo boxes."""
    sizes = [(image.shape[1], image.shape[0]) for image in data.images]
    pixels = [upsample(values, size).ravel() for values, size in zip(found.maps, sizes, strict=True)]
    truth = [mask.ravel() for mask in data.masks]
    defective = [bool(mask.any()) for mask in data.masks]
    settings = BoxSettings()
    threshold = float(found.maps.max(axis=(1, 2)).mean()) - settings.margin
    proposed = [
        boxes_from_map(values, size, threshold, settings).xywh
        for values, size in zip(found.maps, sizes, strict=True)
    ]
    return {
        "image_auroc": roc_auc_score(defective, found.image_scores) if len(set(defective)) == 2 else None,
        "pixel_auroc": roc_auc_score(np.concatenate(truth), np.concatenate(pixels)),
        "box_recall_30": box_recall(zip(proposed, data.boxes, strict=True), 0.3),
        "boxes_per_image": sum(map(len, proposed)) / len(proposed),
    }


def rows(encoder: Encoder, data: Labelled) -> Iterator[dict[str, Any]]:
    """Measures every setting on a set: V-V stream and descriptions on and off, with and without normal images."""
    for shots in (0, 4) if data.normals else (0,):
        for vv, descriptions in itertools.product((True, False), repeat=2):
            kead = KeAD(encoder, KeADSettings(vv=vv, descriptions=descriptions))
            model = kead.fit(data.category, data.normals[:shots])
            result = quality(data, kead.score(data.images, model))
            yield {"set": data.category, "shots": shots, "vv": vv, "descriptions": descriptions, **result}


def _untrained() -> Encoder:
    from agssp.tiny_clip.training import encoder_config, new_model, recipe, write_encoder

    config = encoder_config(recipe())
    with tempfile.TemporaryDirectory() as folder:
        write_encoder(Path(folder), new_model(config, seed=0), config)
        return load_encoder(folder)


def main(
    encoder: Annotated[str, typer.Option(help="A preset, MODEL/TAG, or a folder.")] = "tiny",
    raw: Annotated[Path | None, typer.Option(help="Folder with the raw real data.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Of each set at most, evenly spread.")] = 10_000,
    untrained: Annotated[
        bool, typer.Option(help="Our tiny model before its training, as a control.")
    ] = False,
) -> None:
    """Prints one JSON object a line."""
    loaded = _untrained() if untrained else load_encoder(encoder)
    sets = [functools.partial(procedural, name) for name in config_names()]
    if raw is not None:
        sets += [functools.partial(neu_det, raw), functools.partial(magnetic_tile, raw)]
    for make in sets:
        for row in rows(loaded, thinned(make(), images)):
            typer.echo(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))


if __name__ == "__main__":
    typer.run(main)
