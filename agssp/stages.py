"""The chain of pretraining as stages: corpus, maps, boxes, backbone, detector, each made once and found by its key.

    corpus ─► maps ─► boxes ───────────┐
       └───────┴────► backbone ────────┴─► detector

What two chains share has one key, and is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agssp import recipes
from baselines import artifacts, backbones
from baselines.artifacts import Artifact, Made
from baselines.backbones import Backbone
from baselines.detectors import architecture
from datasets_builders import corpus as corpora
from datasets_builders.errors import UserError
from datasets_builders.storage import content_key

if TYPE_CHECKING:
    import datasets

    from agssp.backbone_pretraining import BackboneResult
    from agssp.detector_pretraining import DetectorResult
    from baselines.training.hooks import TrainingEvent
    from baselines.weights import LocalWeights

MODES = ("industrial", "agbp", "agssp")
"""Modes that are pretrained here, on a corpus."""

Feed = Callable[["TrainingEvent"], None]


@dataclass(frozen=True)
class Request:
    """What is to be pretrained.

    Attributes:
        mode: `industrial` (backbone), `agbp` (backbone guided by maps) or `agssp` (then also the detector).
        backbone: The backbone.
        method: A key of `recipes.METHODS`.
        detector: A detector's name; matters to `agssp` alone.
        recipes: Name of the set of recipes, such as `mini-v1`.
        corpus: Name of the corpus; None takes the recipes'.
        maps: Source of the maps; None takes the recipes'.
        init: Weights the backbone begins with: a spec of `baselines.weights.resolve`, or `none` for random values; None
            takes the recipes'.
        seed: Of the pretraining.
        device: `cpu` or `cuda`: where to compute; changes no key.
        workers: Data-loading processes; changes no key.
        changes: Settings that replace the recipes', by stage: `{"backbone": {"frozen_stages": 0}}`.
    """

    mode: str
    backbone: Backbone
    method: str
    detector: str
    recipes: str
    corpus: str | None = None
    maps: str | None = None
    init: str | None = None
    seed: int = 0
    device: str = "cpu"
    workers: int = 0
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a chain.

    Attributes:
        kind: `maps`, `boxes`, `backbone` or `detector`.
        title: One line for people.
        settings: All that changes its result, besides the stages before it; called once these are there.
        upstream: The stages whose results it takes, by kind.
        work: Makes the result in a folder.
        long: Whether it takes long enough to report progress.
    """

    kind: str
    title: str
    settings: Callable[[], dict[str, Any]]
    upstream: dict[str, Stage]
    work: Callable[[Path, dict[str, Artifact], Feed], Made]
    long: bool = False

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """All that changes the result; its hash is the key."""
        above = {kind: stage.key for kind, stage in self.upstream.items()}
        return {"stage": self.kind, **self.settings(), "upstream": above}

    @property
    def key(self) -> str:
        """Content key of the result."""
        return content_key(self.inputs)

    def find(self) -> Artifact | None:
        """Returns the result if it is on this machine."""
        return artifacts.find(self.kind, self.key)

    def obtain(self, feed: Feed, on_wait: Callable[[str], None]) -> Artifact:
        """Returns the result, made now unless it is there; the stages before it must have been obtained.

        Args:
            feed: Told of the training's progress.
            on_wait: Told when another process is making it.
        """
        above = {kind: _there(stage) for kind, stage in self.upstream.items()}
        return artifacts.obtain(
            self.kind, self.inputs, lambda folder: self.work(folder, above, feed), on_wait
        )


def _there(stage: Stage) -> Artifact:
    found = stage.find()
    if found is None:
        raise UserError(f"The stage {stage.title!r} is gone from the cache. The same command makes it again.")
    return found


def chain(request: Request) -> list[Stage]:
    """Returns the stages of a pretraining in the order in which they are made; the last one's result has the weights.

    Nothing is read or made yet but the weights that the backbone begins with.

    Raises:
        UserError: A combination that cannot be, unknown names, or initial weights that cannot be had here.
    """
    recipes.check_combination(request.backbone.name, request.method)
    setup = recipes.setup(request.recipes)
    corpus = request.corpus or setup.corpus
    source = request.maps or setup.maps.source
    spec = request.init or setup.initial_weights(request.backbone.id, request.method)
    init = _resolve(spec)
    if request.mode == "industrial":
        return [_backbone(request, corpus, None, init)]
    maps, boxes = map_stages(request.recipes, corpus, source, request.device)
    backbone = _backbone(request, corpus, maps, init)
    if request.mode == "agbp":
        return [maps, backbone]
    return [maps, boxes, backbone, _detector(request, corpus, boxes, backbone)]


