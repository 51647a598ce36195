"""The model card of a submission: the Hub's metadata with its results, and the same in words."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from benchmark.records import Record
from benchmark.rows import standard_error
from benchmark.submit.contamination import is_known
from benchmark.submit.schema import Submission
from datasets_builders import registry

_METRICS = {"map50": "mAP@.5", "map50_95": "mAP@.5:.95"}


def render(submission: Submission, records: Sequence[Record]) -> str:
    """Returns the card as Markdown; the same submission and records give the same text.

    Args:
        submission: What `submission.json` holds. Its texts are plain words, safe in Markdown.
        records: The submission's records, in any order.
    """
    from huggingface_hub import EvalResult, ModelCardData

    rows = _rows(records)
    results = [
        EvalResult(
            task_type="object-detection",
            dataset_type=first.dataset.name,
            dataset_name=registry.card(first.dataset.name).title,
            dataset_split="validation",
            dataset_revision=first.dataset.fingerprint,
            metric_type=metric,
            metric_name=f"{label}, {first.cell.detector}, {first.protocol.id}, mean of {len(group)} seeds",
            metric_value=round(statistics.fmean(getattr(r.last.metrics, metric) for r in group), 4),
        )
        for group in rows
        for first in (group[0],)
        for metric, label in _METRICS.items()
    ]
    data = ModelCardData(
        license=submission.licence,
        library_name="agssp-bench",
        pipeline_tag="object-detection",
        tags=["agssp-bench", "surface-defect-detection", "pretraining"],
        model_name=submission.name,
        eval_results=results,
    )
    lines = [
        "---",
        data.to_yaml().rstrip(),
        "---",
        "",
        f"# {submission.name}",
        "",
        submission.method_text,
        "",
    ]
    lines += [
        f"Weights of the backbone {submission.backbone} "
        f"({submission.weights.scope}, sha256 {submission.weights.sha256}), licence {submission.licence}.",
        "",
        "## Results",
        "",
        "Percent on the validation split after the last epoch, mean and standard error over seeds.",
        "",
        "| protocol | dataset | detector | seeds | mAP@.5 | mAP@.5:.95 |",
        "|---|---|---|---|---|---|",
    ]
    for group in rows:
        first = group[0]
        numbers = [_number([getattr(r.last.metrics, metric) for r in group]) for metric in _METRICS]
        seeds = " ".join(str(r.cell.seed) for r in group)
        cells = (first.protocol.id, first.dataset.name, first.cell.detector, seeds, *numbers)
        lines.append("| " + " | ".join(cells) + " |")
    load = submission.load
    lines += [
        "",
        "## Training data",
        "",
        *_training_data(submission),
        "",
        "## Loading",
        "",
        f"{load.loaded} tensors, {100 * load.share_of_backbone:.1f} % of the backbone's parameters; "
        f"{len(load.missing)} missing, {len(load.reinitialised)} of another shape, "
        f"{len(load.unexpected)} not used.",
        "",
        "    python -m benchmark run --mode custom --weights weights.safetensors"
        f" --backbone {submission.backbone} --method {submission.method}",
        "",
    ]
    return "\n".join(lines)


def _rows(records: Sequence[Record]) -> list[list[Record]]:
    def place(record: Record) -> tuple[str, ...]:
        return record.protocol.id, record.cell.dataset, record.cell.detector, record.row_key

    ordered = sorted(records, key=lambda record: (*place(record), record.cell.seed))
    return [list(group) for _, group in itertools.groupby(ordered, key=place)]


def _number(values: list[float]) -> str:
    error = standard_error(values)
    mean = f"{statistics.fmean(values):.2f}"
    return mean if error is None else f"{mean} ± {error:.2f}"


def _training_data(submission: Submission) -> list[str]:
    if not submission.pretrained_on:
        return ["Not stated."]
    lines = [
        f"- {name}" + ("" if is_known(name) else " (not known to this project: nobody looked for overlaps)")
        for name in submission.pretrained_on
    ]
    if submission.contamination:
        lines += ["", "Evaluation data that the pretraining may have seen:", ""]
        lines += [f"- {entry.dataset}: {entry.source}: {entry.reason}" for entry in submission.contamination]
    else:
        lines += ["", "None of the evaluation datasets above is known to be among it."]
    return lines
