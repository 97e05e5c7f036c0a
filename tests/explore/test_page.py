"""Pages with nets in them, opened in a real Chromium from a file, with no network."""

import base64
import re
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn

from browser import COUNT, METHODS, Opened
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.errors import BadUsage
from pocketcnn.explore import PageNet, as_int8, runtime, write_page
from pocketcnn.explore.page import bundle
from pocketcnn.support.modules import evaluating

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


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
    assert all(runtime.ADDRESS in url or url.startswith(("file:", "about:")) for url in opened.asked)
    context.close()


def _network(folder, more):
    """Answers for the address of the runtime with the files of a folder, and some bytes more."""

    def answer(route):
        content = (folder / route.request.url.rpartition("/")[2]).read_bytes()
        route.fulfill(body=content + more, headers={"Access-Control-Allow-Origin": "*"})

    return answer


def test_a_page_that_loads_its_runtime_checks_it(chromium, nets, folder, tmp_path):
    """The network is played by the test: once it gives what the hashes say, once something else."""
    write_page(tmp_path / "cdn.html", nets[:1])
    for spoilt in (False, True):
        context = chromium.new_context()
        context.route(re.compile("^https:"), _network(folder, b" " * spoilt))
        opened = Opened(context.new_page(), tmp_path / "cdn.html").open()
        assert {url for url in opened.asked if url.startswith("https")} == {
            runtime.ADDRESS + name for name, _ in runtime.FILES.values()
        }
        assert opened.tab.get_attribute("html", "data-ready") == ("failed" if spoilt else "yes"), (
            opened.wrong,
            opened.tab.inner_text("#message"),
        )
        assert bool(opened.wrong) == spoilt
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
    sure = PageNet("sure", one.net, one.notes, accuracy=float("nan"))
    several = PageNet("several", nn.Sequential(nn.Flatten(), nn.Linear(data.input_size[1] ** 2, 3)), one.notes)
    for bad, message in (
        ([], "at least one net"),
        ([one, one], "two nets of this name"),
        ([one, other], "trained on other images"),
        ([one, words], "knows other classes"),
        ([several], r"returns \[2, 3\] for two images"),
        ([PageNet("bare", one.net, {})], "it is not known what its images"),
        ([sure], "sure: its accuracy is nan, not between 0 and 1"),
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