def map_stages(recipe_set: str, corpus: str, source: str, device: str) -> tuple[Stage, Stage]:
    """Returns the stages that no backbone has a part in: the maps of a corpus, and the pseudo boxes from them.

    Args:
        recipe_set: Name of the set of recipes.
        corpus: Name of the corpus.
        source: Source of the maps.
        device: `cpu` or `cuda`.
    """
    setup = recipes.setup(recipe_set)
    maps = _maps(setup, corpus, source, device)
    return maps, _boxes(setup, maps)


def obtain_all(
    stages: Iterable[Stage],
    feed_of: Callable[[Stage], AbstractContextManager[Feed]],
    on_wait: Callable[[str], None],
) -> list[Artifact]:
    """Makes every stage of a chain that is not there yet; returns the results of all, in order.

    Args:
        stages: From `chain`.
        feed_of: Gives, for a stage that is to be made, a context manager around a function for training events.
        on_wait: Told when another process is making one.
    """
    done = []
    for stage in stages:
        found = stage.find()
        if found is None:
            with feed_of(stage) as feed:
                found = stage.obtain(feed, on_wait)
        done.append(found)
    return done


def _resolve(spec: str | None) -> LocalWeights | None:
    if spec is None or spec == "none":
        return None
    from baselines import weights

    return weights.resolve(spec)


def _corpus_settings(name: str) -> dict[str, Any]:
    return {"corpus": corpora.full_name(name), "corpus_fingerprint": corpora.fingerprint(name)}


def _maps(setup: recipes.Setup, corpus: str, source: str, device: str) -> Stage:
    wanted = setup.maps

    @cache
    def opened() -> Any:
        from agssp.map_sources import open_source

        return open_source(source, seed=wanted.seed, device=device)

    def settings() -> dict[str, Any]:
        from agssp.map_store import FORMAT
        from agssp.mapping import VERSION

        return {
            # Both begin at 1 and only ever rise: either one makes the maps anew.
            "version": FORMAT + VERSION - 1,
            **_corpus_settings(corpus),
            "source": _identity(source, corpus, wanted.seed, device, opened),
            "shots": wanted.shots,
            "normals": wanted.normals,
            "seed": wanted.seed,
        }

    def work(folder: Path, above: dict[str, Artifact], feed: Feed) -> Made:
        from agssp.mapping import make_maps
        from baselines.training.hooks import TrainingEvent

        def tell(done: int, total: int) -> None:
            feed(TrainingEvent(done, total, epoch=1, epochs=1, loss=None, map50=None))

        store = make_maps(
            corpus,
            opened(),
            shots=wanted.shots,
            normals=wanted.normals,
            seed=wanted.seed,
            out=folder / "maps",
            on_progress=tell,
        )
        return Made(
            {
                "source": _public(source),
                "maps": len(store),
                "grid": list(store.grid),
                "fingerprint": store.fingerprint,
            }
        )

    return Stage("maps", f"anomaly maps of {corpus} by {_public(source)}", settings, {}, work, long=True)


def _boxes(setup: recipes.Setup, maps: Stage) -> Stage:
    def settings() -> dict[str, Any]:
        from agssp.pseudo_boxes import VERSION

        return {"version": VERSION, "settings": asdict(setup.boxes)}

    def work(folder: Path, above: dict[str, Artifact], feed: Feed) -> Made:
        from agssp.map_store import open_maps
        from agssp.pseudo_boxes import make_boxes

        store = make_boxes(open_maps(above["maps"].folder / "maps"), folder / "boxes", setup.boxes)
        facts = store.categories.values()
        return Made(
            {
                "boxes": sum(category.boxes for category in facts),
                "images": sum(category.images for category in facts),
                "negatives": sum(category.negatives for category in facts),
                "fingerprint": store.fingerprint,
            }
        )

    return Stage("boxes", "pseudo boxes from the maps", settings, {"maps": maps}, work)


def _backbone(request: Request, corpus: str, maps: Stage | None, init: LocalWeights | None) -> Stage:
    recipe = recipes.backbone_pretraining(request.recipes, request.backbone.name, request.method)
    recipe = recipes.changed(recipe, request.changes.get("backbone", {}))

    def settings() -> dict[str, Any]:
        from agssp.backbone_pretraining import STAGE_VERSION

        return {
            "version": STAGE_VERSION,
            **_corpus_settings(corpus),
            "backbone": request.backbone.config,
            "method": request.method,
            "recipe": recipe.model_dump(mode="json"),
            "init_sha256": init.sha256 if init is not None else None,
            "seed": request.seed,
        }

    def work(folder: Path, above: dict[str, Artifact], feed: Feed) -> Made:
        from agssp.backbone_pretraining import pretrain_backbone
        from agssp.map_store import open_maps

        result = pretrain_backbone(
            backbone=request.backbone,
            method=request.method,
            corpus=_images(corpus),
            maps=open_maps(above["maps"].folder / "maps") if above else None,
            recipe=recipe,
            init=init,
            seed=request.seed,
            folder=folder,
            workers=request.workers,
            on_event=feed,
        )
        return Made(
            {**_training(result), "lambda": result.distillation_weight, "precision": result.precision},
            result.seconds,
        )

    guided = " guided by the maps" if maps is not None else ""
    title = f"{request.backbone.id} backbone by {request.method} on {corpus}{guided}"
    return Stage("backbone", title, settings, {"maps": maps} if maps is not None else {}, work, long=True)


