from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from map_cases import CORPUS, PlainSource, files_of

from agssp import map_work, mapper
from agssp.map_inputs import MapInput, open_images
from agssp.map_sources import AnomalyMaps, open_source
from agssp.map_store import MapStore, open_maps
from agssp.mapping import make_maps, make_shard
from datasets_builders.corpus import load_corpus
from datasets_builders.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, _session_home: Path) -> Path:
    """The maps of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "maps"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGSSP_BENCH_HOME", str(_session_home))
        make_maps(CORPUS, PlainSource(), out=folder, shots=2)
    return folder


def test_every_image_gets_its_map_in_order(whole: Path) -> None:
    """Against a plain loop over the corpus as the datasets library opens it."""
    store = open_maps(whole)
    corpus = load_corpus(CORPUS)
    names = corpus.features["category"].names
    images = {row["image_id"]: np.asarray(row["image"]) for row in corpus}
    assert len(store) == 150
    assert store.grid == (6, 4)
    for row, truth in zip(store, corpus, strict=True):
        assert row.image_id == truth["image_id"]
        assert row.category == names[truth["category"]]
        assert (row.width, row.height) == truth["image"].size
        model = float(np.mean([images[normal].mean() for normal in store.normals[row.category]]))
        expected = PlainSource.values(images[row.image_id], model)
        np.testing.assert_allclose(row.map, expected, rtol=1e-3, atol=1e-5)
        assert row.image_score == pytest.approx(expected.mean(), rel=1e-6)


def test_exactly_k_normal_samples_are_used_and_recorded(whole: Path, tmp_path: Path) -> None:
    for shots in (0, 1, 3):
        source = PlainSource()
        store = make_maps(CORPUS, source, out=tmp_path / str(shots), shots=shots)
        assert set(store.normals) == set(store.categories) == set(source.fitted)
        images = {one.image_id: one for one in open_images(CORPUS).read(range(150))}
        for category, chosen in store.normals.items():
            assert len(chosen) == len(set(chosen)) == shots
            assert {images[image_id].category for image_id in chosen} <= {category}
            for image_id, used in zip(chosen, source.fitted[category], strict=True):
                np.testing.assert_array_equal(images[image_id].decode().image, used)
        assert store.request["shots"] == shots


def test_a_second_run_finds_what_is_there(whole: Path) -> None:
    before = files_of(whole.parent)
    source = PlainSource()
    assert make_maps(CORPUS, source, out=whole, shots=2).fingerprint == open_maps(whole).fingerprint
    assert not source.scored
    assert files_of(whole.parent) == before


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_in_any_order_make_the_same_files(whole: Path, tmp_path: Path, order: tuple[int, ...]) -> None:
    out = tmp_path / "maps"
    sources = [PlainSource() for _ in order]
    for shard in order:
        assert not out.exists()
        store = make_shard(CORPUS, sources[shard], out=out, shots=2, num_shards=3, shard=shard)
        assert (store is not None) == (shard == order[-1])
    assert files_of(out) == files_of(whole)
    assert sum(len(source.scored) for source in sources) == 150, "no image twice"
    assert {path.name for path in tmp_path.iterdir()} <= {"maps", ".maps.lock"}


def test_shards_at_the_same_time(whole: Path, tmp_path: Path) -> None:
    """Four processes' work in threads, one shard even twice: one of them joins, whoever is last."""
    out = tmp_path / "maps"

    def work(shard: int) -> MapStore | None:
        return make_shard(CORPUS, PlainSource(), out=out, shots=2, num_shards=3, shard=shard)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(work, (0, 1, 2, 1)))
    assert any(found)
    assert files_of(out) == files_of(whole)


