"""Compiled involution against the definition: forward and both gradients, whatever the geometry, groups and layout."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcnn import kernels, numerics
from pocketcnn.kernels import _threads, torch_ops
from pocketcnn.kernels._lanes import LANES
from pocketcnn.numerics._shapes import output_size, pair

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    "transposed": lambda t: t.mT.contiguous().mT,
    "every other": lambda t: torch.stack([t, t], dim=-1)[..., 0],
}


@st.composite
def geometries(draw):
    return dict(
        kernel_size=(draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 5]))),
        stride=(draw(st.integers(1, 2)), draw(st.integers(1, 3))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
    )


def inputs(geometry, batch, groups, channels, size, dtype, layouts=("contiguous", "contiguous"), seed=0):
    generator = torch.Generator().manual_seed(seed)
    taps = pair(geometry["kernel_size"])[0] * pair(geometry["kernel_size"])[1]
    out = output_size(size, **geometry)
    x = torch.randn(batch, groups * channels, *size, generator=generator, dtype=torch.float64)
    weight = torch.randn(batch, groups * taps, *out, generator=generator, dtype=torch.float64)
    x, weight = (LAYOUTS[layout](t).to(dtype) for layout, t in zip(layouts, (x, weight), strict=True))
    return x.requires_grad_(), weight.unflatten(1, (groups, taps)).detach().requires_grad_()


def gradients(compute, x, weight, geometry):
    y = compute(x, weight, **geometry)
    upstream = torch.linspace(-1, 1, y.numel()).bfloat16().view(y.shape).to(y.dtype)  # the same in every dtype
    return [y, *torch.autograd.grad(y, (x, weight), upstream)]


@given(
    geometry=geometries(),
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    channels=st.sampled_from([4, 5, LANES, LANES + 3, 2 * LANES]),
    size=st.tuples(st.integers(9, 11), st.integers(9, 12)),
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 2),
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equals_the_definition(geometry, batch, groups, channels, size, layouts, dtype, seed):
    x, weight = inputs(geometry, batch, groups, channels, size, dtype, layouts, seed)
    limit = 1e-13 if dtype == torch.float64 else 2e-6
    for ours, theirs in zip(
        gradients(kernels.involution2d, x, weight, geometry),
        gradients(numerics.involution2d, x, weight, geometry),
        strict=True,
    ):
        assert (ours - theirs).abs().max() <= limit * theirs.abs().max()


GEOMETRY = dict(kernel_size=3, stride=1, padding=1, dilation=1)


@pytest.mark.parametrize("channels", [2, LANES, 2 * LANES])
def test_bfloat16_is_summed_in_float32(channels):
    """Rounded once: half a unit in the last of eight places, of the largest number."""
    x, weight = inputs(GEOMETRY, 2, 2, channels, (6, 7), torch.bfloat16)
    wide = [t.detach().float().requires_grad_() for t in (x, weight)]
    for ours, theirs in zip(
        gradients(kernels.involution2d, x, weight, GEOMETRY),
        gradients(numerics.involution2d, *wide, GEOMETRY),
        strict=True,
    ):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - theirs).abs().max() <= 2**-8 * theirs.abs().max()


def test_threads_share_images_and_groups(monkeypatch):
    monkeypatch.setattr(_threads, "_NUMBERS_A_THREAD", 1)
    given_inputs = inputs(GEOMETRY, 3, 2, 20, (6, 7), torch.float64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = gradients(kernels.involution2d, *given_inputs, GEOMETRY)
        torch.set_num_threads(3)
        for ours, theirs in zip(gradients(kernels.involution2d, *given_inputs, GEOMETRY), alone, strict=True):
            assert torch.equal(ours, theirs)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_is_a_proper_operator(dtype, layout):
    x, weight = inputs(GEOMETRY, 2, 2, 5, (4, 5), dtype, (layout, layout))
    torch.library.opcheck(torch_ops.involution2d_operator, (x, weight, 3, 3, [1, 1], [1, 1], [1, 1]), test_utils=TESTS)


@pytest.mark.parametrize(("dtypes"), [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_is_a_proper_operator_of_other_numbers_with_gaps(dtypes):
    x, weight = inputs(GEOMETRY, 2, 2, 5, (4, 5), torch.float32, ("every other", "contiguous"))
    strided = torch.empty(2, 4, 10, 10).permute(0, 3, 1, 2)[..., ::2].copy_(x.detach()).to(dtypes[0])
    arguments = (strided.requires_grad_(), weight.detach().to(dtypes[1]).requires_grad_(), 3, 3, [1, 1], [1, 1], [1, 1])
    torch.library.opcheck(torch_ops.involution2d_operator, arguments, test_utils=TESTS[2:3])


@pytest.mark.parametrize("wrong", [dict(padding=-30), dict(padding=1, stride=0), dict(padding=1, dilation=0)])
def test_geometry_that_cannot_be_is_refused(wrong):
    """What is compiled trusts its arguments: it would write where nothing is its own."""
    for compute in (kernels.involution2d, numerics.involution2d):
        with pytest.raises(ValueError, match="at least 1 and padding 0 or more"):
            compute(torch.randn(1, 16, 64, 64), torch.randn(1, 1, 9, 2, 2), kernel_size=3, **wrong)


def test_gradcheck():
    geometry = dict(kernel_size=(3, 1), stride=(2, 1), padding=(1, 0), dilation=1)
    x, weight = inputs(geometry, 1, 2, 4, (5, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda a, b: kernels.involution2d(a, b, **geometry), (x, weight))


def test_images_stay_channels_last():
    x, weight = inputs(GEOMETRY, 2, 2, LANES, (6, 7), torch.float32, ("channels last", "channels last"))
    y = kernels.involution2d(x, weight, **GEOMETRY)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert kernels.involution2d(x[:0], weight[:0], **GEOMETRY).shape == (0, 2 * LANES, 6, 7)
