import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.models.equilibrium import operator_norm


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]))
def test_operator_norm_is_that_of_the_matrix_of_a_convolution_that_wraps_around(out_channels, in_channels, extent):
    kernel = torch.randn(out_channels, in_channels, extent, extent, generator=torch.Generator().manual_seed(extent))
    grid, pad = 4, extent // 2
    impulses = torch.eye(in_channels * grid * grid).view(-1, in_channels, grid, grid)
    columns = F.conv2d(F.pad(impulses, [pad] * 4, mode="circular"), kernel).flatten(1)
    expected = torch.linalg.matrix_norm(columns, ord=2)
    torch.testing.assert_close(operator_norm(kernel, grid=grid), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_any_weights_have_an_equilibrium_that_is_found(training):
    torch.manual_seed(0)
    net = pc.create_model("equilibrium", width=0.5, contraction=0.8, train_steps=100).train(training)
    with torch.no_grad():
        for kernel in (net.inner, net.outer):
            kernel.mul_(50)  # whatever their size
    x = 10 * torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        z, residuals, steps = net.equilibrium(x)
    assert (residuals < (1e-2 if training else 5e-4)).all()
    assert 1 < steps < 60
    features = net.bn1(net.stem(x))
    inner = (features + F.conv2d(z, net.inner / operator_norm(net.inner), padding=1)).relu()
    again = 0.8 * F.conv2d(inner, net.outer / operator_norm(net.outer), padding=1)
    torch.testing.assert_close(
        (again - z).flatten(1).norm(dim=1) / again.flatten(1).norm(dim=1), residuals, rtol=0.05, atol=1e-6
    )


def test_kept_kernels_follow_the_weights():
    net = pc.create_model("equilibrium", width=0.25).eval()
    x = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        before = net(x)
        assert torch.equal(net(x), before)
        net.inner.copy_(torch.randn_like(net.inner))
        changed = net(x)
        net._kept.clear()
        assert torch.equal(net(x), changed)
    assert not torch.allclose(before, changed)


def test_the_block_is_no_convolution_that_a_method_could_replace():
    net = pc.create_model("equilibrium", width=0.25)
    with pytest.raises(pc.errors.NothingToCondense):
        pc.condense(net, "ring")


def test_every_number_has_a_gradient_and_a_file_keeps_the_net(tmp_path):
    net = pc.create_model("equilibrium", num_classes=3, width=0.25)
    net(torch.randn(4, 3, 12, 12)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    pc.save(net.eval(), tmp_path / "net")
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(pc.load(tmp_path / "net")(x), net(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(contraction=1.0), r"contraction must lie in \(0, 1\), or there may be no equilibrium, not 1.0"),
        (dict(max_steps=0), "must be positive"),
        (dict(tolerance=0.0), "must be positive"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        pc.create_model("equilibrium", **options)
