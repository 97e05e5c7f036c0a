import pytest
import torch
from torch import nn

from pocketcnn.models.hourglass import Hourglass, StackedHourglass


def names_of(net, kind):
    return [name for name, module in net.named_modules() if isinstance(module, kind)]


def test_every_stage_gives_a_heatmap_of_half_the_size_for_each_joint():
    net = StackedHourglass(num_stages=3, channels=4, num_joints=5, in_channels=1).eval()
    assert net(torch.randn(2, 1, 48, 32)).shape == (2, 3, 5, 24, 16)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (18, 30)])
def test_any_size_works(height, width):
    assert Hourglass(3).eval()(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)
    maps = StackedHourglass(2, 3, 4).eval()(torch.randn(1, 3, height, width))
    assert maps.shape == (1, 2, 4, (height + 1) // 2, (width + 1) // 2)
    assert torch.isfinite(maps).all()


def test_stages_are_alike_and_hold_no_stem_head_or_merge():
    net = StackedHourglass(num_stages=4, channels=6)
    inside = [name for name in names_of(net, nn.Conv2d) if name.startswith("stages.")]
    assert len(inside) == 4 * 6
    shapes = [[tuple(p.shape) for p in stage.parameters()] for stage in net.stages]
    assert all(shape == shapes[0] for shape in shapes)
    # 6 kernels of 6 * 6 * 9 numbers, 6 batch norms of 2 * 6
    assert sum(p.numel() for p in net.stages[0].parameters()) == 6 * 324 + 6 * 12
    assert all(net.get_submodule(name).bias is None for name in inside)
    # stem: kernels of 3 and of 6 channels; heads with a bias, merges without
    outside = (3 + 6) * 6 * 9 + 2 * 12 + 4 * (6 * 14 + 14) + 3 * 14 * 6
    assert sum(p.numel() for p in net.parameters()) == 4 * (6 * 324 + 6 * 12) + outside


def test_a_stage_sees_what_the_stages_before_it_found():
    """Changing a head changes the heatmaps of the later stages, and of no earlier one."""
    net = StackedHourglass(num_stages=3, channels=4, num_joints=2).eval()
    x = torch.randn(1, 3, 16, 16)
    before = net(x)
    nn.init.normal_(net.heads[1].weight)
    changed = (net(x) != before).flatten(2).any(2)[0]
    assert changed.tolist() == [False, True, True]


def test_every_number_gets_a_gradient_and_heatmaps_start_near_zero():
    net = StackedHourglass(num_stages=2, channels=4)
    maps = net(torch.randn(4, 3, 32, 32))
    assert maps.abs().max() < 1
    maps.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="must be at least 1, got 0, 24, 14, 3"):
        StackedHourglass(num_stages=0)
