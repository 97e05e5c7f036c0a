import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from pocketcnn import kernels, numerics
from pocketcnn.numerics._shapes import output_size

axis = st.tuples(st.integers(1, 2), st.integers(1, 2))


@st.composite
def geometry(draw):
    """Odd and even sizes, non-square kernels and images, stride, padding and dilation per axis."""
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride, dilation = draw(axis), draw(axis)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    least = [max(1, dilation[a] * (kernel[a] - 1) + 1 - 2 * padding[a]) for a in (0, 1)]
    size = tuple(draw(st.integers(n, n + 2)) for n in least)
    return size, {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation}


@settings(max_examples=40, deadline=None)
@given(geometry(), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2))
def test_involution_equals_loop(shape, batch, groups, group_channels):
    size, options = shape
    height, width = output_size(size, **options)
    taps = options["kernel_size"][0] * options["kernel_size"][1]
    x = torch.randn(batch, groups * group_channels, *size, dtype=torch.float64)
    weight = torch.randn(batch, groups, taps, height, width, dtype=torch.float64)
    expected = oracles.involution2d(x, weight, **options)
    for compute in (numerics.involution2d, kernels.involution2d):
        torch.testing.assert_close(compute(x, weight, **options), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(geometry(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_condconv_equals_loop(shape, batch, num_experts, groups, has_bias):
    size, options = shape
    kernel = options.pop("kernel_size")
    x = torch.randn(batch, 2 * groups, *size, dtype=torch.float64)
    routing = torch.rand(batch, num_experts, dtype=torch.float64)
    experts = torch.randn(num_experts, 3 * groups, 2, *kernel, dtype=torch.float64)
    bias = torch.randn(num_experts, 3 * groups, dtype=torch.float64) if has_bias else None
    expected = oracles.condconv2d(x, routing, experts, bias, **options, groups=groups)
    for compute in (numerics.condconv2d, kernels.condconv2d):
        y = compute(x, routing, experts, bias, **options, groups=groups)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_condconv_of_one_expert_with_weight_one_is_a_convolution():
    x, weight = torch.randn(2, 4, 6, 5), torch.randn(8, 4, 3, 3)
    y = numerics.condconv2d(x, torch.ones(2, 1), weight[None], stride=2, padding=1)
    torch.testing.assert_close(y, torch.nn.functional.conv2d(x, weight, stride=2, padding=1), rtol=1e-5, atol=1e-5)


def test_involution_with_equal_kernels_is_a_depthwise_convolution():
    x, weight = torch.randn(2, 6, 7, 5), torch.randn(9)
    per_pixel = weight[None, None, :, None, None].expand(2, 1, 9, 7, 5)
    depthwise = torch.nn.functional.conv2d(x, weight.view(1, 1, 3, 3).expand(6, 1, 3, 3), padding=1, groups=6)
    y = numerics.involution2d(x, per_pixel, kernel_size=3, padding=1)
    torch.testing.assert_close(y, depthwise, rtol=1e-5, atol=1e-5)


def test_bfloat16_accumulates_in_float32():
    """49 ones added to 256: in bfloat16 every single addition would be lost."""
    x = torch.ones(1, 1, 7, 7, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = 256
    weight = torch.ones(1, 1, 49, 1, 1, dtype=torch.bfloat16)
    for compute in (numerics.involution2d, kernels.involution2d):
        y = compute(x, weight, kernel_size=7)
        assert y.dtype == torch.bfloat16
        assert y.item() == 304  # 256 + 48, exactly representable


def test_shapes_that_do_not_fit_are_refused():
    x = torch.randn(1, 6, 5, 5)
    for compute in (numerics.involution2d, kernels.involution2d):
        with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
            compute(x, torch.randn(1, 4, 9, 5, 5), kernel_size=3, padding=1)
        with pytest.raises(ValueError, match=r"kernels must be \[1, 2, 9, 5, 5\]"):
            compute(x, torch.randn(1, 2, 9, 4, 5), kernel_size=3, padding=1)
        with pytest.raises(ValueError, match="does not fit"):
            compute(x, torch.randn(1, 2, 49, 1, 1), kernel_size=7)
    for compute in (numerics.condconv2d, kernels.condconv2d):
        with pytest.raises(ValueError, match="do not fit 6 input channels"):
            compute(x, torch.rand(1, 2), torch.randn(2, 4, 5, 3, 3))
