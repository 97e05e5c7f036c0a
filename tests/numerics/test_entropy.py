"""The measures of complexity: against loops over histograms, and what they promise for noise, blur and constants."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import oracles
from pocketcnn.numerics import edge_density, image_entropy, image_lot, image_variance

MEASURES = {"entropy": image_entropy, "variance": image_variance, "edges": edge_density, "random": image_lot}
every_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
every_shape = pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 7, 5)])


def shannon(values):
    """Bits, by counting."""
    counts = Counter(values)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values())


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(2, 5)),
    bins=st.sampled_from([2, 5, 256]),
    seed=st.integers(0, 1000),
    ends=st.sampled_from([(0.0, 1.0), (-1.0, 3.0)]),
)
def test_equals_a_loop_over_histograms(size, bins, seed, ends):
    low, high = ends
    x = torch.rand(2, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (high - low) + low
    width = (high - low) / bins
    for image, both, pixel, frequency in zip(
        x, *(image_entropy(x, bins=bins, value_range=ends, term=t) for t in ("both", "pixel", "frequency")), strict=True
    ):
        values = [min(int((v - low) / width), bins - 1) for v in image.flatten().tolist()]
        magnitudes = [min(int(m / width + 0.5), bins - 1) for m in oracles.fourier_magnitudes(image)]
        assert pixel.item() == pytest.approx(shannon(values), abs=1e-9)
        assert frequency.item() == pytest.approx(shannon(magnitudes), abs=1e-9)
        assert both.item() == pytest.approx((shannon(values) + shannon(magnitudes)) / 2, abs=1e-9)


@every_shape
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_has_no_entropy(shape, value):
    assert image_entropy(torch.full((1, *shape), value)).item() < 0.05


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (1, 64, 100)])
def test_pixels_of_uniform_noise(shape):
    n = math.prod(shape)
    found = image_entropy(torch.rand(8, *shape), term="pixel")
    torch.testing.assert_close(found, torch.full((8,), 8 - 255 / (2 * n * math.log(2))), rtol=0, atol=0.1)


@every_shape
def test_noise_is_above_blur_is_above_constant(shape):
    noise = torch.rand(4, *shape)
    blurred = F.avg_pool2d(noise, 3, 1, 1, count_include_pad=False)
    for term in ("both", "frequency") if noise[0].numel() < 256 else ("both", "pixel", "frequency"):
        h = [image_entropy(x, term=term) for x in (noise, blurred, torch.full_like(noise, 0.4))]
        assert (h[0] > h[1]).all()
        assert (h[1] > h[2]).all()


@every_shape
def test_the_pixel_term_does_not_know_where_pixels_are(shape):
    x = torch.rand(3, *shape)
    shuffled = x.flatten(1)[:, torch.randperm(math.prod(shape))].view_as(x)
    assert torch.equal(image_entropy(x, term="pixel"), image_entropy(shuffled, term="pixel"))
    ordered = x.flatten(1).sort().values.view_as(x)
    assert (image_entropy(ordered, term="frequency") < image_entropy(x, term="frequency")).all()


def test_values_beyond_the_range_count_as_its_ends():
    x = torch.rand(2, 1, 8, 8) * 4 - 2
    assert torch.equal(image_entropy(x, term="pixel"), image_entropy(x.clamp(0, 1), term="pixel"))


@every_measure
def test_units_do_not_matter(measure):
    x = torch.randint(0, 256, (4, 3, 9, 9)) / 255
    torch.testing.assert_close(measure(x * 255, value_range=(0.0, 255.0)), measure(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(measure(2 * x - 1, value_range=(-1.0, 1.0)), measure(x), rtol=1e-3, atol=1e-3)


@every_measure
def test_images_do_not_know_of_each_other(measure):
    x = torch.rand(5, 3, 8, 6)
    torch.testing.assert_close(measure(x), torch.cat([measure(image[None]) for image in x]), rtol=1e-6, atol=1e-6)


@every_measure
def test_no_images(measure):
    assert measure(torch.rand(0, 3, 8, 8)).shape == (0,)


@every_measure
def test_dtypes(measure):
    x = torch.randint(0, 256, (2, 1, 8, 8)) / 255
    assert measure(x.double()).dtype == torch.float64
    assert measure(x.bfloat16()).dtype == torch.float32


def test_a_lot_is_even_always_the_same_and_says_nothing_of_the_image():
    torch.manual_seed(0)
    x = (torch.randint(0, 256, (4000, 1, 8, 8)) * torch.rand(4000, 1, 1, 1)).round() / 255
    found = image_lot(x)
    assert torch.equal(found, image_lot(x + 1e-4))
    assert found.histc(8, 0, 1).sub(500).abs().max() < 100
    for measure in (image_entropy, image_variance, edge_density):
        assert abs(torch.corrcoef(torch.stack([found, measure(x)]))[0, 1]) < 0.06
    changed = x.clone()
    changed[:, 0, 3, 3] = (changed[:, 0, 3, 3] - 0.5).abs()
    assert (image_lot(changed) != found).float().mean() > 0.9


def test_variance_is_a_share_of_the_largest():
    x = torch.zeros(2, 1, 4, 4)
    x[0, :, :2] = 1
    assert image_variance(x).tolist() == [1.0, 0.0]


def test_edges_are_counted():
    x = torch.zeros(1, 3, 8, 8)
    x[:, :, :, 4:] = 1
    assert edge_density(x).item() == 2 / 8  # the columns on both sides
    assert edge_density(x, threshold=0.6).item() == 0
    slope = torch.linspace(0, 0.5, 8).expand(1, 1, 8, 8)
    assert edge_density(slope).item() == 0


@every_measure
def test_exports(measure, unchecked_shapes):
    class Net(torch.nn.Module):
        def forward(self, x):
            return measure(x)

    x = torch.rand(3, 3, 8, 8)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Net(), (x,), dynamic_shapes=({0: batch},)).module()
    x = torch.rand(5, 3, 8, 8)
    torch.testing.assert_close(exported(x), measure(x))


@every_measure
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_images_are_refused(measure, bad):
    with pytest.raises(ValueError, match=r"one pixel has no structure"):
        measure(torch.rand(2, 3, 1, 1))
    x = torch.rand(4, 1, 5, 5)
    x[2, 0, 1, 1] = bad
    with pytest.raises(ValueError, match=r"infinite or not a number in images \[2\]"):
        measure(x)
    with pytest.raises(ValueError, match="lowest, highest"):
        measure(torch.rand(1, 1, 4, 4), value_range=(1.0, 0.0))


def test_bad_arguments_are_refused():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="no term 'pixels'; known: both, pixel, frequency"):
        image_entropy(x, term="pixels")
    with pytest.raises(ValueError, match="bins must be at least 2"):
        image_entropy(x, bins=1)
