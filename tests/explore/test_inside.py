"""What a page shows of nets of oblong images, of several rings, of strided involutions, and of depth that is not calibrated."""

import pytest


def test_oblong_images_keep_their_shape(oblong):
    oblong.open("left=rings&right=pde")
    for place, ratio in ((".map", None), (".layered", 3), ("#picture", 3)):
        for drawn in oblong.tab.locator(place).all():
            box = drawn.bounding_box()
            wanted = ratio or drawn.evaluate("(canvas) => canvas.width / canvas.height")
            assert box["width"] / box["height"] == pytest.approx(wanted, rel=0.1), place
    arrows, map = (oblong.tab.locator(f".layered {tag}").bounding_box() for tag in ("svg", "canvas"))
    assert arrows == map


def test_each_ring_has_its_own_choice(oblong):
    oblong.open("left=pde&right=rings")
    assert "Ring 2 of 2" in oblong.tab.inner_text("#right-inside")
    groups = oblong.tab.locator("#right-inside .choices")
    groups.nth(0).locator("button").last.click()
    oblong.slide("blur", 1)
    assert groups.nth(0).locator("button").last.get_attribute("aria-checked") == "true"
    assert groups.nth(1).locator("button").first.get_attribute("aria-checked") == "true"


def test_the_inside_says_only_what_holds(oblong):
    oblong.open("left=puppet&right=involution")
    assert "Not calibrated" in oblong.tab.inner_text("#left-inside")
    words, choice = oblong.tab.locator("#right-inside p[aria-live]"), oblong.tab.locator("#right-inside select")
    said = []
    for layer in choice.locator("option").all_inner_texts():
        choice.select_option(layer)
        said.append(words.inner_text())
    assert any("this pixel alone" in line for line in said)
    assert any("the mean of 2x2 pixels" in line for line in said)
    assert "accuracy of these nets is not recorded" in oblong.tab.inner_text("#trade")


def test_the_channel_of_a_solver_stays_open_until_it_is_chosen(oblong):
    oblong.open("left=rings&right=pde")
    channel = oblong.tab.locator("#right-inside input[aria-label='Channel']")
    channel.evaluate("(s) => { s.value = 5; s.dispatchEvent(new Event('input')); }")
    oblong.slide("noise", 30)
    assert channel.input_value() == "5"
