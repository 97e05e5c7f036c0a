"""No text of a picture is cut, however long the names of nets, layers and classes are."""

import itertools

import pytest
import torch
from torch import nn

import pocketcnn as pc
from pocketcnn.methods.puppet import puppeteers_of
from pocketcnn.pictures import (
    draw_correlated,
    draw_fields,
    draw_kernels,
    draw_law,
    draw_levels,
    draw_maps,
    draw_pixel_kernels,
    draw_ring,
    draw_routing,
    draw_similarity,
    solver_fields,
    station_grams,
)
from pocketcnn.support.plots import arranged, pyplot, texts_of

LONG = "resnet20 width=0.25 ring:size=0.1,scheme=windows,level={'layer1': 'early'} " + "unbroken" * 8
CLASSES = [f"a class with a very long name, number {number} {'of' * 30}" for number in range(3)]
PIXELS = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
X = PIXELS / 255


def net(method=None, name="resnet20", **options):
    plain = pc.create_model(name, in_channels=1, width=0.25).eval()
    return plain if method is None else pc.condense(plain, method, **options).eval()


def wide(count):
    """A net whose one layer has a long dotted name, beside others."""
    inner = nn.Module()
    for number in range(count):
        inner.add_module(f"a_layer_with_a_long_name_{number}", nn.Conv2d(1, 1, 3, padding=1))
    inner.forward = lambda x: [layer(x) for layer in inner.children()][-1]
    return inner.eval()


DRAWINGS = {
    "maps of one net": lambda: draw_maps(PIXELS, {"net": wide(4)}, X),
    "maps of several": lambda: draw_maps(PIXELS[:1], {f"{LONG} {n}": net() for n in range(3)}, X[:1]),
    "similarity": lambda: draw_similarity({f"{n} {LONG}": station_grams(net(), X) for n in range(2)}),
    "correlated": lambda: draw_correlated({LONG: [(0.1, 0.2), (0.5, 0.3)]}, threshold=0.3),
    "law": lambda: draw_law({LONG: [(100, 0.2), (500, 0.3), (900, 0.4)]}, fitted=[LONG], unit=LONG),
    "ring": lambda: draw_ring(net("ring"), title=LONG),
    "routing": lambda: draw_routing(net("condconv"), X, torch.tensor([0, 1]), CLASSES, title=LONG),
    "pixels": lambda: draw_pixel_kernels(net("involution", group_channels=4), PIXELS[0], X[:1], title=LONG),
    "fields": lambda: draw_fields(PIXELS[0], solver_fields(net("pde"), "layer1.1", X[:1]), title=LONG),
    "levels": lambda: draw_levels(
        PIXELS.repeat(8, 1, 1, 1), X.repeat(8, 1, 1, 1), torch.arange(16) % 3, CLASSES,
        net("puppet", "plainnet20"), title=LONG,
    ),
    "kernels": lambda: draw_kernels(puppeteers_of(net("puppet", "plainnet20"))[0], title=LONG),
}  # fmt: skip


def outside(figure):
    """The texts that lie outside of their figure."""
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in texts_of(figure)}
    whole = figure.bbox.padded(1)
    return [
        words
        for words, box in boxes.items()
        if box.x0 < whole.x0 or box.x1 > whole.x1 or box.y0 < whole.y0 or box.y1 > whole.y1
    ]


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_no_text_is_cut(drawing):
    figure = DRAWINGS[drawing]()
    assert outside(figure) == []
    pyplot().close(figure)


def test_titles_of_neighbours_do_not_overlap():
    figure = DRAWINGS["maps of several"]()
    figure.draw_without_rendering()
    boxes = sorted((axes.title.get_window_extent() for axes in figure.axes if axes.get_title()), key=lambda box: box.x0)
    assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(boxes))
    pyplot().close(figure)


def test_fitting_twice_changes_nothing():
    figure = DRAWINGS["law"]()
    size = tuple(figure.get_size_inches())
    assert arranged(figure) is figure
    assert tuple(figure.get_size_inches()) == size
    pyplot().close(figure)


def test_a_figure_without_texts_is_left_as_it_is():
    figure = pyplot().figure(layout="constrained")
    assert arranged(figure) is figure
    assert tuple(figure.get_size_inches()) == (6.4, 4.8)
