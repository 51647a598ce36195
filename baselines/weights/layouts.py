"""Names of tensors: how each library calls the parts of our backbones and detectors, in both directions.

Our names are those of the detector's state: `backbone.` and then mmyolo's (YOLOv8CSPDarknet), mmdet's (ResNet,
SwinTransformer) or timm's (EfficientNet-Lite0); `neck.` and `bbox_head.` for the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from baselines.weights import lite0, swin, yolov8
from datasets_builders.errors import UserError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

    State = dict[str, Tensor]

OTHER = "other."
"""Prefix of what has no place in a detector: classifiers, projectors, decoders, momentum encoders."""


def recognise(names: Iterable[str]) -> str:
    """Returns the layout whose names these are, wrappers such as `module.` aside.

    Raises:
        UserError: No known layout has such names.
    """
    names = list(names)
    _, inner = _unwrapped(names)
    for layout, signs in _SIGNS.items():
        if all(any(re.match(sign, name) for name in inner) for sign in signs):
            return layout
    some = ", ".join(sorted(names)[:4])
    raise UserError(
        f"The weights' {len(names)} tensors ({some}, ...) follow none of the known layouts:\n"
        "  openmmlab (mmyolo, mmdet, mmpretrain: backbone.*), ultralytics (YOLOv8: model.0.conv),\n"
        "  torchvision (ResNet: layer1.0.conv1), timm or swin (Swin: layers.0.blocks), timm or efficientnet "
        "(EfficientNet: conv_stem)."
    )


def to_ours(state: Mapping[str, Tensor], layout: str) -> State:
    """Returns the tensors under our names.

    Args:
        state: Tensors under the names of `layout`, wrapped or not.
        layout: One of `LAYOUTS`.

    Returns:
        Tensors named `backbone.*`, and of a detector `neck.*` and `bbox_head.*` too. The rest is under `other.*`.
    """
    prefix, _ = _unwrapped(state)
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    rest = {OTHER + name: value for name, value in state.items() if not name.startswith(prefix)}
    kept = {name: value for name, value in inner.items() if not is_derived(name)}
    return {**_reader(layout)(kept), **rest}


def is_derived(name: str) -> bool:
    """Tells whether a tensor follows from the window size of a Swin: every model computes its own."""
    return name.rsplit(".", 1)[-1] in ("relative_position_index", "attn_mask")


def to_layout(state: Mapping[str, Tensor], layout: str) -> State:
    """Returns the tensors of one of our states under the names of another library.

    Args:
        state: Tensors under our names.
        layout: `torchvision` (ResNet), `timm` (Swin in timm's numbering, EfficientNet-Lite0), `swin` (Swin in
            Microsoft's), `ultralytics` (YOLOv8 with CSPDarknet), or `openmmlab` (the names stay).

    Returns:
        The tensors that the other library has: of a backbone's layout, the backbone alone; of a Swin without the
        norms of its lower outputs. The network still expects RGB in [0, 1].

    Raises:
        UserError: There is no such layout, or it does not know this backbone.
    """
    known = (*_WRITERS, "ultralytics", "openmmlab")
    if layout not in known:
        raise unknown_name("layout", layout, known, see="docs/weights.md")
    if layout == "openmmlab":
        return dict(state)
    if layout == "ultralytics":
        renamed = {yolov8.their_name(name): value for name, value in state.items()}
        written = {name: value for name, value in renamed.items() if name is not None}
    else:
        prefix = "backbone."
        backbone = {
            n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix) and not is_derived(n)
        }
        written = _WRITERS[layout](backbone)
    if not written:
        raise UserError(
            f"Layout {layout!r} has no names for this backbone. Known layouts: {', '.join(known)}."
        )
    return written


def default_input(layout: str, names: Iterable[str]) -> str:
    """Returns the input convention that networks of a layout were trained on, where nobody says another.

    Args:
        layout: One of `LAYOUTS`.
        names: Tensors under our names.
    """
    names = set(names)
    if layout in ("timm", "efficientnet") and "backbone.conv_stem.weight" in names:
        return "tf_lite"
    # YOLO sees [0, 1], in every library; the rest of OpenMMLab's models see ImageNet's mean and deviation.
    yolo = "backbone.stem.conv.weight" in names or any(
        name.startswith("bbox_head.head_module.") for name in names
    )
    return "unit" if yolo else "imagenet"


def _unwrapped(names: Iterable[str]) -> tuple[str, list[str]]:
    """Finds the wrapper around a network's names: returns the prefix, and the names without it.

    Of several networks in one file, the one that is trained comes first: MoCo's base encoder, not its average.
    """
    names, prefix = list(names), ""
    while True:
        for wrapper in _WRAPPERS:
            inside = [name for name in names if name.startswith(wrapper)]
            if inside and not any(name.startswith(("backbone.", *_PLAIN)) for name in names):
                names, prefix = [name.removeprefix(wrapper) for name in inside], prefix + wrapper
                break
        else:
            return prefix, names


_WRAPPERS = ("module.", "base_encoder.", "encoder.", "model.", "momentum_encoder.")
_PLAIN = ("conv1.", "conv_stem.", "patch_embed.", "stem.", "model.0.")

# Names of which each layout has at least one that fits each pattern; the first layout that fits is taken.
_SIGNS: dict[str, tuple[str, ...]] = {
    "openmmlab": (
        r"(backbone\.)?(stem\.conv|conv1|conv_stem|patch_embed\.projection)\.weight",
        r"backbone\.|stage1\.0\.conv|stages\.0\.blocks",
    ),
    "ultralytics": (r"model\.0\.conv\.weight", r"model\.2\.cv1\.conv\.weight"),
    "torchvision": (r"conv1\.weight", r"layer1\.0\.conv1\.weight", r"bn1\.weight"),
    "swin": (r"patch_embed\.proj\.weight", r"layers[._]0\.downsample\.reduction\.weight"),
    "efficientnet": (r"_conv_stem\.weight", r"_blocks\.0\._depthwise_conv\.weight"),
    "timm": (
        r"(conv_stem|patch_embed\.proj)\.weight",
        r"blocks\.0\.0\.conv_dw|layers[._]1\.downsample\.reduction",
    ),
}
LAYOUTS = tuple(_SIGNS)

# Prefixes of what stands beside or after a backbone.
_NO_BACKBONE = ("fc.", "head.", "classifier.", "conv_head.", "bn2.", "mask_token", "predictor.", "decoder.")
# Parts of our detectors.
_DETECTOR = (
    *("backbone.", "neck.", "bbox_head.", "rpn_head.", "roi_head.", "encoder.", "decoder."),
    *("level_embed", "query_embedding", "memory_trans", "dn_query_generator."),
)


def _reader(layout: str) -> Callable[[State], State]:
    readers: dict[str, Callable[[State], State]] = {
        "openmmlab": _read_openmmlab,
        "torchvision": _inside,
        "timm": lambda state: _inside(
            state if "conv_stem.weight" in state else swin.read(state, merging_after=False)
        ),
        "swin": lambda state: _inside(swin.read(state, merging_after=True)),
        "efficientnet": lambda state: _inside({lite0.our_name(name): value for name, value in state.items()}),
        "ultralytics": _read_ultralytics,
    }
    if layout not in readers:
        raise unknown_name("layout", layout, readers, see="docs/weights.md")
    return readers[layout]


_WRITERS: dict[str, Callable[[State], State]] = {
    "torchvision": lambda ours: ours if "layer1.0.conv1.weight" in ours else {},
    "timm": lambda ours: ours if "conv_stem.weight" in ours else swin.write(ours, merging_after=False),
    "swin": lambda ours: swin.write(ours, merging_after=True),
}


def _inside(state: State) -> State:
    """Puts the parts of a classifier where a detector has them."""
    return {
        (OTHER if name.startswith(_NO_BACKBONE) else "backbone.") + name: value
        for name, value in state.items()
    }


def _read_openmmlab(state: State) -> State:
    """mmyolo, mmdet and mmpretrain have our names; bare backbones have them without the prefix."""
    if not any(name.startswith("backbone.") for name in state):
        return _inside(state)
    return {
        name if name.startswith(_DETECTOR) and name != "backbone.mask_token" else OTHER + name: value
        for name, value in state.items()
    }


def _read_ultralytics(state: State) -> State:
    """YOLOv8, and its classifier, which has its outputs where the detector has the pooling layer."""
    classifier = any(name.startswith("model.9.linear.") for name in state)
    renamed = {
        name: None if classifier and name.startswith("model.9.") else yolov8.our_name(name) for name in state
    }
    return {renamed[name] or OTHER + name: value for name, value in state.items()}
