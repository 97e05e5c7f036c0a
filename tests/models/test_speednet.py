"""The net of the speed runs: its size, its whitened stem, and what it refuses."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.cost import measure
from pocketcnn.data import load
from pocketcnn.models.speednet import SpeedNet, WhiteningStem
from pocketcnn.train import TrainConfig, fit

IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3) / 5


def test_it_has_the_size_of_the_paper():
    net = pc.create_model("speednet")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == 1.97
    assert round(measure(net, (3, 32, 32)).macs / 1e6) == 118


@pytest.mark.parametrize(
    ("side", "channels", "classes", "width"), [(9, 1, 3, 0.1), (32, 3, 10, 0.25), (50, 4, 1, 0.125)]
)
def test_it_takes_images_of_any_size_and_channels(side, channels, classes, width):
    net = SpeedNet(classes, channels, width, blocks=1)
    assert net(torch.randn(2, channels, side, side + 3)).shape == (2, classes)


def test_outputs_of_the_stem_are_white():
    stem = WhiteningStem(3).eval()
    stem.calibrate_([IMAGES[:40], (IMAGES[40:], None)])
    found = stem(IMAGES).detach().transpose(0, 1).flatten(1).double()
    half = len(found) // 2
    torch.testing.assert_close(found[half:], -found[:half])
    moments = found[:half] @ found[:half].T / found.shape[1]
    # All directions have one size, but those in which the patches hardly differ.
    patches = F.unfold(IMAGES, 2).transpose(1, 2).flatten(0, 1).double()
    variances = torch.linalg.eigvalsh(patches.T @ patches / len(patches)).flip(0)
    torch.testing.assert_close(moments, torch.diag(variances / (variances + 5e-4)), atol=1e-4, rtol=0)


def test_it_is_whitened_once_by_images_shown_or_by_the_first_batch(caplog):
    net = SpeedNet(width=0.1)
    before = net.stem.conv.weight.clone()
    with caplog.at_level(logging.WARNING):
        net.eval()(IMAGES)
        assert torch.equal(net.stem.conv.weight, before)
        net.train()(IMAGES)
    assert "whitened by the first batch" in caplog.text
    assert net.stem.whitened == 1
    first = net.stem.conv.weight.clone()
    net(IMAGES * 2)
    net.stem.calibrate_([IMAGES * 3])
    assert torch.equal(net.stem.conv.weight, first)
    assert caplog.text.count("whitened") == 1
    shown = SpeedNet(width=0.1)
    shown.stem.calibrate_([IMAGES])
    assert torch.equal(shown.stem.conv.weight, first)


@pytest.mark.parametrize("images", [[], [IMAGES[:0]], [IMAGES[:1, :, :2, :2]], [IMAGES * float("nan")]])
def test_too_few_images_leave_the_stem_as_it_was(images):
    stem = WhiteningStem(3)
    before = copy.deepcopy(stem.state_dict())
    with pytest.raises(ValueError, match="cannot whiten a stem of 12 numbers"):
        stem.calibrate_(images)
    assert all(torch.equal(value, before[name]) for name, value in stem.state_dict().items())


def test_small_images_and_bad_options_are_refused(few):
    with pytest.raises(ValueError, match="at least 9 x 9 pixels, not 8 x 20"):
        SpeedNet(width=0.1)(torch.zeros(1, 3, 8, 20))
    with pytest.raises(ValueError, match="blocks at least 0"):
        SpeedNet(blocks=-1)
    with pytest.raises(ValueError, match="width must be a positive number"):
        SpeedNet(width=float("nan"))


@pytest.mark.parametrize("method", ["ring", "puppet", "pde", "condconv", "involution"])
def test_every_method_condenses_it(method, tmp_path):
    net = pc.create_model("speednet", width=0.125, blocks=3)
    small = pc.condense(net, method)
    for _ in range(5):  # so that norms know what they see
        small(IMAGES)
    small.eval()
    pc.save(small, tmp_path / "net.safetensors")
    again = pc.load(tmp_path / "net.safetensors")
    torch.testing.assert_close(again(IMAGES), small(IMAGES))


def test_training_whitens_the_stem_from_training_images_and_keeps_norms_unscaled(tmp_path, caplog):
    data = load("digits", limit=200)
    images = F.interpolate(data.train.images.float(), (9, 9)).byte()
    data = load_like(data, images)
    net = pc.create_model("speednet", width=0.1, in_channels=1)
    with caplog.at_level(logging.WARNING):
        fit(net, data, TrainConfig(epochs=1, batch_size=50, precision="float32", channels_last="off"), tmp_path / "run")
    assert "first batch" not in caplog.text
    assert net.stem.whitened == 1
    assert all((norm.weight == 1).all() for norm in net.modules() if isinstance(norm, nn.BatchNorm2d))
    wanted = WhiteningStem(1)
    normalized = (images / 255 - data.mean[0]) / data.std[0]
    wanted.calibrate_([normalized])
    torch.testing.assert_close(net.stem.conv.weight.abs(), wanted.conv.weight.abs(), atol=1e-3, rtol=1e-3)


def load_like(data, images):
    import dataclasses

    train = dataclasses.replace(data.train, images=images)
    others = {
        name: dataclasses.replace(part, images=F.interpolate(part.images.float(), (9, 9)).byte())
        for name, part in (("validation", data.validation), ("test", data.test))
    }
    return dataclasses.replace(data, train=train, **others)


def test_autocast_leaves_the_stem_exact():
    torch.manual_seed(0)
    smooth = torch.nn.functional.avg_pool2d(torch.randn(16, 3, 20, 20), 5, 1)  # neighbours are almost equal
    stem = pc.create_model("speednet").stem
    stem.calibrate_([smooth])
    exact = stem(smooth)
    with torch.autocast("cpu", torch.bfloat16):
        found = stem(smooth)
        noisy = stem.conv(smooth)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())
    error, before = (float((y.float() - exact).detach().square().mean().sqrt()) for y in (found, noisy))
    assert error < before / 3
