"""Puppet-CNN: what the puppeteer makes, and that each image of a mixed batch gets what it would get alone."""

import copy
import itertools
import math
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn.methods.puppet import Gauge, Puppeteer, PuppetOptions, PuppetStage, gauge_of
from pocketcnn.methods.puppet.stage import kernel_shapes
from pocketcnn.numerics import image_entropy

SHAPES = [[[(16, 16, 3, 3), (16, 16, 3, 3)]] * 2, [[(32, 16, 3, 3), (32, 32, 3, 3)], [(32, 32, 3, 3)] * 2]]
every_generator = pytest.mark.parametrize("generator", ["ode", "linear", "static", "stored"])
both_paths = pytest.mark.parametrize("depth_by", ["horizon", "step"])
both_starts = pytest.mark.parametrize("start", ["fixed", "entropy"])


def resnet(**options):
    return pc.create_model("resnet20", width=0.5, **options)


def shallow():
    """One stage of three blocks, for what is slow."""
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def condensed(model=None, **options):
    return pc.condense(model or resnet(), "puppet", **options)


def mixed(count=8, size=16, channels=3):
    """Images between a constant and noise, the entropy rising, in no order."""
    share = torch.linspace(0, 1, count)[:, None, None, None]
    x = torch.rand(count, channels, size, size) * share + 0.4 * (1 - share)
    return x[torch.randperm(count)].contiguous()


def trained(net, batches=3):
    """Running statistics away from their start, so that evaluation mode means something."""
    net.train()
    with torch.no_grad():
        for _ in range(batches):
            net(mixed(16))
    return net.eval()


def spread(net):
    """Calibrated so that `mixed` images lie at every level."""
    gauge_of(net).calibrate_([mixed(64)])
    return net


def wake(net):
    """Numbers that start at zero moved away from it."""
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            nn.init.normal_(parameter, std=0.5)
    return net


# ---------------------------------------------------------------------------------------------------------------------
# The puppeteer


@pytest.mark.parametrize("options", [{}, {"solver": "rk4"}, {"num_steps": 3}, {"generator": "linear"}, {"generator": "static"}, {"start": "entropy"}])  # fmt: skip
@pytest.mark.parametrize("size", [0.08, 0.5, 3000])
def test_kernels_start_with_the_plain_nets_variance(options, size):
    puppeteer = Puppeteer(SHAPES, size=size, **options)
    made = puppeteer.kernels(puppeteer.options.levels - 1)
    assert list(made) == list(puppeteer.slots)
    for slot, kernel in made.items():
        out, _, height, width = puppeteer.slots[slot]
        assert kernel.shape == puppeteer.slots[slot]
        assert kernel.var().item() == pytest.approx(2 / (out * height * width), rel=0.1)


@pytest.mark.parametrize("level", range(4))
@both_paths
@both_starts
def test_variance_is_right_at_every_level(level, depth_by, start):
    torch.manual_seed(0)
    puppeteer = Puppeteer([[[(64, 64, 3, 3)]] * 5], size=0.3, depth_by=depth_by, start=start)
    if start == "entropy":
        with torch.no_grad():
            puppeteer.gain.normal_(std=0.1)
    for kernel in puppeteer.kernels(level).values():
        assert kernel.var().item() == pytest.approx(2 / (64 * 9), rel=0.1)


@pytest.mark.parametrize("size", [0.05, 0.1, 0.4, 5000])
@pytest.mark.parametrize("generator", ["ode", "static"])
def test_size_is_about_what_is_stored(size, generator):
    shapes = [[[(64, 64, 3, 3)]] * 5]
    puppeteer = Puppeteer(shapes, size=size, generator=generator)
    wanted = size * 5 * 64 * 64 * 9 if isinstance(size, float) else size
    assert sum(p.numel() for p in puppeteer.parameters()) == pytest.approx(wanted, rel=0.05)


def test_kernels_of_any_shape_are_read():
    shapes = [[[(8, 3, 3, 3), (8, 8, 1, 7), (200, 1, 5, 5)], [(64, 300, 3, 3)]]]
    puppeteer = Puppeteer(shapes, size=2000)
    assert puppeteer.state_shape[2:] == (5, 7)
    made = puppeteer.kernels(3)
    assert [kernel.shape for kernel in made.values()] == [torch.Size(s) for block in shapes[0] for s in block]


