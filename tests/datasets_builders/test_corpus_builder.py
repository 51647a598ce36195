from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_sources import make_file, make_source
from PIL import Image

from datasets_builders.corpus import fingerprint as corpus_fingerprint
from datasets_builders.corpus import load_corpus, prepare_corpus, prepared, sources_on_disk, store
from datasets_builders.errors import UserError

pytestmark = pytest.mark.usefixtures("fresh_home")


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.*")}


def without_raw(folder: Path) -> dict:
    content = json.loads((folder / "manifest.json").read_text())
    return {key: value for key, value in content.items() if key not in ("raw", "checksum")}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three public sources and a private one."""
    folder = tmp_path / "raw"
    for name in ("magnetic_tile", "kolektorsdd2", "msd_seg"):
        make_source(folder, name)
    for number in range(11):
        make_file(folder / "Steel Rail" / f"{number:03d}.png")
    return folder


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_on_disk, "SHARD_IMAGES", 4)


def test_a_corpus_holds_every_image_as_its_owner_encoded_it(raw: Path) -> None:
    done = prepare_corpus("corpus", raw, workers=1)
    assert done.built
    corpus = load_corpus("corpus")
    assert isinstance(corpus, datasets.Dataset)
    assert corpus.num_rows == done.manifest.images == 2 + 2 + 6 + 11
    names = corpus.features["category"].names
    assert len(names) == 61
    assert corpus.features["image"] == datasets.Image(mode="RGB")
    for row in corpus.cast_column("image", datasets.Image(decode=False)):
        source, _, name = row["image_id"].partition("/")
        folder = "Steel Rail" if source == "steel_rail" else source
        assert row["image"]["bytes"] == (raw / folder / name).read_bytes()
        assert row["source"] == source
    rails = [row for row in corpus if row["source"] == "steel_rail"]
    assert {names[row["category"]] for row in rails} == {"steel_rail"}
    assert {row["licence"] for row in rails} == {"private"}
    assert rails[0]["image"].mode == "RGB"


def test_streaming_gives_the_same_rows(raw: Path, small_shards: None) -> None:
    done = prepare_corpus("corpus", raw, workers=1)
    assert len(done.manifest.shards) == 1 + 1 + 2 + 3
    streamed = load_corpus("corpus", streaming=True)
    assert isinstance(streamed, datasets.IterableDataset)
    assert streamed.features == load_corpus("corpus").features
    keys = ("image_id", "category", "source", "licence")
    assert [[row[key] for key in keys] for row in streamed] == [
        [row[key] for key in keys] for row in load_corpus("corpus")
    ]


def test_the_fingerprint_is_that_of_the_rows(raw: Path, small_shards: None) -> None:
    """Worked out again from the opened corpus, by the documented rule."""
    prepare_corpus("corpus", raw, workers=1)
    corpus = load_corpus("corpus").cast_column("image", datasets.Image(decode=False))
    names = corpus.features["category"].names

    def canonical(value: object) -> bytes:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()

    total = hashlib.sha256(canonical(names))
    for row in corpus:
        data = row["image"]["bytes"]
        if data.startswith(b"\x89PNG"):
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            image = hashlib.sha256(f"{pixels.shape}:".encode() + pixels.tobytes()).hexdigest()
        else:
            image = hashlib.sha256(data).hexdigest()
        total.update(b"\n")
        content = canonical([row["image_id"], names[row["category"]], image])
        total.update(hashlib.sha256(content).hexdigest().encode())
    assert corpus_fingerprint("corpus") == total.hexdigest()


def test_the_fingerprint_does_not_depend_on_place_time_shards_or_png_compression(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare_corpus("corpus", raw, workers=1).manifest
    other = tmp_path / "elsewhere"
    shutil.copytree(raw, other)
    for path in other.rglob("*.png"):
        if "Steel Rail" in path.parts:
            Image.open(path).save(path, compress_level=0)
        os.utime(path, (1, 1))
    monkeypatch.setattr(sources_on_disk, "SHARD_IMAGES", 3)
    second = prepare_corpus("corpus", other, force=True, workers=1).manifest
    assert second.fingerprint == first.fingerprint
    assert len(second.shards) > len(first.shards)
    (other / "Steel Rail" / "000.png").rename(other / "Steel Rail" / "000b.png")
    assert prepare_corpus("corpus", other, workers=1).manifest.fingerprint != first.fingerprint


def test_found_and_expected_by_source_and_category(raw: Path) -> None:
    (raw / "readme.txt").write_text("hello")
    make_file(raw / "holiday" / "1.png")
    done = prepare_corpus("corpus", raw, workers=1)
    assert done.ignored == ("holiday/", "readme.txt")
    sources = {source["name"]: source for source in done.manifest.sources}
    assert len(sources) == 34
    assert [name for name, source in sources.items() if source["present"]] == [
        "kolektorsdd2",
        "magnetic_tile",
        "msd_seg",
        "steel_rail",
    ]
    assert (sources["magnetic_tile"]["found"], sources["magnetic_tile"]["expected"]) == (2, 1344)
    assert sources["msd_seg"]["found_by_category"] == dict.fromkeys(
        ("neu_aluminum", "neu_magnetic_tiles", "neu_rail", "neu_steel", "neu_leather", "neu_tile"), 1
    )
    assert sources["mvtec"]["found"] == 0
    assert sources["mvtec"]["expected_by_category"]["grid"] == 342


def test_building_again_changes_nothing_until_a_file_does(raw: Path) -> None:
    first = prepare_corpus("corpus", raw, workers=1)
    again = prepare_corpus("corpus", raw, workers=1)
    assert (first.built, again.built) == (True, False)
    make_file(raw / "Steel Rail" / "new.png")
    third = prepare_corpus("corpus", raw, workers=1)
    assert third.built
    assert third.manifest.images == first.manifest.images + 1
    assert load_corpus("corpus").num_rows == third.manifest.images
    shutil.rmtree(raw / "Steel Rail")
    assert prepare_corpus("corpus", raw, workers=1).manifest.images == 10


def damaged_files(folder: Path) -> dict[str, str]:
    """Files that cannot be images, with a part of the reason that must be given."""
    good = make_file(folder / "good.png", (60, 50)).read_bytes()
    good_jpg = make_file(folder / "good.jpg", (60, 50)).read_bytes()
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    header = b"IHDR" + size
    bomb = (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        + good[33:]
    )  # fmt: skip
    files = {
        "empty.png": (b"", "not a"),
        "text.jpg": (b"not an image at all", "not a"),
        "truncated.png": (good[: len(good) // 2], "truncated"),
        "truncated.jpg": (good_jpg[: len(good_jpg) // 2], "truncated"),
        "bomb.png": (bomb, "pixels"),
        "gif.png": (b"GIF89a" + bytes(20), "not a"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: reason for name, (_, reason) in files.items()}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unreadable_files_are_skipped_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "pipeData"
    reasons = damaged_files(folder)
    done = prepare_corpus("corpus", tmp_path / "raw", workers=1)
    assert sorted(load_corpus("corpus")["image_id"]) == ["pipeData/good.jpg", "pipeData/good.png"]
    lines = (done.folder / "skipped.tsv").read_text(encoding="utf-8").splitlines()
    said = dict(line.split("\t") for line in lines)
    assert said.keys() == {f"pipeData/{name}" for name in reasons}
    for name, reason in reasons.items():
        assert reason in said[f"pipeData/{name}"]
    source = next(source for source in done.manifest.sources if source["name"] == "pipeData")
    assert (source["found"], source["skipped"]) == (2, len(reasons))
    assert Counter(said.values()) == source["skipped_reasons"]


def test_every_kind_of_image_follows_the_rule_of_the_image_module(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "pipeData"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    deep = rng.integers(0, 65536, (6, 5), dtype=np.uint16)
    grey, rgba = rng.integers(0, 256, (6, 5), dtype=np.uint8), rng.integers(0, 256, (6, 5, 4), dtype=np.uint8)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(rgba).save(folder / "rgba.png")
    palette = Image.fromarray(grey).convert("RGB").quantize(4)
    palette.save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgba[..., :3]).save(folder / "turned.jpg", exif=exif, quality=100, subsampling=0)
    prepare_corpus("corpus", tmp_path / "raw", workers=1)
    images = {row["image_id"].split("/")[1]: np.asarray(row["image"]) for row in load_corpus("corpus")}
    np.testing.assert_array_equal(images["deep.png"], np.repeat((deep >> 8)[..., None], 3, axis=2))
    np.testing.assert_array_equal(images["grey.png"], np.repeat(grey[..., None], 3, axis=2))
    np.testing.assert_array_equal(images["rgba.png"], rgba[..., :3])
    np.testing.assert_array_equal(images["palette.png"], np.asarray(palette.convert("RGB")))
    assert images["turned.jpg"].shape == (5, 6, 3)


def kill_at(step: int, raw: Path) -> bool:
    """Runs a build in a child that is killed with SIGKILL at its `step`-th renaming; True if it got there."""
    child = os.fork()
    if child == 0:
        count = 0

        def counting(real: object) -> object:
            def wrapped(self: Path, target: Path) -> Path:
                nonlocal count
                count += 1
                if count == step:
                    if step % 2:
                        real(self, target)  # type: ignore[operator]
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(self, target)  # type: ignore[operator]

            return wrapped

        try:
            Path.replace = counting(Path.replace)  # type: ignore[assignment, method-assign]
            Path.rename = counting(Path.rename)  # type: ignore[assignment, method-assign]
            prepare_corpus("corpus", raw, workers=1)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_it_goes_on_and_ends_equal(
    raw: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "whole"))
    whole = prepare_corpus("corpus", raw, workers=1)
    expected = files_of(whole.folder)
    monkeypatch.setenv("AGSSP_BENCH_HOME", str(tmp_path / "killed"))
    step = 1
    while kill_at(step, raw):
        assert store.quick_manifest("corpus") in (None, whole.manifest)
        done = prepare_corpus("corpus", raw, workers=1)
        assert files_of(done.folder) == expected, f"killed at renaming {step}"
        assert not store.work_folder("corpus").exists()
        assert not list(store.corpora_folder().rglob("*.tmp"))
        shutil.rmtree(store.corpora_folder())
        step += 1
    # Two renamings a shard, the list of skipped files, the manifest, the folder itself.
    assert step - 1 == 2 * len(whole.manifest.shards) + 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_finished_shards_are_not_made_again(
    raw: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kill_at(7, raw)
    made = {path: path.stat().st_mtime_ns for path in store.work_folder("corpus").glob("parts/*.json")}
    assert len(made) == 3
    from datasets_builders.corpus import builder

    real, names = builder.make_shard, []
    monkeypatch.setattr(builder, "make_shard", lambda job, work: (names.append(job.name), real(job, work))[1])
    done = prepare_corpus("corpus", raw, workers=1)
    assert len(names) == len(done.manifest.shards) - 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_changes_between_kill_and_resume_are_seen(raw: Path, small_shards: None) -> None:
    assert kill_at(9, raw)
    make_file(raw / "kolektorsdd2" / "train" / "10000.png", (12, 5))
    for path in store.work_folder("corpus").glob("data/msd_seg-00000.parquet"):
        path.write_bytes(path.read_bytes()[:-7] + b"garbage")
    resumed = prepare_corpus("corpus", raw, workers=1).manifest
    assert resumed.fingerprint == prepare_corpus("corpus", raw, force=True, workers=1).manifest.fingerprint


def test_any_number_of_processes_gives_the_same_files(raw: Path, small_shards: None) -> None:
    one = files_of(prepare_corpus("corpus", raw, workers=1).folder)
    two = files_of(prepare_corpus("corpus", raw, workers=2, force=True).folder)
    assert one == two


def test_row_groups_are_small(tmp_path: Path) -> None:
    for number in range(150):
        make_file(tmp_path / "raw" / "pipeData" / f"{number}.png")
    done = prepare_corpus("corpus", tmp_path / "raw", workers=1)
    metadata = pq.read_metadata(done.folder / done.manifest.shards[0])
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [64, 64, 22]


def test_own_sources_bring_own_categories(raw: Path) -> None:
    (raw / "sources.yaml").write_text(
        "line 4: {category: our_plate, licence: ours}\nmine: {category: steel_rail, also: [my rails]}\n"
    )
    make_file(raw / "Line 4" / "1.png")
    make_file(raw / "my rails" / "1.png")
    done = prepare_corpus("corpus", raw, workers=1)
    assert done.manifest.categories[60:] == ["tile", "our_plate"]
    assert not done.ignored
    corpus = load_corpus("corpus")
    row = next(row for row in corpus if row["image_id"] == "line 4/1.png")
    assert (row["category"], row["licence"]) == (61, "ours")
    assert any(row["image_id"] == "mine/1.png" for row in corpus)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"name": "corpse"}, "Did you mean 'corpus'"),
        ({"name": "corpus"}, "prepare corpus --raw DIR"),
        ({"name": "corpus", "raw": "nowhere"}, "there is no folder"),
        ({"name": "corpus", "raw": "."}, "holds none of its sources"),
        ({"name": "corpus", "raw": ".", "images": 3}, "are for corpus_synthetic"),
        ({"name": "corpus/mini"}, "Unknown corpus"),
        ({"name": "corpus", "workers": 0}, "--workers 0"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, arguments: dict, reason: str) -> None:
    if "raw" in arguments:
        arguments = arguments | {"raw": tmp_path / arguments["raw"]}
    with pytest.raises(UserError) as caught:
        prepare_corpus(**arguments)
    assert reason in str(caught.value)
    assert not list(store.corpora_folder().rglob("*.parquet"))


def test_two_folders_for_one_source(raw: Path) -> None:
    make_file(raw / "steel_rail" / "1.png")
    with pytest.raises(UserError, match="are both steel_rail"):
        prepare_corpus("corpus", raw, workers=1)


def test_a_corpus_without_one_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw" / "pipeData").mkdir(parents=True)
    (tmp_path / "raw" / "pipeData" / "1.png").write_bytes(b"no")
    with pytest.raises(UserError, match="not one image could be read"):
        prepare_corpus("corpus", tmp_path / "raw", workers=1)
    assert not prepared.is_ready("corpus")


def test_damage_is_noticed(raw: Path) -> None:
    done = prepare_corpus("corpus", raw, workers=1)
    shard = done.folder / done.manifest.shards[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(UserError, match=r"its content has changed"):
        load_corpus("corpus")
    shard.write_bytes(content[:-9])
    assert not prepared.is_ready("corpus")
    with pytest.raises(UserError, match="not ready"):
        load_corpus("corpus")
    assert prepare_corpus("corpus", raw, workers=1).built
    assert load_corpus("corpus").num_rows == 21


def test_many_damaged_manifests_are_never_trusted(raw: Path) -> None:
    done = prepare_corpus("corpus", raw, workers=1)
    path = done.folder / "manifest.json"
    good = path.read_bytes()
    rng = random.Random(0)
    for _ in range(30):
        place = rng.randrange(len(good) - 40)
        path.write_bytes(good[:place] + bytes([rng.randrange(32, 127)]) + good[place + 1 :])
        manifest = store.quick_manifest("corpus")
        assert manifest is None or manifest == done.manifest


@pytest.mark.real_data
@pytest.mark.slow
def test_small_real_corpus(raw_data: Path) -> None:
    done = prepare_corpus("corpus_x_sdd_gc10", raw_data / "raw")
    assert done.manifest.images == 3666
    for source in done.manifest.sources:
        assert source["found_by_category"] == source["expected_by_category"]
    corpus = load_corpus("corpus_x_sdd_gc10")
    names = corpus.features["category"].names
    assert len(names) == 17
    counts = Counter(names[category] for category in corpus["category"])
    assert (counts["silk_spot"], counts["red_iron"], counts["rolled_pit"]) == (650, 397, 31)


PEAK = """
import resource, sys
from datasets_builders.corpus import prepare_corpus
done = prepare_corpus("corpus", sys.argv[1], workers=1)
print(done.manifest.images, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak in KiB")
def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "one.jpg", quality=95)
    size = (tmp_path / "one.jpg").stat().st_size
    peaks = {}
    for images in (300, 3000):
        folder = tmp_path / str(images) / "pipeData"
        folder.mkdir(parents=True)
        for number in range(images):
            (folder / f"{number}.jpg").hardlink_to(tmp_path / "one.jpg")
        environment = os.environ | {"AGSSP_BENCH_HOME": str(tmp_path / f"home-{images}")}
        command = [sys.executable, "-c", PEAK, str(folder.parent)]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found, peak = (int(word) for word in said.split())
        assert found == images
        peaks[images] = peak * 1024
    assert peaks[3000] - peaks[300] < 0.25 * 2700 * size, "the images pile up in memory"
