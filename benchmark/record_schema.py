"""What a record holds: the typed schema of one finished cell, and its JSON. `benchmark.records` stores it."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, model_validator

from baselines.weights import LoadReport
from benchmark.detections import MAX_CLASSES
from benchmark.environment import Environment, Text
from benchmark.evaluate import Metrics, Percent
from datasets_builders.storage import content_key

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Epoch = Annotated[int, Field(ge=1, le=1_000_000)]
Amount = Annotated[int, Field(ge=0, le=10**12)]
Names = Annotated[tuple[Text, ...], Field(max_length=20_000)]


def _hashable(settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
    content_key(settings)  # refuses NaN and infinity
    return settings


Settings = Annotated[dict[Text, JsonValue], AfterValidator(_hashable)]


class Trust(StrEnum):
    """How a number came to be, and who answers for it."""

    REPORTED = "reported"
    """Printed in a paper. It has no detections, so it is never a record."""
    MEASURED = "measured"
    """Run by whoever keeps this results folder, with this project's code."""
    SUBMITTED = "submitted"
    """Sent by someone else; its metrics were computed again from its detections."""
    REPRODUCED = "reproduced"
    """Its weights were finetuned again by a maintainer, with an agreeing result."""


class Part(BaseModel):
    """A part of a record: frozen, no unknown names, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CellIdentity(Part):
    """Which cell of the benchmark this is."""

    backbone: Slug
    """Family, such as `swin`."""
    variant: Slug
    """Its size, such as `nano`."""
    method: Annotated[str, Field(pattern=r"^(-|[a-z0-9][a-z0-9_-]{0,62})$")]
    """How the backbone was pretrained, such as `simmim`; `-` where it was not."""
    mode: Slug
    """Row of the ladder, such as `scratch` or `agssp`."""
    detector: Slug
    """Such as `yolov8`."""
    dataset: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}(/[a-z0-9][a-z0-9_-]{0,62})?$")]
    """Name, or `name/config`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    """Of initialisation, order of images and augmentation."""

    @property
    def folder(self) -> str:
        """Name of the cell in paths."""
        method = "" if self.method == "-" else f"_{self.method}"
        return f"{self.backbone}-{self.variant}{method}_{self.mode}_{self.detector}_seed{self.seed}"


class ProtocolUsed(Part):
    """The rules it was measured by."""

    name: Slug
    """Family, such as `mini`."""
    version: Annotated[int, Field(ge=1, le=10_000)]
    """Raised with every change that changes a number."""
    sha256: Sha256
    """Of all the protocol's settings."""
    settings: Settings
    """The settings as they applied to this cell."""

    @property
    def id(self) -> str:
        """Such as `mini-v1`."""
        return f"{self.name}-v{self.version}"


class DatasetUsed(Part):
    """The labelled data it was measured on."""

    name: Text
    """As in the cell."""
    fingerprint: Sha256
    """Of images, labels and splits."""
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    """Names in index order."""
    splits: Annotated[dict[Slug, Amount], Field(min_length=1, max_length=10)]
    """Images in each split."""
    procedural: bool
    """Whether its images are generated; such rows never stand beside real ones."""

    @property
    def images(self) -> int:
        """Images of all splits."""
        return sum(self.splits.values())


class EpochResult(Part):
    """The detector after one epoch."""

    epoch: Epoch
    """Counted from 1."""
    metrics: Metrics
    """On the validation split, percent."""
    detections_sha256: Sha256
    """Content hash of the detections they were computed from (`Detections.sha256`)."""


class CurvePoint(Part):
    """One epoch of training."""

    epoch: Epoch
    """Counted from 1."""
    losses: Annotated[dict[Text, float], Field(max_length=50)]
    """Means over the epoch, by name."""
    lr: Annotated[float, Field(ge=0)]
    """Learning rate at its end."""
    map50: Percent | None
    """mAP@.5 in percent; None where the epoch was not validated."""
    map50_95: Percent | None
    """mAP@.5:.95 in percent; None where the epoch was not validated."""


class WeightsReport(Part):
    """What became of the pretrained weights when they were loaded."""

    source: Text
    """Where they came from: a file's name, an address, an artifact."""
    sha256: Sha256
    """Of the file."""
    scope: Literal["backbone", "detector"]
    """What of them was taken: the backbone, or neck and head too."""
    loaded: Amount
    """Number of tensors taken over."""
    reinitialised: Names
    """Tensors left at their initial values because shapes differ (such as the class outputs)."""
    missing: Names
    """Tensors that the weights do not have."""
    unexpected: Names
    """Tensors of the weights that the detector does not have."""
    share_of_backbone: Annotated[float, Field(ge=0, le=1)]
    """Share of the backbone's parameters that were loaded."""

    @classmethod
    def of(cls, report: LoadReport) -> WeightsReport:
        """Returns what a record keeps of a load report."""
        return cls(**{name: getattr(report, name) for name in cls.model_fields})


class StageUsed(Part):
    """One finished stage of the pretraining behind a cell; cells share it."""

    key: Sha256
    """Content key of `inputs`."""
    inputs: Settings
    """All that changes its result: versions, settings, keys of earlier stages, fingerprints, seed."""
    summary: Settings
    """What it told of itself: counts, first and last losses."""

    @model_validator(mode="after")
    def _key_fits(self) -> StageUsed:
        if content_key(self.inputs) != self.key:
            raise ValueError("a stage's key is not the hash of its inputs")
        return self


