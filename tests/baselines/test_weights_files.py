"""Files from anyone: what is well-formed is read, everything else is refused without being run."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from baselines import openmmlab
from baselines.weights import files
from datasets_builders.errors import UserError

openmmlab.activate()

STATE = {"backbone.conv1.weight": torch.rand(4, 3, 3, 3), "backbone.bn1.num_batches_tracked": torch.tensor(7)}


class Exploit:
    """Runs a command when a careless program unpickles it."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.flag,)


def test_what_trainings_of_mmengine_leave_is_read(tmp_path: Path) -> None:
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance("weights-test")
    hub.update_scalar("train/loss", np.float64(0.4))
    hub.update_info("classes", np.arange(3))
    checkpoint = {
        "state_dict": STATE,
        "meta": {"seed": np.int64(3), "cfg": "model = dict()", "dataset_meta": {"CLASSES": ("a", "b")}},
        "message_hub": hub.state_dict(),
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(checkpoint, tmp_path / "epoch_3.pth")
    tensors, header = files.read(tmp_path / "epoch_3.pth")
    assert header is None
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(value, STATE[name]) for name, value in tensors.items())


@pytest.mark.parametrize("new_format", [True, False])
def test_both_of_torchs_formats_are_read(new_format: bool, tmp_path: Path) -> None:
    torch.save({"model": STATE}, tmp_path / "x.pt", _use_new_zipfile_serialization=new_format)
    assert files.read(tmp_path / "x.pt")[0].keys() == STATE.keys()


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, dtype=torch.bfloat16), "n": torch.tensor([1])}, tmp_path / "x.safetensors")
    tensors, _ = files.read(tmp_path / "x.safetensors")
    assert (tensors["a"].dtype, tensors["n"].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize("new_format", [True, False])
def test_an_exploit_is_refused_and_does_not_run(new_format: bool, tmp_path: Path) -> None:
    path, flag = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"state_dict": STATE, "meta": Exploit(flag)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match="more than tensors and plain values") as refused:
        files.read(path)
    assert not flag.exists()
    assert "safetensors.torch.save_file" in str(refused.value)
    assert "weights_only=False" not in str(refused.value)


def test_a_plain_pickle_with_an_exploit_does_not_run(tmp_path: Path) -> None:
    path, flag = tmp_path / "evil.pkl", tmp_path / "ran"
    path.write_bytes(pickle.dumps(Exploit(flag)))
    with pytest.raises(UserError):
        files.read(path)
    assert not flag.exists()


def test_the_stand_ins_end_with_the_reading(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pth")
    before = torch.serialization.get_safe_globals()
    files.read(tmp_path / "x.pth")
    assert set(torch.serialization.get_safe_globals()) == set(before)


def safetensors_bytes(header: dict[str, object] | bytes, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no weights file"),
        (b"GIF89a" + bytes(100), "no weights file"),
        (b"PK\x03\x04" + bytes(100), "damaged"),
        (b"\x80\x02" + bytes(100), "not read|damaged"),
        (struct.pack("<Q", 2**62) + b'{"a":', "claims"),
        (struct.pack("<Q", 1000) + b'{"a":', "claims"),
        (safetensors_bytes(b"{" * 3000), "damaged"),
        (safetensors_bytes({"a": ENTRY}, bytes(4)), "damaged"),
        (safetensors_bytes({"a": {**ENTRY, "shape": [2**40, 2**40]}}, bytes(8)), "damaged"),
        (safetensors_bytes({"a": {**ENTRY, "data_offsets": [-8, 0]}}, bytes(8)), "damaged"),
        (safetensors_bytes({"__metadata__": {"agssp_bench": "{"}, "a": ENTRY}, bytes(8)), "no JSON"),
        (safetensors_bytes({"__metadata__": {"agssp_bench": "[" * 9000}, "a": ENTRY}, bytes(8)), "no JSON"),
        (safetensors_bytes({"__metadata__": {"agssp_bench": "[1]"}, "a": ENTRY}, bytes(8)), "no JSON object"),
    ],
)
def test_damaged_and_foreign_files_are_refused(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=says) as refused:
        files.read(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_every_truncation_is_noticed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    files.save(path, STATE, {}) if suffix == "safetensors" else torch.save(STATE, path)
    content = path.read_bytes()
    for length in range(0, len(content), max(1, len(content) // 40)):
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            files.read(path)


def test_a_compressed_archive_is_refused_before_it_unfolds(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(UserError, match="compressed"):
        files.read(tmp_path / "bomb.pth")


def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    bad = {
        "no numbers": torch.tensor([1.0, float("nan")]),
        "no numbers at all": torch.tensor([float("inf")]),
        "claims more values": torch.ones(1).expand(1_000_000_000),
        "no plain tensor": torch.ones(2, 2).to_sparse(),
        "no plain": torch.ones(2, dtype=torch.complex64),
    }
    for says, tensor in bad.items():
        torch.save({"backbone.x": tensor}, path)
        with pytest.raises(UserError, match=says.split(" at all")[0]):
            files.read(path)
    for content in ([1, 2], {}, {"state_dict": {"a": 1.0}}, torch.rand(3), {"model": "x"}):
        torch.save(content, path)
        with pytest.raises(UserError, match=r"no state_dict|no tensors"):
            files.read(path)


@pytest.mark.parametrize("name", ["", "a\x1b[2Jb", "a\nb", "x" * 300])
def test_names_that_would_spoil_a_report_are_refused(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no name of a tensor") as refused:
        files.read(tmp_path / "x.pth")
    assert "\x1b" not in str(refused.value)


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_TENSORS", 1)
    files.save(tmp_path / "x.safetensors", STATE, {})
    torch.save(STATE, tmp_path / "x.pth")
    for name in ("x.safetensors", "x.pth"):
        with pytest.raises(UserError, match="too many"):
            files.read(tmp_path / name)
    monkeypatch.setattr(files, "LARGEST_FILE", 10)
    with pytest.raises(UserError, match="too many for weights"):
        files.read(tmp_path / "x.pth")


def test_missing_files_and_folders_are_said(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pth"):
        for reading in (files.read, files.read_header):
            with pytest.raises(UserError, match="cannot be read"):
                reading(path)


def test_the_header_is_read_alone(tmp_path: Path) -> None:
    files.save(tmp_path / "x.safetensors", STATE, {"scope": "backbone"})
    assert files.read_header(tmp_path / "x.safetensors") == {"scope": "backbone"}
    torch.save(STATE, tmp_path / "x.pth")
    assert files.read_header(tmp_path / "x.pth") is None
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", 2**60) + b'{"a":')
    with pytest.raises(UserError, match="claims"):
        files.read_header(tmp_path / "x.safetensors")
