"""Tests of the examples with repeated sub-networks: modes share as named, runs are recorded and not repeated."""

import json
import sys

import keypoints
import multitask
import pytest
import sharing
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.cost import count_params
from pocketcnn.data import Augmentation, DataSet, Images
from pocketcnn.data.figures import JOINTS
from pocketcnn.models.hourglass import StackedHourglass
from pocketcnn.models.multitask import MultiTask

TINY = keypoints.Settings(size=24, stages=2, channels=6, steps=2, batch_size=4, limit=6)
BRIEF = multitask.Settings(channels=4, epochs=1, batch_size=16)
NETS = {"stages.*": StackedHourglass, "tasks.*": MultiTask}


def digits():
    def images(n):
        return Images(torch.randint(0, 256, (n, 1, 28, 28), dtype=torch.uint8), torch.arange(n) % 10)

    return DataSet(
        "tiny", tuple("0123456789"), images(32), images(8), images(8), (0.5,), (0.3,), Augmentation(), "tiny"
    )


def kernels(subnet):
    """All kernels of a sub-network, flattened into one tensor."""
    read = [m.weight if isinstance(m, nn.Conv2d) else m.dense_weight() for m in subnet.modules() if is_conv(m)]
    return torch.cat([kernel.detach().flatten() for kernel in read])


def is_conv(module):
    return isinstance(module, nn.Conv2d) or hasattr(module, "dense_weight")


@pytest.mark.parametrize("subnets", NETS)
def test_modes_share_what_they_say(subnets):
    parts = {
        mode: [
            kernels(part) for part in sharing.subnetworks(sharing.make(mode, NETS[subnets], subnets, 12, 3)[0], subnets)
        ]
        for mode in sharing.MODES
    }
    assert all(torch.equal(part, parts["reuse"][0]) for part in parts["reuse"])
    for mode in ("separate", "ring", "unshared"):
        assert not any(torch.equal(part, parts[mode][0]) for part in parts[mode][1:])
    assert len(parts["separate"][0]) < len(parts["ring"][0]) == len(parts["reuse"][0]) == len(parts["unshared"][0])


@pytest.mark.parametrize("subnets", NETS)
def test_sharing_keeps_norms_stem_and_heads_apart(subnets):
    net, _ = sharing.make("ring", NETS[subnets], subnets, 8, 0)
    rings = [name for name, _ in net.named_parameters() if "ring" in name]
    plain = NETS[subnets](channels=8)
    one = sharing.conv_numbers(sharing.subnetworks(plain, subnets)[0])
    assert [net.get_parameter(name).numel() for name in rings] == [one]
    kept = {n for n, p in plain.named_parameters() if not (n.startswith(subnets[:-1]) and p.dim() == 4)}
    assert {name for name, _ in net.named_parameters()} == kept | set(rings)


@pytest.mark.parametrize(("subnets", "channels"), [("stages.*", 24), ("tasks.*", 20)])
def test_stored_numbers_agree(subnets, channels):
    counts = {
        mode: count_params(sharing.make(mode, NETS[subnets], subnets, channels, 0)[0])[0] for mode in sharing.MODES
    }
    assert counts["reuse"] == counts["ring"] < counts["unshared"] / 2
    assert counts["separate"] == pytest.approx(counts["ring"], rel=0.02)


def test_targets_are_found_again():
    joints = torch.rand(50, len(JOINTS), 2) * 43 + 2
    found = keypoints.decode(keypoints.targets(joints, 48, 24), 48)
    # A peak is found to a quarter of a pixel of the map, which is half a pixel of the image.
    assert (found - joints).abs().max() <= 0.5 + 1e-4
    exact = torch.tensor([[[0.5, 46.5]]])
    peak = keypoints.targets(exact, 48, 24)[0, 0]
    assert peak.shape == (24, 24)
    assert divmod(int(peak.argmax()), 24) == (23, 0)


