"""What a person does on a page: images, sliders, links, camera, keyboard."""

import base64

import numpy as np
import pytest
import torch
from PIL import Image

from browser import Opened


def test_address_keeps_the_state(opened):
    opened.open("left=ring&right=involution&image=7&blur=0.5")
    assert [opened.tab.input_value(f"#{side}-net") for side in ("left", "right")] == ["1", "5"]
    before = opened.probabilities("right")
    opened.tab.select_option("#left-net", label="pde")
    opened.wait()
    opened.open(opened.address("left=pde", "image=7", "blur=0.5"))
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
    opened.address("image=1")
    pixel = opened.tab.locator("#right-inside .pick")
    words = opened.tab.locator("#right-inside p[aria-live]")
    before = words.inner_text()
    pixel.focus()
    opened.tab.keyboard.press("ArrowRight")
    assert words.inner_text() != before
    mark = opened.tab.locator("#trade circle[data-name='net ring']")
    mark.focus()
    opened.tab.keyboard.press("Enter")
    opened.wait()
    opened.address("right=ring")
    assert opened.tab.evaluate("document.activeElement.dataset.name") == "net ring"
    layers = opened.tab.locator("#right-inside .choices button")
    layers.first.focus()
    opened.tab.keyboard.press("ArrowRight")
    assert opened.tab.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    assert layers.nth(1).get_attribute("aria-checked") == "true"
    assert layers.first.get_attribute("tabindex") == "-1", "a group is one stop of the Tab key"


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
    opened.open(opened.address("image=own"))
    assert "which only its maker has" in opened.tab.inner_text("#message")
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


# Answers of the camera and of the file reader come when a test lets them.
SLOW = """
const ask = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices), read = globalThis.createImageBitmap;
globalThis.streams = [];
globalThis.gates = [];
const gate = () => new Promise((open) => gates.push(open));
if (ask) navigator.mediaDevices.getUserMedia = async (what) => { await gate(); const stream = await ask(what); streams.push(stream); return stream; };
globalThis.createImageBitmap = async (file) => { await gate(); return read(file); };
"""
LIVE = "() => streams.filter((stream) => stream.getTracks().some((track) => track.readyState === 'live')).length"


@pytest.fixture
def slow(chromium, page):
    context = chromium.new_context(offline=True, permissions=["camera"])
    context.add_init_script(SLOW)
    opened = Opened(context.new_page(), page.path).open("image=0")
    yield opened
    context.close()
    assert not opened.wrong


def _let(opened, count):
    """Waits until so many answers are asked for, and lets all of them come."""
    opened.tab.wait_for_function("(count) => gates.length === count", arg=count)
    opened.tab.evaluate("() => gates.forEach((open) => open())")


def test_a_camera_that_comes_late_does_not_replace_a_newer_choice(slow):
    slow.tab.click("#camera")
    slow.tab.locator("#strip button").nth(2).click()
    _let(slow, 1)
    slow.tab.wait_for_function("() => streams.length === 1")
    slow.tab.wait_for_function(f"() => ({LIVE})() === 0")
    slow.tab.wait_for_timeout(400)  # several frames
    assert slow.tab.locator("#strip button").nth(2).get_attribute("aria-checked") == "true"
    assert slow.tab.inner_text("#camera") == "Camera"
    assert slow.tab.inner_text("#message") == ""


def test_two_clicks_leave_one_camera(slow):
    slow.tab.click("#camera")
    slow.tab.click("#camera")
    _let(slow, 2)
    slow.tab.wait_for_selector("#camera:text('Stop the camera')")
    slow.tab.wait_for_function("() => streams.length === 2")
    slow.tab.wait_for_function(f"() => ({LIVE})() === 1")
    slow.tab.click("#camera")
    assert slow.tab.evaluate(LIVE) == 0


def test_a_slow_file_does_not_replace_a_newer_choice(slow, data, tmp_path):
    Image.fromarray(data.test.images[4, 0].numpy()).save(tmp_path / "four.png")
    slow.tab.set_input_files("#file", tmp_path / "four.png")
    slow.tab.locator("#strip button").nth(2).click()
    slow.wait()
    before = slow.probabilities("left")
    _let(slow, 1)
    slow.tab.wait_for_timeout(300)
    slow.wait()
    assert torch.equal(slow.probabilities("left"), before)
    assert slow.tab.locator("#strip button").nth(2).get_attribute("aria-checked") == "true"


