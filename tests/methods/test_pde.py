import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pocketcnn as pc
from pocketcnn import numerics
from pocketcnn.errors import NothingToCondense, UnstableStep
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.models.resnet import BasicBlock


def layer(channels=3, dtype=torch.float64, **options):
    made = GlobalLayer(channels, dtype=dtype, **options)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return made


def test_equals_the_equation_written_out():
    net, x = layer().eval(), torch.randn(2, 3, 5, 7, dtype=torch.float64)
    u, v, along_x, along_y = (
        F.relu(getattr(net, name)(x)) for name in ("velocity_x", "velocity_y", "diffusivity_x", "diffusivity_y")
    )
    h = numerics.advect_diffuse(x, u, v, along_x, along_y, num_steps=5, dt=0.2, boundary="periodic")
    torch.testing.assert_close(net(x), F.relu(net.bn(h)))
    assert net.velocity_x[0].groups == 3


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"velocity_x", "velocity_y", "diffusivity_x", "diffusivity_y"}),
        ({"shared_velocity": True, "diffusivity": "constant"}, {"velocity_x"}),
        ({"velocity": "zero"}, {"diffusivity_x", "diffusivity_y"}),
        ({"equation": "diffusion"}, {"diffusivity_x", "diffusivity_y"}),
        ({"diffusivity": "zero"}, {"velocity_x", "velocity_y"}),
        ({"equation": "advection"}, {"velocity_x", "velocity_y"}),
        ({"velocity": 0.5, "diffusivity": 0.3}, set()),
        ({"velocity": "identity", "diffusivity": "perona_malik"}, {"velocity_x", "velocity_y"}),
        ({"velocity": "residual", "diffusivity": "conv", "initial": "residual"},
         {"velocity_x", "velocity_y", "diffusivity_x", "diffusivity_y", "initial"}),
    ],
)  # fmt: skip
def test_only_what_is_learned_has_numbers(options, names):
    net = layer(**options)
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == names | {"bn"}
    net(torch.randn(2, 3, 6, 6, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.ne(0).any() for p in net.parameters())


def test_equations_by_name_leave_a_term_out():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert layer(equation="diffusion").velocities(x) == (0.0, 0.0)
    assert layer(equation="advection").diffusivities(x) == (0.0, 0.0)
    torch.manual_seed(1)
    one = layer(equation="diffusion")
    torch.manual_seed(1)
    assert torch.equal(one(x), layer(velocity="zero")(x))


def test_source_initial_and_boundary_reach_the_solver():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    net = layer(source=False, velocity="zero", diffusivity="constant").eval()
    constant = torch.full_like(x, 2.0)
    torch.testing.assert_close(net.solve(constant, 5), constant)  # nothing is added, nothing flows
    net = layer(initial="residual", velocity=0.3, diffusivity=0.2, boundary="zero", dx=2.0, dy=0.5).eval()
    expected = numerics.advect_diffuse(
        x, 0.3, 0.3, 0.2, 0.2, initial=net.initial(x), previous=x, boundary="zero", dx=2.0, dy=0.5
    )
    torch.testing.assert_close(net.solve(x, 5), expected)


def test_coefficients_are_never_negative_but_velocities_may_be():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    net = layer(velocity_activation="none")
    assert min(d.min() for d in net.diffusivities(x)) == 0
    assert net.velocities(x)[0].min() < 0
    assert layer().velocities(x)[0].min() == 0


def test_published_eps_damps_the_coefficients():
    ours, theirs = GlobalLayer(16), GlobalLayer(16, published_eps=True)
    theirs.load_state_dict(ours.state_dict())
    assert {m.eps for name, m in theirs.named_modules() if isinstance(m, nn.BatchNorm2d) and name != "bn"} == {16.0}
    assert theirs.bn.eps == ours.bn.eps == 1e-5
    x = torch.randn(4, 16, 8, 8)
    ratio = ours.velocities(x)[0].mean() / theirs.velocities(x)[0].mean()
    assert 2 < ratio < 4  # sqrt(1 + 16 / variance), for a variance of about 2


def test_velocity_limit_keeps_a_fast_layer_in_bounds():
    """Constant u = v of 3.5: a Courant number of 1.4 at dt = 0.2."""
    x = torch.randn(1, 2, 16, 16, dtype=torch.float64)
    peaks = {}
    for limit in (None, 0.9):
        net = GlobalLayer(
            2, velocity="identity", diffusivity="zero", source=False, velocity_limit=limit, num_steps=400, dtype=x.dtype
        ).eval()
        for bn in (net.velocity_x[1], net.velocity_y[1]):
            nn.init.zeros_(bn.weight)
            nn.init.constant_(bn.bias, 3.5)
        peaks[limit] = net.solve(x, 400).abs().max()
    assert peaks[None] > 1e30
    assert peaks[0.9] < 10 * x.abs().max()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"velocity": 3.5}, UnstableStep, r"is 1\.4, past the limit 1; the largest dt allowed here is 0\.1429"),
        ({"velocity": -1.0, "dt": 1.0, "dx": 0.5}, UnstableStep, r"is 3, past the limit 1; .* allowed here is 0\.3333"),
        ({"diffusivity": -0.1}, ValueError, r"diffusivity must not be negative, got -0\.1"),
        ({"dt": 0.0}, ValueError, "dt, dx and dy must be positive"),
        ({"dy": -1.0}, ValueError, "dt, dx and dy must be positive"),
        ({"velocity": 3.5, "velocity_limit": 5.0}, UnstableStep, r"is 1\.4, past the limit 1"),
        ({"num_steps": 0}, ValueError, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_steps": 2.5}, ValueError, r"num_steps must be a whole number of at least 1, got 2\.5"),
        ({"velocity": float("nan")}, ValueError, "no velocity nan; known: depthwise, .*, or a finite number"),
        ({"velocity": None}, ValueError, "no velocity None; known: depthwise"),
        ({"diffusivity": float("inf")}, ValueError, "no diffusivity inf; known: depthwise"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be odd"),
        ({"contrast": 0.0}, ValueError, "contrast must be positive"),
        ({"velocity_limit": 0.0}, ValueError, "velocity_limit must be positive"),
        ({"velocity": "fast"}, ValueError, "no velocity 'fast'; known: depthwise, conv, identity, residual, zero"),
        ({"diffusivity": "identity"}, ValueError, "no diffusivity 'identity'; known: depthwise, conv, constant"),
        ({"initial": "zero"}, ValueError, "no initial 'zero'; known: identity, residual"),
        ({"equation": "wave"}, ValueError, "no equation 'wave'; known: advection_diffusion, diffusion, advection"),
        ({"boundary": "mirror"}, ValueError, "no boundary 'mirror'"),
    ],
)
def test_bad_arguments_fail_in_the_constructor(options, error, message, unchecked_shapes):
    with pytest.raises(error, match=message):
        GlobalLayer(4, **options)


