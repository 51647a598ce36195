"""What each mode begins with: nothing, public weights, or a chain of pretraining stages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agssp import recipes
from agssp.stages import Request, Stage, chain, obtain_all
from baselines import weights
from baselines.artifacts import Artifact
from baselines.backbones import Backbone
from datasets_builders.errors import UserError

if TYPE_CHECKING:
    from baselines.weights import LocalWeights

MODES = {
    "scratch": "random initialisation",
    "imagenet": "backbone pretrained on ImageNet",
    "coco": "whole detector pretrained on COCO",
    "industrial": "backbone pretrained on the industrial corpus",
    "agbp": "backbone pretrained on the corpus, guided by anomaly maps",
    "agssp": "backbone and detector pretrained on the corpus, guided by anomaly maps and pseudo boxes",
    "custom": "weights of your own: --weights FILE, their --method in one word",
}
"""Pretraining modes: the rows of the paper's Table 2, and whatever anybody else made."""

PRETRAINED_HERE = ("industrial", "agbp", "agssp")
"""Modes whose weights are made here, on a corpus."""


@dataclass(frozen=True)
class Choice:
    """How the weights of a run come to be, as asked for.

    Attributes:
        mode: A key of `MODES`.
        method: How the backbone is pretrained; None for the mode's usual one.
        weights: A spec of weights: instead of the mode's public ones (`imagenet`, `coco`), or the weights (`custom`).
        maps: Source of anomaly maps instead of the recipes'.
        corpus: Corpus instead of the recipes'.
        init: Weights that the pretraining itself begins with, instead of the recipes'; `none` for random values.
        seed: Of the pretraining. Cells of different seeds share it, as they share weights in the paper.
        changes: Settings that differ from the recipes', for ablations: of the stages `backbone` and `detector`, and of
            `finetune`, such as `{"backbone": {"frozen_stages": 0}}`.
    """

    mode: str
    method: str | None = None
    weights: str | None = None
    maps: str | None = None
    corpus: str | None = None
    init: str | None = None
    seed: int = 0
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def resolved_method(self) -> str:
        """The method of a record: `-` where nothing was pretrained, `detection` for COCO."""
        if self.mode == "scratch":
            return "-"
        return "detection" if self.mode == "coco" else self.method or "cls"


@dataclass(frozen=True)
class Start:
    """What a finetuning begins with.

    Attributes:
        scope: `backbone` or `detector`: what of the weights is taken; None where there are none.
        weights: Public or given weights, on this machine.
        stages: The chain that makes them otherwise, in order.
        corpus: Name of the corpus of that chain.
        notes: What the user should know about this combination.
    """

    scope: str | None = None
    weights: LocalWeights | None = None
    stages: tuple[Stage, ...] = ()
    corpus: str | None = None
    notes: tuple[str, ...] = field(default=())

    def identity(self) -> dict[str, Any]:
        """Returns what of it changes a cell's number; builds a procedural corpus on first use."""
        if self.stages:
            return {"upstream": {self.stages[-1].kind: self.stages[-1].key}, "scope": self.scope}
        if self.weights is not None:
            # The same file read by another convention of its input gives another network.
            return {
                "weights_sha256": self.weights.sha256,
                "weights_input": self.weights.input,
                "scope": self.scope,
            }
        return {}

    def obtain(self, feed_of: Callable[[Stage], Any], on_wait: Callable[[str], None]) -> list[Artifact]:
        """Makes every stage that is not there yet.

        Args:
            feed_of: Gives, for a stage that is to be made, a context manager around a function for training events.
            on_wait: Told when another process is making one.
        """
        return obtain_all(self.stages, feed_of, on_wait)