class Pretraining(Part):
    """How the weights were made, where they were made by this project's stages."""

    corpus: Text
    """Name of the images."""
    corpus_fingerprint: Sha256
    """Of the images."""
    maps: Text | None
    """Source of the anomaly maps, such as `kead:tiny`; None where none guided it."""
    stages: Annotated[dict[Slug, StageUsed], Field(min_length=1, max_length=10)]
    """By kind: `maps`, `boxes`, `backbone`, `detector`."""


class StageCost(Part):
    """What one stage took."""

    seconds: Annotated[float, Field(ge=0)]
    """Wall time, over all interruptions."""
    peak_ram_mib: Annotated[float, Field(ge=0)]
    """Highest resident memory in MiB."""
    peak_gpu_mib: Annotated[float, Field(ge=0)] | None
    """Highest GPU memory in MiB; None where no GPU worked."""


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(microsecond=0)


Moment = Annotated[AwareDatetime, AfterValidator(_utc)]
"""A time in UTC, to the second."""


class Record(Part):
    """One finished cell."""

    schema_version: Literal[1] = 1
    """Of this format."""
    key: Sha256
    """Content key of `inputs`: two records with one key claim the same experiment."""
    inputs: Settings
    """All that changes the number: stage versions, settings, upstream keys, data and weights hashes, seed."""
    cell: CellIdentity
    """Which cell it is."""
    protocol: ProtocolUsed
    """By which rules."""
    dataset: DatasetUsed
    """On which data."""
    last: EpochResult
    """After the last epoch."""
    best: EpochResult
    """At the epoch of highest mAP@.5 on the validation split: the paper's choice, and optimistic."""
    curve: Annotated[tuple[CurvePoint, ...], Field(max_length=10_000)]
    """The training, epoch by epoch."""
    weights: WeightsReport | None
    """None where training began from random values."""
    pretraining: Pretraining | None = None
    """None where the weights came from elsewhere, or there were none."""
    parameters: Amount
    """Trainable parameters of the detector."""
    cost: Annotated[dict[Slug, StageCost], Field(max_length=50)]
    """By stage, such as `finetune`."""
    resumes: Amount
    """How often an interrupted training was taken up again."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the finetuned network computed in."""
    trust: Trust = Trust.MEASURED
    """How it came to be."""
    environment: Environment
    """With which software, on which machine."""
    created: Moment
    """When it was finished, UTC."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Record:
        epochs = [point.epoch for point in self.curve]
        values = {point.epoch: (point.map50, point.map50_95) for point in self.curve}
        results = (self.last, self.best)
        complaints = {
            "key is not the hash of inputs": content_key(self.inputs) != self.key,
            "a reported number has no detections and is no record": self.trust is Trust.REPORTED,
            "cell and dataset name different datasets": self.cell.dataset != self.dataset.name,
            "the curve's epochs do not rise": any(a >= b for a, b in itertools.pairwise(epochs)),
            "best comes after last": self.best.epoch > self.last.epoch,
            "best is worse than last": self.best.metrics.map50 < self.last.metrics.map50,
            "last and best are one epoch with two results": self.best.epoch == self.last.epoch
            and self.best != self.last,
            "per-class metrics are not of the dataset's classes": any(
                tuple(entry.name for entry in result.metrics.per_class) != self.dataset.classes
                for result in results
            ),
            "metrics are not over the validation split": any(
                result.metrics.images != self.dataset.splits.get("validation") for result in results
            ),
            "its pretraining is not the one of inputs": self.pretraining is not None
            and self.inputs.get("upstream")
            not in [{kind: stage.key} for kind, stage in self.pretraining.stages.items()],
            "the curve has other values at last or best": any(
                result.epoch in values
                and values[result.epoch] != (result.metrics.map50, result.metrics.map50_95)
                for result in results
            ),
        }
        found = [complaint for complaint, holds in complaints.items() if holds]
        if found:
            raise ValueError("; ".join(found))
        return self

    @property
    def row_key(self) -> str:
        """Content key of all inputs but the seed: records that share it are seeds of one row, and may be averaged."""
        return content_key({name: value for name, value in self.inputs.items() if name != "seed"})

    @property
    def folder(self) -> Path:
        """Where it belongs, relative to the results folder."""
        return (
            Path(self.protocol.id)
            / self.cell.dataset.replace("/", "--")
            / f"{self.cell.folder}-{self.key[:12]}"
        )

    @property
    def detections_files(self) -> tuple[str, str]:
        """Names of the files with the detections of last and of best; one name where they are equal."""
        equal = self.best.detections_sha256 == self.last.detections_sha256
        return "last.parquet", "last.parquet" if equal else "best.parquet"


def to_json(record: Part) -> str:
    """Returns the record as its file holds it: sorted, indented, short lists and objects on one line."""
    return _lay_out(record.model_dump(mode="json"), 0) + "\n"


def _lay_out(value: Any, depth: int, width: int = 110) -> str:
    line = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(line) + depth <= width:
        return line
    inner = " " * (depth + 2)
    if isinstance(value, list):
        entries = [_lay_out(entry, depth + 2) for entry in value]
    else:
        entries = [f"{json.dumps(name)}: {_lay_out(value[name], depth + 2)}" for name in sorted(value)]
    opening, closing = "[]" if isinstance(value, list) else "{}"
    return f"{opening}\n{inner}" + f",\n{inner}".join(entries) + f"\n{' ' * depth}{closing}"
