"""Damaged and hostile model files load rightly or end in one of our errors: a short form of benchmarks/hostile_files.py."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pocketcnn as pc
from pocketcnn.errors import BrokenFile, NewerFormat

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import hostile_files


@pytest.mark.parametrize("group", ["headers", "bytes"])
def test_every_outcome_is_a_right_load_or_an_error_of_ours(group, tmp_path):
    outcomes = hostile_files.run(group, 60, tmp_path)
    assert len(outcomes) == 60
    assert not [outcome for outcome in outcomes if outcome.fault]
    assert any(outcome.kind == "BrokenFile" for outcome in outcomes)
    assert any(outcome.kind == "a right result" for outcome in outcomes)


RING = {"method": "ring", "options": {"size": 0.1, "seed": 7}, "sites": ["layer1.0.conv1"]}
PUPPET = {"method": "puppet", "options": {}, "sites": ["layer1.0"]}
PDE = {"method": "pde", "options": {}, "sites": ["layer1.1"]}


def asking(steps=(), **options):
    return {"base": {"name": "resnet20", "options": {"width": 0.25, **options}}, "steps": list(steps)}


def step(like, **options):
    return {**like, "options": {**like["options"], **options}}


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        (asking(width=1e6), BrokenFile, "width may be at most 1,000, not 1000000.0"),
        (asking(width=900.0), BrokenFile, r"conv1.weight is \[4, 3, 3, 3\] in the file"),
        (asking(num_classes=10**9), BrokenFile, "num_classes may be at most 1,000,000"),
        (asking(num_classes=10**6), BrokenFile, r"fc.weight is \[10, 16\] in the file, \[1000000, 16\] in the net"),
        (asking(num_classes="ten"), BrokenFile, "cannot be rebuilt"),
        (asking(name="x"), BrokenFile, "cannot be rebuilt"),
        (asking(width=10**400), BrokenFile, "a whole number of more than 64 bits"),
        (asking([step(RING, size=10**12)]), NewerFormat, r"below 2\*\*31"),
        (asking([step(RING, size=10**9)]), BrokenFile, "do not fit"),
        (asking([step(RING, seed=-1)]), BrokenFile, "the seed -1 is no whole number"),
        (asking([step(RING, size=float("inf"))]), BrokenFile, "an option is inf"),
        (asking([step(PUPPET, num_steps=10**6)]), NewerFormat, "num_steps and levels may be at most 100"),
        (asking([step(PUPPET, levels=10**7)]), NewerFormat, "num_steps and levels may be at most 100"),
        (asking([step(PUPPET, min_depth=10**9)]), NewerFormat, "min_depth and max_depth 10,000"),
        (asking([step(PDE, kernel_size=10**6 + 1)]), NewerFormat, "kernel_size may be at most 999"),
        (asking([step(PDE, num_steps=10**6)]), NewerFormat, "num_steps may be at most 10,000"),
        (asking([{**RING, "method": "condconv", "options": {"num_experts": 10**9}}]), BrokenFile, "do not fit"),
        (asking([{**RING, "method": "involution", "options": {"kernel_size": 999}}]), BrokenFile, "cannot be rebuilt|do not fit"),
        (asking([RING] * 1000), BrokenFile, "cannot be rebuilt"),
        (asking([{**RING, "sites": ["layer1.0.conv1"] * 2}]), BrokenFile, "a site is named twice"),
        (asking([{**RING, "sites": [f"layer{n}" for n in range(10**5)]}]), BrokenFile, "cannot be rebuilt"),
        (asking([{**RING, "sites": []}]), BrokenFile, "length >= 1 at steps"),
        (asking([{**RING, "part": "layer2"}]), BrokenFile, "outside of the part 'layer2'"),
        ({"steps": [{**RING, "options": json.loads("[" * 50 + "]" * 50)}]}, BrokenFile, "Expected object, got array"),
        (asking([step(RING, level=json.loads("[" * 50 + "]" * 50))]), BrokenFile, "options are nested too deeply"),
        ({"frozen": ["no such parameter"]}, BrokenFile, "'no such parameter' is frozen in the file"),
        ({"frozen": "fc.weight"}, BrokenFile, "Expected array, got str at frozen"),
        ({"frozen": ["\ud800"]}, BrokenFile, "is frozen in the file"),
        ({"notes": None}, BrokenFile, "at notes"),
        ({"version": 0}, BrokenFile, "at version"),
        ({"version": True}, BrokenFile, "at version"),
        ({"version": 2**70}, NewerFormat, "format version"),
        ({"storage": {"weights": "int8", "dtype": "float32", "sparse": ["x"]}}, BrokenFile, "has no 'x'"),
        ({"storage": {"weights": "int8", "dtype": "float32", "sparse": ["fc.weight"]}}, BrokenFile, "no list of what"),
        ({"key": {"salt": "00", "n": 2**21, "r": 8, "p": 1}}, BrokenFile, "too much memory or time"),
        ({"key": {"salt": "00", "n": 2**15 + 1, "r": 8, "p": 1}}, BrokenFile, "a power of 2"),
        ({"layers": [{**RING, "sites": ["fc"]}]}, BrokenFile, "fc is a condensed layer only in the file"),
    ],
)  # fmt: skip
def test_what_a_header_asks_for_is_checked_before_it_is_built(change, error, what, tmp_path, monkeypatch):
    """The file is that of a plain net. What it asks for is at most built on the meta device, which takes no memory."""
    pc.save(pc.create_model("resnet20", width=0.25), tmp_path / "net")
    header = {**pc.checkpoint.read_header(tmp_path / "net"), **change}
    save_file(load_file(tmp_path / "net"), tmp_path / "bad", metadata={"pocketcnn": json.dumps(header)})
    passphrase = "p" if "key" in change else None
    with pytest.raises(error, match=what):
        pc.load(tmp_path / "bad", passphrase=passphrase)


def test_every_entry_of_our_own_headers_passes(tmp_path):
    """All options of all methods, at their defaults, pass the checks that hostile ones fail."""
    for method in pc.METHODS:
        pc.save(pc.condense(pc.create_model("resnet20", width=0.25), method), tmp_path / "net")
        assert pc.checkpoint.read_header(tmp_path / "net")["steps"][0]["method"] == method


def test_a_long_head_is_not_read(tmp_path):
    (tmp_path / "net").write_bytes((17 << 20).to_bytes(8, "little") + b"{" + b" " * 100)
    with pytest.raises(BrokenFile, match=r"its head has 17,825,792 bytes, more than 16,777,216"):
        pc.load(tmp_path / "net")


def test_a_net_is_built_only_after_its_shapes_fit(tmp_path, monkeypatch):
    pc.save(pc.create_model("resnet20", width=0.25), tmp_path / "net")
    header = {**pc.checkpoint.read_header(tmp_path / "net"), **asking(width=0.5)}
    save_file(load_file(tmp_path / "net"), tmp_path / "bad", metadata={"pocketcnn": json.dumps(header)})
    devices = []
    monkeypatch.setattr(
        torch.nn.Conv2d, "reset_parameters", lambda self: devices.append(self.weight.device.type), raising=True
    )
    with pytest.raises(BrokenFile, match="in the file"):
        pc.load(tmp_path / "bad")
    assert set(devices) == {"meta"}