def test_turns_are_quarter_turns():
    images = torch.arange(8).view(2, 1, 2, 2)
    turned = multitask.turn(images, torch.tensor([0, 1]))
    assert torch.equal(turned, torch.stack([images[0], images[1].rot90(1, (1, 2))]))


def test_keypoints_are_recorded_and_not_repeated(tmp_path, monkeypatch):
    first = {mode: keypoints.run(mode, 0, TINY, tmp_path) for mode in sharing.MODES}
    keypoints.run("ring", 1, TINY, tmp_path)
    for mode, result in first.items():
        folder = tmp_path / mode / "seed0"
        assert {path.name for path in folder.iterdir()} == {"environment.json", "model.safetensors", "result.json"}
        assert json.loads((folder / "result.json").read_text()) == result
        assert (folder / "model.safetensors").stat().st_size == result["file_bytes"]
        assert len(result["loss"]) == TINY.steps
        assert len(result["test"]["error_px"]) == len(result["test"]["pck"]) == TINY.stages
    table = keypoints.table(tmp_path).splitlines()
    assert len(table) == 2 + len(sharing.MODES)
    assert "stage 2 | PCK %" in table[0]
    assert table[4].startswith("| one ring, read by each in its own way (`ring`) | 6 | ")
    assert table[4].endswith(" | 2 |")
    net = pc.load(tmp_path / "ring" / "seed0" / "model.safetensors", base=keypoints.plain(TINY)(channels=6))
    assert keypoints.measure(net, TINY, keypoints.TEST) == first["ring"]["test"]
    assert all(path.stat().st_size > 1000 for path in keypoints.picture(tmp_path, count=2))

    monkeypatch.setattr(keypoints, "train", lambda *_: pytest.fail("trained again"))
    assert keypoints.run("ring", 0, TINY, tmp_path) == first["ring"]
    with pytest.raises(ValueError, match=r"result\.json: made with .*; give another output folder"):
        keypoints.run("ring", 0, keypoints.Settings(), tmp_path)


def test_a_seed_means_the_same_run(tmp_path):
    one, other = (keypoints.run("ring", 0, TINY, tmp_path / name) for name in ("one", "other"))
    assert one["loss"] == other["loss"]
    assert one["test"] == other["test"]
    assert keypoints.run("ring", 1, TINY, tmp_path / "one")["loss"] != one["loss"]


def test_multitask_is_recorded_and_not_repeated(tmp_path, monkeypatch):
    data = digits()
    first = {mode: multitask.run(mode, 0, data, BRIEF, tmp_path) for mode in sharing.MODES}
    for result in first.values():
        assert len(result["loss"]) == 1
        assert 0 <= result["test"]["accuracy"] <= 1
        assert 0 <= result["test"]["rotation_accuracy"] <= 1
        assert 0 < result["test"]["error"] < 1
    table = multitask.table(tmp_path).splitlines()
    assert "| digits % | rotation % | image, squared error |" in table[0]
    assert len(table) == 2 + len(sharing.MODES)
    monkeypatch.setattr(multitask, "train", lambda *_: pytest.fail("trained again"))
    assert multitask.run("reuse", 0, data, BRIEF, tmp_path) == first["reuse"]


def test_the_command_line_resumes_where_it_stopped(tmp_path, monkeypatch, capsys):
    flags = "--size 24 --stages 2 --channels 6 --steps 2 --batch-size 4 --limit 6 --seeds 1 --modes ring reuse"
    monkeypatch.setattr(sys, "argv", ["keypoints.py", *flags.split(), "--output", str(tmp_path)])
    keypoints.main()
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    monkeypatch.setattr(keypoints, "train", lambda *_: pytest.fail("trained again"))
    keypoints.main()
    monkeypatch.setattr(sys, "argv", ["keypoints.py", "--table", str(tmp_path), "--picture", str(tmp_path)])
    keypoints.main()
    assert str(tmp_path / "poses.svg") in capsys.readouterr().out