def test_a_limited_constant_velocity_is_no_mistake():
    assert GlobalLayer(4, velocity=3.5, velocity_limit=1.0)(torch.randn(1, 4, 5, 5)).isfinite().all()
    GlobalLayer(4, velocity=3.5, equation="diffusion")


def test_another_number_of_channels_is_named(unchecked_shapes):
    for options in ({}, {"velocity": 0.5, "diffusivity": "constant"}):
        with pytest.raises(ValueError, match=r"this layer is for images of 4 channels, the input is \[1, 5, 6, 6\]"):
            GlobalLayer(4, **options)(torch.randn(1, 5, 6, 6))


def test_velocity_limit_holds_for_any_input():
    net = layer(4, torch.bfloat16, velocity_limit=1.0, velocity_activation="none")
    for norm in (net.velocity_x[1], net.velocity_y[1]):
        torch.nn.init.constant_(norm.weight, 20)
    velocities = net.velocities(torch.randn(2, 4, 8, 8, dtype=torch.bfloat16))
    assert 0.99 < numerics.courant(*velocities) <= 1 + 1e-6


def test_reflect_needs_two_pixels():
    with pytest.raises(ValueError, match="'reflect' needs at least 2 pixels along each axis, got 1 x 4"):
        GlobalLayer(2, boundary="reflect")(torch.randn(1, 2, 1, 4))


