"""Pretrained weights as a folder that plain models of other libraries load, without this project."""

from __future__ import annotations

import io
import pprint
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp import export_readme
from agssp.export_readme import Part
from baselines.backbones import Backbone
from baselines.detectors import backbone_config
from baselines.weights import LocalWeights, to_layout
from baselines.weights.files import read
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_folder

if TYPE_CHECKING:
    from torch import Tensor

OURS, OPENMMLAB, CONFIG = "weights.safetensors", "openmmlab.pth", "openmmlab.py"

# mmpretrain's wrapper around timm's model computes what our class does, and needs nothing of this project.
_PLAIN_LITE0 = {
    "type": "mmpretrain.TIMMBackbone",
    "model_name": "tf_efficientnet_lite0",
    "features_only": True,
    "out_indices": (2, 3, 4),
}


@dataclass(frozen=True)
class Exported:
    """What an export consists of.

    Attributes:
        folder: The folder.
        files: Names of its files, in the order of the README.
    """

    folder: Path
    files: tuple[str, ...]


def check_free(out: Path) -> None:
    """Makes sure that an export may be written there, before hours are spent.

    Raises:
        UserError: Something stands there.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists already: choose another folder with --out, or remove it first.")


def export(
    weights: LocalWeights,
    backbone: Backbone,
    out: Path,
    *,
    detector: Mapping[str, Any] | None = None,
    facts: Mapping[str, str],
    finetuned: bool = False,
) -> Exported:
    """Writes the folder, whole or not at all.

    Args:
        weights: A finished training: `backbone.*`, or a whole detector.
        backbone: Its backbone.
        out: Folder to make.
        detector: Configuration of the whole detector; None where the weights are of a backbone alone.
        facts: What the README says of the weights, by title.
        finetuned: Whether the detector is finetuned, to be used as it is.

    Raises:
        UserError: Something stands there, it cannot be written, or the weights are not of this backbone.
    """
    check_free(out)
    state, header = read(weights.path)
    parts = [
        *_openmmlab(state, header or {}, backbone, detector),
        *_other_libraries(state, header or {}, backbone, detector),
    ]
    try:
        with atomic_folder(out) as folder:
            shutil.copyfile(weights.path, folder / OURS)
            for part in parts:
                (folder / part.name).write_bytes(part.content)
            text = export_readme.text(OURS, parts, backbone, detector is not None, facts, finetuned)
            (folder / "README.md").write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Cannot write {out}: {error.strerror or error}. Choose another with --out."
        ) from error
    return Exported(out, ("README.md", OURS, *(part.name for part in parts)))


def _openmmlab(
    state: Mapping[str, Tensor],
    header: Mapping[str, Any],
    backbone: Backbone,
    detector: Mapping[str, Any] | None,
) -> list[Part]:
    import torch

    plain = backbone_config(backbone)
    if backbone.name == "lite0":
        plain = dict(_PLAIN_LITE0)
        state = {name.replace("backbone.", "backbone.timm_model.", 1): value for name, value in state.items()}
    meta: dict[str, Any] = {"agssp_bench": dict(header)}
    if "classes" in header:
        meta["dataset_meta"] = {"classes": list(header["classes"])}
    # Through memory: torch.save names the archive's inner folder after the file.
    buffer = io.BytesIO()
    torch.save({"state_dict": dict(state), "meta": meta}, buffer)
    if detector is None:
        name, config = "backbone", {**plain}
        config["init_cfg"] = {"type": "Pretrained", "checkpoint": OPENMMLAB, "prefix": "backbone."}
    else:
        name, config = "model", {**detector, "backbone": plain}
        # Ours differ from mmdet's in undoing the letterbox of an image.
        config["type"] = config["type"].replace("agssp.", "mmdet.")
    scopes = list(dict.fromkeys(_scopes(config)))
    source = f"{name} = {pprint.pformat(config, width=100, sort_dicts=False)}\n"
    if detector is not None:
        source = f'default_scope = "{scopes[0]}"\n' + source
    return [
        Part(
            OPENMMLAB,
            buffer.getvalue(),
            export_readme.openmmlab(scopes, detector is not None, _classes(header)),
        ),
        Part(CONFIG, source.encode(), ""),
    ]


def _scopes(config: Any) -> Iterator[str]:
    """Yields the packages whose classes a configuration names, that of the outermost first."""
    if isinstance(config, Mapping):
        if "." in config.get("type", ""):
            yield config["type"].partition(".")[0]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _scopes(value)


def _classes(header: Mapping[str, Any]) -> list[str]:
    return list(header.get("classes", ["defect"]))


def _other_libraries(
    state: Mapping[str, Tensor],
    header: Mapping[str, Any],
    backbone: Backbone,
    detector: Mapping[str, Any] | None,
) -> list[Part]:
    """Returns the file of the library that has this backbone too."""
    import torch
    from safetensors.torch import save

    layout, snippet = {
        "csp_darknet": ("ultralytics", export_readme.ultralytics),
        "resnet": ("torchvision", export_readme.torchvision),
        "swin": ("timm", export_readme.timm_swin),
        "lite0": ("timm", export_readme.timm_lite0),
    }[backbone.name]
    renamed = to_layout(state, layout)
    # Theirs has no other detector of ours.
    whole = detector is not None and detector["type"] == "mmyolo.YOLODetector" and layout == "ultralytics"
    if detector is not None and whole:
        # A constant that mmyolo does not store.
        bins = int(detector["bbox_head"]["head_module"]["reg_max"])
        renamed["model.22.dfl.conv.weight"] = torch.arange(bins, dtype=torch.float32).view(1, bins, 1, 1)
    plain = {name: renamed[name].contiguous().clone() for name in sorted(renamed)}
    name = f"{layout}.safetensors"
    return [Part(name, save(plain), snippet(backbone, name, whole, len(_classes(header))))]
