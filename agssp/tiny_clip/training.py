"""Trains the tiny CLIP: CLIP's contrastive loss, and KeAD's own scores against the exact masks.

Plain CLIP learns what an image shows, not where, and needs millions of images before its patches mean something. With
ten thousand and two million parameters they are told: the probability that KeAD reads from the patch tokens of its V-V
stream, at every tap, follows the share of the patch that is defective; and patches of a defect name its kind.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
import yaml
from safetensors.torch import save
from torch import Tensor

from agssp.kead import vv_attention
from agssp.kead.tokenizer import Tokenizer
from agssp.tiny_clip import captions
from agssp.tiny_clip.batches import Batch, draw_batch
from agssp.tiny_clip.scenes import Examples, load_examples
from agssp.tiny_clip.texts import TextPool, Tokenize, encode_texts, text_loss, text_pool
from baselines import openmmlab
from datasets_builders.errors import UserError
from datasets_builders.storage import atomic_file, content_key, file_sha256

openmmlab.activate()  # open_clip imports torchvision, which does not import everywhere without it

WORK = ".training"
"""Folder inside the output with what an interrupted training goes on from; gone when it is done."""
_STORE_EVERY = 50
OnProgress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called as (what is done, steps done, steps in all, losses)."""


def recipe() -> dict[str, Any]:
    """Reads `recipe.yaml`."""
    content: dict[str, Any] = yaml.safe_load(
        Path(__file__).with_name("recipe.yaml").read_text(encoding="utf-8")
    )
    return content


def token_ids() -> list[int]:
    """Returns the part of CLIP's vocabulary that captions and prompts use, ascending, with padding and both ends."""
    import open_clip

    clip = open_clip.tokenizer.SimpleTokenizer()
    words = {word for text in captions.all_texts() for word in text.split()}
    used = set(itertools.chain(*(clip.encode(word) for word in sorted(words))))
    return sorted(used | {0, clip.sot_token_id, clip.eot_token_id})


def encoder_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `config.json` of an encoder folder (see `agssp.kead.encoder`)."""
    kept = token_ids()
    text = settings["model"]["text_cfg"] | {"vocab_size": len(kept)}
    return {
        "model": settings["model"] | {"text_cfg": text},
        **{key: settings[key] for key in ("mean", "std", "taps", "dual_from")},
        "token_ids": kept,
    }


def new_model(config: Mapping[str, Any], seed: int) -> Any:
    """Builds an untrained model."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(**config["model"])


def write_encoder(folder: Path, model: Any, config: Mapping[str, Any]) -> None:
    """Writes an encoder folder; the weights, in half precision, come last."""
    with atomic_file(folder / "config.json") as path:
        path.write_text(json.dumps(config) + "\n", encoding="utf-8")
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_file(folder / "weights.safetensors") as path:
        path.write_bytes(save(tensors))


def _at(visual: Any, places: Tensor) -> Any:
    """Returns the vision tower as it sees windows: with the position embeddings of their patches."""
    position = visual.positional_embedding
    first = position[:1].expand(len(places), 1, -1)
    parts = ("conv1", "class_embedding", "ln_pre", "transformer", "ln_post", "proj")
    return SimpleNamespace(
        positional_embedding=torch.cat([first, position[1 + places]], 1),
        **{part: getattr(visual, part) for part in parts},
    )


