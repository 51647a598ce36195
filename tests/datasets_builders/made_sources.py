"""Small folders in the published layouts of the corpus's public sources, made on the spot.

For each source: the images that must be taken with their categories, and files beside them that must not.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

PUBLIC: dict[str, tuple[dict[str, str], list[str]]] = {
    "aitex": (
        {
            "Defect_images/0001_002_00.png": "AITEX",
            "NODefect_images/2306881-210020u/0001_000_00.png": "AITEX",
        },
        ["Mask_images/0001_002_00_mask.png"],
    ),
    "apddd": (
        {"JPEGImages/img_01.jpg": "tianchi_aluminum", "JPEGImages/img_02.JPG": "tianchi_aluminum"},
        ["Annotations/img_01.xml"],
    ),
    "bsd_cls": ({"N/0001.png": "BSD_cls", "P/0001.png": "BSD_cls"}, ["readme.txt"]),
    "bsdata": (
        {"data/01_200828110014_crop_2.jpg": "BSData", "data/01_200902053521_crop_2.jpg": "BSData"},
        ["label/01_200902053521_crop_2.json", "image_data.json"],
    ),
    "btad": (
        {
            "01/train/ok/0000.bmp": "BTech_02",
            "02/test/ko/0001.png": "BTech_02",
            "03/test/ok/0002.bmp": "BTech_02",
        },
        ["02/ground_truth/ko/0001.png"],
    ),
    "cr7_det": (
        {"lengzha/image/oil spots28.jpg": "cold_rolled_strip_steel"},
        ["lengzha/label/oil spots28.txt"],
    ),
    "dagm2007": (
        {
            "Class1/Train/0576.PNG": "DAGM2007_Class1",
            "Class1/Test/0001.PNG": "DAGM2007_Class1",
            "Class10/Train/0001.PNG": "DAGM2007_Class10",
        },
        ["Class1/Train/Label/0576_label.PNG", "Class1/Train/Label/Labels.txt"],
    ),
    "dtd_synthetic": (
        {
            "Woven_001/train/good/000.png": "Woven_001",
            "Woven_127/test/bad/001.png": "Woven_127",
            "Stratified_154/test/good/002.png": "Stratified",
        },
        ["Woven_127/ground_truth/bad/001_mask.png"],
    ),
    "fssd_12": (
        {
            "Steel_Am/Images/Steel_Am_1.jpg": "neu_hot_rolled_strip",
            "Steel_Am/Nd/Nd_1.jpg": "neu_hot_rolled_strip",
        },
        ["Steel_Am/GT/Steel_Am_1.png"],
    ),
    "kolektorsdd": (
        {"kos01/Part0.jpg": "KolektorSDD", "kos02/Part0.jpg": "KolektorSDD"},
        ["kos01/Part0_label.bmp", "kos02/Part0_label.bmp"],
    ),
    "kolektorsdd2": (
        {"train/10000.png": "KolektorSDD2", "test/20000.png": "KolektorSDD2"},
        ["train/10000_GT.png", "test/20000_GT.png"],
    ),
    "magnetic_tile": (
        {"MT_Break/Imgs/exp1_num_1.jpg": "Magnetic_tile", "MT_Free/Imgs/exp1_num_2.jpg": "Magnetic_tile"},
        ["MT_Break/Imgs/exp1_num_1.png", "MT_Free/Imgs/exp1_num_2.png"],
    ),
    "mpdd": (
        {
            "metal_plate/train/good/000.png": "metal_plate",
            "bracket_black/test/hole/001.png": "metal_plate",
            "tubes/test/good/002.png": "metal_plate",
        },
        ["bracket_black/ground_truth/hole/001_mask.png"],
    ),
    "msd_seg": (
        {
            "AI_Rm/Images/AI_Rm_1.jpg": "neu_aluminum",
            "MT_Uneven/Nd/MT_Uneven_1.jpg": "neu_magnetic_tiles",
            "Rail/Images/Rail_1.jpg": "neu_rail",
            "Steel_Ld/Nd/Nd_1.jpg": "neu_steel",
            "leather/Nd/leather_1.jpg": "neu_leather",
            "tile/Images/tile_1.jpg": "neu_tile",
        },
        ["AI_Rm/GT/AI_Rm_1.png"],
    ),
    "mvtec": (
        {
            "grid/train/good/000.png": "grid",
            "leather/test/cut/000.png": "leather",
            "tile/test/good/000.png": "tile",
            "wood/test/hole/000.png": "wood",
        },
        ["leather/ground_truth/cut/000_mask.png", "bottle/train/good/000.png", "carpet/test/good/000.png"],
    ),
    "neu_seg": (
        {
            "images/training/000201.jpg": "neu_hot_rolled_strip",
            "images/test/000001.jpg": "neu_hot_rolled_strip",
        },
        ["annotations/training/000201.png", "annotations/test/000001.png"],
    ),
    "road_crack": ({"images/crack_1.jpg": "road_crack"}, ["masks/crack_1.png"]),
    "rsdds": (
        {
            "Type-I RSDDs dataset/Rail surface images/rail_1.jpg": "rail_surface",
            "Type-II RSDDs dataset/Rail surface images/rail_9.jpg": "rail_surface",
        },
        ["Type-I RSDDs dataset/GroundTruth/rail_1.jpg", "Type-II RSDDs dataset/GroundTruth/rail_9.jpg"],
    ),
    "severstal": (
        {"train_images/0002cc93b.jpg": "severstal_steel", "test_images/0000f269f.jpg": "severstal_steel"},
        ["train.csv"],
    ),
    "ssgd": (
        {"data/images/Sca_1.jpg": "ssgd_glasses"},
        ["data/annotations/train.json", "figures/vis_part1.jpg"],
    ),
}


def make_file(path: Path, size: tuple[int, int] = (9, 7)) -> Path:
    """Writes an image whose pixels depend on its name (text for other suffixes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"):
        rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode(errors="surrogateescape")))
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    else:
        path.write_text("annotation")
    return path


def make_source(raw: Path, name: str, folder: str | None = None) -> dict[str, str]:
    """Makes a source below `raw`; returns image id -> category of what must be taken."""
    taken, others = PUBLIC[name]
    for file in [*taken, *others]:
        make_file(raw / (folder or name) / file)
    prefix = "lengzha/" if name == "cr7_det" else ""
    return {f"{name}/{path.removeprefix(prefix)}": category for path, category in taken.items()}
