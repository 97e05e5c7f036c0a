"""Tests of the ring's examples and of `pocketcnn pack`, on nets of a few parameters."""

import getpass
import json
import sys

import equilibrium
import pytest
import ring_sweep
import torch

import pocketcnn as pc
from pocketcnn.data import Augmentation, DataSet, Images, load


def tiny(count=128):
    def images(n):
        return Images(torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8), torch.arange(n) % 4)

    classes = ("a", "b", "c", "d")
    return DataSet(
        "tiny", classes, images(count), images(40), images(40), (0.5,) * 3, (0.3,) * 3, Augmentation(), "tiny"
    )


@pytest.fixture
def swept(tmp_path, monkeypatch, one_round):
    """Folder of a sweep over three rings, each trained for one epoch."""
    monkeypatch.setattr(ring_sweep, "load", lambda name, limit=None: tiny())
    monkeypatch.setattr(ring_sweep, "RING_PRUNED", (0.5,))
    monkeypatch.setattr(ring_sweep, "PRUNED", (0.9,))
    words = "ring_sweep.py --epochs 1 --sizes 0.01 0.05 0.2 --widest 0.5 --output"
    monkeypatch.setattr(sys, "argv", [*words.split(), str(tmp_path)])
    ring_sweep.main()
    return tmp_path


def test_the_sweep_sets_each_ring_beside_its_rivals(swept, capsys):
    rivals, files = (json.loads((swept / f"{name}.json").read_text()) for name in ("rivals", "files"))
    found = {(e["net"], e["storage"], e["pruned"]): e for e in files}
    assert len(rivals) == 3
    for ring, rival in rivals.items():
        mine, narrower = found[ring, "float32", 0.0], found[rival["numbers"], "float32", 0.0]
        assert narrower["numbers"] == pytest.approx(mine["numbers"], rel=0.1)  # widths are whole channels
        if rival["bytes"] is not None:
            assert found[rival["bytes"], "int8", 0.0]["bytes"] == pytest.approx(mine["bytes"], rel=0.05)
        assert found[ring, "int8", 0.0]["ring_bytes"] <= 0.26 * mine["ring_bytes"]
        assert found[ring, "int8", 0.5]["bytes"] < found[ring, "int8", 0.0]["bytes"]
    assert [rivals[ring]["bytes"] is None for ring in rivals] == [
        False,
        False,
        True,
    ]  # the last rival is wider than --widest
    pruned = found["resnet20 pruned", "int8", 0.9]
    assert pruned["bytes"] < found["resnet20 plain", "int8", 0.0]["bytes"] / 2
    written = (swept / "table.md").read_text()
    assert written == ring_sweep.tables(swept)
    assert "not run" in written
    assert {path.name for path in swept.glob("*.svg")} >= {"law.svg", "bytes.svg"}
    locked = json.loads((swept / "key.json").read_text())
    assert locked["equal_bits"]
    assert locked["right"] == found[locked["net"], "float32", 0.0]["accuracy"]
    assert len(locked["wrong"]) == 3
    before = files
    ring_sweep.main()
    assert json.loads((swept / "files.json").read_text()) == before, "finished nets were measured again"
    assert ring_sweep.law(swept).slope == pytest.approx(
        ring_sweep.log_linear_fit(
            [found[r, "float32", 0.0]["numbers"] for r in rivals],
            [found[r, "float32", 0.0]["accuracy"] for r in rivals],
        ).slope
    )


def test_the_ring_beside_an_equilibrium_net(tmp_path):
    folders = {}
    for name, net in (
        ("equilibrium", pc.create_model("equilibrium", num_classes=4, width=0.2)),
        ("ring", pc.condense(pc.create_model("resnet20", num_classes=4, width=0.25), "ring")),
    ):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        pc.save(net, folders[name] / "model.safetensors")
    found = equilibrium.measure(folders, tiny())
    solved = found["equilibrium"]
    assert 0 < solved["median_residual"] <= solved["largest_residual"] < 1e-3
    assert solved["share_above_limit"] == 0.0
    assert 1 <= solved["steps_mean"] <= solved["steps_max"] <= 60
    assert all(one["ms_one"] > 0 and one["ms_128"] > 0 for one in found.values())
    assert "| ring |" in equilibrium.table(found)


def test_pack_writes_a_smaller_file_and_says_what_it_costs(tmp_path, capsys, monkeypatch):
    from pocketcnn.cli import main

    monkeypatch.delenv("POCKETCNN_PASSPHRASE", raising=False)
    data = load("digits")
    net = pc.condense(pc.create_model("resnet20", in_channels=1, width=0.25), "ring", seed=2**50).eval()
    path, packed = tmp_path / "net.safetensors", tmp_path / "packed.safetensors"
    notes = {"input_size": list(data.input_size)}
    pc.save(net, path, notes=notes)

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["pack", str(path), "--output", str(packed), *words])
        return left.value.code, capsys.readouterr()

    code, shown = run("--storage", "int8", "--prune", "0.5", "--data", "digits")
    assert code == 0
    assert shown.out.count("test accuracy") == 2
    assert packed.stat().st_size < path.stat().st_size
    assert pc.checkpoint.read_header(packed)["notes"] == notes
    code, shown = run("--lock", "new")
    assert code == 2
    assert "MissingPassphrase" in shown.err
    monkeypatch.setenv("POCKETCNN_NEW_PASSPHRASE", "open sesame")
    assert run("--lock", "new")[0] == 0
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(pc.load(packed, passphrase="open sesame")(x), net(x))
    assert run("--prune", "1.5")[0] == 2

    # A locked file stays locked, unless `--lock none` unlocks it.
    locked, path = packed, packed.rename(tmp_path / "locked.safetensors")
    monkeypatch.setenv("POCKETCNN_PASSPHRASE", "open sesame")
    path = path.with_name("locked.safetensors")
    assert run()[0] == 0
    assert torch.equal(pc.load(locked, passphrase="open sesame")(x), net(x))
    assert run("--lock", "none")[0] == 0
    assert torch.equal(pc.load(locked)(x), net(x))
    with pytest.raises(SystemExit) as left:
        main(["condense", "--model", str(path), "--method", "condconv", "--include", "conv1", "--output", str(locked)])
    assert left.value.code == 0
    with pytest.raises(pc.errors.MissingPassphrase):
        pc.load(locked)


def test_a_new_passphrase_is_asked_for_twice(tmp_path, capsys, monkeypatch):
    from pocketcnn import cli

    monkeypatch.delenv("POCKETCNN_NEW_PASSPHRASE", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    answers = iter(["one", "two", "three", "three"])
    monkeypatch.setattr(getpass, "getpass", lambda words: next(answers))
    net, path = pc.condense(pc.create_model("resnet20", width=0.25), "ring", seed=2**50), tmp_path / "net.safetensors"
    pc.save(net, path)
    codes = []
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            cli.main(["pack", str(path), "--output", str(tmp_path / "packed"), "--lock", "new"])
        codes.append(left.value.code)
    assert codes == [2, 0]
    assert "the two passphrases differ; nothing was written" in capsys.readouterr().err
    pc.load(tmp_path / "packed", passphrase="three")