def check_choice(choice: Choice, backbone: Backbone) -> None:
    """Refuses what cannot be, without reading anything.

    Raises:
        UserError: An option that the mode does not take, or a method that cannot pretrain the backbone.
    """
    mode = choice.mode
    takes = {
        "--method": (choice.method, mode in ("imagenet", "custom", *PRETRAINED_HERE)),
        "--weights": (choice.weights, mode in ("imagenet", "coco", "custom")),
        "--maps": (choice.maps, mode in ("agbp", "agssp")),
        "--corpus": (choice.corpus, mode in PRETRAINED_HERE),
        "--init": (choice.init, mode in PRETRAINED_HERE),
    }
    for option, (value, allowed) in takes.items():
        if value is not None and not allowed:
            raise UserError(f"{option} has no meaning with --mode {mode}: leave it out.")
    if mode == "custom":
        _check_custom(choice)
    if mode in ("imagenet", *PRETRAINED_HERE):
        recipes.check_combination(backbone.name, choice.resolved_method)


def _check_custom(choice: Choice) -> None:
    if choice.weights is None:
        raise UserError("--mode custom takes weights of your own: --weights FILE.")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", choice.method or ""):
        raise UserError(
            "--mode custom needs one word for how the weights were made, in small letters, digits, - and _,"
            f" not {choice.method!r}. Such as: --method autoencoder"
        )


def start(choice: Choice, backbone: Backbone, detector: str, *, recipe_set: str, device: str) -> Start:
    """Finds out what a mode begins with; public weights are brought to this machine.

    Args:
        choice: What was asked for.
        backbone: The backbone.
        detector: The detector's name.
        recipe_set: Set of pretraining recipes, named like the protocol.
        device: Where stages compute.

    Raises:
        UserError: As `check_choice`; or weights that cannot be had here: names the file to supply.
    """
    from baselines.training.resources import default_workers

    check_choice(choice, backbone)
    notes = _notes(choice, backbone)
    if choice.mode == "scratch":
        return Start()
    if choice.mode == "custom":
        own = weights.resolve(str(choice.weights))
        return Start(own.scope or "backbone", own)
    if choice.mode not in PRETRAINED_HERE:
        spec = choice.weights or public_weights(choice, backbone, detector)
        scope = "detector" if choice.mode == "coco" else "backbone"
        return Start(scope, weights.resolve(spec), notes=notes)
    request = Request(
        mode=choice.mode,
        backbone=backbone,
        method=choice.resolved_method,
        detector=detector,
        recipes=recipe_set,
        corpus=choice.corpus,
        maps=choice.maps,
        init=choice.init,
        seed=choice.seed,
        device=device,
        workers=default_workers(device),
        changes=choice.changes,
    )
    stages = tuple(chain(request))
    corpus = choice.corpus or recipes.setup(recipe_set).corpus
    return Start(stages[-1].kind, stages=stages, corpus=corpus, notes=notes)


def public_weights(choice: Choice, backbone: Backbone, detector: str) -> str:
    """Returns the name of the public weights of `imagenet` or `coco`.

    Raises:
        UserError: None are known that fit.
    """
    method = choice.resolved_method
    prefix = {"detection": "coco-", "cls": "imagenet-"}.get(method, f"{method}-")
    entries = [weights.public(name) for name in weights.public_names() if name.startswith(prefix)]
    fitting = [entry.name for entry in entries if entry.backbone == backbone.id]
    if choice.mode == "coco" and detector != "yolov8":
        fitting = []
    if not fitting:
        with_detector = f" with {detector}" if choice.mode == "coco" else ""
        known = ", ".join(entry.backbone for entry in entries) or "none"
        raise UserError(
            f"No public {choice.mode} weights by {method} are known for {backbone.id}{with_detector}"
            f" (known: {known}).\n  Give your own: --weights FILE"
        )
    return fitting[0]


def _notes(choice: Choice, backbone: Backbone) -> tuple[str, ...]:
    method = choice.resolved_method
    if method not in recipes.METHODS or recipes.in_paper(backbone.name, method):
        return ()
    return (f"{backbone.name} by {method} is not among the paper's combinations",)
