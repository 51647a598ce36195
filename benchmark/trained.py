"""A finetuned detector of a record, to be used: found on this machine, exported as a folder, read back."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import datasets_builders
from agssp.export import OURS, Exported, check_free, export
from agssp.stages import backbone_of
from baselines import backbones, weights
from baselines.weights import files
from benchmark.detections import MAX_CLASSES, MAX_NAME_LENGTH, Detections
from benchmark.evaluate import GroundTruth
from benchmark.matching import match_all
from benchmark.protocol import Finetune
from benchmark.records import RECORD_FILE, Record, read_record
from benchmark.verify import check_fingerprint
from datasets_builders import storage
from datasets_builders.errors import UserError

_KIND = "finetuned detector"


class Description(BaseModel):
    """What rebuilds a detector around its weights; it stands in the header of an exported weights file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    backbone: Annotated[str, Field(max_length=100)]
    """Such as `csp_darknet:n`."""
    detector: Annotated[str, Field(max_length=100)]
    """Such as `yolov8`."""
    classes: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_NAME_LENGTH)], ...],
        Field(min_length=1, max_length=MAX_CLASSES),
    ]
    """In the order of its outputs."""
    recipe: Finetune
    """How it was trained: image size and the settings of its test."""
    threshold: Annotated[float, Field(ge=0, le=1)] | None
    """Score from which on detections count; None where nobody has said."""


@dataclass(frozen=True)
class Trained:
    """A finetuned detector.

    Attributes:
        description: What it is.
        weights: Its weights.
    """

    description: Description
    weights: Path


def stored_weights(record: Record) -> Path:
    """Returns the weights of the record's last epoch, which the training left on this machine.

    Raises:
        UserError: They are not here.
    """
    path = storage.home() / "runs" / record.key / f"epoch-{record.last.epoch}.safetensors"
    if not path.is_file():
        raise UserError(
            f"The weights of {record.cell.folder} are not on this machine (they would be {path}).\n"
            "  Run the cell here, or give them with --weights FILE. (explain: of the second record --against-weights"
            " FILE; --detections-only draws without any.)"
        )
    return path


def find(source: Path, weights_file: Path | None = None, *, needs_threshold: bool = True) -> Trained:
    """Finds a finetuned detector.

    Args:
        source: A record (`record.json` or its folder), or what `export` made: the folder, or its weights file.
        weights_file: Of a record; None for those that its training left on this machine.
        needs_threshold: Whether the threshold of a record's best F1 is worked out, which reads its dataset.

    Raises:
        UserError: There is no such thing, its weights are not here, or its dataset is needed and is not here.
    """
    if (source / OURS).is_file() or source.suffix == ".safetensors":
        if weights_file is not None:
            raise UserError(f"{source} has its own weights: leave out --weights.")
        return _exported(source / OURS if source.is_dir() else source)
    if not (source / RECORD_FILE).is_file() and source.name != RECORD_FILE:
        raise UserError(
            f"{source} is neither a record nor an exported detector.\n"
            "  Export one: python -m benchmark export RECORD --out DIR"
        )
    record = read_record(source)
    folder = source if source.is_dir() else source.parent
    found = weights_file or stored_weights(record)
    return Trained(describe(record, best_threshold(record, folder) if needs_threshold else None), found)


def best_threshold(record: Record, folder: Path) -> float:
    """Returns the score from which on a record's detections have their best F1 on its validation images.

    Args:
        record: The record.
        folder: Where it lies, with its detections.

    Raises:
        UserError: The dataset is not on this machine, or not the record's.
    """
    check_fingerprint(record.dataset)
    split = datasets_builders.load(record.dataset.name, "validation")
    detections = Detections.load(folder / record.detections_files[0])
    return match_all(GroundTruth.from_dataset(split), detections).best_threshold()


