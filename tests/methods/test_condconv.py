import pytest
import torch
from torch import nn

import oracles
from pocketcnn.methods.condconv import CondConv2d, CondConvOptions


@pytest.mark.parametrize(
    "arguments",
    [
        dict(kernel_size=3, stride=2, padding=1),
        dict(kernel_size=(1, 3), padding=(0, 1), bias=False),
        dict(kernel_size=3, padding=2, dilation=2, groups=2),
    ],
)
def test_layer_equals_mixing_the_experts_outputs(arguments):
    layer = CondConv2d(4, 6, **arguments, num_experts=3, dtype=torch.float64)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    weights = torch.sigmoid(x.mean((2, 3)) @ layer.router.weight.T + layer.router.bias)
    expected = oracles.condconv2d(
        x, weights, layer.experts.view(3, *layer.weight_shape), layer.bias, layer.stride,
        layer.padding, layer.dilation, layer.groups,
    )  # fmt: skip
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_dense_weight_is_each_images_kernel():
    layer = CondConv2d(4, 6, 3, padding=1, bias=False)
    x = torch.randn(3, 4, 7, 6)
    weight = layer.dense_weight(x)
    assert weight.shape == (3, 6, 4, 3, 3)
    for image, kernel, y in zip(x, weight, layer(x), strict=True):
        torch.testing.assert_close(nn.functional.conv2d(image[None], kernel, padding=1)[0], y, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="needs x: its kernel is mixed anew for every image"):
        layer.dense_weight()


def test_an_image_does_not_see_the_others():
    layer = CondConv2d(4, 6, 3, padding=1, dtype=torch.float64)
    x = torch.randn(37, 4, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[5:6], layer(x[5:6]), rtol=1e-12, atol=1e-12)


def test_each_expert_is_initialised_as_a_layer_of_its_own():
    layer = CondConv2d(64, 128, 3, num_experts=4)
    for expert in layer.experts:
        assert float(expert.detach().var()) == pytest.approx(2 / (128 * 9), rel=0.03)
    x = torch.zeros(1, 64, 5, 5)  # routing is exactly 1/2, so the mixed variance is num_experts / 4 of a plain layer's
    assert float(layer.dense_weight(x).detach().var()) == pytest.approx(4 / 4 * 2 / (128 * 9), rel=0.03)


def test_batch_of_none():
    assert CondConv2d(4, 6, 3, stride=2)(torch.empty(0, 4, 7, 7)).shape == (0, 6, 3, 3)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="num_experts must be at least 1, not 0"):
        CondConvOptions(0)
    with pytest.raises(ValueError, match="num_experts"):
        CondConv2d(4, 4, 3, num_experts=0)
