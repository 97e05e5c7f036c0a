"""Pages with nets in them, written once, and a Chromium that opens them."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from jaxtyping import config
from torch import nn

import pocketcnn as pc
from browser import COUNT, METHODS, Opened
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.explore import PageNet, runtime, write_page
from pocketcnn.methods.involution import Involution2d
from pocketcnn.methods.puppet import gauge_of
from pocketcnn.models.resnet import BasicBlock, ResNet
from pocketcnn.pictures import Images


@contextlib.contextmanager
def _unchecked():
    """Turns the checks of shapes off, which the exporter cannot trace."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data():
    from pocketcnn.data import load

    return load("digits")


@pytest.fixture(scope="session")
def nets(data):
    """A net of each method, trained for a moment, so that it tells images apart."""
    notes = ImageNotes.of(data)
    x = notes.normalise(data.train.images[:512])
    made = []
    for name, method in METHODS.items():
        torch.manual_seed(1)
        net = ResNet(BasicBlock, [3], [8], num_classes=10, in_channels=1, stem="small")
        if method:
            net = pc.condense(net, method[0], **method[1])
        if gauge := gauge_of(net):
            gauge.calibrate_([x], mean=notes.mean, std=notes.std)
        optimizer = torch.optim.Adam(net.train().parameters(), lr=3e-3)
        for batch, labels in 4 * list(zip(x.split(64), data.train.labels[: len(x)].split(64), strict=True)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(batch), labels).backward()
            optimizer.step()
        net.eval()
        made.append(PageNet(name, net, notes.as_dict(), accuracy=0.5))
    return made


@pytest.fixture(scope="session")
def folder():
    """The runtime, fetched once for all tests."""
    if not (shutil.which("npm") and shutil.which("chromium")) and "POCKETCNN_PAGES" not in os.environ:
        pytest.skip("npm or Chromium is not on this machine")
    cache = Path(__file__).parents[2] / ".venv" / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETCNN_CACHE", str(cache))
        runtime.contents("inline")
    return cache / f"{runtime.PACKAGE}-{runtime.VERSION}"


@pytest.fixture(scope="session")
def page(nets, data, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explore.html"
    pixels, labels = data.test.images[:COUNT], data.test.labels[:COUNT]
    notes = ImageNotes.of(data)
    many = (data.test.images, notes.normalise(data.test.images), data.test.labels, data.classes)
    images = Images(
        pixels, notes.normalise(pixels), None, lambda most: tuple(part[:most] for part in many[:3]) + many[3:]
    )
    with _unchecked():
        return write_page(path, nets, strip=(pixels, labels.tolist()), images=images, runtime=str(folder))


@pytest.fixture(scope="session")
def chromium(folder):
    sync_api = pytest.importorskip("playwright.sync_api")
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--use-fake-device-for-media-stream",
    ]
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, page):
    context = chromium.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    opened = Opened(tab, page.path)
    yield opened
    context.close()
    assert not opened.wrong
    assert all(url.startswith(("file://", "blob:", "about:")) for url in opened.asked)


@pytest.fixture(scope="session")
def strange(folder, tmp_path_factory):
    """A page of nets of oblong images, one with two rings, one with strided involutions and one whose depth is not calibrated."""
    notes = {"classes": ["a", "b"], "input_size": [1, 8, 24], "mean": [0.0], "std": [1.0]}

    def plain():
        torch.manual_seed(0)
        return ResNet(BasicBlock, [3], [8], num_classes=2, in_channels=1, stem="small").eval()

    torch.manual_seed(0)
    rings = pc.condense(
        pc.condense(plain(), "ring", size=0.2, include="layer1.0*"), "ring", size=0.2, include="layer1.1*"
    )
    nets = {
        "rings": rings,
        "involution": nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            Involution2d(8, 8, 3, padding=1, group_channels=4),
            Involution2d(8, 8, 3, stride=2, padding=1, group_channels=4),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 2),
        ),
        "puppet": pc.condense(plain(), "puppet", size=0.5),
        "pde": pc.condense(plain(), "pde", num_steps=3),
    }
    path = tmp_path_factory.mktemp("strange") / "explore.html"
    with _unchecked():
        return write_page(path, [PageNet(name, net.eval(), notes) for name, net in nets.items()], runtime=str(folder))


@pytest.fixture
def oblong(chromium, strange):
    context = chromium.new_context(offline=True, viewport={"width": 1280, "height": 900})
    opened = Opened(context.new_page(), strange.path)
    yield opened
    context.close()
    assert not opened.wrong
