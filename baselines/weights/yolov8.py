"""YOLOv8's names: Ultralytics' numbered modules, and mmyolo's, which are ours."""

from __future__ import annotations

_PARTS = {
    0: "backbone.stem",
    1: "backbone.stage1.0",
    2: "backbone.stage1.1",
    3: "backbone.stage2.0",
    4: "backbone.stage2.1",
    5: "backbone.stage3.0",
    6: "backbone.stage3.1",
    7: "backbone.stage4.0",
    8: "backbone.stage4.1",
    9: "backbone.stage4.2",
    12: "neck.top_down_layers.0",
    15: "neck.top_down_layers.1",
    16: "neck.downsample_layers.0",
    18: "neck.bottom_up_layers.0",
    19: "neck.downsample_layers.1",
    21: "neck.bottom_up_layers.1",
    22: "bbox_head.head_module",
}
_BOTTLENECK = {"cv1": "conv1", "cv2": "conv2"}
_CSP_LAYER = {"m": "blocks", "cv1": "main_conv", "cv2": "final_conv"}
_CHILDREN = {
    **dict.fromkeys((2, 4, 6, 8, 12, 15, 18, 21), _CSP_LAYER),
    9: _BOTTLENECK,
    22: {"cv2": "reg_preds", "cv3": "cls_preds"},
}


def our_name(name: str) -> str | None:
    """Returns our name for Ultralytics' (`model.N.*`), or None where we have no such tensor.

    The projection of the distribution focal loss is a constant, 0 to 15, that mmyolo does not store.
    """
    model, _, rest = name.partition(".")
    index, _, rest = rest.partition(".")
    if model != "model" or not index.isdecimal() or int(index) not in _PARTS or rest.startswith("dfl."):
        return None
    child, *tail = rest.split(".")
    new = _CHILDREN.get(int(index), {}).get(child, child)
    if new == "blocks" and len(tail) > 1:
        tail[1] = _BOTTLENECK.get(tail[1], tail[1])
    return ".".join((_PARTS[int(index)], new, *tail))


def their_name(name: str) -> str | None:
    """Undoes `our_name`."""
    for index, part in _PARTS.items():
        if name.startswith(f"{part}."):
            child, *tail = name.removeprefix(f"{part}.").split(".")
            new = {our: their for their, our in _CHILDREN.get(index, {}).items()}.get(child, child)
            if new == "m" and len(tail) > 1:
                tail[1] = {our: their for their, our in _BOTTLENECK.items()}.get(tail[1], tail[1])
            return ".".join((f"model.{index}", new, *tail))
    return None
