"""The README of exported weights: how each file is loaded, what the weights expect and what they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from baselines.backbones import Backbone


class Part(NamedTuple):
    """A file of an export: its name, its content, and how it is loaded (Markdown; empty where another file says it)."""

    name: str
    content: bytes
    loading: str


_INPUT = """\
Images are RGB, float32, divided by 255: values in [0, 1], **no mean subtracted, no division by a deviation**. In
OpenMMLab: `mean=[0, 0, 0], std=[255, 255, 255], bgr_to_rgb=True`. With another input the features mean nothing."""

_LOADING = """\
```python
from baselines import weights

report = weights.load(model, weights.resolve("{ours}"), "{scope}")  # model: a detector of this project
```

On the machine that made them, `python -m benchmark run` with the same settings finds them by itself."""

_USING = """\
```python
from benchmark.predict import load_detector

detector = load_detector("{ours}")
print(detector.classes, detector.threshold)  # found = detector.detect("image.jpg")
```

On the command line: `python -m benchmark predict {ours} IMAGE ... --out DIR`"""

_LICENCE = """\
The code that made these weights is under the Apache License 2.0. The weights come from the images named above and from
the weights that the training began with, where it did: what their owners ask for applies before you share or sell
anything made from them. `not stated` and `not confirmed` mean that no permission is known."""


def text(
    ours: str,
    parts: Sequence[Part],
    backbone: Backbone,
    whole: bool,
    facts: Mapping[str, str],
    finetuned: bool = False,
) -> str:
    """Returns the README.

    Args:
        ours: Name of the file for this project.
        parts: The other files.
        backbone: Its backbone, or what was pretrained.
        whole: Whether the weights are of a whole detector.
        facts: What the weights are, by title.
        finetuned: Whether it is a detector that was finetuned, to be used as it is.
    """
    what = "detector with" if whole else "backbone:"
    table = "\n".join(f"| {title} | {_cell(value)} |" for title, value in facts.items())
    scope = "detector" if whole else "backbone"
    sections = "\n\n".join(part.loading for part in parts if part.loading)
    return f"""\
# {"Finetuned" if finetuned else "Pretrained"} {what} {backbone.title}

| | |
|---|---|
{table}

## Input

{_INPUT}

## How to load them

Run in this folder. All files hold the same values; each is in its library's names.

### This project: `{ours}`

{(_USING if finetuned else _LOADING).format(ours=ours, scope=scope)}

{sections}

## Licence

{_LICENCE}
"""


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())


def openmmlab(scopes: Sequence[str], whole: bool, classes: Sequence[str] = ("defect",)) -> str:
    """Returns how OpenMMLab's models load `openmmlab.pth` with `openmmlab.py`.

    Args:
        scopes: Packages whose classes are used; the first has the outermost.
        whole: Whether it is a detector.
        classes: Of the detector.
    """
    title = f"### OpenMMLab ({', '.join(scopes)}): `openmmlab.pth`, `openmmlab.py`"
    register = "\n".join(f"import {scope}.models" for scope in sorted(scopes))
    if whole:
        outputs = (
            f'one class, "{classes[0]}"'
            if len(classes) == 1
            else f"the {len(classes)} classes in `dataset_meta`"
        )
        return f"""\
{title}

`openmmlab.py` describes the detector. Its class outputs are for {outputs}: for classes of your own change
`num_classes` and load with `strict=False`; these outputs then start anew.

```python
{register}
from {scopes[0]}.registry import MODELS
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

config = Config.fromfile("openmmlab.py")
init_default_scope(config.default_scope)
model = MODELS.build(config.model)
load_checkpoint(model, "openmmlab.pth", strict=True)
```"""
    return f"""\
{title}

`openmmlab.py` describes the backbone, with an `init_cfg` that loads the weights: copy it into your detector's
configuration.

```python
{register}
from {scopes[0]}.registry import MODELS
from mmengine import Config

model = MODELS.build(Config.fromfile("openmmlab.py").backbone)
model.init_weights()
```"""


def torchvision(backbone: Backbone, name: str, whole: bool, classes: int = 1) -> str:
    """Returns how torchvision's ResNet loads its file."""
    depth = backbone.config["depth"]
    return f"""\
### torchvision: `{name}` (the backbone)

```python
from safetensors.torch import load_file
from torchvision.models import resnet{depth}

model = resnet{depth}()
loaded = model.load_state_dict(load_file("{name}"), strict=False)
assert loaded.missing_keys == ["fc.weight", "fc.bias"] and not loaded.unexpected_keys
```"""


def timm_swin(backbone: Backbone, name: str, whole: bool, classes: int = 1) -> str:
    """Returns how timm's Swin loads its file."""
    settings: dict[str, Any] = {
        "embed_dim": backbone.config["embed_dims"],
        "depths": tuple(backbone.config["depths"]),
        "num_heads": tuple(backbone.config["num_heads"]),
        "window_size": backbone.config["window_size"],
        "mlp_ratio": backbone.config["mlp_ratio"],
    }
    lines = "\n".join(f"    {key}={value!r}," for key, value in settings.items())
    size = 64 * backbone.config["window_size"]
    return f"""\
### timm: `{name}` (the backbone)

The norms of the lower outputs exist only in mmdet and are left out. The features are equal where the last stage has
more than one window, as in images of {size} pixels; where it has one, mmdet shifts it and timm does not.

```python
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer

model = SwinTransformer(
    img_size={size},
{lines}
    num_classes=0,
    strict_img_size=False,
)
model.load_state_dict(load_file("{name}"))
```"""


def timm_lite0(backbone: Backbone, name: str, whole: bool, classes: int = 1) -> str:
    """Returns how timm's EfficientNet-Lite0 loads its file."""
    return f"""\
### timm: `{name}` (the backbone)

```python
import timm
from safetensors.torch import load_file

model = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4))
model.load_state_dict(load_file("{name}"))
```"""


def ultralytics(backbone: Backbone, name: str, whole: bool, classes: int = 1) -> str:
    """Returns how a YOLOv8 of so many classes loads its file, under Ultralytics' names."""
    size = backbone.variant
    if whole:
        loading = f"""\
model = DetectionModel("yolov8{size}.yaml", nc={classes})
model.load_state_dict(load_file("{name}"))"""
    else:
        loading = f"""\
model = DetectionModel("yolov8{size}.yaml")
loaded = model.load_state_dict(load_file("{name}"), strict=False)
assert not loaded.unexpected_keys"""
    return f"""\
### Ultralytics: `{name}`

Ultralytics' package is under the AGPL.

```python
from safetensors.torch import load_file
from ultralytics.nn.tasks import DetectionModel

{loading}
```"""
