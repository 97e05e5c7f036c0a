"""Trained weights from elsewhere: what trainings write is read, what needs code is refused, what does not fit is named."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

import pocketcnn as pc
from pocketcnn.checkpoint import load_weights_
from pocketcnn.errors import BrokenFile, ExportedFile, ForeignFile, WrongWeights


def net(classes=3):
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


@pytest.fixture
def trained():
    made = net()
    made[1].running_mean.fill_(0.5)
    return made


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best": torch.tensor(0.9)},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}, "optimizer": {"state": {}}},
        lambda state: {"state_dict": {f"model._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {"checkpoint": 1, "net": {"weights": state}},
        lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
        lambda state: {name: value for name, value in state.items() if "num_batches" not in name},
    ],
)
def test_weights_of_trainings_are_found(wrapped, trained, tmp_path):
    torch.save(wrapped(trained.state_dict()), tmp_path / "net.pth")
    filled = load_weights_(net(), tmp_path / "net.pth")
    for one, other in zip(trained.state_dict().values(), filled.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)
        assert other.dtype == one.dtype


def test_weights_of_safetensors_and_of_compiled_nets(trained, tmp_path):
    save_file({name: value.contiguous() for name, value in trained.state_dict().items()}, tmp_path / "net.safetensors")
    filled = load_weights_(torch.compile(net()), tmp_path / "net.safetensors")
    assert filled.state_dict()["_orig_mod.3.weight"].equal(trained[3].weight)


def test_shared_weights_masks_and_averages_beside_the_weights(trained, tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = self.two = nn.Linear(2, 2)
            self.register_buffer("mask", torch.full((2,), -torch.inf))

    first = Tied()
    save_model(first, tmp_path / "tied.safetensors")
    assert load_weights_(Tied(), tmp_path / "tied.safetensors").two.weight.equal(first.one.weight)
    torch.save({"model": trained.state_dict(), "ema.decay": torch.tensor(0.9)}, tmp_path / "ema.pth")
    assert load_weights_(net(), tmp_path / "ema.pth")[3].weight.equal(trained[3].weight)
    whole = {name: value.long() for name, value in trained.state_dict().items()}
    torch.save(whole, tmp_path / "whole.pth")
    with pytest.raises(WrongWeights, match=r"0\.weight is torch\.int64 there and torch\.float32 in the net"):
        load_weights_(net(), tmp_path / "whole.pth")


def test_what_is_left_over_is_said(trained, tmp_path, caplog):
    torch.save({**trained.state_dict(), "aux.weight": torch.ones(2)}, tmp_path / "net.pth")
    load_weights_(net(), tmp_path / "net.pth")
    assert "1 tensor in the file, but not in the net: aux.weight; left out" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {k: v for k, v in s.items() if k != "0.bias"},
            r"1 of 9 weights of Sequential are missing \(0.bias\)",
        ),
        (
            lambda s: {**s, "3.weight": torch.ones(10, 4)},
            r"1 tensor has another shape \(3.weight is \[10, 4\] there and \[3, 4\]",
        ),
        (
            lambda s: {f"layer.{k}x": v for k, v in s.items()},
            r"8 of 9 weights .* are missing \(0.weight, 0.bias, 1.weight, ...\)",
        ),
    ],
)
def test_weights_of_another_net_are_refused(change, message, trained, tmp_path):
    torch.save(change(trained.state_dict()), tmp_path / "net.pth")
    fresh = net()
    before = fresh[0].weight.clone()
    with pytest.raises(WrongWeights, match=message):
        load_weights_(fresh, tmp_path / "net.pth")
    assert fresh[0].weight.equal(before), "nothing was filled"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_nothing_in_a_file_is_run(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Evil()}, "evil.pth")
    torch.save(trained, "whole.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil()))
    for name, culprit in (("evil", "mkdir"), ("whole", r"Sequential"), ("raw", "")):
        with pytest.raises(
            ForeignFile, match=rf"holds more than weights \(.*{culprit}.*could run any code.*state_dict\(\), FILE"
        ):
            load_weights_(net(), f"{name}.pth")
    assert not (tmp_path / "was_run").exists()


def test_files_that_hold_no_weights(trained, tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3, "name": "x"}, tmp_path / "numbers.pth")
    (tmp_path / "junk.pth").write_bytes(b"hello world, this is no file")
    torch.save(trained.state_dict(), tmp_path / "net.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "net.pth").read_bytes()[:700])
    torch.jit.script(nn.ReLU()).save(tmp_path / "script.pt")
    pc.save(trained, tmp_path / "ours.safetensors")
    (tmp_path / "net.onnx").write_bytes(b"")
    trained[0].weight.data[0] = torch.nan
    torch.save(trained.state_dict(), tmp_path / "nan.pth")
    for name, error, message in [
        ("list.pth", ForeignFile, "holds no tensors by name, but list"),
        ("numbers.pth", ForeignFile, "no tensors by name, but a dictionary of epoch, name"),
        ("junk.pth", BrokenFile, "not a file of torch.save, or damaged"),
        ("cut.pth", BrokenFile, "not a file of torch.save, or damaged"),
        ("script.pt", ForeignFile, "a TorchScript program, not weights"),
        ("ours.safetensors", ForeignFile, "a model file of pocketcnn, which holds a whole net"),
        ("net.onnx", ExportedFile, "an exported file is for serving"),
        ("nan.pth", BrokenFile, "0.weight is not finite"),
        ("none.pth", FileNotFoundError, "no such file of weights"),
    ]:
        with pytest.raises(error, match=message):
            load_weights_(net(), tmp_path / name)