def _detector(request: Request, corpus: str, boxes: Stage, backbone: Stage) -> Stage:
    recipe = recipes.detector_pretraining(request.recipes, request.backbone.name, request.detector)
    recipe = recipes.changed(recipe, request.changes.get("detector", {}))
    numbers = architecture(request.detector, recipe.size)

    def settings() -> dict[str, Any]:
        from agssp.detector_pretraining import STAGE_VERSION

        return {
            "version": STAGE_VERSION,
            "detector": request.detector,
            "neck": request.backbone.neck,
            **({"architecture": numbers} if numbers is not None else {}),
            "recipe": recipe.model_dump(mode="json"),
            "seed": request.seed,
        }

    def work(folder: Path, above: dict[str, Artifact], feed: Feed) -> Made:
        from agssp.box_store import open_boxes
        from agssp.detector_pretraining import pretrain_detector

        result = pretrain_detector(
            backbone=request.backbone,
            detector=request.detector,
            images=open_boxes(above["boxes"].folder / "boxes").as_detection_dataset(_images(corpus)),
            recipe=recipe,
            init=weights_of(above["backbone"]),
            seed=request.seed,
            folder=folder,
            workers=request.workers,
            on_event=feed,
        )
        return Made(
            {**_training(result), "boxes": result.boxes, "negatives": result.negatives}, result.seconds
        )

    title = f"{request.detector} on the pseudo boxes"
    return Stage("detector", title, settings, {"boxes": boxes, "backbone": backbone}, work, long=True)


def _training(result: BackboneResult | DetectorResult) -> dict[str, Any]:
    """Returns what a training tells of itself, for records."""
    report = result.load_report
    return {
        "first_losses": result.curve[0]["losses"],
        "last_losses": result.curve[-1]["losses"],
        "epochs": len(result.curve),
        "parameters": result.parameters,
        "resumes": result.resumes,
        "init": None
        if report is None
        else {
            "source": report.source,
            "sha256": report.sha256,
            "share_of_backbone": report.share_of_backbone,
        },
    }


def weights_of(artifact: Artifact) -> LocalWeights:
    """Returns the weights of a finished backbone or detector stage.

    Raises:
        UserError: The file is damaged.
    """
    from baselines.weights import LocalWeights

    path = artifact.file("weights.safetensors")
    sha256 = artifact.manifest.files["weights.safetensors"].sha256
    kind = artifact.manifest.kind
    return LocalWeights(path, sha256, f"artifact:{kind}/{artifact.key[:12]}", scope=kind)


def _images(corpus: str) -> datasets.Dataset:
    found: Any = corpora.load_corpus(corpus)
    return found


def _public(source: str) -> str:
    """Names a source in titles and records, which others read: of a folder its name, not where it lies."""
    kind, _, rest = source.partition(":")
    return f"folder:{Path(rest).expanduser().resolve().name}" if kind == "folder" else source


_IDENTITIES: dict[tuple[str, int, str], dict[str, Any]] = {}


def _identity(source: str, corpus: str, seed: int, device: str, opened: Callable[[], Any]) -> dict[str, Any]:
    """Returns what tells a source of maps from others; a process loads an encoder for it once, not for every key."""
    if source.partition(":")[0] == "folder":
        # Its files may change, and it knows them only once it has looked for every image's.
        from agssp.map_inputs import open_images

        folder = opened()
        folder.check(open_images(corpus))
        found: dict[str, Any] = folder.identity()
        return found
    name = (source, seed, device)
    if name not in _IDENTITIES:
        _IDENTITIES[name] = opened().identity()
    return _IDENTITIES[name]


def describe(stages: list[Stage], corpus: str) -> Iterator[dict[str, Any]]:
    """Yields each stage as JSON values: kind, title, key and status; keys need the corpus to be there."""
    ready = corpora.is_ready(corpus)
    for stage in stages:
        found = stage.find() if ready else None
        yield {
            "stage": stage.kind,
            "title": stage.title,
            "key": stage.key if ready else None,
            "status": "ready" if found else "to make",
        }


def backbone_of(name: str, default: dict[str, str]) -> Backbone:
    """Returns the backbone that `name` or `name:variant` stands for; `default` gives variants by family."""
    family, _, variant = name.partition(":")
    known = backbones.variants(family)
    return backbones.get(family, variant or default.get(family, known[0]))