def test_a_search_for_a_disagreement_gives_way_and_does_not_change_the_times(opened):
    opened.open("image=0&left=plain&right=involution")
    times = opened.tab.inner_text("#left-time")
    opened.tab.evaluate(
        "() => { document.getElementById('disagree').click(); document.querySelectorAll('#strip button')[5].click(); }"
    )
    opened.wait()
    opened.address("image=5")
    opened.tab.wait_for_timeout(500)
    assert opened.tab.locator("#strip button").nth(5).get_attribute("aria-checked") == "true"
    opened.open("image=0&left=plain&right=plain")
    times = opened.tab.inner_text("#left-time")
    opened.tab.click("#disagree")
    opened.tab.wait_for_selector("#message:not([hidden])")
    assert "agree on every image" in opened.tab.inner_text("#message")
    assert opened.tab.inner_text("#left-time") == times


def test_a_first_disagreement_is_shown(opened):
    opened.open("image=0&left=plain&right=condconv")
    opened.tab.click("#disagree")
    opened.tab.wait_for_selector("#agreement:text('They disagree')")
    opened.wait()
    assert opened.probabilities("left").argmax() != opened.probabilities("right").argmax()


def test_a_link_in_the_same_tab_is_followed(opened):
    opened.open("image=0&left=plain&right=ring")
    opened.tab.goto(f"file://{opened.path}#left=pde&right=puppet&image=4&noise=20")
    opened.address("image=4")
    opened.wait()
    assert [opened.tab.input_value(f"#{name}") for name in ("left-net", "right-net", "noise")] == ["3", "2", "20"]
    assert opened.tab.inner_text("#noise-value") == "20"
    assert opened.tab.locator("#strip button").nth(4).get_attribute("aria-checked") == "true"


def test_a_browser_that_limits_writes_to_the_address_goes_on(chromium, page):
    context = chromium.new_context(offline=True)
    context.add_init_script(
        "globalThis.writes = 0; History.prototype.replaceState = () => { writes++; throw new DOMException('too many', 'SecurityError'); }"
    )
    opened = Opened(context.new_page(), page.path).open("image=0")
    for value in range(1, 25):
        opened.slide("noise", value)
    opened.tab.wait_for_timeout(500)
    assert opened.tab.inner_text("#message") == ""
    assert opened.tab.inner_text("#noise-value") == "24"
    assert 1 <= opened.tab.evaluate("writes") <= 8
    assert not opened.wrong
    context.close()


def test_a_coarse_clock_gives_no_infinite_speed(chromium, page):
    context = chromium.new_context(offline=True)
    context.add_init_script("performance.now = () => 0")
    opened = Opened(context.new_page(), page.path).open("image=0")
    assert "clock" in opened.tab.inner_text("#left-time")
    opened.tab.select_option("#trade select", "ms")
    assert "No net has been timed" in opened.tab.inner_text("#trade")
    context.close()


def test_live_regions_change_only_with_their_words(opened):
    opened.open("image=0")
    opened.tab.evaluate(
        "() => { globalThis.told = 0; new MutationObserver(() => told++).observe(document.getElementById('agreement'), { childList: true, subtree: true, characterData: true }); }"
    )
    words = opened.tab.inner_text("#agreement")
    for noise in (1, 2, 1):
        opened.slide("noise", noise)
    assert opened.tab.inner_text("#agreement") == words
    assert opened.tab.evaluate("told") == 0


def test_hovering_a_layer_of_a_ring_only_shows_it(opened):
    opened.open("left=plain&right=ring")
    opened.tab.locator("#right-inside .choices button").nth(2).hover()
    title = opened.tab.locator("#right-inside .ring text").first
    assert title.text_content() == opened.tab.locator("#right-inside .choices button").nth(2).inner_text()
    opened.tab.locator("#right-inside h4").first.hover()
    assert title.text_content() == opened.tab.locator("#right-inside .choices button").first.inner_text()
    assert opened.tab.locator("#right-inside .choices button").first.get_attribute("aria-checked") == "true"