# --- coefficients formed inside the solver ---------------------------------------------------------------------------

INSIDE = [
    {},
    {"shared_velocity": True, "diffusivity": "constant"},
    {"bias": True, "velocity_activation": "none", "boundary": "zero"},
    {"initial": "residual"},
    {"diffusivity": "perona_malik", "dt": 0.1, "dy": 0.5},
    {"equation": "diffusion", "num_steps": 2},
]
OUTSIDE = [
    {"velocity_limit": 0.5},
    {"source": False},
    {"kernel_size": 5},
    {"velocity": "conv", "diffusivity": 0.3},
    {"velocity": 0.5, "diffusivity": "perona_malik"},
]


def lived_in(channels=4, dtype=torch.float64, **options):
    """A layer whose norms and biases do something."""
    net = layer(channels, dtype, **options)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if name.endswith(("bias", "running_mean")):
            nn.init.normal_(tensor)
        elif name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2)
    return net


def coefficients_of(net):
    made = (net.velocity_x, net.velocity_y, net.diffusivity_x, net.diffusivity_y)
    return [part for part in made if part is not None]


def watched(net):
    """A copy whose convolutions somebody watches run, so that they have to."""
    other = copy.deepcopy(net)
    for part in coefficients_of(other):
        part[0].register_forward_hook(lambda *_: None)
    return other


def by_definition(net, x):
    options = net.options
    initial = net.initial(x) if net.initial is not None else x
    settings = {name: getattr(options, name) for name in ("num_steps", "dt", "dx", "dy", "boundary")}
    fields = (x if options.source else torch.zeros_like(x), *net.velocities(x), *net.diffusivities(x))
    return F.relu(net.bn(numerics.advect_diffuse(*fields, initial=initial, previous=x, **settings)))


def assert_close(ours, theirs):
    """Equal to rounding, measured by the largest of all numbers: what a bias before a batch norm gets is sums that cancel."""
    ours, theirs = ([t.detach() for t in ([given] if torch.is_tensor(given) else given)] for given in (ours, theirs))
    largest = max(float(t.abs().max()) for t in theirs)
    precision = {torch.float64: 1e-11, torch.float32: 5e-5}[ours[0].dtype]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=precision * largest)


def values_and_gradients(function, x, parameters):
    image = x.clone().requires_grad_()
    y = function(image)
    return [y, *torch.autograd.grad(y, [image, *parameters], torch.ones_like(y).cumsum(-1))]


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", INSIDE, ids=str)
def test_learns_inside_the_solver_as_outside(options, dtype, momentum):
    net = lived_in(dtype=dtype, **options)
    for part in coefficients_of(net):
        part[1].momentum = momentum
        part[1].reset_running_stats()
    other = watched(net)
    for batch in (3, 1, 2):
        x = torch.randn(batch, 4, 6, 5, dtype=dtype) + 0.5
        assert net._convolutions(x)
        assert not other._convolutions(x)
        assert_close(*(values_and_gradients(each, x, each.parameters()) for each in (net, other)))
    for (name, ours), theirs in zip(net.named_buffers(), other.buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert torch.equal(ours, theirs), name
            assert ours == 3
        else:
            assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", INSIDE, ids=str)
def test_serves_inside_the_solver_as_outside(options, dtype):
    net = lived_in(dtype=dtype, **options).eval()
    state = copy.deepcopy(net.state_dict())
    x = torch.randn(3, 4, 6, 5, dtype=dtype)
    for image in (x, x.contiguous(memory_format=torch.channels_last)):
        expected = watched(net)(image)
        assert_close(net(image), expected)  # gradients may be asked for
        with torch.no_grad():
            assert_close(net(image), expected)
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


def test_frozen_norms_stay_as_they_are():
    """One in evaluation mode amid others that learn."""
    net = lived_in()
    net.velocity_y[1].eval()
    other, x = watched(net), torch.randn(3, 4, 6, 5, dtype=torch.float64)
    assert_close(net(x), other(x))
    for (name, ours), theirs in zip(net.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)
    assert net.velocity_y[1].num_batches_tracked == 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [*INSIDE, *OUTSIDE], ids=str)
