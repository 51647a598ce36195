"""What the anomaly benchmark shows on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from agssp.display import console
from benchmark.anomaly_records import AnomalyRecord


def show_plan(name: str, dataset: str, shots: int, seeds: Sequence[int], device: str, results: Path) -> None:
    """Prints what will be done."""
    how = f"{shots} normal images, seeds {', '.join(map(str, seeds))}" if shots else "zero-shot"
    place = escape(str(results))
    console.print(
        f"[bold]{escape(name)}[/] on {dataset}: {how}, on {device}, records in {place}", soft_wrap=True
    )


def show_result(record: AnomalyRecord, path: Path, status: str) -> None:
    """Prints the numbers of a record, in percent; where one does not exist, why."""
    metrics = record.metrics
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    if metrics.image:
        image = metrics.image
        table.add_row(
            "image", f"AUROC [bold]{image.auroc:.1f}[/]  AP {image.ap:.1f}  F1-max {image.f1_max:.1f}"
        )
    else:
        what = "without" if metrics.anomalous_images else "with"
        table.add_row("image", f"not defined: the validation split has no image {what} defects")
    if metrics.pixel and metrics.mask_iou:
        pixel, iou = metrics.pixel, metrics.mask_iou
        table.add_row(
            f"pixel ({metrics.pixel_images} of {metrics.images} images)",
            f"AUROC [bold]{pixel.auroc:.1f}[/]  AP {pixel.ap:.1f}  F1-max {pixel.f1_max:.1f}  AUPRO {pixel.aupro:.1f}",
        )
        best = iou.best_fixed
        table.add_row(
            "mask IoU",
            f"adaptive {iou.adaptive.iou:.1f} at {iou.adaptive.threshold:.3f}, "
            f"best fixed {best.iou:.1f} at {best.threshold:.2f} (with hindsight)",
        )
    else:
        table.add_row("pixel", "not defined: no defect of the validation split has a mask")
    cost = record.cost["score"]
    gpu = f", {cost.peak_gpu_mib:.0f} MiB on the GPU" if cost.peak_gpu_mib is not None else ""
    table.add_row("cost", f"{record.images_per_second:.2f} images/s, peak {cost.peak_ram_mib:.0f} MiB{gpu}")
    console.print(f"  seed {record.cell.seed}")
    console.print(table, soft_wrap=True)
    console.print(f"    {status}: {path}", soft_wrap=True, markup=False)