def export_detector(source: Path, out: Path, weights_file: Path | None, threshold: float | None) -> Exported:
    """Writes a record's detector as a folder that needs nothing of the machine that trained it.

    Args:
        source: The record: `record.json` or its folder.
        out: Folder to make.
        weights_file: None for the weights that its training left on this machine.
        threshold: Score from which on detections count; None for that of the best F1 on its validation images.

    Raises:
        UserError: As `find`; or something stands at `out`.
    """
    check_free(out)
    found = find(source, weights_file, needs_threshold=threshold is None)
    record = read_record(source)
    described = found.description
    if threshold is not None:
        described = described.model_copy(update={"threshold": threshold})
    state, _ = files.read(found.weights)
    header = {"kind": _KIND, "scope": "detector", "record": record.key, **described.model_dump(mode="json")}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / OURS
        weights.save(path, state, header)
        return export(
            weights.resolve(str(path)),
            backbones.get(record.cell.backbone, record.cell.variant),
            out,
            detector=_config(described),
            facts=_facts(record, described),
            finetuned=True,
        )


def build(trained: Trained) -> Any:
    """Builds the detector with its weights, for inference.

    Raises:
        UserError: The weights are not of this detector.
    """
    from baselines.training.detector import new_detector

    described = trained.description
    model: Any = new_detector(
        described.detector, backbone_of(described.backbone, {}), len(described.classes), described.recipe
    )
    state, _ = files.read(trained.weights)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{trained.weights}: not the weights of this {described.detector} with {described.backbone}; its tensors"
            " differ."
        ) from error
    return model.eval()


def describe(record: Record, threshold: float | None) -> Description:
    """Returns what rebuilds a record's detector.

    Raises:
        UserError: The record's settings are of another version.
    """
    cell = record.cell
    if record.inputs.get("backbone") != backbones.get(cell.backbone, cell.variant).config:
        raise UserError(
            f"{cell.folder}: its backbone was built otherwise in the version that made this record."
        )
    try:
        return Description(
            backbone=f"{cell.backbone}:{cell.variant}",
            detector=cell.detector,
            classes=record.dataset.classes,
            recipe=Finetune.model_validate(record.inputs["recipe"]),
            threshold=threshold,
        )
    except (KeyError, ValidationError) as error:
        raise UserError(f"{cell.folder}: its recipe is of another version of this project.") from error


def _exported(path: Path) -> Trained:
    header = files.read_header(path)
    if header is None or header.get("kind") != _KIND:
        raise UserError(
            f"{path}: weights, but not an exported detector. Export one: python -m benchmark export RECORD --out DIR"
        )
    try:
        return Trained(Description.model_validate(header), path)
    except ValidationError as error:
        raise UserError(
            f"{path}: its description is damaged, or of another version of this project."
        ) from error


def _config(described: Description) -> dict[str, Any]:
    from baselines.detectors import detector_config

    settings = described.recipe.model_dump()
    return detector_config(
        described.detector,
        backbone_of(described.backbone, {}),
        len(described.classes),
        test=settings["test"],
        losses=settings["losses"],
        assigner=settings["assigner"],
        size=described.recipe.size,
    )


def _facts(record: Record, described: Description) -> dict[str, str]:
    return {
        "classes": ", ".join(described.classes),
        "trained on": f"{record.dataset.name} (fingerprint {record.dataset.fingerprint})",
        "protocol": f"{record.protocol.id}, seed {record.cell.seed}",
        "mode": record.cell.mode + (f", {record.cell.method}" if record.cell.method != "-" else ""),
        "validation": f"mAP@.5 {record.last.metrics.map50:.1f}, mAP@.5:.95 {record.last.metrics.map50_95:.1f}"
        f" on {record.dataset.splits['validation']} images, after the last epoch",
        "threshold": f"{described.threshold:.3f}" if described.threshold is not None else "not stated",
        "image size": f"{described.recipe.image_size} pixels, the longer side",
        "record": record.key,
    }
