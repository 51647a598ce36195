"""Weights into a model: everything that fits, or an error; and a report of what became of each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from baselines.weights import files, inputs, layouts, swin
from baselines.weights.sources import LocalWeights
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

Scope = Literal["backbone", "detector"]

LEAST_SHARE = 0.95
"""Share of the backbone's parameters under which weights are refused."""

LEAST_SHARE_ABOVE = 0.5
"""The same of neck and head together. A class branch of another width is a fifth of YOLOv8-n's."""

# What the classifier of YOLOv8 cannot bring along: its outputs stand where the detector has the pooling layer.
_POOLING = "backbone.stage4.2."


@dataclass(frozen=True)
class LoadReport:
    """What became of pretrained weights when they were loaded.

    Attributes:
        source: Where they came from.
        sha256: Of their file.
        scope: `backbone` or `detector`.
        layout: Whose names the file had.
        input: The input convention they were trained on, now folded into the first convolution.
        loaded: Number of tensors taken over.
        resized: Those of them that were interpolated to another window size.
        reinitialised: Tensors left at their initial values because shapes differ (such as the class outputs).
        missing: Tensors that the weights do not have.
        unexpected: Tensors of the weights, within the scope, that the model does not have.
        unused: Number of tensors outside the scope: heads, projectors, momentum encoders.
        backbone_parameters: Values in the backbone's parameters.
        backbone_loaded: How many of them were loaded.
    """

    source: str
    sha256: str
    scope: Scope
    layout: str
    input: str
    loaded: int
    resized: tuple[str, ...]
    reinitialised: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unused: int
    backbone_parameters: int
    backbone_loaded: int

    @property
    def share_of_backbone(self) -> float:
        """Share of the backbone's parameters that were loaded, 0 to 1."""
        return self.backbone_loaded / self.backbone_parameters

    def describe(self) -> list[str]:
        """Returns the report as lines for people."""
        lines = [
            f"weights   {self.source} (sha256 {self.sha256[:12]}, names of {self.layout})",
            f"input     trained on {self.input!r}"
            + (
                ""
                if self.input == inputs.UNIT.name
                else ", folded into the first convolution for RGB in [0, 1]"
            ),
            f"loaded    {self.loaded} tensors, {100 * self.share_of_backbone:.1f} % of the backbone's "
            f"{self.backbone_parameters:,} parameters",
        ]
        for title, names in (
            ("resized", self.resized),
            ("initial", self.reinitialised),
            ("missing", self.missing),
            ("surplus", self.unexpected),
        ):
            if names:
                why = {"initial": " (other shape)", "missing": " (initial values)"}.get(title, "")
                lines.append(f"{title:<9} {len(names)}{why}: {_brief(names)}")
        if self.unused:
            lines.append(f"unused    {self.unused} tensors outside the {self.scope}")
        return lines


def load(module: nn.Module, weights: LocalWeights, scope: Scope = "backbone") -> LoadReport:
    """Loads weights into a detector, a pretraining model or a bare backbone.

    Nothing is changed where it raises.

    Args:
        module: A module with a `backbone`, or a backbone itself (then the scope is `backbone`).
        weights: From `resolve`.
        scope: `backbone`, or `detector` for neck and head too. Class outputs for another number of classes, and
            whatever else has another shape outside the backbone, keep their initial values.

    Raises:
        UserError: The file is no weights file, has unknown names, or holds less than 95 percent of the backbone's
            parameters (or of its running statistics), or half of neck and head where these are asked for.
    """
    import torch

    tensors, header = files.read(weights.path)
    # A header of ours stands for our names and our input.
    layout = weights.layout or ("openmmlab" if header is not None else layouts.recognise(tensors))
    ours = layouts.to_ours(tensors, layout)
    trained_on = weights.input or ("unit" if header is not None else layouts.default_input(layout, ours))
    ours = inputs.adapt(ours, inputs.convention(trained_on))

    bare = not hasattr(module, "backbone")
    if bare and scope == "detector":
        raise ValueError("a bare backbone takes weights of scope 'backbone'")
    prefix = "backbone." if bare else ""
    inside = "backbone." if scope == "backbone" else ""
    targets = {prefix + name: value for name, value in module.state_dict(keep_vars=True).items()}
    targets = {n: t for n, t in targets.items() if n.startswith(inside) and not layouts.is_derived(n)}
    parameters = {prefix + name for name, _ in module.named_parameters()} & set(targets)

    fitting, resized, reinitialised, missing = _fit(targets, ours)
    in_scope = [n for n in ours if n.startswith(inside) and not n.startswith(layouts.OTHER)]
    in_backbone = {n for n in parameters if n.startswith("backbone.")}
    report = LoadReport(
        source=weights.source,
        sha256=weights.sha256,
        scope=scope,
        layout=layout,
        input=trained_on,
        loaded=len(fitting),
        resized=tuple(resized),
        reinitialised=tuple(reinitialised),
        missing=tuple(missing),
        unexpected=tuple(sorted(n for n in in_scope if n not in targets)),
        unused=len(ours) - len(in_scope),
        backbone_parameters=sum(targets[n].numel() for n in in_backbone),
        backbone_loaded=sum(targets[n].numel() for n in in_backbone if n in fitting),
    )
    classifier = layout == "ultralytics" and not any(n.startswith(_POOLING) for n in ours)
    _refuse_partial(report, targets, fitting, parameters, exempt=_POOLING if classifier else None)
    with torch.no_grad():
        for name, value in fitting.items():
            targets[name].copy_(value)
    return report


