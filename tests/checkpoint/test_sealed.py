"""The checksum of a model file, and weights that are not finite."""

import json
import logging
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import pocketcnn as pc
from pocketcnn.checkpoint import sealed
from pocketcnn.errors import BrokenFile, ForeignFile


@pytest.fixture
def path(tmp_path):
    pc.save(pc.condense(pc.create_model("resnet20", width=0.25), "ring"), tmp_path / "net", notes={"mean": [0.5]})
    return tmp_path / "net"


def without_checksum(path):
    """Rewrites a file as older versions wrote it."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata={"pocketcnn": metadata["pocketcnn"]})


def slowly(path):
    """The checksum by its definition: the head without it, with sorted keys, and then every byte."""
    import hashlib

    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    head = json.loads(content[8:start])
    del head["__metadata__"]["pocketcnn.sha256"]
    return hashlib.sha256(
        json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + content[start:]
    ).hexdigest()


def test_a_file_holds_its_checksum(path):
    assert sealed.read_head(path).checksum == slowly(path)
    before = path.read_bytes()
    pc.save(pc.load(path), path, notes={"mean": [0.5]})
    assert path.read_bytes() == before, "the same net gives the same bytes"


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_changed_byte_of_the_tensors_is_found(data):
    content = sealed.seal(_SMALL, {"pocketcnn": "{}", "other": "x"})
    start = 8 + struct.unpack("<Q", content[:8])[0]
    place = data.draw(st.integers(start, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "net"
        file.write_bytes(content)
        sealed.verify(file, sealed.read_head(file))
        file.write_bytes(changed)
        with pytest.raises(BrokenFile, match="its checksum differs"):
            sealed.verify(file, sealed.read_head(file))


def _small():
    from safetensors.torch import save

    return save({"a": torch.arange(6.0).view(2, 3), "b": torch.arange(4)})


_SMALL = _small()


@pytest.mark.parametrize("what", ["exchanged", "renamed", "note"])
def test_exchanged_tensors_and_descriptions_are_found(path, what):
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    head = json.loads(content[8:start])
    if what == "exchanged":
        one, other = "layer1.0.bn1.weight", "layer1.0.bn1.bias"
        head[one], head[other] = head[other], head[one]
    elif what == "renamed":
        head["x"] = head.pop("fc.bias")
    else:
        head["__metadata__"]["pocketcnn"] = head["__metadata__"]["pocketcnn"].replace("0.5", "0.6")
    encoded = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[start:])
    for use in (pc.load, lambda file: pc.checkpoint.replace_notes_(file, {})):
        with pytest.raises(BrokenFile, match=r"its checksum differs: the file says .*copy or train it again"):
            use(path)


def test_new_notes_have_a_new_checksum(path):
    net = pc.load(path)
    pc.checkpoint.replace_notes_(path, {"mean": [0.25]})
    assert pc.checkpoint.read_header(path)["notes"] == {"mean": [0.25]}
    assert sealed.read_head(path).checksum == slowly(path)
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in pc.load(path).state_dict().items())


def test_files_of_older_versions_load_and_say_so_once(path, caplog):
    without_checksum(path)
    with caplog.at_level(logging.INFO, "pocketcnn"):
        pc.load(path)
        pc.load(path)
    assert caplog.text.count("has no checksum, as files of older versions have none") == 1
    pc.checkpoint.replace_notes_(path, {})
    assert sealed.read_head(path).checksum == slowly(path)


@pytest.mark.parametrize("name", ["fc.weight", "bn1.running_var", "layer1.0.conv1.ring.values"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused_unless_asked_for(name, value, path, caplog):
    net = pc.load(path)
    net.state_dict()[name].view(-1)[0] = value
    pc.save(net, path)
    assert f"{name} is not finite; load will refuse it" in caplog.text
    for old in (False, True):
        if old:
            without_checksum(path)
        with pytest.raises(BrokenFile, match=f"{name} is not finite: .*allow_nonfinite=True to look at it"):
            pc.load(path)
        loaded = pc.load(path, allow_nonfinite=True).state_dict()[name].view(-1)[0]
        assert torch.equal(loaded, torch.tensor(value)) or math.isnan(loaded) == math.isnan(value)


def test_constants_of_a_net_may_be_infinite(tmp_path):
    """An attention mask is -inf in a fresh net too; a value that is infinite only in the file is refused."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("mask", torch.full((4, 4), -math.inf).triu(1))

    net = Masked()
    pc.save(net, tmp_path / "net")
    assert torch.equal(pc.load(tmp_path / "net", base=Masked()).mask, net.mask)
    net.mask[0, 0] = -math.inf
    pc.save(net, tmp_path / "net")
    with pytest.raises(BrokenFile, match="mask is not finite"):
        pc.load(tmp_path / "net", base=Masked())


@pytest.mark.parametrize(
    ("dtype", "what"), [(torch.int32, "stored as I32, and must be F16 or BF16"), (torch.bool, "stored as BOOL")]
)
def test_weights_of_another_kind_are_refused(dtype, what, path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["fc.weight"] = tensors["fc.weight"].to(dtype)
    save_file(tensors, path, metadata={"pocketcnn": metadata["pocketcnn"]})
    with pytest.raises(BrokenFile, match=what):
        pc.load(path)


def test_what_cannot_be_read_back_is_not_written(path):
    before = path.read_bytes()
    with pytest.raises(pc.errors.CannotWrite, match="8,388,608; copy or train it again; nothing was written"):
        pc.save(pc.create_model("resnet20", width=0.25), path, notes={"text": "x" * (9 << 20)})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\x01" + bytes(7) + b"{", b"\xff" * 9, bytes(9), b"\x02" + bytes(7) + b"{}"]
)
def test_heads_that_are_none(content, tmp_path):
    (tmp_path / "net").write_bytes(content)
    with pytest.raises((BrokenFile, ForeignFile)):
        pc.load(tmp_path / "net")