def test_channels_larger_than_the_state_are_tiles_drawn_anew():
    puppeteer = Puppeteer([[[(64, 300, 3, 3)]] * 2], size=2000, read="channels")
    wide = puppeteer.kernels(3)[0, 1, 0].flatten(1)
    assert torch.linalg.matrix_rank(wide).item() > puppeteer.rows


def test_a_seed_rebuilds_what_is_read_where():
    torch.manual_seed(0)
    one = Puppeteer(SHAPES, seed=3)
    other = Puppeteer(SHAPES, seed=3)
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.kernels(3).values(), other.kernels(3).values(), strict=True))
    third = Puppeteer(SHAPES, seed=4)
    third.load_state_dict(one.state_dict())
    assert not torch.equal(one.kernels(3)[0, 0, 0], third.kernels(3)[0, 0, 0])
    assert not any("indices" in name or "signs" in name for name in one.state_dict())


def test_finer_steps_approach_the_flow():
    """The kernels of Euler with many steps are those of RK4."""
    torch.manual_seed(0)
    exact = Puppeteer(SHAPES, solver="rk4", num_steps=8)
    errors = []
    for steps in (1, 2, 4, 8):
        coarse = Puppeteer(SHAPES, solver="euler", num_steps=steps)
        coarse.load_state_dict(exact.state_dict())
        last = max(coarse.slots)
        errors.append((coarse.kernels(3)[last] - exact.kernels(3)[last]).norm().item())
    for coarse, fine in itertools.pairwise(errors):
        assert 1.5 < coarse / fine < 2.6


def test_generators_differ_in_how_the_state_moves():
    torch.manual_seed(0)
    ode = Puppeteer([[[(8, 8, 3, 3)]] * 6], size=1.0)
    others = {}
    for generator in ("linear", "static"):
        others[generator] = Puppeteer([[[(8, 8, 3, 3)]] * 6], size=1.0, generator=generator)
    others["linear"].load_state_dict(ode.state_dict())
    times = [i / 6 * 4 for i in range(6)]
    states = ode._states(None, times)
    line = others["linear"]._states(None, times)
    torch.testing.assert_close(states[0], line[0])
    torch.testing.assert_close(states[1], line[1])  # the first step of Euler is on the line
    assert not torch.allclose(states[2], line[2], atol=1e-3)
    torch.testing.assert_close(line[5] - line[4], line[1] - line[0])
    still = others["static"]._states(None, times)
    assert all(torch.equal(state, still[0]) for state in still)
    assert others["static"].mix_rows is None


def test_shallow_paths():
    """By horizon a simple image reads the first of the same kernels; by step it reads others, up to the same time."""
    torch.manual_seed(0)
    horizon, step = (Puppeteer([[[(8, 8, 3, 3)]] * 5], depth_by=by) for by in ("horizon", "step"))
    with torch.no_grad():
        for parameter, other in zip(step.parameters(), horizon.parameters(), strict=True):
            parameter.copy_(other)
    deep, shallow = horizon.kernels(3), horizon.kernels(0)
    assert all(torch.equal(kernel, deep[slot]) for slot, kernel in shallow.items())
    assert horizon.key(0) == horizon.key(3)
    few, many = step.kernels(1), step.kernels(3)
    assert len(few) == step.options.depth_of(1, 5) < len(many)
    assert torch.equal(few[0, 0, 0], many[0, 0, 0])
    assert not torch.equal(few[0, 1, 0], many[0, 1, 0])


def test_kept_kernels_are_forgotten_when_a_number_changes():
    puppeteer = Puppeteer(SHAPES).eval()
    with torch.no_grad():
        first = puppeteer.kernels(3)[0, 0, 0]
        assert puppeteer.kernels(3)[0, 0, 0] is first
        puppeteer.state.mul_(2)
        doubled = puppeteer.kernels(3)[0, 0, 0]
        assert not torch.equal(first, doubled)
        assert copy.deepcopy(puppeteer).kernels(3)[0, 0, 0] is not doubled
        puppeteer.load_state_dict(Puppeteer(SHAPES).state_dict())
        assert not torch.equal(puppeteer.kernels(3)[0, 0, 0], doubled)
        puppeteer.double()
        assert puppeteer.kernels(3)[0, 0, 0].dtype == torch.float64
    assert puppeteer.kernels(3)[0, 0, 0].requires_grad
    with torch.inference_mode():
        assert puppeteer.kernels(3)[0, 0, 0] is puppeteer.kernels(3)[0, 0, 0]
    assert puppeteer.train().kernels(3)[0, 0, 0] is not puppeteer.kernels(3)[0, 0, 0]