def _fit(
    targets: dict[str, Tensor], ours: dict[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str], list[str]]:
    """Finds for each tensor of the model what it takes: returns these values, and names by what happens to them."""
    fitting: dict[str, Tensor] = {}
    resized: list[str] = []
    reinitialised: list[str] = []
    missing: list[str] = []
    for name, target in targets.items():
        value = ours.get(name)
        if value is None:
            # Only counts batches; files from before 2018 do not have it.
            if not name.endswith("num_batches_tracked"):
                missing.append(name)
            continue
        if value.shape != target.shape and name.endswith("relative_position_bias_table"):
            table = swin.resize_table(value, len(target)) if value.shape[1:] == target.shape[1:] else None
            if table is not None:
                value, resized = table, [*resized, name]
        if value.shape == target.shape:
            fitting[name] = value
        else:
            reinitialised.append(name)
    return fitting, resized, reinitialised, missing


def _refuse_partial(
    report: LoadReport,
    targets: dict[str, Tensor],
    fitting: dict[str, Tensor],
    parameters: set[str],
    exempt: str | None,
) -> None:
    """Raises UserError where too little fits; `exempt` begins the names that need not be there."""
    in_backbone = {n for n in parameters if n.startswith("backbone.")}
    share = _share([n for n in in_backbone if exempt is None or not n.startswith(exempt)], targets, fitting)
    lacking = [n for n in (*report.reinitialised, *report.missing) if n.startswith("backbone.")]
    if share < LEAST_SHARE:
        raise UserError(
            f"{report.source}: only {100 * share:.1f} % of the backbone's parameters fit (at least "
            f"{100 * LEAST_SHARE:.0f} % must); nothing was loaded.\n"
            f"  Without a match: {_brief(lacking)}\n"
            "  Are these weights of another backbone, or of another size of it? See: docs/weights.md"
        )
    statistics = [
        n for n in targets if n.startswith("backbone.") and n.endswith(("running_mean", "running_var"))
    ]
    absent = [n for n in statistics if n not in fitting and not (exempt and n.startswith(exempt))]
    if len(absent) > (1 - LEAST_SHARE) * len(statistics):
        raise UserError(
            f"{report.source}: {len(absent)} of the backbone's {len(statistics)} running means and variances are "
            f"missing ({_brief(absent)}); nothing was loaded."
        )
    if report.scope == "detector":
        above = [n for n in parameters if n not in in_backbone]
        share = _share(above, targets, fitting)
        if share < LEAST_SHARE_ABOVE:
            raise UserError(
                f"{report.source}: only {100 * share:.1f} % of the neck's and head's parameters fit (at least "
                f"{100 * LEAST_SHARE_ABOVE:.0f} % must); nothing was loaded.\n"
                "  Are these weights of a backbone alone, or of another detector? See: docs/weights.md"
            )


def _share(names: Sequence[str], targets: dict[str, Tensor], fitting: dict[str, Tensor]) -> float:
    """Returns the share of values in these tensors of the model that the weights have."""
    total = sum(targets[n].numel() for n in names)
    return sum(targets[n].numel() for n in names if n in fitting) / max(total, 1)


def _brief(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
