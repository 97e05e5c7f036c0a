"""Pages with nets in them, opened in a real Chromium from a file, with no network."""

import base64
import json
import os
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import config
from PIL import Image
from torch import nn

import pocketcnn as pc
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.errors import BadUsage
from pocketcnn.explore import PageNet, as_int8, runtime, write_page
from pocketcnn.explore.page import bundle
from pocketcnn.methods.puppet import gauge_of
from pocketcnn.models.resnet import BasicBlock, ResNet
from pocketcnn.pictures import Images
from pocketcnn.support.modules import evaluating

METHODS = {
    "plain": None,
    "ring": ("ring", {"size": 0.1, "scheme": "windows"}),
    "puppet": ("puppet", {"size": 0.3}),
    "pde": ("pde", {"num_steps": 3, "last_stage": "drop"}),
    "condconv": ("condconv", {"num_experts": 2}),
    "involution": ("involution", {"group_channels": 4}),
}
COUNT = 50


@pytest.fixture(scope="module", autouse=True)
def _shapes_are_not_checked():
    """The exporter cannot trace the checks."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def data():
    from pocketcnn.data import load

    return load("digits")


@pytest.fixture(scope="module")
def nets(data):
    """A net of each method, trained for a moment, so that it tells images apart."""
    notes = ImageNotes.of(data)
    x = notes.normalise(data.train.images[:512])
    made = []
    for name, method in METHODS.items():
        torch.manual_seed(1)
        net = ResNet(BasicBlock, [3, 3], [8, 16], num_classes=10, in_channels=1, stem="small")
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


@pytest.fixture(scope="module")
def folder():
    """The runtime, fetched once for all tests."""
    if not (shutil.which("npm") and shutil.which("chromium")) and "POCKETCNN_PAGES" not in os.environ:
        pytest.skip("npm or Chromium is not on this machine")
    cache = Path(__file__).parents[2] / ".venv" / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETCNN_CACHE", str(cache))
        runtime.contents("inline")
    return cache / f"{runtime.PACKAGE}-{runtime.VERSION}"


@pytest.fixture(scope="module")
def page(nets, data, folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "explore.html"
    pixels, labels = data.test.images[:COUNT], data.test.labels[:COUNT]
    notes = ImageNotes.of(data)
    many = (data.test.images, notes.normalise(data.test.images), data.test.labels, data.classes)
    images = Images(
        pixels, notes.normalise(pixels), None, lambda most: tuple(part[:most] for part in many[:3]) + many[3:]
    )
    return write_page(path, nets, strip=(pixels, labels.tolist()), images=images, runtime=str(folder))


@pytest.fixture(scope="module")
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


class Opened:
    """A page in a tab; collects what went wrong and what was asked for."""

    def __init__(self, tab, path):
        self.tab, self.wrong, self.asked = tab, [], []
        tab.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        tab.on("request", lambda request: self.asked.append(request.url))
        self.path = path

    def open(self, state=""):
        self.tab.goto("about:blank")
        self.tab.goto(f"file://{self.path}#{state}")
        self.wait()
        return self

    def wait(self):
        self.tab.wait_for_selector("html[data-ready=yes], html[data-ready=failed]", state="attached", timeout=60_000)

    def probabilities(self, side):
        return torch.tensor(json.loads(self.tab.get_attribute(f"#{side}-classes", "data-probabilities")))

    def slide(self, name, value):
        self.tab.locator(f"#{name}").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", str(value)
        )
        self.wait()


@pytest.fixture
def opened(chromium, page):
    context = chromium.new_context(offline=True, viewport={"width": 1280, "height": 900})
    tab = context.new_page()
    opened = Opened(tab, page.path)
    yield opened
    context.close()
    assert not opened.wrong
    assert all(url.startswith(("file://", "blob:", "about:")) for url in opened.asked)


@pytest.mark.parametrize("name", METHODS)
def test_predictions_are_those_of_pytorch(opened, nets, data, name):
    one = next(net for net in nets if net.name == name)
    x = ImageNotes.of(data).normalise(data.test.images[:COUNT])
    with evaluating(net := as_int8(one.net)):
        wanted = torch.cat([net(image[None]) for image in x]).softmax(1)
    assert len(wanted.argmax(1).unique()) > 1, "a net that says the same of every image proves nothing"
    opened.open(f"left=plain&right={name}")
    for number in range(COUNT):
        opened.tab.locator("#strip button").nth(number).click()
        opened.wait()
        found = opened.probabilities("right")
        assert found.argmax() == wanted[number].argmax()
        assert (found - wanted[number]).abs().max() < 1e-4


def test_blur_lowers_entropy_and_the_depth_of_a_puppet(opened):
    opened.open("left=plain&right=puppet&image=3&noise=40")
    sharp = _depth(opened)
    opened.slide("noise", 0)
    opened.slide("contrast", 0.05)
    opened.slide("blur", 3)
    assert _depth(opened) < sharp


def _depth(opened):
    entropy, level, blocks = re.search(
        r"entropy ([\d.]+) bits: level (\d) of 4, (\d+) of", opened.tab.inner_text("#right-inside .depth")
    ).groups()
    return float(entropy), int(level), int(blocks)


def test_address_keeps_the_state(opened):
    opened.open("left=ring&right=involution&image=7&blur=0.5")
    assert [opened.tab.input_value(f"#{side}-net") for side in ("left", "right")] == ["1", "5"]
    before = opened.probabilities("right")
    opened.tab.select_option("#left-net", label="pde")
    opened.wait()
    address = opened.tab.url
    assert {"left=pde", "image=7", "blur=0.5"} <= set(address.partition("#")[2].split("&"))
    opened.open(address.partition("#")[2])
    assert opened.tab.input_value("#left-net") == "3"
    torch.testing.assert_close(opened.probabilities("right"), before)


@pytest.mark.parametrize(
    "state", ["left=nobody&image=-1&blur=1e9", "image=x&noise=NaN", "%E0%A4%A", "left=<b>&image=1.5"]
)
def test_strange_addresses_open_the_usual_page(opened, state):
    opened.open(state)
    assert opened.tab.get_attribute("html", "data-ready") == "yes"
    assert opened.tab.input_value("#blur") == "0"


def test_keyboard(opened):
    opened.open("image=0&left=plain&right=involution")
    opened.tab.locator("#strip button").first.focus()
    opened.tab.keyboard.press("ArrowRight")
    opened.wait()
    assert "image=1" in opened.tab.url
    pixel = opened.tab.locator("#right-inside .pick")
    words = opened.tab.locator("#right-inside p[aria-live]")
    before = words.inner_text()
    pixel.focus()
    opened.tab.keyboard.press("ArrowRight")
    assert words.inner_text() != before
    mark = opened.tab.locator("#trade circle.net").last
    mark.focus()
    opened.tab.keyboard.press("Enter")
    opened.wait()
    assert "right=involution" in opened.tab.url


def test_drawing_and_files(opened, data, tmp_path):
    opened.open()
    opened.tab.click("#clear")
    opened.wait()
    blank = opened.probabilities("left")
    box = opened.tab.locator("#picture").bounding_box()
    opened.tab.mouse.move(box["x"] + 100, box["y"] + 60)
    opened.tab.mouse.down()
    opened.tab.mouse.move(box["x"] + 120, box["y"] + 200, steps=5)
    opened.tab.mouse.up()
    opened.wait()
    assert not torch.equal(opened.probabilities("left"), blank)
    assert "image=" not in opened.tab.url.rpartition("&")[2]
    pixels = data.test.images[4, 0].numpy()
    Image.fromarray(pixels).save(tmp_path / "four.png")
    opened.tab.set_input_files("#file", tmp_path / "four.png")
    opened.wait()
    dropped = opened.probabilities("left")
    opened.tab.locator("#strip button").nth(4).click()
    opened.wait()
    torch.testing.assert_close(dropped, opened.probabilities("left"), atol=0.02, rtol=0)


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGBA", "1", "P", "I;16"])
def test_files_of_other_modes_are_read(opened, tmp_path, mode):
    opened.open()
    deep = Image.fromarray(np.full((90, 300), 40_000, dtype=np.uint16))
    image = deep if mode == "I;16" else Image.new("RGB", (300, 90), (200, 20, 90)).convert(mode)
    path = tmp_path / f"image.{'jpg' if mode == 'CMYK' else 'png'}"
    image.save(path)
    opened.tab.set_input_files("#file", path)
    opened.wait()
    assert opened.tab.inner_text("#message") == ""


def test_files_that_are_no_images_are_explained(opened, tmp_path):
    opened.open()
    (tmp_path / "notes.png").write_text("no image")
    opened.tab.set_input_files("#file", tmp_path / "notes.png")
    opened.tab.wait_for_selector("#message:not([hidden])")
    assert opened.tab.inner_text("#message").startswith("notes.png is no image that this browser can read")


def test_a_dropped_file_is_classified(opened, data, tmp_path):
    opened.open("image=0")
    before = opened.probabilities("left")
    Image.fromarray(data.test.images[4, 0].numpy()).save(tmp_path / "four.png")
    content = base64.b64encode((tmp_path / "four.png").read_bytes()).decode()
    opened.tab.locator("main").evaluate(
        """(place, content) => {
            const files = new DataTransfer();
            files.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], "four.png", { type: "image/png" }));
            place.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: files }));
        }""",
        content,
    )
    opened.tab.wait_for_selector("#strip:not(:has([aria-checked=true]))", state="attached")
    opened.wait()
    assert not torch.equal(opened.probabilities("left"), before)


def test_an_enormous_image_is_refused(opened, tmp_path):
    opened.open()
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    opened.tab.set_input_files("#file", tmp_path / "large.png")
    opened.tab.wait_for_selector("#message:not([hidden])")
    assert opened.tab.inner_text("#message") == "large.png has 9000 x 9000 pixels. At most 64 million fit."


def test_the_camera_is_classified_or_refused_in_a_line(chromium, page):
    for allowed in (True, False):
        context = chromium.new_context(offline=True, permissions=["camera"] if allowed else [])
        opened = Opened(context.new_page(), page.path).open("image=0")
        opened.tab.click("#camera")
        if allowed:
            opened.tab.wait_for_selector("#camera:text('Stop the camera')")
            opened.tab.wait_for_selector("#strip:not(:has([aria-checked=true]))", state="attached")
            opened.tab.click("#camera")
            opened.wait()
            assert opened.tab.inner_text("#camera") == "Camera"
        else:
            opened.tab.wait_for_selector("#message:not([hidden])")
            assert "The camera cannot be used" in opened.tab.inner_text("#message")
        context.close()


def test_every_method_shows_its_inside(opened):
    heads = {"ring": "The ring", "puppet": "How deep this image goes", "pde": "The solver", "condconv": "How this image mixes", "involution": "The kernel of a pixel"}  # fmt: skip
    opened.open("left=plain&right=ring")
    for name, head in heads.items():
        opened.tab.select_option("#right-net", label=name)
        opened.wait()
        assert head in opened.tab.inner_text("#right-inside")
        assert "Feature maps after each stage" in opened.tab.inner_text("#right-inside")


def test_ring_reads_again_from_a_shorter_ring(opened):
    opened.open("left=plain&right=ring")
    captions = opened.tab.locator("#right-inside figcaption")
    assert "100 % the same" in captions.nth(1).inner_text()
    slider = opened.tab.locator("#right-inside input[aria-label^='Length']")
    slider.evaluate("(s) => { s.value = 40; s.dispatchEvent(new Event('input')); }")
    assert "100 % the same" not in captions.nth(1).inner_text()
    opened.tab.locator("#right-inside .choices button").nth(3).click()
    assert opened.tab.locator("#right-inside .choices button").nth(3).get_attribute("aria-checked") == "true"


def test_browser_without_webassembly_is_told(chromium, page):
    context = chromium.new_context(offline=True)
    context.add_init_script("delete globalThis.WebAssembly")
    opened = Opened(context.new_page(), page.path).open()
    assert "has no WebAssembly" in opened.tab.inner_text("#message")
    context.close()


def test_page_without_network_says_where_the_runtime_would_come_from(chromium, nets, tmp_path):
    write_page(tmp_path / "cdn.html", nets[:1])
    context = chromium.new_context(offline=True)
    opened = Opened(context.new_page(), tmp_path / "cdn.html").open()
    assert "--runtime inline" in opened.tab.inner_text("#message")
    assert all(runtime.ORIGIN in url or url.startswith(("file:", "about:")) for url in opened.asked)
    context.close()


def test_markup_in_names_stays_text(chromium, nets, folder, tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    one = nets[0]
    notes = {**one.notes, "classes": [evil, *one.notes["classes"][1:]]}
    write_page(tmp_path / "evil.html", [PageNet(f"<b>{evil}", one.net, notes)], runtime=str(folder), command=evil)
    context = chromium.new_context(offline=True)
    opened = Opened(context.new_page(), tmp_path / "evil.html").open()
    assert opened.tab.locator("img").count() == 0
    assert opened.tab.inner_text("#command") == evil
    assert not opened.wrong
    context.close()


def test_bad_nets_are_refused(nets, data, tmp_path):
    one = nets[0]
    other = PageNet("other", one.net, {**one.notes, "mean": [0.1]})
    words = PageNet("words", one.net, {**one.notes, "classes": [f"{k}th" for k in range(10)]})
    several = PageNet("several", nn.Sequential(nn.Flatten(), nn.Linear(data.input_size[1] ** 2, 3)), one.notes)
    for bad, message in (
        ([], "at least one net"),
        ([one, one], "two nets of this name"),
        ([one, other], "trained on other images"),
        ([one, words], "knows other classes"),
        ([several], r"returns \[2, 3\] for two images"),
        ([PageNet("bare", one.net, {})], "it is not known what its images"),
    ):
        with pytest.raises(BadUsage, match=message):
            write_page(tmp_path / "no.html", bad)
    assert not (tmp_path / "no.html").exists()


def test_runtime_of_another_version_is_refused(tmp_path):
    with pytest.raises(BadUsage, match=r"no ort\.wasm\.bundle\.min\.mjs in this folder; get it by npm pack"):
        runtime.contents(str(tmp_path))
    (tmp_path / "dist").mkdir()
    for name, _ in runtime.FILES.values():
        (tmp_path / "dist" / name).write_bytes(b"another")
    with pytest.raises(BadUsage, match=f"not that of onnxruntime-web {runtime.VERSION}"):
        runtime.contents(str(tmp_path))


@pytest.mark.parametrize("name", METHODS)
def test_classifying_needs_only_the_base(nets, page, name):
    ort = pytest.importorskip("onnxruntime")
    place, one = next((place, net) for place, net in enumerate(nets) if net.name == name)
    base, inside = (content_of(page.path, f"{part}-{place}") for part in ("base", "inside"))
    images = torch.randn(3, *one.notes["input_size"]).numpy()
    alone, whole = ort.InferenceSession(base), ort.InferenceSession(base + inside)
    assert [output.name for output in alone.get_outputs()] == ["logits"]
    assert len(whole.get_outputs()) > 1
    assert abs(alone.run(None, {"images": images})[0] - whole.run(None, {"images": images})[0]).max() < 1e-5
    assert len(inside) < 10_000, "weights are stored twice"


def content_of(path, name):
    text = re.search(rf'id="data-{name}">([^<]*)<', path.read_text())[1]
    return zlib.decompress(base64.b85decode(text.replace(",", "<")), -15)


def test_fields_are_those_of_the_solver(nets):
    from pocketcnn.explore.inside.pde import fields
    from pocketcnn.methods.pde import GlobalLayer
    from pocketcnn.pictures import solver_fields

    one = next(net for net in nets if net.name == "pde")
    name, layer = next((n, m) for n, m in one.net.named_modules() if isinstance(m, GlobalLayer))
    x = torch.randn(2, *one.notes["input_size"])
    wanted = solver_fields(one.net, name, x)
    with torch.no_grad():
        found = fields(layer, wanted.before)
    torch.testing.assert_close((found["u"], found["v"]), wanted.velocity)
    for step, state in enumerate(wanted.steps):
        torch.testing.assert_close(found[f"H{step}"], state, atol=1e-4, rtol=1e-4)


def test_scripts_join_into_one():
    text = bundle()
    assert not re.search(r"^(import|export) ", text, re.MULTILINE)
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", text, re.MULTILINE)
    own = [re.findall(r"^(?:export )?(?:async )?(?:function|class|const|let) (\w+)", path.read_text(), re.MULTILINE) for path in (Path(runtime.__file__).parent / "scripts").glob("*.js")]  # fmt: skip
    tops = [name for names in own for name in names]
    assert len(set(tops)) == len(tops), "two scripts have a name in common"
    assert set(tops) <= set(names)
