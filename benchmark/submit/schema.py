"""What `submission.json` holds. Reading it imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from benchmark.record_schema import Amount, Moment, Part, Sha256, Slug, WeightsReport
from benchmark.records import read_model
from benchmark.submit.texts import Name, PlainText, slug

SUBMISSION_FILE = "submission.json"
WEIGHTS_FILE = "weights.safetensors"
ADDRESS_FILE = "weights.json"
CARD_FILE = "README.md"
RECORDS_FOLDER = "records"
SUBMISSIONS_FOLDER = "submissions"
"""Folder of a results repository that strangers may add to."""

Licence = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]{1,58}$")]
"""An SPDX identifier, such as `apache-2.0`, or `other`."""


class Contamination(Part):
    """An evaluation dataset whose images the pretraining may have seen."""

    dataset: Annotated[str, Field(max_length=130)]
    """The evaluation dataset."""
    source: PlainText
    """What it was pretrained on."""
    reason: PlainText
    """Why that matters."""


class SubmittedWeights(Part):
    """The weights file."""

    sha256: Sha256
    """Of the file."""
    bytes: Amount
    """Its size."""
    scope: Literal["backbone", "detector"]
    """What of it is used."""


class SubmittedFile(Part):
    """A file of the submission."""

    sha256: Sha256
    """Of its bytes."""
    bytes: Amount
    """Its size."""


class WeightsAddress(Part):
    """Where the weights of a submission lie, once it is pushed."""

    address: Annotated[str, Field(pattern=r"^hub://[\w.-]+/[\w.-]+@[0-9a-f]{40}/weights\.safetensors$")]
    """`hub://ORG/NAME@COMMIT/weights.safetensors`."""
    sha256: Sha256
    """Of the file."""


class Statement(Part):
    """What the submitter says of the weights."""

    name: Name
    """As the board shows it."""
    backbone: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}:[a-z0-9_]{1,40}$")]
    """Such as `csp_darknet:n`."""
    method: Slug
    """One word for the pretraining; the records' `method`."""
    method_text: PlainText
    """How the weights were made, in the submitter's words."""
    licence: Licence
    """Of the weights."""
    pretrained_on: Annotated[tuple[PlainText, ...], Field(max_length=50)]
    """Datasets and corpora that the pretraining saw; empty: not stated."""

    @property
    def slug(self) -> str:
        """Name of the submission's folder."""
        return slug(self.name)


class Submission(Statement):
    """Weights, and the records that they were measured by."""

    schema_version: Literal[1] = 1
    """Of this format."""
    contamination: Annotated[tuple[Contamination, ...], Field(max_length=200)]
    """What of it is known to touch the evaluation; computed, not stated."""
    weights: SubmittedWeights
    """The weights file."""
    load: WeightsReport
    """What loading them into the backbone does."""
    files: Annotated[dict[str, SubmittedFile], Field(min_length=1, max_length=5_000)]
    """The records' files, by their path below the folder `records`."""
    created: Moment
    """When the folder was prepared, UTC."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Submission:
        if self.load.sha256 != self.weights.sha256:
            raise ValueError("its load report is of other weights")
        return self


def read_submission(path: Path) -> Submission:
    """Reads `submission.json`; anyone may have written it, so nothing in it is trusted.

    Raises:
        UserError: Missing, too large, damaged, or not of this format; names the file.
    """
    return read_model(path / SUBMISSION_FILE if path.is_dir() else path, Submission)
