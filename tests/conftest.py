"""Fixtures and skips shared by all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

pytest_plugins = ("tiny_splits",)

TEST_DATA_VARIABLE = "AGSSP_BENCH_TEST_DATA"
_DEFAULT_TEST_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Threads and workers together never exceed the cores; libraries read these at import.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
# As in benchmark/__main__.py: waiting threads soon sleep.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ["HF_HUB_OFFLINE"] = "1"


def _test_data() -> Path:
    return Path(os.environ.get(TEST_DATA_VARIABLE, _DEFAULT_TEST_DATA)).resolve()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what this machine cannot run, with the reason."""
    missing_data = not _test_data().is_dir()
    no_gpu = None
    for item in items:
        if "real_data" in item.keywords and missing_data:
            item.add_marker(
                pytest.mark.skip(reason=f"no public raw data at {_test_data()}; set {TEST_DATA_VARIABLE}")
            )
        if "gpu" in item.keywords:
            if no_gpu is None:
                import torch

                no_gpu = not torch.cuda.is_available()
            if no_gpu:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def raw_data() -> Path:
    """The folder of public raw data (`$AGSSP_BENCH_TEST_DATA`); tests that use it are marked `real_data`."""
    if not _test_data().is_dir():
        pytest.skip(f"no public raw data at {_test_data()}; set {TEST_DATA_VARIABLE}")
    return _test_data()


@pytest.fixture(scope="session")
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agssp-home")


@pytest.fixture(autouse=True)
def agssp_home(_session_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points the cache at a temporary folder shared by the whole test session."""
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(_session_home))
    return _session_home


@pytest.fixture
def fresh_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points the cache at an empty folder of this test alone."""
    folder = tmp_path / "fresh-home"
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter running the tests, for subprocesses."""
    return sys.executable
