"""Makes mmcv, mmdet, mmyolo and mmpretrain usable with nothing compiled.

Call `activate()` before the first import of any of them:

    from baselines import openmmlab

    openmmlab.activate()
    import mmyolo

It only registers import hooks (no torch, no mm* package is imported by it), and each acts only where needed:

* `mmcv._ext`, mmcv's extension module: a compiled one wins. Where there is none, `baselines._ops` stands in
  with the operators of our detectors; any other raises NotImplementedError when called.
* torchvision whose compiled operators do not load (a CPU build of torch beside torchvision's CUDA build): its
  import fails for want of two operator schemas. They are defined first, and `torchvision.ops.nms`, all that
  stands on it, and `torchvision.ops.roi_align` get working implementations. Matching builds are left alone.
* mmyolo 0.6.0 refuses mmcv >= 2.1.0 when imported: it sees a lower version then, and only then.
* mmdet and mmpretrain print, at every import, that an optional dataset source of their maker is not installed: that
  line is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ORIGIN = "baselines._ops"
_MMCV_FOR_MMYOLO = "2.0.1"
"""The newest upstream release inside mmyolo 0.6.0's range."""

_torchvision_library: Any = None
"""Keeps the operators that we define registered: torch drops them with this object."""


def activate() -> None:
    """Registers the hooks; calling it again changes nothing.

    Modules that are already imported are left as they are, save torchvision, which is completed where its
    compiled operators are absent.
    """
    if any(isinstance(finder, _HookFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _HookFinder())
    sys.meta_path.append(_ExtensionFinder())
    # A failed import of torchvision leaves its submodules behind, which the next attempt does not load again.
    for name, hook in _AFTER.items():
        if name in sys.modules:
            hook(sys.modules[name])


def describe() -> dict[str, str]:
    """Says which operators are in force, for records; activates, and imports mmcv and torchvision.

    Returns:
        `mmcv_ops` and `torchvision_ops`, each `"compiled"` or `"baselines._ops"`.
    """
    activate()
    import torchvision

    spec = importlib.import_module("mmcv._ext").__spec__
    return {
        "mmcv_ops": _ORIGIN if spec is not None and spec.origin == _ORIGIN else "compiled",
        "torchvision_ops": "compiled" if torchvision.extension._has_ops() else _ORIGIN,
    }


class _Extension(ModuleType):
    """A module that has every operator: ours, or one that raises when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        from baselines import _ops

        operator = _ops.OPERATORS.get(name) or _ops.missing(name)
        setattr(self, name, operator)
        return operator


class _ExtensionFinder(MetaPathFinder, Loader):
    """Offers our `mmcv._ext`. It stands last in `sys.meta_path`: a compiled one is found before."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin=_ORIGIN) if fullname == "mmcv._ext" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Extension(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: operators are looked up when asked for."""


class _HookFinder(MetaPathFinder):
    """Lets the other finders find the modules named in `_AFTER` and `_AROUND`, and wraps their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _AFTER and fullname not in _AROUND:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _HookLoader(spec.loader)
                return spec
        return None


class _HookLoader(Loader):
    """Runs a module's hook, and leaves no trace of itself on the module."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        if module.__name__ in _AROUND:
            _AROUND[module.__name__](lambda: self._loader.exec_module(module))
        else:
            self._loader.exec_module(module)
            _AFTER[module.__name__](module)


def _import_mmyolo(load: Callable[[], None]) -> None:
    """Runs mmyolo's import while mmcv states a version that mmyolo accepts."""
    import mmcv
    import mmdet  # noqa: F401 - it checks mmcv's version too, and is to see the true one
    from mmengine.utils import digit_version

    actual = mmcv.__version__
    if digit_version(actual) < digit_version("2.1.0"):
        load()
        return
    mmcv.__version__ = _MMCV_FOR_MMYOLO
    try:
        load()
    finally:
        mmcv.__version__ = actual


def _import_quietly(load: Callable[[], None]) -> None:
    """Runs an import, and passes on what it printed but for the note on the maker's own dataset source."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            load()
    finally:
        for line in said.getvalue().splitlines():
            if "Could not import OneDL" not in line:
                print(line)


def _define_operators(extension: ModuleType) -> None:
    """Defines what torchvision's import and its users need, where its own operators did not load."""
    global _torchvision_library
    if extension._has_ops() or _torchvision_library is not None:
        return
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define(
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor"
    )
    library.impl("nms", _nms, "CompositeExplicitAutograd")
    library.impl("roi_align", _roi_align, "CompositeImplicitAutograd")
    _torchvision_library = library


def _complete_operators(torchvision: ModuleType) -> None:
    """Lets torchvision's `nms` and `roi_align` reach the operators that `_define_operators` defined."""
    if torchvision.extension._has_ops() or _torchvision_library is None:
        return
    # Both functions ask whether the compiled operators are there. Only these two modules hear "yes": the rest
    # of torchvision.ops keeps raising its own clear error.
    for name in ("torchvision.ops.boxes", "torchvision.ops.roi_align"):
        module = sys.modules[name]
        vars(module).update(_assert_has_ops=lambda: None, _has_ops=lambda: True)


def _nms(dets: Any, scores: Any, iou_threshold: float) -> Any:
    from baselines import _ops

    return _ops.torchvision_nms(dets, scores, iou_threshold)


def _roi_align(
    features: Any, rois: Any, scale: float, height: int, width: int, sampling_ratio: int, aligned: bool
) -> Any:
    from baselines import _ops, _roi_align

    pixels = _ops.at_least_float32(features)
    pooling = _roi_align.Pooling(scale, height, width, sampling_ratio, aligned)
    return _roi_align.average(pixels, rois.to(pixels.dtype), pooling).to(features.dtype).contiguous()


_AROUND: dict[str, Callable[[Callable[[], None]], None]] = {
    "mmyolo": _import_mmyolo,
    "mmdet.datasets": _import_quietly,
    "mmdet.datasets.transforms": _import_quietly,
    "mmpretrain.datasets": _import_quietly,
}
_AFTER: dict[str, Callable[[ModuleType], None]] = {
    "torchvision.extension": _define_operators,
    "torchvision": _complete_operators,
}