def test_equals_the_definition_whatever_makes_the_coefficients(options, training):
    net, x = lived_in(**options).train(training), torch.randn(3, 4, 6, 5, dtype=torch.float64)
    assert bool(net._convolutions(x)) == (options in INSIDE)
    expected = values_and_gradients(lambda image: by_definition(net, image), x, net.parameters())
    assert_close(values_and_gradients(net, x, net.parameters()), expected)
    with torch.no_grad():
        assert_close(net(x), expected[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", INSIDE[:4], ids=str)
def test_low_precision_learns_and_serves(options, dtype):
    """Rounded at the start and at the end, computed in float32 in between: closer to the net in float64 than with
    coefficients that are rounded too."""
    net = lived_in(dtype=dtype, **options)
    wide, other = copy.deepcopy(net).double(), watched(net)
    x = torch.randn(3, 4, 6, 5, dtype=dtype)
    for _ in range(2):
        exact = wide(x.double())
        off, others_off = ((each(x).double() - exact).square().mean().sqrt() for each in (net, other))
        assert off <= max(1.2 * others_off, 2**-8 * exact.abs().max())
        net.eval(), wide.eval(), other.eval()
    y = net.train()(x.requires_grad_())
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    for tensor in (y, x.grad, *(p.grad for p in net.parameters()), *net.buffers()):
        assert tensor.isfinite().all()


@pytest.mark.parametrize(
    ("name", "register"),
    [
        ("velocity_x.0", "register_forward_hook"),
        ("velocity_y.1", "register_forward_pre_hook"),
        ("diffusivity_x.0", "register_full_backward_hook"),
        ("diffusivity_y", "register_full_backward_pre_hook"),
        ("bn", "register_forward_hook"),
    ],
)
def test_whoever_watches_a_part_sees_it_run(name, register):
    net, x, seen = lived_in(), torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True), []
    getattr(net.get_submodule(name), register)(lambda *_: seen.append(name))
    net(x).sum().backward()
    assert seen == [name]
    if "backward" not in register:
        with torch.no_grad():
            net.eval()(x)
        assert seen == [name, name]


def test_other_norms_run_as_they_are():
    """Those that others put in the place of batch norms, or derive from them."""
    net, x = lived_in().eval(), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    assert not converted._convolutions(x)
    assert_close(converted(x), net(x))
    grouped, untracked = copy.deepcopy(net), copy.deepcopy(net)
    grouped.velocity_x[1] = nn.GroupNorm(2, 4, dtype=torch.float64)
    untracked.velocity_x[1] = nn.BatchNorm2d(4, track_running_stats=False, dtype=torch.float64)
    for other in (grouped, untracked):
        assert not other._convolutions(x)
        assert_close(other(x), by_definition(other, x))


def test_batch_norm_does_not_learn_from_one_number(unchecked_shapes):
    with pytest.raises(ValueError, match=r"more than one number a channel to learn from, the input is \[1, 4, 1, 1\]"):
        GlobalLayer(4)(torch.randn(1, 4, 1, 1))
    assert GlobalLayer(4).eval()(torch.randn(1, 4, 1, 1)).isfinite().all()


@pytest.mark.parametrize("options", INSIDE, ids=str)
def test_folded_layers_serve_the_same(options):
    net, x = lived_in(**options).eval(), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    folded = pc.fold_norm(net)
    assert all(type(part[1]) is nn.Identity for part in coefficients_of(folded))
    assert folded._convolutions(x)
    assert_close(folded(x), net(x))
    assert_close(folded(x), watched(folded)(x))
    with torch.no_grad():
        assert_close(folded(x), net(x))


def test_copies_files_and_names_are_those_of_any_layer():
    net, x = lived_in(), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    net(x)
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    made = ("velocity_x", "velocity_y", "diffusivity_x", "diffusivity_y")
    names = [f"{part}.{name}" for part in made for name in ("0.weight", *(f"1.{name}" for name in norm))]
    assert list(net.state_dict()) == [*names, *(f"bn.{name}" for name in norm)]
    for copied in (copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))):
        other = copied(net)
        for training in (False, True):
            assert torch.equal(other.train(training)(x), net.train(training)(x))


