"""Fast twins against the definitions: forward, backward, odd layouts, as registered operators."""

import pytest
import torch

from pocketcnn import kernels, numerics
from pocketcnn.kernels import torch_ops

GEOMETRIES = [
    dict(kernel_size=3, stride=1, padding=1, dilation=1),
    dict(kernel_size=(3, 5), stride=(2, 1), padding=(1, 2), dilation=1),
    dict(kernel_size=3, stride=2, padding=0, dilation=2),
]


def _involution_inputs(geometry, dtype=torch.float64, size=(9, 8)):
    from pocketcnn.numerics._shapes import output_size, pair

    taps = pair(geometry["kernel_size"])[0] * pair(geometry["kernel_size"])[1]
    x = torch.randn(2, 6, *size, dtype=dtype, requires_grad=True)
    weight = torch.randn(2, 3, taps, *output_size(size, **geometry), dtype=dtype, requires_grad=True)
    return x, weight


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_involution_gradients_equal_the_definitions(geometry):
    x, weight = _involution_inputs(geometry)
    expected = numerics.involution2d(x, weight, **geometry)
    y = kernels.involution2d(x, weight, **geometry)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, (x, weight), upstream), torch.autograd.grad(expected, (x, weight), upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_involution_gradcheck():
    x, weight = _involution_inputs(GEOMETRIES[1], size=(4, 5))
    assert torch.autograd.gradcheck(lambda a, b: kernels.involution2d(a, b, **GEOMETRIES[1]), (x, weight))


def test_involution_takes_any_layout():
    geometry = GEOMETRIES[0]
    x, weight = _involution_inputs(geometry)
    expected = numerics.involution2d(x, weight, **geometry)
    strided = torch.empty(2, 6, 18, 8, dtype=torch.float64)[:, :, ::2].copy_(x.detach())
    for other in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT, strided):
        y = kernels.involution2d(other, weight.flip(0).flip(0), **geometry)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_involution_is_a_proper_operator(dtype):
    x, weight = _involution_inputs(GEOMETRIES[0], dtype)
    arguments = (x, weight, 3, 3, [1, 1], [1, 1], [1, 1])
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch_ops.involution2d_operator, arguments, test_utils=tests)


@pytest.mark.parametrize("size", [2, 4, 9])  # on both sides of the choice by map size
@pytest.mark.parametrize("groups", [1, 2])
def test_condconv_gradients_equal_the_definitions(size, groups):
    options = dict(stride=1, padding=1, dilation=1, groups=groups)
    x = torch.randn(5, 4, size, size, dtype=torch.float64, requires_grad=True)
    routing = torch.rand(5, 4, dtype=torch.float64, requires_grad=True)
    experts = torch.randn(4, 6, 4 // groups, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    inputs = (x, routing, experts, bias)
    expected, y = numerics.condconv2d(*inputs, **options), kernels.condconv2d(*inputs, **options)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_export_sees_the_definition(unchecked_shapes):
    """So a graph holds for every batch size, and no operator of ours is in it."""
    from pocketcnn.methods.condconv import CondConv2d
    from pocketcnn.methods.involution import Involution2d

    net = torch.nn.Sequential(CondConv2d(16, 16, 3, padding=1), Involution2d(16, 16, 3, padding=1)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (torch.randn(2, 16, 8, 8),), dynamic_shapes=({0: batch},))
    assert "pocketcnn" not in exported.graph_module.code
    x = torch.randn(7, 16, 8, 8)
    torch.testing.assert_close(exported.module()(x), net(x), rtol=1e-4, atol=1e-5)