def test_kernels_are_made_in_full_precision_under_autocast():
    puppeteer = Puppeteer(SHAPES)
    with torch.autocast("cpu", torch.bfloat16):
        made = puppeteer.kernels(3)
    assert all(torch.equal(kernel, made[slot]) for slot, kernel in puppeteer.kernels(3).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_depth": 4, "max_depth": 2}, "min_depth 4 is more than max_depth 2"),
        ({"min_depth": 0}, "min_depth and max_depth must be at least 1"),
        ({"solver": "rk5"}, "no solver 'rk5'; known: euler"),
        ({"measure": "beauty"}, "no measure 'beauty'; known: entropy, variance, edges, features"),
        ({"generator": "odd"}, "no generator 'odd'"),
        ({"size": 0.0}, "size is a fraction"),
        ({"size": 1.5}, "size is a fraction"),
        ({"levels": 0}, "num_steps, levels, min_depth and max_depth must be at least 1"),
        ({"horizon": 0.0}, "horizon must be a positive time"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_bad_options(options, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        PuppetOptions(**options)
    with pytest.raises(ValueError, match=f"puppet: .*{message}"):
        pc.condense(resnet(), "puppet", **options)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one kernel"):
        Puppeteer([[[]]])
    with pytest.raises(ValueError, match="nothing to generate"):
        Puppeteer(SHAPES, generator="stored")
    with pytest.raises(ValueError, match="at least one block"):
        PuppetStage([])
    with pytest.raises(ValueError, match="no measure"):
        Gauge("beauty")


# ---------------------------------------------------------------------------------------------------------------------
# Batches of mixed depth


@both_paths
@both_starts
@every_generator
def test_a_mixed_batch_equals_its_images_alone(generator, start, depth_by):
    net = trained(wake(spread(condensed(generator=generator, start=start, depth_by=depth_by, levels=3))))
    x = mixed(12)
    assert len(gauge_of(net).levels_of(x).unique()) == 3
    with torch.no_grad():
        together = net(x)
        alone = torch.cat([net(image[None]) for image in x])
        assert torch.equal(net(x), together)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(x.flip(0)).flip(0), together, rtol=1e-4, atol=1e-5)


@both_paths
@both_starts
@every_generator
def test_the_fast_form_equals_the_slow_one(generator, start, depth_by, monkeypatch):
    """Groups against every block for every image with a mask, which is what a trace sees."""
    net = trained(wake(spread(condensed(generator=generator, start=start, depth_by=depth_by))))
    x = mixed(9)
    with torch.no_grad():
        fast = net(x)
        monkeypatch.setattr("pocketcnn.methods.puppet.gauge.tracing", lambda: True)
        masked = []
        stage = net.layer2[0]
        monkeypatch.setattr(stage, "_masked", lambda x, found: masked.append(1) or PuppetStage._masked(stage, x, found))
        torch.testing.assert_close(net(x), fast, rtol=1e-4, atol=1e-5)
    assert masked


@both_paths
@both_starts
@every_generator
def test_materialize_gives_an_ordinary_net_with_equal_output(generator, start, depth_by):
    net = trained(wake(spread(condensed(generator=generator, start=start, depth_by=depth_by))))
    x = mixed(10)
    with torch.no_grad():
        for image, bits, y in zip(x, gauge_of(net).value(x), net(x), strict=True):
            dense = pc.materialize(net, entropy=bits.item())
            assert {type(m).__module__.split(".")[0] for m in dense.modules()} == {"torch", "pocketcnn"}
            assert not any("puppet" in type(m).__module__ for m in dense.modules())
            assert not dense._forward_pre_hooks
            torch.testing.assert_close(dense(image[None])[0], y, rtol=1e-4, atol=1e-5)
    assert isinstance(net.layer1[0], PuppetStage)  # the given net is left alone
    net(x)


def test_materialize_with_and_without_entropy():
    net = condensed()
    with pytest.raises(
        pc.errors.CannotMaterialize, match=r"layer1.0 \(and 2 more layers\): puppet: how deep.*entropy="
    ):
        pc.materialize(net)
    with pytest.raises(ValueError, match="entropy is a number"):
        pc.materialize(net, entropy=math.nan)
    fixed = condensed(depth="fixed").eval()
    assert gauge_of(fixed) is None
    x = mixed(3)
    torch.testing.assert_close(pc.materialize(fixed)(x), fixed(x), rtol=1e-4, atol=1e-5)
    for other in (fixed, resnet(), pc.condense(resnet(), "ring")):
        with pytest.raises(ValueError, match="depends on the image's entropy"):
            pc.materialize(other, entropy=3.0)


def test_batch_norm_sees_all_images_that_reach_it():
    """In training, a position's mean is that of the active images together, not of one group."""
    net = spread(condensed(start="entropy", levels=3)).train()
    x = mixed(12)
    seen = {}
    for b, block in enumerate(net.layer1[0].blocks):
        block.bn1.register_forward_hook(lambda m, args, y, b=b: seen.update({b: args[0].detach()}))
    levels = gauge_of(net).levels_of(x)
    net(x)
    depths = torch.tensor([net.layer1[0].depth_of(level) for level in levels.tolist()])
    assert depths.unique().tolist() == [1, 2, 3]
    for b, features in seen.items():
        assert len(features) == (depths > b).sum()
        torch.testing.assert_close(
            net.layer1[0].blocks[b].bn1.running_mean, 0.1 * features.mean((0, 2, 3)), rtol=1e-4, atol=1e-6
        )


@both_paths
@both_starts
def test_gradients_reach_every_stored_number(start, depth_by):
    net = spread(condensed(start=start, depth_by=depth_by)).train()
    F.cross_entropy(net(mixed(16)), torch.arange(16) % 10).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.ne(0).float().mean() > 0.5, name


def test_blocks_that_no_image_reaches_get_gradients_of_zero():
    net = condensed().train()
    with gauge_of(net).pinned(0):
        net(mixed(4)).sum().backward()
    assert net.layer1[0].blocks[2].bn1.weight.grad.eq(0).all()
    assert net.layer1[0].blocks[0].bn1.weight.grad.ne(0).any()


def test_one_image_left_at_one_pixel_stops_rather_than_breaks_batch_norm():
    net = pc.create_model("resnet32_puppet", width=0.25, in_channels=1).train()
    x = torch.full((3, 1, 8, 8), 0.4)
    x[0] = torch.rand(1, 8, 8)
    levels = gauge_of(net).levels_of(x).tolist()
    assert levels[0] > levels[1] == levels[2] == 0
    assert torch.isfinite(net(x)).all()


def test_depth_grows_with_entropy():
    net = spread(condensed())
    x = mixed(64)
    order = image_entropy(x).argsort()
    levels = gauge_of(net).levels_of(x)[order]
    assert (levels.diff() >= 0).all()
    assert len(levels.unique()) == 4
    for blocks in range(1, 9):
        for options in (PuppetOptions(), PuppetOptions(min_depth=2, max_depth=4, levels=7), PuppetOptions(levels=1)):
            depths = [options.depth_of(level, blocks) for level in range(options.levels)]
            assert depths == sorted(depths)
            assert depths[-1] == min(blocks, options.max_depth or blocks)
            assert depths[0] == min(options.min_depth or max(1, blocks // 2), depths[-1]) or options.levels == 1


def test_fixed_depth_and_ordinary_kernels_are_the_plain_net():
    plain = resnet().eval()
    small = pc.condense(plain, "puppet", generator="stored", depth="fixed").eval()
    x = mixed(3)
    assert torch.equal(small(x), plain(x))
    assert pc.plan(plain, "puppet", generator="stored").after == sum(p.numel() for p in plain.parameters())


def test_max_depth_cuts_stages_short():
    small = condensed(max_depth=2, min_depth=2).eval()
    assert [len(stage.blocks) for stage in (small.layer1[0], small.layer2[0], small.layer3[0])] == [2, 2, 2]
    assert pc.measure(small, (3, 16, 16)).depth == 14
    assert pc.measure(small, (3, 16, 16)).macs_min == pc.measure(small, (3, 16, 16)).macs_max


def test_generate_equal_leaves_first_blocks():
    small = condensed(generate="equal")
    assert type(small.layer2[0]).__name__ == "BasicBlock"
    assert isinstance(small.layer2[1], PuppetStage)
    assert len(small.layer2[1].blocks) == 2
    assert small.layer2[1].puppeteer is small.layer3[1].puppeteer


def test_scope_stage_gives_each_its_own_puppeteer():
    small = condensed(scope="stage", size=0.2)
    assert small.layer1[0].puppeteer is not small.layer2[0].puppeteer
    assert small.eval()(mixed(2)).shape == (2, 10)


# ---------------------------------------------------------------------------------------------------------------------
# The gauge


@pytest.mark.parametrize("measure", ["entropy", "variance", "edges", "random", "features"])
def test_every_measure_spreads_images_over_the_levels(measure):
    net = condensed(measure=measure)
    x = mixed(64, size=24)
    if measure == "features":
        net.train()
        for _ in range(30):
            net(x)
    else:
        gauge_of(net).calibrate_(x.split(16))
    seen = []
    net.layer1[0].blocks[1].register_forward_hook(lambda m, args, y: seen.append(len(y)))
    net.eval()(x)
    assert 16 < sum(seen) < 60


def test_before_calibration_the_share_is_entropy_by_eight():
    gauge = Gauge()
    x = mixed(20)
    torch.testing.assert_close(gauge(x), image_entropy(x) / 8, rtol=1e-4, atol=1e-4)


def test_calibration_undoes_the_normalisation():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    x = mixed(50)
    shown = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    gauge = Gauge().calibrate_([(shown, torch.zeros(50))], mean=mean, std=std)
    torch.testing.assert_close(gauge.value(shown), image_entropy(x), rtol=1e-2, atol=0.05)
    assert gauge.levels_of(shown).bincount().tolist() == pytest.approx([12, 12, 13, 13], abs=2)
    other = Gauge()
    other.load_state_dict(gauge.state_dict())
    assert torch.equal(other(shown), gauge(shown))
    grey = mixed(8, channels=1)
    with pytest.raises(ValueError, match="set by images of 3 channels, these have 1"):
        gauge(grey)


def test_share_is_the_rank_among_the_calibration_images():
    x = mixed(200)
    gauge = Gauge().calibrate_([x])
    ranks = image_entropy(x).argsort().argsort() / 199
    torch.testing.assert_close(gauge(x), ranks, rtol=0, atol=0.05)


def test_images_of_another_range_are_warned_of_once():
    gauge = Gauge().calibrate_([mixed(20)])
    strange = mixed(4) * 255
    strange[0] /= 255
    with pytest.warns(UserWarning, match=r"range from .* not from 0 to 1; .*full depth.*calibrate_\(loader, mean="):
        share = gauge(strange)
    assert share[1:].eq(1).all()
    assert torch.equal(share[:1], gauge(strange[:1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gauge(strange)


def test_before_calibration_it_is_only_logged(caplog):
    gauge = Gauge()
    assert gauge(torch.randn(3, 3, 8, 8)).eq(1).all()
    assert "calibrate_" in caplog.text


def test_bad_calibrations():
    gauge = Gauge()
    with pytest.raises(ValueError, match="no images to calibrate with"):
        gauge.calibrate_([])
    with pytest.raises(ValueError, match=r"range from -.* not from 0 to 1; Call"):
        gauge.calibrate_([torch.randn(4, 3, 8, 8)])
    x = mixed(4)
    x[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="infinite or not a number"):
        gauge.calibrate_([x])
    with pytest.raises(ValueError, match="levels are numbered from 0 to 3"):
        with gauge.pinned(4):
            pass


def test_bad_images_leave_the_net_usable():
    net = condensed().eval()
    x = mixed(4)
    expected = net(x)
    broken = x.clone()
    broken[2] = math.nan
    with pytest.raises(ValueError, match=r"infinite or not a number in images \[2\]"):
        net(broken)
    with pytest.raises(ValueError, match="one pixel"):
        net(torch.rand(1, 3, 1, 1))
    with pytest.raises(ValueError, match="it got 0 such tensors instead of one"):
        net("image")
    assert torch.equal(net(x), expected)
    assert net(x[:0]).shape == (0, 10)


def test_a_stage_by_itself_goes_all_the_way():
    stage = PuppetStage(list(resnet().layer1))
    assert kernel_shapes(list(resnet().layer1)) == stage.puppeteer.stages[0]
    x = torch.randn(2, 8, 6, 6)
    seen = []
    stage.blocks[-1].register_forward_hook(lambda *_: seen.append(1))
    assert stage(x).shape == x.shape
    assert seen
    net = condensed()
    assert torch.equal(net.eval().layer1(x), net.layer1(x))


# ---------------------------------------------------------------------------------------------------------------------
# No hidden state


def test_two_threads_and_two_nets():
    """Calls that overlap do not see each other's images."""
    nets = [trained(spread(condensed(levels=3))) for _ in range(2)]
    batches = [mixed(6) for _ in range(4)]
    with torch.no_grad():
        expected = {(n, b): net(x) for n, net in enumerate(nets) for b, x in enumerate(batches)}
    found, failed = {}, []

    def work(n, b):
        try:
            with torch.no_grad():
                for _ in range(5):
                    found[n, b] = nets[n](batches[b])
                    torch.testing.assert_close(found[n, b], expected[n, b])
        except Exception as error:  # shown by the assertion below
            failed.append(error)

    threads = [threading.Thread(target=work, args=key) for key in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert found.keys() == expected.keys()
    assert not nets[0].layer1[0].calls._batch._stacks


def test_pinned_levels_belong_to_a_thread():
    net = trained(spread(condensed()))
    x = mixed(6)
    with torch.no_grad():
        expected = net(x)
        with gauge_of(net).pinned(0):
            pinned = net(x)
            found = []
            thread = threading.Thread(target=lambda: found.append(net(x)))
            thread.start()
            thread.join()
    torch.testing.assert_close(found[0], expected)
    assert not torch.allclose(pinned, expected)


def test_a_copy_looks_at_its_own_images():
    net = trained(spread(condensed()))
    other = copy.deepcopy(net)
    gauge_of(other).quantiles.fill_(-1)  # every image is complex
    x = mixed(6)
    with torch.no_grad():
        assert not torch.allclose(other(x), net(x))
        with gauge_of(other).pinned(3):
            expected = other(x)
        torch.testing.assert_close(other(x), expected)
    assert other.layer1[0].gauge is other.layer3[0].gauge
    assert gauge_of(other) is not gauge_of(net)


def test_file_round_trip_is_exact(tmp_path):
    net = trained(wake(spread(condensed(start="entropy", seed=5))))
    gauge_of(net).calibrate_([(mixed(40) - 0.5) / 0.2], mean=(0.5, 0.5, 0.5), std=0.2)
    pc.save(net, tmp_path / "net.safetensors")
    loaded = pc.load(tmp_path / "net.safetensors").eval()
    x = (mixed(9) - 0.5) / 0.2
    assert torch.equal(loaded(x), net(x))


def test_condensing_in_two_steps_shares_the_gauge():
    once = pc.condense(resnet(), "puppet", include="layer1.*")
    twice = pc.condense(once, "puppet", include="layer2.*")
    assert twice.layer1[0].gauge is twice.layer2[0].gauge is gauge_of(twice)
    assert twice.eval()(mixed(3)).shape == (3, 10)
    with pytest.raises(ValueError, match="measures entropy at 4 levels already"):
        pc.condense(once, "puppet", include="layer2.*", levels=3)


@pytest.mark.parametrize("start", ["fixed", "entropy"])
def test_exports_with_its_depth(start, unchecked_shapes):
    net = trained(wake(spread(condensed(shallow(), start=start, levels=2))))
    x = mixed(6)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: batch},)).module()
    x = mixed(11)
    torch.testing.assert_close(exported(x), net(x), rtol=1e-4, atol=1e-5)


def test_compiles_with_its_depth(unchecked_shapes):
    net = trained(wake(spread(condensed(shallow(), start="entropy", levels=2))))
    x = mixed(6)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the compiler's own deprecations
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), net(x), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Where it works


def test_what_is_passed_over_and_why():
    rows = pc.plan(pc.create_model("resnet50", num_classes=10), "puppet").rows
    assert [row.layer for row in rows] == ["3 x Bottleneck", "4 x Bottleneck", "6 x Bottleneck", "3 x Bottleneck"]
    assert not any(row.reason for row in rows)
    pointwise = nn.Sequential(nn.Conv2d(3, 8, 3), *(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()) for _ in range(3)))
    with pytest.raises(pc.errors.NothingToCondense, match="no convolutions larger than 1x1"):
        pc.condense(pointwise, "puppet")
    one = pc.create_model("resnet26", num_classes=10)
    assert pc.plan(one, "puppet", generate="equal").rows[0].reason.startswith("no block after the first")


def test_stages_are_found_in_one_sequence():
    def block(channels, out, stride=1):
        return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    net = nn.Sequential(
        block(3, 8), block(8, 8), block(8, 8), block(8, 16, 2), block(16, 16), block(16, 16), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    plan = pc.plan(net, "puppet")
    assert [(row.name, row.layer) for row in plan.rows] == [("1", "2 x Sequential"), ("3", "3 x Sequential")]
    small = pc.condense(net, "puppet")
    assert isinstance(small[0], nn.Sequential)
    assert small.eval()(mixed(3)).shape == (3, 10)


def test_frozen_parts_of_a_block_stay_frozen():
    plain = resnet()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    small = condensed(plain)
    assert not small.layer1[0].blocks[0].bn1.weight.requires_grad
    assert small.layer1[0].puppeteer.state.requires_grad


# ---------------------------------------------------------------------------------------------------------------------
# What a user may do to a net, and what a net may do to its images


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own deprecations
        return call()


def test_compiled_training_shows_batch_norm_what_eager_training_does(unchecked_shapes):
    net = spread(condensed(shallow())).train()
    other = copy.deepcopy(net)
    x = mixed(12)
    net(x)
    quietly(lambda: torch.compile(other, backend="aot_eager")(x))
    for (name, one), two in zip(net.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_pins_hold_in_traces(unchecked_shapes):
    net = trained(spread(condensed(shallow())))
    x = mixed(6)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), gauge_of(net).pinned(1):
        expected = net(x)
        torch.testing.assert_close(quietly(lambda: compiled(x)), expected)
        exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    assert not torch.allclose(net(x), expected)


def test_a_compiled_stage_goes_as_deep_as_its_images(unchecked_shapes):
    net = trained(spread(condensed(shallow())))
    x = mixed(6)
    with torch.no_grad():
        expected = net(x)
        net[1].compile(backend="aot_eager")
        torch.testing.assert_close(quietly(lambda: net(x)), expected)


def test_fixed_depth_exports_for_every_batch(unchecked_shapes):
    net = condensed(shallow(), depth="fixed").eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(net, (mixed(6),), dynamic_shapes=({0: batch},)).module()
    x = mixed(11)
    torch.testing.assert_close(exported(x), net(x))


def test_kernels_are_generated_once_a_call(monkeypatch):
    for options in ({"depth": "fixed"}, {}, {"start": "entropy"}):
        net = spread(condensed(**options)) if options != {"depth": "fixed"} else condensed(**options)
        puppeteer = net.layer1[0].puppeteer
        calls = []
        generate = puppeteer._generate
        monkeypatch.setattr(puppeteer, "_generate", lambda *key, c=calls, g=generate: c.append(key) or g(*key))
        net.train()(mixed(12))
        assert len(calls) == len(set(calls)) == (4 if "start" in options else 1)


class TwoViews(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = shallow()

    def forward(self, x, y=None):
        return self.net(torch.cat([x, x.flip(-1)]))


def test_a_net_that_changes_the_batch_is_refused():
    net = spread(pc.condense(TwoViews(), "puppet"))
    with pytest.raises(ValueError, match="given 6 images, but a stage in it gets features of 12; condense the part"):
        net(mixed(6))
    with pytest.raises(ValueError, match="got 2 such tensors instead of one"):
        net(mixed(2), y=mixed(2))
    inner = TwoViews()
    inner.net = pc.condense(inner.net, "puppet")
    assert inner.eval()(mixed(6)).shape == (12, 10)


def test_an_interrupted_call_leaves_nothing_behind():
    net = trained(spread(condensed()))
    x = mixed(6)
    expected = net(x)

    def interrupt(*_):
        raise KeyboardInterrupt

    handle = net.layer2.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        net(x)
    handle.remove()
    assert torch.equal(net(x), expected)
    assert net(x[:4]).shape == (4, 10)


def test_a_materialized_net_can_be_tuned_saved_and_loaded(tmp_path):
    plain = resnet()
    for module in plain.layer1.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False).eval()
    net = condensed(plain)
    modes = {name: m.training for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert not modes["layer1.0.blocks.0.bn1"]
    assert modes["layer2.0.blocks.0.bn1"]
    dense = pc.materialize(net, entropy=6.0)
    assert all(m.weight.requires_grad for m in dense.modules() if isinstance(m, nn.Conv2d))
    assert not dense.layer1[0][0].bn1.weight.requires_grad
    assert not dense.layer1[0][0].bn1.training
    assert dense.layer2[0][0].bn1.training
    pc.save(dense, tmp_path / "dense.safetensors")
    with pytest.raises(pc.errors.MissingBase):
        pc.load(tmp_path / "dense.safetensors")
    loaded = pc.load(tmp_path / "dense.safetensors", base=pc.materialize(condensed(), entropy=6.0))
    x = mixed(3)
    assert torch.equal(loaded.eval()(x), dense.eval()(x))


def test_materialize_leaves_hooks_of_others_alone():
    class Watcher(nn.Module):
        def look(self, module, args):
            self.seen = True

    watcher = Watcher()
    net = condensed()
    net.register_forward_pre_hook(watcher.look)
    dense = pc.materialize(net, entropy=5.0)
    assert len(dense._forward_pre_hooks) == 1
    assert not dense._forward_hooks


def test_a_stem_that_is_condensed_is_still_the_stem():
    net = pc.condense(pc.create_model("plainnet20", width=0.5), "ring", include="conv1")
    small = pc.condense(net, "puppet")
    assert pc.plan(net, "puppet").rows[0].layer == "6 x ConvBlock"
    assert small.eval()(mixed(3)).shape == (3, 10)


def test_channels_last_is_kept():
    net = spread(condensed()).to(memory_format=torch.channels_last).train()
    seen = []
    for stage in (net.layer1, net.layer2, net.layer3):
        stage.register_forward_hook(lambda m, args, y: seen.append(y.is_contiguous(memory_format=torch.channels_last)))
    net(mixed(12).contiguous(memory_format=torch.channels_last))
    assert seen == [True] * 3


def test_a_failed_calibration_changes_nothing():
    gauge = Gauge().calibrate_([mixed(20)])
    before = copy.deepcopy(gauge.state_dict())
    for options, message in (
        ({}, "images range from"),
        ({"std": 0.0}, "std must be positive"),
        ({"value_range": (1.0, 0.0)}, "value_range"),
        ({"mean": (0.1, 0.2)}, "a number or 3 of them"),
    ):
        with pytest.raises(ValueError, match=message):
            gauge.calibrate_([torch.randn(4, 3, 8, 8)], **options)
        assert all(torch.equal(before[key], value) for key, value in gauge.state_dict().items())
    gauge.reset_parameters()
    torch.testing.assert_close(gauge(mixed(1)), image_entropy(mixed(1)) / 8, rtol=0, atol=1)


def test_a_range_far_smaller_than_calibrated_is_warned_of():
    gauge = Gauge().calibrate_([mixed(20) * 255], value_range=(0.0, 255.0))
    with pytest.warns(UserWarning, match=r"not from 0 to 255; they count as simple"):
        gauge(mixed(5))


def test_the_gauge_stays_in_float32():
    net = spread(condensed())
    expected = gauge_of(net).quantiles.clone()
    net.bfloat16()
    assert torch.equal(gauge_of(net).quantiles, expected)
    assert net.eval()(mixed(2).bfloat16()).dtype == torch.bfloat16
    assert gauge_of(net.to("meta")).quantiles.is_meta


def test_a_stage_outside_of_a_call_says_so(caplog):
    net = condensed().eval()
    x = torch.randn(2, 8, 6, 6)
    for _ in range(2):
        net.layer1(x)
    assert caplog.text.count("outside of a call") == 1
    with gauge_of(net).pinned(0):
        assert not torch.allclose(net.layer1(x), nn.Sequential(*net.layer1[0].blocks)(x))


def test_a_puppeteer_and_its_stage_must_fit():
    puppeteer = Puppeteer(SHAPES)
    with pytest.raises(ValueError, match="has its options; leave out solver"):
        PuppetStage(list(resnet().layer1), puppeteer, solver="rk4")
    with pytest.raises(ValueError, match="stage 1 of the puppeteer has other kernels"):
        PuppetStage(list(resnet().layer1), puppeteer, number=1)
    assert len(PuppetStage(list(resnet().layer1), max_depth=2).puppeteer.slots) == 4


@pytest.mark.parametrize(("name", "base"), [("puppet_plain", "plainnet20"), ("resnet32_puppet", "resnet32_4stage")])
def test_the_papers_nets_store_ten_times_less_than_their_twins(name, base):
    plan = pc.plan(pc.create_model(base), "puppet", input_size=(3, 32, 32))
    assert plan.before.trainable_params > 10 * plan.after.trainable_params
    assert plan.after == pc.measure(pc.create_model(name), (3, 32, 32))
    assert "macs of the simplest image" in str(plan)
