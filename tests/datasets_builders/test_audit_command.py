"""The command: real corpora and datasets in, report, sheet and filtered corpus out."""

from __future__ import annotations

import io
import json
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from made_copies import COPIERS, collection
from PIL import Image
from rich.console import Console
from test_audit_matching import surface

import datasets_builders
from datasets_builders import corpus
from datasets_builders.audit import command
from datasets_builders.audit.descriptors import WHOLE
from datasets_builders.audit.matching import Found, Match, find_matches
from datasets_builders.audit.report import Audit, as_data, render
from datasets_builders.audit.sheet import choose, sheet
from datasets_builders.corpus.report import list_facts
from datasets_builders.corpus.store import corpus_folder
from datasets_builders.errors import UserError

CORPUS = "corpus_x_sdd_gc10"


def neu_raw(folder: Path, images: dict[str, np.ndarray]) -> Path:
    """A raw folder of NEU-DET's layout with these pictures."""
    from made_raw import voc_xml

    (folder / "IMAGES").mkdir(parents=True)
    (folder / "ANNOTATIONS").mkdir()
    for stem, pixels in images.items():
        Image.fromarray(pixels).save(folder / "IMAGES" / f"{stem}.jpg", quality=95)
        box = ("scratches", (2.0, 2.0, 20.0, 20.0))
        size = (pixels.shape[1], pixels.shape[0])
        (folder / "ANNOTATIONS" / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", [box], size))
    return folder


def gc10_raw(folder: Path, images: dict[str, np.ndarray]) -> Path:
    """A raw folder with the corpus source gc10_cls224."""
    target = folder / "gc10_cls224" / "data" / "crease"
    target.mkdir(parents=True)
    for stem, pixels in images.items():
        Image.fromarray(pixels).save(target / f"{stem}.jpeg", quality=95)
    return folder


@pytest.fixture
def prepared(fresh_home: Path, tmp_path: Path, any_count: None) -> set[str]:
    """A dataset of 14 pictures, and a corpus of 12 of which three are copies of pictures of the dataset."""
    pictures = {f"scratches_{k}": surface(k) for k in range(14)}
    datasets_builders.prepare("neu_det", neu_raw(tmp_path / "neu", pictures))
    rng = np.random.default_rng(0)
    copies = {
        f"copy{k}": COPIERS[kind](surface(k), rng)
        for k, kind in enumerate(("turned", "cropped", "recompressed"))
    }
    others = {f"own{k}": surface(100 + k) for k in range(9)}
    corpus.prepare_corpus(CORPUS, gc10_raw(tmp_path / "raw", copies | others), workers=1)
    return {f"gc10_cls224/crease/{name}.jpeg" for name in copies}


def run(tmp_path: Path, names: list[str], **changes: object) -> None:
    options = {
        "report": tmp_path / "report",
        "drop_matches": False,
        "out": None,
        "as_json": False,
        "workers": 1,
    }
    command.run(names, **options | changes)  # type: ignore[arg-type]


def test_audit_drop_gives_a_corpus_without_the_copies(
    prepared: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, [CORPUS, "neu_det"], drop_matches=True, out="clean", as_json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["filtered"] == {"name": "clean", "images": 9}
    (report,) = json.loads((tmp_path / "report" / "audit.json").read_text())
    assert printed["audits"] == [report]
    assert {pair["first"]["image_id"] for pair in report["pairs"]} == prepared
    assert report["counts"] == {"turned": 1, "crop": 1, "copy": 1}
    assert report["first"] == {"name": CORPUS, "fingerprint": corpus.fingerprint(CORPUS), "images": 12}
    picture = Image.open(tmp_path / "report" / f"{CORPUS}-neu_det.png")
    assert picture.format == "PNG"
    assert picture.width >= 640

    before, after = corpus.load_corpus(CORPUS), corpus.load_corpus("clean")
    kept = [i for i, image_id in enumerate(before["image_id"]) if image_id not in prepared]
    assert len(kept) == 9
    assert after["image_id"] == before.select(kept)["image_id"]
    assert after.features == before.features
    for mine, theirs in zip(after, before.select(kept), strict=True):
        assert np.array_equal(np.asarray(mine["image"]), np.asarray(theirs["image"]))
        assert (mine["category"], mine["licence"]) == (theirs["category"], theirs["licence"])
    skipped = (corpus_folder("clean") / "skipped.tsv").read_text()
    assert skipped.count("\n") == 3
    listed = {fact["name"]: fact for fact in list_facts()}
    assert [listed["clean"][what] for what in ("origin", "ready", "partial")] == ["derived", True, False]
    assert "crease/copy1.jpeg\tcrop of neu_det scratches_1, score" in skipped

    run(tmp_path, ["clean", "neu_det"])
    assert "0 of 9 images match 0 of 14" in capsys.readouterr().out.replace("\n", " ")


def test_table_names_the_pairs(
    prepared: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, [CORPUS, "neu_det"])
    out = " ".join(capsys.readouterr().out.split())
    assert "3 of 12 images match 3 of 14" in out
    assert "cut from the other" in out
    assert "wrote" in out


def test_leaks_are_pairs_across_the_splits(tmp_path: Path) -> None:
    images = {f"s{k}": surface(k) for k in range(6)}
    images |= {"s0 crop": images["s0"][10:, 5:], "s2 copy": images["s2"][:, ::-1]}
    # Dealt in turn: even places train, odd places validation.
    order = ["s0", "s0 crop", "s2", "s1", "s2 copy", "s3", "s4", "s5"]
    data = collection("data", {name: images[name] for name in order}, splits=("train", "validation"))
    audit = Audit(data, data, find_matches(data, data))
    assert [(data.image_id(m.query), data.image_id(m.reference)) for m in audit.leaks()] == [
        ("s0", "s0 crop")
    ]
    report = as_data(audit)
    assert report["leaks"] == 1
    assert len(report["pairs"]) == 2
    assert report["groups"] == [
        [{"image_id": "s0", "split": "train"}, {"image_id": "s0 crop", "split": "validation"}],
        [{"image_id": "s2", "split": "train"}, {"image_id": "s2 copy", "split": "train"}],
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(audit))
    assert "1 pair(s) straddle its splits, 2 images" in console.export_text()
    paths = command.write_report([audit], tmp_path / "out")
    assert [path.name for path in paths] == ["audit.json", "data.png"]


def test_groups_hang_together_by_chains() -> None:
    data = collection("chain", {f"i{k}": np.full((8, 8, 3), k, np.uint8) for k in range(7)})
    matches = [Match(a, b, "copy", 0.9, 0, WHOLE) for a, b in ((0, 3), (3, 5), (1, 2))]
    assert Audit(data, data, Found(matches, ([], []), 3)).groups() == [[0, 3, 5], [1, 2]]


def test_sheet_shows_best_and_weakest_of_every_kind() -> None:
    matches = [Match(k, k, "copy", 0.4 + k / 100, 0, WHOLE) for k in range(40)]
    matches += [Match(50, 50, "overlap", 0.5, 0, WHOLE)]
    chosen = choose(matches, 6)
    assert len(chosen) == 6
    assert Counter(m.kind for m in chosen) == {"copy": 5, "overlap": 1}
    assert {0.4, 0.79} <= {round(m.score, 2) for m in chosen}
    assert choose(matches, 100) == sorted(matches, key=lambda m: (m.kind == "overlap", -m.score))


def test_sheet_draws_every_kind() -> None:
    images = {f"s{k}": surface(k) for k in range(4)}
    images |= {"cut": images["s0"][20:, 20:], "turned": np.rot90(images["s1"]).copy(), "same": images["s2"]}
    data = collection("drawn", images)
    audit = Audit(data, data, find_matches(data, data))
    assert {m.kind for m in audit.found.matches} == {"crop", "turned", "exact"}
    everything = Audit(data, collection("other", images), find_matches(data, collection("other", images)))
    picture = np.asarray(sheet(everything, 8))
    assert picture.shape[2] == 3
    assert (picture == (0xFF, 0xB4, 0x54)).all(axis=2).any(), "the frame of a crop"


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        (["neu_dett"], {}, "Did you mean 'neu_det'"),
        (["neu_det", "neu_det"], {}, "given twice"),
        ([CORPUS], {}, "say which datasets"),
        (["neu_det", CORPUS], {}, "it comes first"),
        (["neu_det"], {"drop_matches": True}, "give a corpus first"),
        ([CORPUS, "neu_det"], {"out": "x"}, "it needs --drop"),
        ([CORPUS, "neu_det"], {"drop_matches": True, "out": "../x"}, "small letters"),
        ([CORPUS, "neu_det"], {"drop_matches": True, "out": CORPUS}, "of the catalogue"),
        ([CORPUS, "neu_det"], {"workers": 0}, "at least 1"),
        ([CORPUS, "neu_det"], {}, "prepare corpus_x_sdd_gc10 --raw DIR"),
    ],
)
def test_what_the_user_can_put_right(
    fresh_home: Path, tmp_path: Path, names: list[str], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, names, **changes)
    assert not (tmp_path / "report").exists()


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = collection("none", {"a": surface(0)})
    with pytest.raises(UserError, match="--report"):
        command.write_report([Audit(data, data, Found([], ([], []), 0))], tmp_path / "file" / "x")


def test_dropping_everything_is_refused(prepared: set[str], tmp_path: Path) -> None:
    queries = command._open(CORPUS)
    every = [Match(row, 0, "copy", 0.9, 0, WHOLE) for row in range(len(queries))]
    audit = Audit(queries, command._open("neu_det"), Found(every, ([], []), 12))
    with pytest.raises(UserError):
        command.drop([audit], "empty", workers=1)
    assert not corpus_folder("empty").exists()


def test_command_line(fresh_home: Path, python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [python, "-m", "datasets_builders", "audit", "corpus_nothing", "neu_det"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: Unknown dataset or corpus 'corpus_nothing'")
    assert "Traceback" not in done.stderr