def test_gradients_reach_a_coefficient_that_is_not_frozen():
    net = lived_in()
    net.requires_grad_(False)
    net.diffusivity_y[0].weight.requires_grad_(True)
    other, x = watched(net), torch.randn(2, 4, 6, 5, dtype=torch.float64)
    for each in (net, other):
        each(x).square().sum().backward()
    assert_close(net.diffusivity_y[0].weight.grad, other.diffusivity_y[0].weight.grad)
    assert [name for name, p in net.named_parameters() if p.grad is not None] == ["diffusivity_y.0.weight"]


def test_a_layer_keeps_few_maps_for_its_gradient():
    """The definition keeps what all its steps and convolutions made; the solver keeps its input."""

    class ByDefinition(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return by_definition(self.net, x)

    net = GlobalLayer(16, num_steps=5)
    ours, theirs = (
        pc.measure_memory(each, (16, 32, 32), batch=8, training=True)
        for each in (net, ByDefinition(copy.deepcopy(net)))
    )
    assert ours <= 0.35 * theirs


def test_counts_are_those_of_convolutions_and_steps():
    """Four convolutions of 9 multiply-adds a number, 5 steps of 6 and 9 once, on 16 x 8 x 8 numbers."""
    cost = pc.measure(GlobalLayer(16), (16, 8, 8))
    numbers = 16 * 8 * 8
    assert cost.macs_by_operator == {"convolution": 4 * 9 * numbers, "advect_diffuse": (5 * 6 + 9) * numbers}
    assert cost.depth == 1


# --- surgery ---------------------------------------------------------------------------------------------------------


def layers_of(net):
    return {name: module for name, module in net.named_modules() if isinstance(module, GlobalLayer)}


def test_first_blocks_are_kept_and_runs_replaced():
    plain = pc.create_model("resnet20")
    small = pc.condense(plain, "pde")
    assert [name for name, _ in small.layer2.named_children()] == ["0", "1"]
    assert [type(block) for block in small.layer2] == [BasicBlock, GlobalLayer]
    assert [module.channels for module in layers_of(small).values()] == [16, 32, 64]
    assert torch.equal(small.layer2[0].conv1.weight, plain.layer2[0].conv1.weight)
    assert len(plain.layer2) == 3


def test_the_last_stage_may_be_dropped():
    small = pc.condense(pc.create_model("resnet20"), "pde", last_stage="drop")
    assert [type(block) for block in small.layer3] == [BasicBlock]
    assert list(layers_of(small)) == ["layer1.1", "layer2.1"]
    plan = pc.plan(pc.create_model("resnet20"), "pde", last_stage="drop", input_size=(3, 32, 32))
    assert [row.becomes for row in plan.rows] == ["GlobalLayer", "GlobalLayer", "nothing"]
    only = pc.condense(pc.create_model("resnet20"), "pde", last_stage="drop", include="layer1")
    assert len(only.layer3) == 3, "the last stage is the net's, not the last one chosen"


def test_files_rebuild_what_was_taken_out(tmp_path):
    small = pc.create_model("resnet32_global").eval()
    pc.save(small, tmp_path / "small.safetensors")
    again = pc.load(tmp_path / "small.safetensors")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again(x), small(x))
    assert [name for name, _ in again.layer4.named_children()] == ["0"]


