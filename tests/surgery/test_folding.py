import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.methods._norms import fold_
from pocketcnn.methods.condconv import CondConv2d
from pocketcnn.methods.puppet import gauge_of
from pocketcnn.models.hourglass import StackedHourglass
from pocketcnn.models.multitask import MultiTask


def lived_in(net):
    """In evaluation mode, with norms that have seen something."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.3, 2)
            if module.affine:
                with torch.no_grad():
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_()
    return net.eval()


def norms(net):
    return [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]


def assert_equal(found, wanted):
    """To float rounding, measured by the largest output."""
    assert found.dtype == wanted.dtype
    rtol = 1e-10 if wanted.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=rtol * wanted.abs().max().item())


def check(net, x, left, **options):
    """Folds a net; outputs are the same and only the norms named are left."""
    state = copy.deepcopy(net.state_dict())
    folded = pc.fold_norm(net, **options)
    with torch.no_grad():
        assert_equal(folded(x), net(x))
    assert norms(folded) == left
    assert not any(module.training for module in folded.modules())
    assert not any(module._forward_hooks for module in folded.modules() if type(module) is nn.Conv2d)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    return folded


# ---------------------------------------------------------------------------------------------------------------------
# One pair


@settings(deadline=None)
@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel_size=st.integers(1, 3),
    padding_mode=st.sampled_from(["zeros", "circular", "reflect", "replicate"]),
    bias=st.booleans(),
    affine=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3, 1.0, 64.0]),
)
def test_folded_equals_unfolded(groups, channels, kernel_size, padding_mode, bias, affine, eps):
    before, after = (groups * c for c in channels)
    net = nn.Sequential(
        nn.Conv2d(before, after, kernel_size, padding=1, groups=groups, bias=bias, padding_mode=padding_mode),
        nn.BatchNorm2d(after, eps=eps, affine=affine),
    )
    net = lived_in(net.double())
    folded = pc.fold_norm(net, input_size=(before, 4, 5))
    x = torch.randn(2, before, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(folded(x), net(x), rtol=1e-12, atol=1e-12)
    assert [type(module) for module in folded] == [nn.Conv2d, nn.Identity]


def test_weights_by_hand():
    conv, norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([2.0, 3.0]).view(2, 1, 1, 1))
        conv.bias.copy_(torch.tensor([1.0, 5.0]))
        norm.weight.copy_(torch.tensor([8.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.5, 0.0]))
    norm.running_mean.copy_(torch.tensor([2.0, 1.0]))
    norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    fold_(conv, norm)
    # factors 8 / 2 = 4 and 1 / 0.5 = 2; biases (1 - 2) * 4 + 0.5 and (5 - 1) * 2
    assert conv.weight.flatten().tolist() == [8.0, 6.0]
    assert conv.bias.tolist() == [-3.5, 8.0]
    assert type(norm) is nn.Identity
    assert repr(norm) == "Identity()"
    assert not norm.state_dict()


def test_weights_are_computed_in_float64_and_rounded_once():
    net = lived_in(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).bfloat16())
    wide = pc.fold_norm(copy.deepcopy(net).double())
    folded = pc.fold_norm(net)
    assert torch.equal(folded[0].weight, wide[0].weight.bfloat16())
    assert torch.equal(folded[0].bias, wide[0].bias.bfloat16())


@pytest.mark.parametrize("bias", [True, False])
def test_frozen_numbers_stay_frozen(bias):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4))
    net[0].requires_grad_(False)
    conv = pc.fold_norm(net)[0]
    assert not conv.weight.requires_grad
    assert conv.bias.requires_grad == (not bias), "without a bias of its own it has the norm's"
    net.requires_grad_(True)[1].requires_grad_(False)
    conv = pc.fold_norm(net)[0]
    assert conv.weight.requires_grad
    assert conv.bias.requires_grad == bias


def test_memory_format_is_kept():
    net = pc.create_model("resnet20", width=0.25).to(memory_format=torch.channels_last)
    conv = pc.fold_norm(net).layer2[0].conv1
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------------------------------
# Whole nets


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet26", "plainnet20"])
def test_no_norm_is_left_in_a_plain_net(name, dtype):
    net = lived_in(pc.create_model(name, width=0.25, num_classes=5).to(dtype))
    folded = check(net, torch.randn(2, 3, 32, 32, dtype=dtype), [])
    assert all(module.bias is not None for module in folded.modules() if isinstance(module, nn.Conv2d))
    assert pc.measure(folded).macs == pc.measure(net).macs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ring(dtype):
    net = lived_in(pc.condense(pc.create_model("resnet20", width=0.5), "ring").to(dtype))
    x = torch.randn(2, 3, 16, 16, dtype=dtype)
    dense = pc.materialize(net, fold_norm=True)
    assert not norms(dense)
    assert_equal(dense(x), net(x))
    # As it is, only the stem is an ordinary convolution.
    check(net, x, [name for name in norms(net) if name != "bn1"])


def test_puppet():
    net = lived_in(pc.condense(pc.create_model("plainnet20", width=0.5), "puppet", levels=2))
    x = torch.rand(4, 3, 16, 16)
    x[:2] = x[:2, :, :1, :1]
    with torch.no_grad():
        for image, bits, y in zip(x, gauge_of(net).value(x), net(x), strict=True):
            dense = pc.materialize(net, entropy=bits.item(), fold_norm=True)
            assert not norms(dense)
            assert_equal(dense(image[None])[0], y)
    stored = lived_in(pc.condense(pc.create_model("plainnet20", width=0.5), "puppet", generator="stored", levels=2))
    assert gauge_of(stored).levels_of(x).unique().numel() == 2
    check(stored, x, [])


def test_shortcuts_in_stages_of_a_puppet():
    """Their 1x1 convolutions are ordinary ones; they run once for each group of images of a mixed batch."""
    net = lived_in(pc.condense(pc.create_model("resnet20", width=0.5), "puppet", depth_by="step", levels=2).double())
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    x[:2] = x[:2, :, :1, :1]
    folded = check(net, x, [name for name in norms(net) if name != "bn1" and "downsample" not in name])
    assert folded.layer2[0].blocks[0].downsample[0].bias is not None
    assert gauge_of(folded).pin is None


@pytest.mark.parametrize("options", [{}, {"activation": "softmax"}], ids=str)
def test_norms_behind_mixed_kernels_are_left(options):
    net = lived_in(pc.condense(pc.create_model("resnet20", width=0.5), "condconv", include="*.conv2", **options))
    folded = check(net, torch.randn(3, 3, 16, 16), [name for name in norms(net) if name.endswith("bn2")])
    assert isinstance(folded.layer1[0].conv2, CondConv2d)


def test_blocks_that_share_their_routing():
    net = lived_in(pc.condense(pc.create_model("resnet20", width=0.5), "condconv", routing="block"))
    check(net, torch.randn(3, 3, 16, 16), [name for name in norms(net) if name != "bn1"])


def test_the_generator_of_an_involution():
    net = pc.condense(pc.create_model("resnet20"), "involution")
    for stage in range(1, 4):  # quadratic layers one after the other overflow
        for block in net.get_submodule(f"layer{stage}"):
            block.conv2.generator[3].weight.data *= 0.1
    net = lived_in(net)
    left = [name for name in norms(net) if name.endswith("bn2")]
    assert len(norms(net)) == len(left) + 9 + 9 + 3
    folded = check(net.double(), torch.randn(2, 3, 16, 16, dtype=torch.float64), left)
    assert type(folded.layer1[0].conv2.generator[1]) is nn.Identity


@pytest.mark.parametrize("options", [{}, {"velocity": "conv"}, {"diffusivity": "constant"}], ids=str)
def test_global_layers(options):
    net = lived_in(pc.condense(pc.create_model("resnet20", width=0.5), "pde", velocity_limit=0.5, **options).double())
    folded = pc.fold_norm(net)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert_equal(folded(x), net(x))
    assert {f"layer{stage}.1.bn" for stage in range(1, 4)} <= set(norms(folded)), "the solver stands before them"
    assert not {"bn1", "layer1.0.bn1", "layer2.0.downsample.1"} & set(norms(folded))


def test_equilibrium():
    net = lived_in(pc.create_model("equilibrium", width=0.2).double())
    check(net, torch.randn(2, 3, 16, 16, dtype=torch.float64), ["bn2"])


def test_hourglass():
    check(lived_in(StackedHourglass(2, 8, 3)), torch.randn(2, 3, 20, 24), [])


def test_a_net_that_says_what_it_takes():
    net = lived_in(pc.create_model("mnist_net", width=2, feature="residual"))
    check(net, torch.randn(2, 1, 28, 28), ["bn", "feature.1"])


def test_a_net_that_takes_more_than_an_image_is_folded_by_parts(tmp_path):
    net = lived_in(MultiTask(4))
    with pytest.raises(
        ValueError, match=r"MultiTask cannot take one image of any of the sizes.*turned.*or a tuple of such sizes"
    ):
        pc.fold_norm(net)
    x, turned = torch.rand(2, 1, 28, 28), torch.rand(2, 1, 28, 28)
    wanted = net(x, turned)
    net.tasks = nn.ModuleList(map(pc.fold_norm, net.tasks))
    assert not norms(net)
    for found, y in zip(net(x, turned), wanted, strict=True):
        assert_equal(found, y)
    with pytest.raises(pc.errors.CannotWrite, match="this MultiTask has batch norms folded"):
        pc.save(net, tmp_path / "net.safetensors")


def test_a_net_of_nothing_to_fold_is_not_run():
    class Broken(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("never")

    assert not pc.fold_norm(Broken(nn.Conv2d(3, 4, 3))).training
    assert norms(pc.fold_norm(Broken(nn.Linear(3, 4), nn.BatchNorm2d(4)))) == ["1"]


def test_twice_is_once():
    net = lived_in(pc.create_model("resnet20", width=0.25))
    once = pc.fold_norm(net)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(pc.fold_norm(once)(x), once(x))


def test_a_net_in_training_mode():
    net = lived_in(pc.create_model("resnet20", width=0.25)).train()
    folded = pc.fold_norm(net)
    assert all(module.training for module in net.modules())
    assert not folded.training
    assert not pc.materialize(net, fold_norm=True).training
    assert pc.materialize(net).training
    x = torch.randn(2, 3, 16, 16)
    assert_equal(folded(x), net.eval()(x))


def test_a_folded_net_is_exported(unchecked_shapes):
    net = pc.fold_norm(lived_in(pc.create_model("resnet20", width=0.25)))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    assert "batch_norm" not in program.graph_module.code
    x = torch.randn(3, 3, 16, 16)
    assert_equal(program.module()(x), net(x))


def test_random_numbers_are_not_drawn():
    net = pc.create_model("resnet20", width=0.25)
    state = torch.random.get_rng_state()
    pc.fold_norm(net)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_compiled_net_is_folded_uncompiled():
    net = lived_in(pc.create_model("plainnet20", width=0.25))
    assert not norms(pc.fold_norm(torch.compile(net, backend="eager")))


# ---------------------------------------------------------------------------------------------------------------------
# Pairs that are none


class Net(nn.Module):
    """Two convolutions and norms, and a forward pass of any kind."""

    def __init__(self, run, **parts):
        super().__init__()
        self.a, self.b = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm, self.other = (nn.BatchNorm2d(4) for _ in range(2))
        self.seen, self.parts = [], []
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def used_twice(net, x):
    y = net.a(x)
    return net.norm(y) + y


def viewed(net, x):
    y = net.a(x)
    pooled = y.flatten(1).mean()
    return net.norm(y) + pooled


def changed_before(net, x):
    return net.norm(net.a(x).relu_())


def changed_after(net, x):
    y = net.a(x)
    z = net.norm(y)
    return z + y.mul_(2)


def changed_behind_its_back(net, x):
    y = net.a(x)
    y.data.mul_(2)
    return net.norm(y)


def returned(net, x):
    y = net.a(x)
    return torch.cat([net.norm(y), net.other(net.b(x))]), y


def kept(net, x):
    net.seen = [net.a(x)]
    return net.norm(net.seen[0])


def kept_as_an_array(net, x):
    y = net.a(x)
    net.seen = [y.numpy()]
    return net.norm(y)


def conv_called_twice(net, x):
    return net.norm(net.a(net.a(x)))


def pair_called_twice(net, x):
    return net.norm(net.a(net.norm(net.a(x))))


def norm_called_twice(net, x):
    return net.norm(net.b(net.norm(net.a(x))))


def two_norms(net, x):
    y = net.a(x)
    return net.norm(y) + net.other(y)


def two_norms_in_a_row(net, x):
    return net.other(net.norm(net.b(x).relu()))


def weight_used(net, x):
    return net.norm(net.a(x)) + F.conv2d(x, net.a.weight.transpose(0, 1), padding=1)


def weight_alone(net, x):
    return net.norm(F.conv2d(x, net.a.weight, net.a.bias, padding=1))


def statistics_used(net, x):
    return net.norm(net.a(x)) + net.norm.running_mean[:, None, None]


@pytest.mark.parametrize(
    "run",
    [
        used_twice, viewed, changed_before, changed_after, changed_behind_its_back, kept, kept_as_an_array,
        conv_called_twice, pair_called_twice, norm_called_twice, two_norms, two_norms_in_a_row, weight_used,
        weight_alone, statistics_used,
    ],
)  # fmt: skip
def test_what_is_seen_by_others_is_left(run):
    check(lived_in(Net(run).double()), torch.randn(2, 4, 8, 8, dtype=torch.float64), ["norm", "other"])


def test_a_convolution_whose_output_is_returned():
    net = lived_in(Net(returned))
    folded = pc.fold_norm(net)
    x = torch.randn(2, 4, 8, 8)
    for found, wanted in zip(folded(x), net(x), strict=True):
        assert_equal(found, wanted)
    assert norms(folded) == ["norm"]


def test_metadata_may_be_looked_at():
    def run(net, x):
        y = net.a(x)
        z = net.norm(input=y)
        assert y.shape[2:] == z.shape[2:]
        del y
        return F.interpolate(z.relu_(), x.shape[2:])

    check(lived_in(Net(run)), torch.randn(2, 4, 8, 8), ["other"])


def test_norms_before_their_convolutions():
    def run(net, x):
        y = net.a(net.norm(x).relu())
        return x + net.b(net.other(y).relu())

    check(lived_in(Net(run)), torch.randn(2, 4, 8, 8), ["norm"])


@pytest.mark.parametrize("tied", ["weight", "bias"])
def test_tied_weights(tied):
    def run(net, x):
        return net.other(net.b(net.norm(net.a(x)).relu()))

    net = Net(run)
    setattr(net.b, tied, getattr(net.a, tied))
    folded = check(lived_in(net), torch.randn(2, 4, 8, 8), ["norm", "other"])
    assert getattr(folded.a, tied) is getattr(folded.b, tied)
    alone = Net(lambda net, x: net.norm(net.a(x)))
    alone.b.weight = alone.a.weight  # though b never runs
    check(lived_in(alone), torch.randn(2, 4, 8, 8), ["norm", "other"])


def test_a_module_of_two_names_that_runs_once():
    net = Net(lambda net, x: net.norm(net.a(x)))
    net.again, net.same = net.norm, net.a
    folded = check(lived_in(net), torch.randn(2, 4, 8, 8), ["other"])
    assert folded.again is folded.norm


def test_a_norm_that_is_also_called_by_a_reference_of_its_own():
    net = Net(lambda net, x: net.parts[1](net.parts[0](x)))
    net.parts = [net.a, net.norm]
    check(lived_in(net), torch.randn(2, 4, 8, 8), ["other"])


@pytest.mark.parametrize("part", ["a", "norm"])
def test_modules_that_are_looked_at_are_left(part):
    net = lived_in(Net(lambda net, x: net.norm(net.a(x))))
    seen = []
    handle = net.get_submodule(part).register_forward_hook(lambda module, args, y: seen.append(y.detach()))
    folded = pc.fold_norm(net)
    assert "norm" in norms(folded)
    assert len(folded.get_submodule(part)._forward_hooks) == 1
    handle.remove()
    net.get_submodule(part).forward = type(net.get_submodule(part)).forward.__get__(net.get_submodule(part))
    assert "norm" in norms(pc.fold_norm(net))


def test_subclasses_are_left():
    class Louder(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    net = Net(lambda net, x: net.other(net.b(net.norm(net.a(x)))), norm=Louder(4))
    net.b = nn.utils.parametrizations.weight_norm(net.b)
    check(lived_in(net), torch.randn(2, 4, 8, 8), ["norm", "other"])


def test_a_norm_that_stays_in_training_mode():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def train(self, mode=True):
            super().train(mode)
            self.norm.training = True
            return self

        def forward(self, x):
            return self.norm(self.a(x))

    assert norms(pc.fold_norm(Stubborn())) == ["norm"]


# ---------------------------------------------------------------------------------------------------------------------
# Layers that fold by themselves


class Own(nn.Module):
    """Reads the numbers of its norm past the norm, and knows how to fold it."""

    def __init__(self, norm=None):
        super().__init__()
        self.inside = nn.Sequential(nn.Conv2d(4, 4, 1), norm or nn.BatchNorm2d(4))

    def forward(self, x):
        conv, norm = self.inside
        y = F.conv2d(x, conv.weight, conv.bias)
        if isinstance(norm, nn.Identity):
            return y
        return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

    def fold_norm_(self):
        if isinstance(self.inside[1], nn.BatchNorm2d):
            fold_(*self.inside)


def test_a_layer_that_folds_by_itself():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Own())
    folded = check(lived_in(net), torch.randn(2, 3, 8, 8), [])
    assert norms(pc.fold_norm(folded)) == []
    assert not norms(pc.fold_norm(lived_in(Own())))
    with pytest.raises(ValueError, match=r"^the net: a batch norm without running statistics"):
        pc.fold_norm(Own(nn.BatchNorm2d(4, track_running_stats=False)))
    with pytest.raises(ValueError, match=r"^0: a batch norm without running statistics"):
        pc.fold_norm(nn.Sequential(Own(nn.BatchNorm2d(4, track_running_stats=False))))


# ---------------------------------------------------------------------------------------------------------------------
# Errors and files


def test_norms_without_running_statistics():
    plain = nn.BatchNorm2d(4, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(plain))
    with pytest.raises(
        ValueError, match=r"^1\.0: a batch norm without running statistics \(track_running_stats=False\)"
    ):
        pc.fold_norm(net)
    check(lived_in(Net(used_twice, norm=plain)), torch.randn(2, 4, 8, 8), ["norm", "other"])


def test_images_that_a_net_cannot_take():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 38 * 38, 2))
    with pytest.raises(
        ValueError, match=r"Sequential cannot take one image of any of the sizes tried: .*; pass input_size=\(channels"
    ):
        pc.fold_norm(net)
    with pytest.raises(ValueError, match=r"Sequential cannot take an image of \(3, 8, 8\): "):
        pc.fold_norm(net, input_size=(3, 8, 8))
    with pytest.raises(ValueError, match=r"input_size is \(channels, height, width\)"):
        pc.fold_norm(net, input_size=(3, 0, 8))
    check(lived_in(net), torch.randn(2, 3, 40, 40), [], input_size=(3, 40, 40))
    assert not norms(pc.materialize(net, fold_norm=True, input_size=(3, 40, 40)))
    with pytest.raises(ValueError, match="input_size is for fold_norm=True only"):
        pc.materialize(net, input_size=(3, 40, 40))


def test_folded_nets_are_not_saved(tmp_path):
    net = lived_in(pc.condense(pc.create_model("resnet20", width=0.25), "ring"))
    dense = pc.materialize(net, fold_norm=True)
    path = tmp_path / "net.safetensors"
    again = pc.condense(dense, "ring")
    for folded in (dense, copy.deepcopy(dense), again, pc.materialize(again), pc.fold_norm(net), torch.compile(dense)):
        with pytest.raises(pc.errors.CannotWrite, match=r"batch norms folded.*save the net it was made of, and fold"):
            pc.save(folded, path)
    assert not path.exists()
    pc.save(net, path)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(pc.materialize(pc.load(path), fold_norm=True)(x), dense(x))


def test_a_net_of_which_nothing_was_folded_is_saved(tmp_path):
    net = pc.fold_norm(pc.fold_norm(nn.Sequential(nn.Conv2d(3, 4, 3))))
    pc.save(net, tmp_path / "net.safetensors")
    assert pc.load(tmp_path / "net.safetensors", base=net)[0].weight.equal(net[0].weight)