def test_a_run_goes_on_with_another_number_of_shards(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    assert make_shard(CORPUS, PlainSource(), out=out, shots=2, num_shards=2, shard=1) is None
    source = PlainSource()
    make_maps(CORPUS, source, out=out, shots=2)
    assert 0 < len(source.scored) < 150
    assert files_of(out) == files_of(whole)


def test_parts_made_elsewhere_can_be_brought_together(whole: Path, tmp_path: Path) -> None:
    for shard in (0, 1):
        (tmp_path / f"{shard}").mkdir()
        out = tmp_path / f"{shard}" / "maps"
        make_shard(CORPUS, PlainSource(), out=out, shots=2, num_shards=2, shard=shard)
    here, there = (tmp_path / f"{shard}" / ".maps.work" / "parts" for shard in (0, 1))
    for part in there.iterdir():
        part.rename(here / part.name)
    source = PlainSource()
    make_maps(CORPUS, source, out=tmp_path / "0" / "maps", shots=2)
    assert not source.scored
    assert files_of(tmp_path / "0" / "maps") == files_of(whole)


def test_damaged_and_foreign_parts_are_made_again(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    make_shard(CORPUS, PlainSource(), out=out, shots=2, num_shards=2, shard=0)
    parts = sorted((tmp_path / ".maps.work" / "parts").iterdir())
    assert len(parts) == 2
    parts[0].write_bytes(parts[0].read_bytes()[:100])
    make_shard(CORPUS, PlainSource(), out=tmp_path / "other", shots=1, num_shards=2, shard=0)
    foreign = tmp_path / ".other.work" / "parts" / parts[1].name
    parts[1].write_bytes(foreign.read_bytes())
    make_maps(CORPUS, PlainSource(), out=out, shots=2)
    assert files_of(out) == files_of(whole)


@pytest.mark.parametrize(
    ("other", "message"),
    [({"shots": 1}, "shots: 2 there, 1 now"), ({"seed": 5}, "seed: 0 there, 5 now"),
     ({"name": "corpus_synthetic/n6_k3_s0"}, "dataset.name: corpus_synthetic/n150_k3_s0 there")],
)  # fmt: skip
def test_other_maps_are_never_overwritten(
    whole: Path, tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    before = files_of(whole.parent)
    settings = {"name": CORPUS, "shots": 2} | other
    with pytest.raises(UserError, match=message):
        make_maps(**settings, source=PlainSource(), out=whole)
    assert files_of(whole.parent) == before
    make_shard(CORPUS, PlainSource(), out=tmp_path / "maps", shots=2, num_shards=2, shard=0)
    with pytest.raises(UserError, match=f"unfinished run(.|\n)*{message}"):
        make_maps(**settings, source=PlainSource(), out=tmp_path / "maps")


def test_a_run_that_made_nothing_does_not_stand_in_the_way(whole: Path, tmp_path: Path) -> None:
    class Broken(PlainSource):
        def fit(self, category: str, normals: Any) -> float:
            raise UserError("no")

    with pytest.raises(UserError, match="no"):
        make_maps(CORPUS, Broken(), out=tmp_path / "maps", shots=1)
    make_maps(CORPUS, PlainSource(), out=tmp_path / "maps", shots=2)
    assert files_of(tmp_path / "maps") == files_of(whole)


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no anomaly maps"):
        make_maps(CORPUS, PlainSource(), out=tmp_path / "maps")
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["thesis.tex"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        make_maps(CORPUS, PlainSource(), out=tmp_path / "file")
    with pytest.raises(UserError, match="Choose another --out"):
        make_maps(CORPUS, PlainSource(), out=tmp_path / "file" / "maps")


def test_an_empty_folder_with_an_odd_name_will_do(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps [1]*"
    out.mkdir()
    make_maps(CORPUS, PlainSource(), out=out, shots=2)
    assert files_of(out) == files_of(whole)


def test_only_its_own_leftovers_are_removed(whole: Path, tmp_path: Path) -> None:
    """`maps.v2` may be joining its parts at the same time."""
    neighbour, leftover = tmp_path / ".maps.v2.17-0123abcd.tmp", tmp_path / ".maps.17-0123abcd.tmp"
    neighbour.mkdir()
    leftover.mkdir()
    make_maps(CORPUS, PlainSource(), out=tmp_path / "maps", shots=2)
    assert neighbour.is_dir()
    assert not leftover.exists()
    assert files_of(tmp_path / "maps") == files_of(whole)


@pytest.mark.parametrize(("num_shards", "shard"), [(2, 2), (1, -1)])
def test_shards_that_are_none(tmp_path: Path, num_shards: int, shard: int) -> None:
    with pytest.raises(UserError, match="counted from 0"):
        make_shard(CORPUS, PlainSource(), out=tmp_path / "m", num_shards=num_shards, shard=shard)


def test_maps_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    class Broken(PlainSource):
        def score(self, batch: Any, model: float) -> AnomalyMaps:
            found = super().score(batch, model)
            found.maps[-1, 0, 0] = np.nan
            return found

    with pytest.raises(UserError, match="not finite"):
        make_maps(CORPUS, Broken(), out=tmp_path / "maps")


def test_a_source_that_leaves_images_out_is_refused(tmp_path: Path) -> None:
    class Short(PlainSource):
        def score(self, batch: Any, model: float) -> AnomalyMaps:
            found = super().score(batch, model)
            return AnomalyMaps(found.maps[:-1], found.image_scores)

    with pytest.raises(UserError, match="gave 6 maps and 7 scores of 7 images"):
        make_maps(CORPUS, Short(), out=tmp_path / "maps")


def test_an_error_of_the_source_leaves_what_was_made(whole: Path, tmp_path: Path) -> None:
    class Tired(PlainSource):
        def score(self, batch: list[MapInput], model: float) -> AnomalyMaps:
            if len(self.scored) > 100:
                raise RuntimeError("out of memory")
            return super().score(batch, model)

    with pytest.raises(RuntimeError, match="out of memory"):
        make_maps(CORPUS, Tired(), out=tmp_path / "maps", shots=2)
    source = PlainSource()
    make_maps(CORPUS, source, out=tmp_path / "maps", shots=2)
    assert len(source.scored) == 150 - 64
    assert files_of(tmp_path / "maps") == files_of(whole)


def in_a_process(work: Callable[[], None]) -> int:
    """Starts a copy of this process that works and ends; returns its id."""
    process = os.fork()
    if not process:
        work()
        os._exit(0)
    return process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals of Linux")
def test_killed_five_times_it_ends_the_same(whole: Path, tmp_path: Path) -> None:
    """Runs in a fresh interpreter, which has no threads yet and so may fork."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["killed"] * 5 + ["died", "done"]
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert files_of(killed) == files_of(undisturbed)
    assert len(open_maps(killed)) == 150
    assert {path.name for path in tmp_path.iterdir()} <= {
        "killed",
        "undisturbed",
        ".killed.lock",
        ".undisturbed.lock",
    }


def kill_at_random_moments(folder: Path, seed: int = 0) -> None:
    """Kills a run with signal 9 shortly after a random batch, five times, and once while it joins its parts."""
    import signal
    import time

    import datasets  # noqa: F401 - once here, not in every process

    open_source("random")
    mapper.BLOCK = 4
    chance = random.Random(seed)

    def run(out: Path, batch_done: Callable[[], object] = lambda: None) -> None:
        make_maps(CORPUS, open_source("random"), out=out, on_progress=lambda done, total: batch_done())

    for _ in range(5):
        inlet, outlet = os.pipe()
        process = in_a_process(lambda outlet=outlet: run(folder / "killed", lambda: os.write(outlet, b".")))
        os.close(outlet)
        for _ in range(chance.randint(1, 9)):
            assert os.read(inlet, 1), "it ended by itself"
        os.close(inlet)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(process, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
        assert not (folder / "killed").exists()
        print("killed", flush=True)

    def die_joining() -> None:
        map_work.open_maps = lambda folder: os._exit(9)  # type: ignore[assignment]
        write = map_work.write_store
        map_work.write_store = lambda folder, *rest: (write(folder, *rest), os._exit(9))  # type: ignore[assignment]
        run(folder / "killed")

    assert os.waitstatus_to_exitcode(os.waitpid(in_a_process(die_joining), 0)[1]) == 9
    assert not (folder / "killed").exists()
    print("died", flush=True)
    run(folder / "killed")
    run(folder / "undisturbed")
    print("done", flush=True)


if __name__ == "__main__":
    kill_at_random_moments(Path(sys.argv[1]))


def test_what_cannot_be_read_is_not_called_a_full_disk(tmp_path: Path) -> None:
    out = tmp_path / "maps"
    with pytest.raises(UserError, match="Cannot read /images/a"), map_work.can_write(out):
        raise OSError(5, "Input/output error", "/images/a.png")
    with pytest.raises(UserError, match=r"Cannot write to .*No space left"), map_work.can_write(out):
        raise OSError(28, "No space left on device", str(out / "part"))