def test_options_reach_the_layers():
    net = pc.condense(pc.create_model("resnet20"), "pde", num_steps=2, boundary="replicate", velocity=0.5)
    for module in layers_of(net).values():
        assert (module.options.num_steps, module.options.boundary, module.options.velocity) == (2, "replicate", 0.5)


class Inverted(nn.Module):
    """A block of another kind: expand, depthwise 5x5, project."""

    def __init__(self, inside, out, stride=1):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(inside, 4 * inside, 1, bias=False), nn.BatchNorm2d(4 * inside), nn.ReLU6(),
            nn.Conv2d(4 * inside, 4 * inside, 5, stride, 2, groups=4 * inside, bias=False), nn.BatchNorm2d(4 * inside),
            nn.ReLU6(), nn.Conv2d(4 * inside, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.shortcut = stride == 1 and inside == out

    def forward(self, x):
        return x + self.conv(x) if self.shortcut else self.conv(x)


def test_a_flat_net_of_inverted_residuals():
    """All stages in one sequence: a block that changes stride or width begins a stage and is kept."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        Inverted(8, 8), Inverted(8, 8), Inverted(8, 8), Inverted(8, 12, 2), Inverted(12, 12), Inverted(12, 12), Inverted(12, 16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    plan = pc.plan(net, "pde", input_size=(3, 16, 16))
    assert [(row.name, row.layer, row.becomes) for row in plan.rows] == [
        ("3", "2 x Inverted", "GlobalLayer"),
        ("6", "2 x Inverted", "GlobalLayer"),
        ("8", "1 x Inverted", ""),
    ]
    small = pc.condense(net, "pde")
    assert [name for name, _ in small.named_children()] == ["0", "1", "2", "3", "5", "6", "8", "9", "10", "11"]
    assert {module.velocity_x[0].kernel_size for module in layers_of(small).values()} == {(5, 5)}
    assert small(torch.randn(2, 3, 16, 16)).shape == (2, 4)


def test_stages_may_be_modules_of_their_own():
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(*(BasicBlock(4, 4, 1) for _ in range(4)))

        def forward(self, x):
            return self.blocks(x)

    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Stage(), Stage()))
    assert list(layers_of(pc.condense(net, "pde"))) == ["1.0.blocks.1", "1.1.blocks.1"]


def test_blocks_that_are_sequences_themselves():
    def block(inside, out):
        return nn.Sequential(nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())

    net = nn.Sequential(
        block(3, 8), nn.Sequential(block(8, 8), block(8, 8), block(8, 8)), nn.Flatten(), nn.LazyLinear(2)
    )
    assert list(layers_of(pc.condense(net, "pde"))) == ["1.1"]


def test_what_cannot_be_replaced_says_why():
    def reasons(*blocks):
        return [row.reason for row in pc.plan(nn.Sequential(*blocks), "pde").rows]

    assert reasons(*(BasicBlock(4, 4, 1) for _ in range(2))) == ["1 equal block after the first; it takes 2"]
    assert reasons(*(BasicBlock(4, 4, 2) for _ in range(3))) == [
        "its blocks do not turn 4 channels into as many of the same size, tried with 16 x 16 pixels"
    ]
    pooled = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.MaxPool2d(2)) for _ in range(3)]
    assert reasons(*pooled) == [
        "its blocks do not turn 4 channels into as many of the same size, tried with 16 x 16 pixels"
    ]
    hooked = [BasicBlock(4, 4, 1) for _ in range(3)]
    hooked[1].relu.register_forward_hook(lambda *_: None)
    assert reasons(*hooked) == ["its blocks have forward hooks, which would be lost"]
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), *(BasicBlock(4, 4, 1) for _ in range(3)), nn.Flatten(), nn.Linear(4, 2))
    hooked[1].relu._forward_hooks.clear()
    hooked[2].register_forward_hook(lambda *_: None)
    assert reasons(*hooked) == ["its blocks have forward hooks, which would be lost"]
    strange = [BasicBlock(4, 4, 1) for _ in range(4)]
    for index, block in enumerate(strange):
        block.index = index
    assert reasons(*strange) == ["1 equal block after the first; it takes 2 (the one before differs in index)"]
    mixed = pc.condense(plain, "condconv")
    assert [row.reason for row in pc.plan(mixed, "pde").rows] == ["its blocks hold layers that are condensed already"]
    with pytest.raises(NothingToCondense, match=r"layer1\.1: 1 equal block after the first; it takes 2; layer2\.1"):
        pc.condense(pc.create_model("resnet18"), "pde")


def test_modules_between_blocks_end_a_run_even_when_they_repeat():
    pool = nn.MaxPool2d(2)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), *(part for _ in range(4) for part in (BasicBlock(4, 4, 1), pool)))
    assert not pc.plan(net, "pde").replaced
    tied = BasicBlock(4, 4, 1)
    small = pc.condense(nn.Sequential(nn.Conv2d(3, 4, 1), BasicBlock(4, 4, 1), tied, tied, BasicBlock(4, 4, 1)), "pde")
    assert [type(part) for part in small] == [nn.Conv2d, BasicBlock, GlobalLayer]


def test_blocks_that_are_used_elsewhere_too_stay():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = nn.Sequential(*(BasicBlock(4, 4, 1) for _ in range(4)))
            self.aside = self.stage[2]

    assert [r.reason for r in pc.plan(Aside(), "pde").rows] == ["its blocks share weights with other parts of the net"]
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Sequential(*(BasicBlock(4, 4, 1) for _ in range(4))), nn.Conv2d(4, 4, 3, padding=1)
    )
    net[1][3].conv2.weight = net[2].weight
    assert [r.reason for r in pc.plan(net, "pde").rows] == ["its blocks share weights with other parts of the net"]


def test_blocks_in_a_list_that_nobody_calls_are_no_sequence():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(BasicBlock(4, 4, 1) for _ in range(4))

    with pytest.raises(
        NothingToCondense, match=r"Listed \(blocks\.0: in ModuleList, which need not call them one after"
    ):
        pc.condense(Listed(), "pde")
    (row,) = pc.plan(Listed(), "pde").rows
    assert row.layer == "4 x BasicBlock"


class Parts(nn.Module):
    """A block whose convolution sees one of several parts of the channels."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        *kept, changed = x.chunk(self.parts, dim=1)
        return torch.cat([*kept, self.conv(changed)], dim=1)


def test_blocks_that_split_their_channels_in_two_are_replaced():
    small = pc.condense(nn.Sequential(*(Parts(2) for _ in range(3))), "pde")
    assert layers_of(small)["1"].channels == 8
    assert small(torch.randn(2, 8, 6, 6)).shape == (2, 8, 6, 6)


def test_blocks_are_tried_out_and_left_as_they_were():
    blocks = nn.Sequential(*(Parts(3) for _ in range(3)))
    (row,) = pc.plan(blocks, "pde").rows
    assert row.reason.startswith(
        "its blocks do not turn 4 channels into as many of the same size (RuntimeError: Given groups=1"
    )
    net = pc.create_model("resnet20")
    net.layer1[1].bn1.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    pc.plan(net, "pde")
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net.layer1[1].bn1.training
    assert net.layer1[1].bn2.training


def test_blocks_may_differ_in_how_often_they_are_dropped():
    def block(p):
        return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(p))

    assert list(layers_of(pc.condense(nn.Sequential(*(block(p / 10) for p in range(4))), "pde"))) == ["1"]


