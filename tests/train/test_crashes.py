"""Convolutions that end the process: found in any net, steered round, and tried in another process first."""

import dataclasses
import logging
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pocketcnn.errors import BadData
from pocketcnn.models.recipes import create_model
from pocketcnn.support.layouts import in_layout, to_layout
from pocketcnn.surgery import condense
from pocketcnn.train import TrainConfig, crashes, fit, trials
from pocketcnn.train.module import Classifier

PLAIN, LAST = torch.contiguous_format, torch.channels_last


class Functional(nn.Module):
    """Calls its convolution as a function, so that no module shows it."""

    def __init__(self, **settings):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 5 // settings.get("groups", 1), 1, 1))
        self.settings = settings

    def forward(self, x):
        return F.conv2d(x, self.weight, **self.settings).mean((2, 3))


def bad(net, channels=1, dtype=torch.float32, layout=LAST):
    return bool(crashes.known_crash(crashes.convolutions_of(net, (channels, 8, 8)), dtype, layout))


@pytest.fixture
def known(monkeypatch):
    """The table holds for this version and processor, whichever they are."""
    monkeypatch.setattr(crashes.KnownCrash, "applies", lambda row: True)


@pytest.mark.usefixtures("known")
def test_the_table_finds_crashes_however_a_net_calls_its_convolutions():
    narrow = create_model("resnet20", width=0.3125, in_channels=1)
    assert bad(narrow)
    assert bad(narrow, dtype=torch.bfloat16)
    assert not bad(narrow, layout=PLAIN)
    assert not bad(narrow, dtype=torch.float64)
    assert bad(condense(narrow, "condconv"))
    assert not bad(create_model("resnet20", in_channels=1))  # 16 channels
    assert bad(Functional(stride=2), 5)
    assert bad(Functional(stride=(1, 3)), 5)
    assert not bad(Functional(), 5)
    assert not bad(Functional(stride=2, padding=1), 5)
    assert not bad(nn.Conv2d(1, 4, 3, stride=2))


@pytest.mark.parametrize("layout", ["on", "auto"])
def test_training_in_a_layout_that_crashes_ends_well(tmp_path, layout):
    words = ["train", "--data", "digits", "--width", "0.3125", "--image-size", "64", "--epochs", "1", "--limit", "40"]
    words += [
        "--precision",
        "float32",
        "--channels-last",
        layout,
        "--batch-size",
        "16",
        "--output",
        str(tmp_path / "run"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pocketcnn", *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "result.json").is_file()


@pytest.mark.usefixtures("known")
def test_a_known_crash_is_replaced_by_the_plain_layout_and_the_run_can_be_repeated(few, tmp_path, caplog):
    config = TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="on")
    with caplog.at_level(logging.WARNING, "pocketcnn"):
        result = fit(create_model("resnet20", width=0.25, in_channels=1), few, config, tmp_path / "run")
    assert result["train"]["channels_last"] == "off"
    assert "channels_last on is not used" in caplog.text
    again = fit(create_model("resnet20", width=0.25, in_channels=1), few, config, tmp_path / "run")
    assert again == result


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (4, 5, 1, 1), (4, 1, 1, 1), (2, 3, 4, 5), (1, 1, 3, 3)])
@pytest.mark.parametrize(("layout", "other"), [(PLAIN, LAST), (LAST, PLAIN)])
def test_a_tensor_that_is_in_both_layouts_gets_the_strides_of_the_one(shape, layout, other):
    whole = torch.empty(shape, memory_format=layout).stride()
    x = torch.empty(shape, memory_format=other).copy_(torch.randn(shape))
    assert in_layout(x, layout).stride() == whole
    assert torch.equal(in_layout(x, layout), x)
    net = to_layout(nn.ParameterList([x]), layout)
    assert net[0].stride() == whole
    assert in_layout(net[0], layout) is net[0]


def test_images_of_one_channel_train_in_the_layout_that_was_asked_for(few):
    seen = []
    net = create_model("resnet20", width=0.25, in_channels=1)
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride()))
    images = few.train.images[:8].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for channels_last in ("on", "off"):
        Classifier(net, few, TrainConfig(channels_last=channels_last))(images)
    assert seen == [(64, 1, 8, 1), (64, 64, 8, 1)]


class ChoosesItsLayout(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 10, 1, stride=2)

    def forward(self, x):
        return self.second(self.first(x).contiguous(memory_format=LAST)).mean((2, 3))


@pytest.mark.usefixtures("known")
def test_a_net_that_chooses_the_layout_itself_is_refused(few, tmp_path):
    config = TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="off")
    with pytest.raises(BadData, match="the net itself puts its features in this layout"):
        fit(ChoosesItsLayout(), few, config, tmp_path / "run")


def call(**changes):
    layer = dict(input=(2, 5, 8, 8), kernel=(4, 5, 3, 3), bias=False, stride=(1, 1), padding=(1, 1), dilation=(1, 1))
    return {**layer, "transposed": False, "output_padding": (0, 0), "groups": 1, **changes}


def test_a_trial_in_another_process_reports_deaths_and_errors(tmp_path, monkeypatch):
    assert trials.first_failure([call(), call(bias=True)], torch.float32, LAST) == ""
    assert "failed (RuntimeError" in trials.first_failure([call(), call(groups=3)], torch.float32, LAST)
    deadly = tmp_path / "deadly.py"
    deadly.write_text("import os, signal\nprint('passed', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setattr(trials, "_CHILD", deadly)
    found = trials.first_failure([call(), call(stride=(2, 2))], torch.float64, LAST)
    assert found == "a trial of a convolution of [4, 5, 3, 3] on [2, 5, 8, 8] in another process died by SIGSEGV"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    assert "cannot be tried" in trials.first_failure([call()], torch.float64, PLAIN)


def test_an_unknown_version_of_torch_is_tried_first(few, monkeypatch):
    monkeypatch.setattr(crashes, "KNOWN", ())
    monkeypatch.setattr(crashes, "EXAMINED", ())
    tried = []
    monkeypatch.setattr(crashes, "first_failure", lambda calls, dtype, layout: tried.append(layout) or "it dies")
    config = TrainConfig(epochs=1, batch_size=32, precision="float32", channels_last="on")
    net = create_model("resnet20", width=0.25, in_channels=1)
    cpu = torch.device("cpu")
    assert crashes.without_crash(config, net, few, cpu) == dataclasses.replace(config, channels_last="off")
    assert tried == [LAST]
