import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import oracles
import pocketcnn as pc
from pocketcnn.methods.involution import Involution2d, InvolutionOptions


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3])),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(0, 4), st.integers(0, 3)),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
    st.tuples(st.integers(5, 9), st.integers(5, 8)),
)
def test_layer_equals_loop_in_any_geometry(kernel, stride, padding, dilation, size):
    if any(size[a] + 2 * padding[a] <= dilation[a] * (kernel[a] - 1) for a in (0, 1)):
        return
    layer = Involution2d(
        4, 4, kernel, stride, padding, dilation, bias=True, group_channels=2, dtype=torch.float64
    ).eval()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = oracles.involution2d(x, layer.dense_weight(x), kernel, stride, padding, dilation)
    conv = nn.Conv2d(4, 4, kernel, stride, padding, dilation, dtype=torch.float64)
    assert layer(x).shape == conv(x).shape
    torch.testing.assert_close(layer(x), expected + layer.bias[:, None, None], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_kernels_are_generated_from_the_pixel_at_the_windows_centre(padding):
    """With stride 1, output pixel (i, j) is centred on input pixel (i, j) + 1 - padding of a 3x3 window."""
    layer = Involution2d(4, 4, 3, 1, padding, group_channels=4, dtype=torch.float64).eval()
    x = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    weight = layer.dense_weight(x)
    for i in range(weight.shape[3]):
        for j in range(weight.shape[4]):
            row, column = i + 1 - padding, j + 1 - padding
            inside = 0 <= row < 6 and 0 <= column < 7
            pixel = x[0, :, row, column] if inside else torch.zeros(4, dtype=torch.float64)
            expected = layer.generator(pixel.view(1, 4, 1, 1)).view(1, 9)
            torch.testing.assert_close(weight[0, :, :, i, j], expected, rtol=1e-12, atol=1e-12)


def test_stride_averages_the_pixels_it_covers():
    layer = Involution2d(4, 4, 3, 2, 1, group_channels=4, dtype=torch.float64).eval()
    x = torch.randn(1, 4, 7, 7, dtype=torch.float64)  # odd: the last window covers a single row and column
    weight = layer.dense_weight(x)
    assert weight.shape == (1, 1, 9, 4, 4)
    for i, rows in enumerate((slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 7))):
        expected = layer.generator(x[:, :, rows, 0:2].mean((2, 3), keepdim=True)).view(1, 9)
        torch.testing.assert_close(weight[0, :, :, i, 0], expected, rtol=1e-12, atol=1e-12)


def test_groups_share_kernels_over_consecutive_channels():
    layer = Involution2d(6, 6, 3, padding=1, group_channels=3, dtype=torch.float64).eval()
    plane = torch.randn(2, 1, 5, 5, dtype=torch.float64)
    x = plane.expand(2, 6, 5, 5).contiguous()
    y = layer(x)
    assert torch.allclose(y[:, 0], y[:, 2])
    assert torch.allclose(y[:, 3], y[:, 5])
    assert not torch.allclose(y[:, 2], y[:, 3])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="this layer has 128 in and 256 out"):
        Involution2d(128, 256, 3)
    with pytest.raises(
        ValueError, match=r"18 channels do not divide into groups of 16; group sizes that fit: \[1, 2, 3"
    ):
        Involution2d(18, 18, 3)
    with pytest.raises(ValueError, match="must be odd"):
        Involution2d(16, 16, (3, 2))
    with pytest.raises(ValueError, match="must be odd and positive"):
        InvolutionOptions(kernel_size=4)
    with pytest.raises(ValueError, match="does not fit"):
        Involution2d(16, 16, 5)(torch.randn(1, 16, 4, 4))
    with pytest.raises(ValueError, match="needs x: it has a kernel of its own for every pixel"):
        Involution2d(16, 16, 3).dense_weight()


def kernels(net):
    """K of each involution by name."""
    return {name: m.kernel_size[0] for name, m in net.named_modules() if isinstance(m, Involution2d)}


def test_kernel_sizes_by_pattern():
    net = pc.condense(pc.create_model("resnet20"), "involution", kernel_size={"layer1": 5, "layer3.*": 7})
    assert kernels(net) == {f"layer{s}.{b}.conv2": k for s, k in ((1, 5), (2, 3), (3, 7)) for b in range(3)}
    with pytest.raises(ValueError, match="kernel_size: pattern 'stage1' matches nothing"):
        pc.condense(pc.create_model("resnet20"), "involution", kernel_size={"stage1": 5})
    with pytest.raises(ValueError, match=r"layer1.0.conv1 matches both 'layer1' and '\*.conv1'"):
        pc.condense(pc.create_model("resnet20"), "involution", kernel_size={"layer1": 5, "*.conv1": 3})
    with pytest.raises(ValueError, match="must be odd and positive, so that it has a centre, not 4"):
        pc.condense(pc.create_model("resnet20"), "involution", kernel_size={"layer1": 4})


def test_where_involutions_go(unchecked_shapes):
    basic, bottleneck = pc.create_model("resnet20"), pc.create_model("resnet26", width=0.25)
    assert set(kernels(pc.condense(basic, "involution"))) == {
        f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in range(3)
    }
    everywhere = kernels(pc.condense(basic, "involution", layers="all"))
    assert "layer1.0.conv1" in everywhere
    assert "layer2.0.conv1" not in everywhere, "it changes the channel count"
    assert set(kernels(pc.condense(bottleneck, "involution"))) == {
        name for name, m in bottleneck.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    } & {name for name, _ in bottleneck.named_modules() if name.startswith("layer")}
    with pytest.raises(ValueError, match="no layers 'some'; known: alternate, all"):
        pc.condense(basic, "involution", layers="some")


def test_a_rednet_takes_options_and_odd_sizes():
    net = pc.create_model("rednet26", num_classes=5, width=0.25, reduction=2, group_channels=8).eval()
    layers = [m for m in net.modules() if isinstance(m, Involution2d)]
    assert [m.kernel_size[0] for m in layers] == [3] + 8 * [7]
    assert {(m.reduction, m.group_channels) for m in layers} == {(2, 8)}
    assert [m.stride for m in layers].count((2, 2)) == 3
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 65, 47))
        for size in ((33, 33), (31, 50), (7, 5)):
            assert net.eval()(torch.randn(2, 3, *size)).shape == (2, 5)
    assert set(kernels(pc.create_model("rednet26", width=0.25, kernel_size=5)).values()) == {5}


def test_groups_that_would_fit_are_named():
    plan = pc.plan(pc.create_model("resnet20"), "involution", num_groups=3)
    reasons = {row.reason for row in plan.rows if row.name == "layer1.0.conv2"}
    assert reasons == {"16 channels do not divide into 3 groups; [1, 2, 4, 8, 16] would fit"}
    with pytest.raises(ValueError, match=r"8 and 12 channels do not both divide into 3 groups; \[1, 2, 4\] would fit"):
        pc.methods.condconv.CondConv2d(8, 12, 3, groups=3)