def test_frozen_runs_stay_frozen_and_keep_their_place():
    net = pc.create_model("resnet20").double().eval()
    for block in net.layer1[1:]:
        block.requires_grad_(False)
    net.layer2[1].conv1.weight.requires_grad_(False)
    small = pc.condense(net, "pde")
    frozen = {name: not any(p.requires_grad for p in m.parameters()) for name, m in layers_of(small).items()}
    assert frozen == {"layer1.1": True, "layer2.1": False, "layer3.1": False}
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert not small.layer1[1].training


# --- the illustrative net --------------------------------------------------------------------------------------------


def test_log_softmax_with_nll_is_softmax_cross_entropy():
    """The report's footnote: torch's cross entropy of logits, and the loss its text writes out, are one function."""
    logits, labels = torch.randn(64, 10, dtype=torch.float64, requires_grad=True), torch.randint(0, 10, (64,))
    one = F.nll_loss(F.log_softmax(logits, dim=1), labels)
    other = -torch.log(F.softmax(logits, dim=1)[torch.arange(64), labels]).mean()
    torch.testing.assert_close(one, F.cross_entropy(logits, labels))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (one, other)))


def test_mnist_net_takes_its_feature():
    x = torch.randn(2, 1, 28, 28)
    for feature in ("conv", "residual", "pde"):
        assert pc.create_model("mnist_net", feature=feature, width=3)(x).shape == (2, 10)
    net = pc.create_model("mnist_net", feature="pde", diffusivity="perona_malik")
    assert isinstance(net.feature, GlobalLayer)
    assert net.feature.velocity_y is None
    with pytest.raises(ValueError, match="no feature 'wave'; known: conv, residual, pde"):
        pc.create_model("mnist_net", feature="wave")
    with pytest.raises(ValueError, match="feature 'conv' has no diffusivity"):
        pc.create_model("mnist_net", diffusivity="perona_malik")