def image_losses(
    model: Any,
    tokenizer: Tokenize,
    pool: TextPool,
    batch: Batch,
    random: Random,
    settings: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Returns the terms of the image tower's loss.

    `contrast` is CLIP's, over the images and captions of the batch; `patches` KeAD's probability at each patch and tap;
    `kinds` says which defect a defective patch shows; `image` is KeAD's probability of the whole image.
    """
    count, temperature = len(batch.images), settings["temperature"]
    cls, taps = vv_attention.encode(
        _at(model.visual, batch.places),
        batch.images,
        taps=settings["taps"],
        dual_from=settings["dual_from"],
        vv=True,
        layer_aliasing=False,
        cls=True,
    )
    assert cls is not None
    cls, patches = F.normalize(cls, dim=-1), F.normalize(torch.stack(taps), dim=-1)

    pairs = list(zip(batch.surfaces, batch.shown, strict=True))
    with torch.no_grad():
        of_images = encode_texts(model, tokenizer, [captions.of_image(random, *pair) for pair in pairs])
    # As in KeAD: the softmax over two cosines is the sigmoid of their difference.
    drawn = [random.randrange(len(pool.sound)) for _ in range(count)]
    direction = (pool.damaged - pool.sound)[drawn] / temperature

    # Captions of other images that show the same are right too.
    keys = [(surface, tuple(shown)) for surface, shown in pairs]
    same = torch.tensor([[one == other for other in keys] for one in keys]).float()
    logits = model.logit_scale.exp().clamp(max=100) * cls @ of_images.T
    target = same / same.sum(1, keepdim=True)

    defective = (batch.cover * 4).clamp(max=1)
    clear = (batch.cover > 0.1) & (batch.kinds >= 0)
    named = patches[:, clear] @ pool.kinds.T / temperature
    image_defective = torch.tensor([float(bool(shown)) for shown in batch.shown])
    return {
        "contrast": (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2,
        "patches": F.binary_cross_entropy_with_logits(
            torch.einsum("tbpd,bd->tbp", patches, direction),
            defective.expand(len(patches), -1, -1),
            weight=1 + 4 * defective,
        ),
        # A sum over the patches and not their mean, which is nothing where there are none.
        "kinds": F.cross_entropy(
            named.flatten(0, 1), batch.kinds[clear].repeat(len(patches)), reduction="sum"
        )
        / max(1, len(patches) * int(clear.sum())),
        "image": F.binary_cross_entropy_with_logits((cls * direction).sum(1), image_defective),
    }


class _Stage:
    """One of the two trainings: its parameters, its optimiser, its rate."""

    def __init__(self, parameters: list[Tensor], settings: Mapping[str, Any]) -> None:
        self.parameters, self.settings = parameters, settings
        self.steps: int = settings["steps"]
        matrices = [one for one in parameters if one.ndim > 1]
        others = [one for one in parameters if one.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=(0.9, 0.98))

    def update(self, step: int, loss: Tensor) -> None:
        """Makes one step: a linear warm-up, then a half cosine to nothing."""
        share = min((step + 1) / self.settings["warmup"], 0.5 * (1 + math.cos(math.pi * step / self.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * share
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings["clip"])
        self.optimizer.step()


def train(
    out: Path,
    settings: Mapping[str, Any],
    *,
    seed: int = 0,
    workers: int = 1,
    on_progress: OnProgress = lambda *_: None,
) -> None:
    """Trains an encoder from nothing and writes its folder; an interrupted training goes on where it was stored.

    Args:
        out: Folder for `config.json` and `weights.safetensors`; the weights appear when all is done.
        settings: As of `recipe()`.
        seed: Of the images, the captions, the first weights and every draw.
        workers: Processes that render images; they change nothing of the result.
        on_progress: Told of every step.

    Raises:
        UserError: The folder holds finished weights, or a training with other settings.
    """
    if (out / "weights.safetensors").exists():
        raise UserError(f"{out} holds weights already. Give another folder with --out, or delete it.")
    config = encoder_config(settings)
    model, tokenizer = new_model(config, seed), Tokenizer(77, config["token_ids"])
    text = [
        p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"
    ]
    image = [*model.visual.parameters(), model.logit_scale]
    stages = {"text": _Stage(text, settings["text"]), "image": _Stage(image, settings["image"])}
    key = content_key([settings, config, seed, _code()])
    state = _State(out / WORK, key, model, stages)
    done = state.load()
    examples = load_examples(out / WORK, seed, settings["images"], workers, on_progress)

    for step in range(done["text"], stages["text"].steps):
        loss = text_loss(model, tokenizer, Random(f"{seed} text {step}"), settings["text"]["batch"])
        stages["text"].update(step, loss)
        state.advance("text", step)
        on_progress("text", step + 1, stages["text"].steps, {"text": loss.item()})
    for parameter in text:
        parameter.requires_grad_(False)
    pool = text_pool(model, tokenizer, Random(f"{seed} pool"))
    for step, batch in _batches(examples, settings, seed, done["image"]):
        terms = image_losses(model, tokenizer, pool, batch, Random(f"{seed} image {step}"), settings)
        stages["image"].update(
            step, torch.stack([settings["weights"][name] * term for name, term in terms.items()]).sum()
        )
        state.advance("image", step)
        losses = {name: term.item() for name, term in terms.items()}
        on_progress("image", step + 1, stages["image"].steps, losses)
    write_encoder(out, model, config)
    shutil.rmtree(out / WORK)


def _batches(
    examples: Examples, settings: Mapping[str, Any], seed: int, first: int
) -> Iterator[tuple[int, Batch]]:
    """Yields every step's batch; the next one is drawn while a step computes."""
    steps, whole = settings["image"]["steps"], settings["image"]["whole"]

    def draw(step: int) -> Batch:
        kind = "whole" if step >= (1 - whole["share"]) * steps else "windows"
        words = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        size = settings["image"][kind]
        return draw_batch(examples, settings, size["batch"], size["patches"], generator)

    with ThreadPoolExecutor(1) as drawer:
        following = drawer.submit(draw, first)
        for step in range(first, steps):
            batch = following.result()
            following = drawer.submit(draw, min(step + 1, steps - 1))
            yield step, batch


def _code() -> str:
    """Returns a key over the code and data that make the weights: no half-done training outlives them."""
    folders = Path(__file__).parent, Path(captions.__file__).parent.parent / "kead"
    files = sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".py", ".yaml"))
    return content_key([[path.name, file_sha256(path)] for path in files])


class _State:
    """What an interrupted training goes on from."""

    def __init__(self, folder: Path, key: str, model: Any, stages: Mapping[str, _Stage]) -> None:
        self.path, self.key, self.model, self.stages = folder / "state.pt", key, model, stages
        self.done = dict.fromkeys(stages, 0)

    def load(self) -> dict[str, int]:
        """Takes up what is stored; returns the steps done of each stage."""
        if self.path.exists():
            stored = torch.load(self.path, weights_only=True)
            if stored["key"] != self.key:
                raise UserError(
                    f"{self.path.parent.parent} holds a training with another seed, other settings or other code. Give "
                    "another folder with --out, or delete it."
                )
            self.model.load_state_dict(stored["model"])
            for name, stage in self.stages.items():
                stage.optimizer.load_state_dict(stored["optimizers"][name])
            self.done = stored["done"]
        return dict(self.done)

    def advance(self, stage: str, step: int) -> None:
        """Counts a step, and stores the state after every so many and the last."""
        self.done[stage] = step + 1
        if (step + 1) % _STORE_EVERY and step + 1 < self.stages[stage].steps:
            return
        state = {
            "key": self.key,
            "done": self.done,
            "model": self.model.state_dict(),
            "optimizers": {name: one.optimizer.state_dict() for name, one in self.stages.items()},
        }
        with atomic_file(self.path) as path:
            torch.save(state, path)
