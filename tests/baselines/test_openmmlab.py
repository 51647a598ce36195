"""The compatibility hooks: what wins, what is replaced, what is restored."""

from __future__ import annotations

import os
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest

from baselines import openmmlab

openmmlab.activate()

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def run_python(python: str, tmp_path: Path) -> Any:
    """Runs a program in a fresh interpreter that sees `tmp_path` before the installed packages."""

    def run(program: str) -> str:
        path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
        done = subprocess.run(
            [python, "-W", "ignore", "-c", textwrap.dedent(program)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def package(folder: Path, name: str, **files: str) -> None:
    """Writes a package of the given modules (`init` is its `__init__`)."""
    (folder / name).mkdir()
    for module, text in {"init": "", **files}.items():
        file = "__init__.py" if module == "init" else f"{module}.py"
        (folder / name / file).write_text(textwrap.dedent(text))


def torchvision_without_operators(folder: Path) -> None:
    """Puts the installed torchvision into the folder, without its compiled operators."""
    from importlib.util import find_spec

    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    (folder / "torchvision").mkdir()
    for entry in Path(spec.origin).parent.iterdir():
        if not entry.name.startswith("_C.") and entry.name != "__pycache__":
            (folder / "torchvision" / entry.name).symlink_to(entry)


def test_activating_is_light_and_twice_is_once(run_python: Any) -> None:
    answer = run_python(
        """
        import sys
        before = len(sys.meta_path)
        from baselines import openmmlab
        untouched = len(sys.meta_path) == before
        openmmlab.activate()
        openmmlab.activate()
        heavy = {"torch", "numpy", "torchvision", "mmcv", "mmdet", "mmyolo"} & set(sys.modules)
        print(untouched, len(sys.meta_path) - before, heavy)
        """
    )
    assert answer == "True 2 set()"


def test_a_compiled_extension_wins(run_python: Any, tmp_path: Path) -> None:
    package(tmp_path, "mmcv", _ext="nms = 'compiled'")
    package(tmp_path, "torchvision", init="from . import extension", extension="def _has_ops(): return True")
    answer = run_python(
        """
        from baselines import openmmlab
        openmmlab.activate()
        import mmcv._ext
        print(mmcv._ext.nms, hasattr(mmcv._ext, "roi_align_forward"), openmmlab.describe())
        """
    )
    assert answer == "compiled False {'mmcv_ops': 'compiled', 'torchvision_ops': 'compiled'}"


def test_a_compiled_extension_that_does_not_load_is_not_hidden(run_python: Any, tmp_path: Path) -> None:
    package(tmp_path, "mmcv", _ext="raise ImportError('undefined symbol')")
    answer = run_python(
        """
        from baselines import openmmlab
        openmmlab.activate()
        try:
            import mmcv._ext
        except ImportError as error:
            print(error)
        """
    )
    assert answer == "undefined symbol"


def test_without_a_compiled_extension_ours_is_a_proper_module(run_python: Any, tmp_path: Path) -> None:
    package(tmp_path, "mmcv")
    answer = run_python(
        """
        import importlib, importlib.util, inspect, pickle, sys
        from baselines import openmmlab
        openmmlab.activate()
        found = importlib.util.find_spec("mmcv._ext")
        extension = importlib.import_module("mmcv._ext")
        import mmcv
        assert mmcv._ext is extension is sys.modules["mmcv._ext"]
        assert extension.__spec__.name == extension.__name__ == found.name == "mmcv._ext"
        assert extension.__spec__.loader is not None and extension.__spec__.origin == found.origin
        assert importlib.util.find_spec("mmcv._ext") is extension.__spec__
        assert not hasattr(extension, "__file__") and not hasattr(extension, "_repr_html_")
        assert "torch" not in sys.modules
        assert extension.nms is extension.nms and extension.deform_conv_forward.__name__ == "deform_conv_forward"
        try:
            extension.deform_conv_forward(1, stride=2)
        except NotImplementedError as error:
            print(error)
        """
    )
    assert "'deform_conv_forward'" in answer
    assert "pip install" in answer


def test_torchvision_with_its_operators_is_left_alone(run_python: Any, tmp_path: Path) -> None:
    package(tmp_path, "torchvision", init="from . import extension", extension="def _has_ops(): return True")
    answer = run_python(
        """
        import sys
        from baselines import openmmlab
        openmmlab.activate()
        import torchvision
        loaders = {type(torchvision.__loader__).__name__, type(torchvision.extension.__spec__.loader).__name__}
        print(sorted(loaders), "torch" in sys.modules, vars(torchvision.extension).keys() >= {"_has_ops"})
        """
    )
    assert answer == "['SourceFileLoader'] False True"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["activated first", "imported first"])
def test_torchvision_without_its_operators_works(run_python: Any, tmp_path: Path, first: str) -> None:
    torchvision_without_operators(tmp_path)
    answer = run_python(
        f"""
        import torch
        from baselines import openmmlab
        if {first == "imported first"}:
            try:
                import torchvision
                raise SystemExit("torchvision imports without operators now: the hook may go")
            except RuntimeError as error:
                assert "torchvision::nms does not exist" in str(error)
        openmmlab.activate()
        import torchvision
        assert torchvision.__file__.startswith({str(tmp_path)!r})
        from torchvision.ops import RoIAlign, batched_nms, nms, ps_roi_align, roi_align

        boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [0, 0, 10, 9], [20, 20, 30, 30]])
        scores = torch.tensor([0.5, 0.9, 0.6, 0.5])
        assert nms(boxes, scores, 0.5).tolist() == [1, 3]
        assert batched_nms(boxes, scores, torch.tensor([0, 1, 0, 1]), 0.5).tolist() == [1, 2, 3]
        assert nms(boxes[:0], scores[:0], 0.5).shape == (0,)
        with torch.autocast("cpu", torch.bfloat16):
            assert nms(boxes.bfloat16(), scores.bfloat16(), 0.5).tolist() == [1, 3]

        from torch.autograd import gradcheck
        plane = torch.arange(30, dtype=torch.float64).view(1, 1, 5, 6).requires_grad_()
        regions = [torch.tensor([[1.0, 1, 3, 4]], dtype=torch.float64)]
        # On a linear image the average over a bin is the value at its middle.
        expected = torch.tensor([[[[1.0 + 6 * 1.25, 2.0 + 6 * 1.25], [1.0 + 6 * 2.75, 2.0 + 6 * 2.75]]]])
        pooled = roi_align(plane, regions, 2, aligned=True)
        assert torch.allclose(pooled, expected.double()) and pooled.is_contiguous(), pooled
        assert gradcheck(lambda image: RoIAlign(2, 0.5, 0)(image, regions), (plane,))

        try:
            ps_roi_align(plane.float(), [regions[0].float()], 1)
            raise SystemExit("an operator that we do not define must keep its own error")
        except RuntimeError as error:
            assert "Couldn't load custom C++ ops" in str(error)
        print(torchvision.extension._has_ops())
        """
    )
    assert answer == "False"


MMYOLO = """
    import mmcv
    import mmdet
    seen = mmcv.__version__
    assert tuple(map(int, seen.split("."))) < (2, 1, 0), seen
    {more}
"""


@pytest.mark.parametrize(
    ("version", "seen"), [("2.3.6", "2.0.1"), ("2.1.0", "2.0.1"), ("2.0.5", "2.0.5")], ids=str
)
def test_mmyolo_sees_a_lower_version_during_its_import_only(
    run_python: Any, tmp_path: Path, version: str, seen: str
) -> None:
    package(tmp_path, "mmcv", init=f"__version__ = {version!r}")
    package(tmp_path, "mmdet", init="import mmcv; seen = mmcv.__version__")
    package(tmp_path, "mmyolo", init=MMYOLO.format(more=""))
    answer = run_python(
        """
        from baselines import openmmlab
        openmmlab.activate()
        import mmyolo, mmcv, mmdet
        print(mmyolo.seen, mmdet.seen, mmcv.__version__, type(mmyolo.__loader__).__name__)
        """
    )
    assert answer == f"{seen} {version} {version} SourceFileLoader"


def test_mmcv_has_its_version_back_when_mmyolo_fails(run_python: Any, tmp_path: Path) -> None:
    package(tmp_path, "mmcv", init="__version__ = '2.3.6'")
    package(tmp_path, "mmdet")
    package(tmp_path, "mmyolo", init=MMYOLO.format(more="raise KeyError('broken')"))
    answer = run_python(
        """
        import sys
        from baselines import openmmlab
        openmmlab.activate()
        for attempt in range(2):
            try:
                import mmyolo
            except KeyError as error:
                import mmcv
                print(error, mmcv.__version__, "mmyolo" in sys.modules)
        """
    )
    assert answer == "'broken' 2.3.6 False\n'broken' 2.3.6 False"


def test_imports_pass_on_what_is_printed_but_for_one_note(run_python: Any, tmp_path: Path) -> None:
    package(
        tmp_path, "mmpretrain", datasets='print("Could not import OneDL. Skipping.")\nprint("something else")'
    )
    assert (
        run_python("""
        from baselines import openmmlab

        openmmlab.activate()
        import mmpretrain.datasets
    """)
        == "something else"
    )


def test_a_package_that_is_not_installed_is_reported_as_such(run_python: Any, tmp_path: Path) -> None:
    package(tmp_path, "mmcv", init="__version__ = '2.3.6'")
    package(tmp_path, "mmdet")
    (tmp_path / "sitecustomize.py").write_text("")
    answer = run_python(
        """
        import sys
        sys.path = [entry for entry in sys.path if "site-packages" not in entry]
        from baselines import openmmlab
        openmmlab.activate()
        try:
            import mmyolo
        except ModuleNotFoundError as error:
            print(error.name)
        """
    )
    assert answer == "mmyolo"


def test_the_installed_packages_work_and_say_what_is_in_force() -> None:
    import mmcv
    import mmdet
    import mmpretrain
    import mmyolo
    from mmcv.utils import collect_env
    from mmcv.utils.ext_loader import check_ops_exist
    from mmengine.utils import digit_version

    assert digit_version(mmcv.__version__) >= digit_version("2.3.6")
    assert all(module.__version__ for module in (mmdet, mmpretrain, mmyolo))
    assert check_ops_exist()
    force = openmmlab.describe()
    assert set(force) == {"mmcv_ops", "torchvision_ops"}
    assert set(force.values()) <= {"compiled", "baselines._ops"}
    if force["mmcv_ops"] == "baselines._ops":
        assert collect_env()["MMCV Compiler"] == "none (baselines._ops)"