def test_residual_feature_adds_its_input():
    residual = pc.create_model("mnist_net", feature="residual").feature[0]
    x = torch.randn(1, 1, 5, 5)
    nn.init.zeros_(residual.inner[1].weight)
    assert torch.equal(residual(x), x)


@pytest.mark.parametrize(
    "options", [{}, {"velocity": 0.5, "diffusivity": "perona_malik", "velocity_limit": 0.5}, {"boundary": "reflect"}]
)
def test_exports_for_any_batch_and_size(options, unchecked_shapes):
    net = GlobalLayer(4, **options).eval()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=3), 3: torch.export.Dim("width", min=3)}
    exported = torch.export.export(net, (torch.randn(2, 4, 8, 9),), dynamic_shapes={"x": sizes}).module()
    x = torch.randn(5, 4, 11, 6)
    torch.testing.assert_close(exported(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["circular", "patched", "not tracking", "a third part"])
def test_parts_that_are_not_what_the_kernels_take_over_run_themselves(change):
    torch.manual_seed(0)
    layer = GlobalLayer(4, dtype=torch.float64)
    calls = []
    for part in (layer.velocity_x, layer.velocity_y, layer.diffusivity_x, layer.diffusivity_y):
        if change == "circular":
            part[0].padding_mode = "circular"
            part[0]._reversed_padding_repeated_twice = [1, 1, 1, 1]
        elif change == "patched":
            inner = part[0].forward
            part[0].forward = lambda x, inner=inner: calls.append(1) or inner(x)
        elif change == "not tracking":
            part[1].track_running_stats = False
        else:
            part.append(nn.Identity())
    watched = copy.deepcopy(layer)
    for module in watched.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: None)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), watched(x), rtol=1e-12, atol=1e-12)
    assert change != "patched" or calls
    for ours, theirs in zip(layer.buffers(), watched.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_folding_leaves_parts_with_hooks_alone():
    layer = GlobalLayer(4).eval()
    layer.velocity_x[1].register_forward_hook(lambda *_: None)
    folded = pc.fold_norm(nn.Sequential(nn.Conv2d(3, 4, 1), layer))
    assert type(folded[1].velocity_x[1]) is nn.BatchNorm2d
    assert type(folded[1].velocity_y[1]) is nn.Identity


def test_numbers_of_another_kind_are_refused_in_every_mode():
    layer = GlobalLayer(4).eval()
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"dtype|type"):
        layer(torch.randn(1, 4, 5, 5, dtype=torch.float64))
