"""What `python -m agssp pretrain-backbone` and `pretrain-detector` do: a chain of stages, and an export of its end."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from rich.table import Table

from agssp import recipes, stages
from agssp.display import console, quieten_libraries, show_stage
from agssp.export import check_free, export
from agssp.stages import Request, Stage
from baselines.artifacts import Artifact
from baselines.backbones import Backbone
from baselines.detectors import DETECTORS, detector_config
from datasets_builders import corpus as corpora
from datasets_builders import storage
from datasets_builders.corpus.store import quick_manifest
from datasets_builders.errors import UserError, unknown_name


def pretrain(
    *,
    mode: str,
    backbone: str,
    method: str,
    detector: str,
    recipe_set: str,
    corpus: str | None,
    maps: str | None,
    init: str | None,
    seed: int,
    device: str,
    out: Path,
) -> dict[str, Any]:
    """Makes the stages that are not there yet and exports the weights of the last one.

    Args:
        mode: `industrial`, `agbp` or `agssp`.
        backbone: `name` or `name:variant`; the smallest variant where none is given.
        method: How the backbone is pretrained.
        detector: Of `agssp`.
        recipe_set: Such as `mini-v1`.
        corpus: Name of the images; None takes the recipes'.
        maps: Source of the maps; None takes the recipes'.
        init: Weights that the backbone begins with; None takes the recipes'.
        seed: Of the pretraining.
        device: `auto`, `cpu` or `cuda`.
        out: Folder of the export.

    Returns:
        The folder, its files, and each stage with its key and what it told of itself, for `--json`.

    Raises:
        UserError: Something asked for cannot be, or cannot be had; before anything is trained.
    """
    check_free(out)
    if mode == "industrial" and maps is not None:
        raise UserError("--maps has no meaning with --mode industrial: leave it out, or take --mode agbp.")
    if detector not in DETECTORS:
        raise unknown_name("detector", detector, DETECTORS, see="python -m benchmark list")
    model = stages.backbone_of(backbone, {})
    name = corpus or recipes.setup(recipe_set).corpus
    _check_corpus(name)
    recipes.check_categories(method, name)
    device = _device(device)
    request = Request(
        mode, model, method, detector, recipe_set, name, maps, init, seed, device, _workers(device)
    )
    chain = stages.chain(request)
    with console.status(f"  opening {name} (generated on first use where it is procedural)"):
        corpora.fingerprint(name)
    _show(chain, name, out)
    quieten_libraries()
    # Libraries print to standard output as they please; it belongs to the result.
    with contextlib.redirect_stdout(sys.stderr):
        made = stages.obtain_all(chain, show_stage, console.print)
    last = made[-1]
    exported = export(
        stages.weights_of(last),
        model,
        out,
        detector=_detector(last, model) if mode == "agssp" else None,
        facts=_facts(request, name, made),
    )
    console.print(f"{exported.folder}: {', '.join(exported.files)}", highlight=False, soft_wrap=True)
    return {
        "folder": str(exported.folder),
        "files": list(exported.files),
        "stages": [
            {"stage": artifact.manifest.kind, "key": artifact.key, "summary": artifact.manifest.summary}
            for artifact in made
        ],
    }


def _check_corpus(name: str) -> None:
    """Says how a folder of images becomes a corpus, where one is given."""
    if Path(name).is_dir() and not corpora.is_corpus(name):
        raise UserError(
            f"{name} is a folder, not a corpus. To pretrain on images of your own:\n"
            f"    python -m datasets_builders prepare corpus_own_NAME --raw {name}\n"
            "  then: --corpus corpus_own_NAME. See: docs/tutorial.md"
        )
    corpora.full_name(name)


def _device(device: str) -> str:
    if device == "cpu":
        # mmengine takes a GPU whenever it sees one; this must be set before torch looks.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "cpu"
    from baselines.training.resources import resolve_device

    return resolve_device(device)


def _workers(device: str) -> int:
    from baselines.training.resources import default_workers

    return default_workers(device)


def _show(chain: list[Stage], corpus: str, out: Path) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row("corpus", corpus)
    for stage in stages.describe(chain, corpus):
        table.add_row(stage["stage"], f"{stage['title']} ({stage['status']} {stage['key'][:12]})")
    table.add_row("export", str(out))
    table.add_row("cache", str(storage.home()))
    console.print(table)


def _detector(made: Artifact, backbone: Backbone) -> dict[str, Any]:
    """Returns the configuration of the detector that a stage has trained."""
    inputs: dict[str, Any] = made.manifest.inputs
    recipe = recipes.DetectorPretraining.model_validate(inputs["recipe"])
    settings = recipe.model_dump()
    return detector_config(
        inputs["detector"],
        backbone,
        num_classes=1,
        test=settings["test"],
        losses=settings["losses"],
        assigner=settings["assigner"],
        size=recipe.size,
    )


def _facts(request: Request, corpus: str, made: list[Artifact]) -> dict[str, str]:
    """Returns what the README says of the weights."""
    by_kind = {artifact.manifest.kind: artifact for artifact in made}
    trained = by_kind["backbone"].manifest
    init: Any = trained.summary["init"]
    facts = {
        "mode": request.mode,
        "method": request.method,
        "recipes": request.recipes,
        "seed": str(request.seed),
        "corpus": f"{trained.inputs['corpus']} (fingerprint {trained.inputs['corpus_fingerprint']})",
        "licences of its images": _licences(corpus),
        "began with": "random values" if init is None else f"{init['source']} (sha256 {init['sha256']})",
    }
    if "maps" in by_kind:
        facts["anomaly maps"] = str(by_kind["maps"].manifest.summary["source"])
    if "boxes" in by_kind:
        found = by_kind["boxes"].manifest.summary
        facts["pseudo boxes"] = f"{found['boxes']} in {found['images']} images"
    return facts | {f"key of the stage {kind}": artifact.key for kind, artifact in by_kind.items()}


def _licences(corpus: str) -> str:
    manifest = quick_manifest(corpora.full_name(corpus))
    assert manifest is not None, "the corpus was opened before"
    stated = [f"{s['name']}: {s['licence']}" for s in manifest.sources if s["present"]]
    return "; ".join(stated) or "its images are generated by this project"
