"""What torch offers for any net works with every method too: symbolic traces, all derivatives, `torch.func`, other inputs."""

import copy
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jvp, linearize, vmap

import pocketcnn as pc
from pocketcnn import kernels, numerics
from pocketcnn.methods._conv import check_images
from pocketcnn.methods.condconv import CondConv2d
from pocketcnn.methods.involution import Involution2d
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.methods.puppet import gauge_of
from pocketcnn.methods.ring import RingConv2d

pytestmark = pytest.mark.usefixtures("unchecked_shapes")  # tracers cannot pass their checks, nor wrong inputs

CONDENSED = {
    "ring": ("ring", {}),
    "condconv": ("condconv", {}),
    "condconv-block": ("condconv", {"routing": "block"}),
    "involution": ("involution", {"group_channels": 2}),
    "pde": ("pde", {}),
    "pde-residual": ("pde", {"velocity": "residual", "diffusivity": "perona_malik", "source": False}),
    "puppet": ("puppet", {"depth": "fixed"}),
    "puppet-entropy": ("puppet", {"depth": "entropy"}),
    "puppet-features": ("puppet", {"depth": "entropy", "measure": "features"}),
}
every_method = pytest.mark.parametrize("name", CONDENSED)


def images(count, dtype=torch.float32):
    """Images from simple to complex, so that an adaptive net sends them to several depths."""
    noise = torch.rand(count, 3, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(count))
    return noise * torch.linspace(0.02, 1, count)[:, None, None, None].to(dtype)


def condensed(name, *, training=False, dtype=torch.float32):
    """A small net with norms that matter."""
    torch.manual_seed(0)
    method, options = CONDENSED[name]
    net = pc.condense(pc.create_model("resnet20", width=0.125), method, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return net.to(dtype).train(training)


class Inside(nn.Module):
    """A net as a part of another."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(2 * x) + 1


@every_method
def test_symbolic_traces_equal_the_net(name):
    net = condensed(name)
    traced = torch.fx.symbolic_trace(net)
    again = torch.fx.symbolic_trace(copy.deepcopy(traced))
    within = torch.fx.symbolic_trace(Inside(net))
    for count in (4, 1):
        x = images(count)
        assert torch.equal(traced(x), net(x))
        assert torch.equal(again(x), net(x))
        assert torch.equal(within(x / 2), net(x) + 1)
    learner = condensed(name, training=True)
    recorded = torch.fx.symbolic_trace(copy.deepcopy(learner))
    assert torch.equal(recorded(images(4)), learner(images(4)))


def test_a_symbolic_trace_keeps_the_gauge():
    net = condensed("puppet-entropy")
    traced = torch.fx.symbolic_trace(net)
    x = images(4)
    with gauge_of(net).pinned(0):
        assert torch.equal(traced(x), net(x))
        assert not torch.equal(traced(x), traced(x.flip(1)))
    with gauge_of(traced).recording(traced) as (_, record):
        traced(x)
    assert record[0][0].tolist() == gauge_of(net).levels_of(x).tolist()
    assert len(set(record[0][0].tolist())) > 1

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = pc.create_model("resnet20", width=0.125)

        def forward(self, x, other):
            return self.net(x) + other

    with pytest.raises(ValueError, match="it got 2 such tensors instead of one"):
        torch.fx.symbolic_trace(pc.condense(Two(), "puppet", depth="entropy"))


def test_a_layer_cannot_be_traced_alone():
    tracer = torch.fx.Tracer()
    tracer.graph = torch.fx.Graph()
    image = tracer.create_proxy("placeholder", "x", (), {})
    with pytest.raises(TypeError, match=r"cannot trace it alone; trace nn\.Sequential\(layer\)"):
        check_images(image, 4)
    assert torch.fx.symbolic_trace(nn.Sequential(RingConv2d(4, 4, 3)))(torch.rand(2, 4, 5, 5)).shape == (2, 4, 3, 3)


@pytest.mark.parametrize("name", ["ring", "condconv", "involution"])
def test_a_graph_can_be_condensed(name):
    method, options = CONDENSED[name]
    graph = torch.fx.symbolic_trace(pc.create_model("resnet20", width=0.125))
    small = pc.condense(graph, method, **options).eval()
    assert torch.equal(torch.fx.symbolic_trace(small)(images(2)), small(images(2)))
    direct = pc.condense(pc.create_model("resnet20", width=0.125), method, **options).eval()
    direct.load_state_dict(small.state_dict())
    assert torch.equal(direct(images(2)), small(images(2)))


def fields(*shape, count=1):
    torch.manual_seed(0)
    return [torch.rand(*shape, dtype=torch.float64) for _ in range(count)]


def operators():
    """Each function with a fast twin: the module's function of float64 tensors, and these tensors."""
    (x,), (one, own) = fields(2, 4, 4, 3), (*fields(2, 1, 9, 4, 3), *fields(2, 2, 9, 4, 3))
    (formed,), (weights,) = fields(2, 11, 4), fields(2, 9, 4)
    coefficients = fields(2, 4, 4, 3, count=4)

    def involve(module):
        return lambda x, k: module.involution2d(x, k, kernel_size=3, padding=1)

    return {
        "involution of a large group": (involve, (x, one)),
        "involution of small groups": (involve, (x, own)),
        "solver": (lambda module: lambda *given: module.advect_diffuse(*given, num_steps=2), (x, *coefficients)),
        "solver of one field": (
            lambda module: lambda f, u: module.advect_diffuse(f, u, u, u, u, initial=2 * f, previous=f, num_steps=2),
            (x, coefficients[0]),
        ),
        "formed": (
            lambda module: (
                lambda f, c: module.advect_diffuse_formed(f, c, [0, 1, -1, -1], [0, 0, 0.5, 0.5], num_steps=2)
            ),
            (x, formed),
        ),
        "moments": (lambda module: lambda x, w: torch.stack(module.depthwise_moments(x, w)), (x, weights)),
    }


every_operator = pytest.mark.parametrize("name", operators())


@every_operator
@pytest.mark.parametrize("numba", [True, False])
def test_gradients_of_gradients(name, numba, monkeypatch):
    if not numba:
        monkeypatch.setattr(kernels, "_has_numba", lambda: False)
    function, inputs = operators()[name]
    inputs = [x.requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(function(kernels), inputs, fast_mode=True)


@every_operator
def test_forward_mode_derivatives(name):
    function, inputs = operators()[name]
    fast, slow = function(kernels), function(numerics)
    tangents = tuple(torch.rand_like(x) for x in inputs)
    wanted = jvp(slow, inputs, tangents)[1]
    torch.testing.assert_close(jvp(fast, inputs, tangents)[1], wanted)
    with forward_ad.dual_level(), torch.no_grad():
        dual = fast(*(forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own graph
        torch.testing.assert_close(linearize(fast, *inputs)[1](*tangents), wanted)
    first, *rest = inputs
    assert torch.allclose(
        jacfwd(lambda x: fast(x, *rest).sum(0))(first), jacfwd(lambda x: slow(x, *rest).sum(0))(first)
    )
    # Forward over reverse: the gradient was recorded before the tangents came.
    x = first.clone().requires_grad_()
    y, z = fast(x, *rest), slow(x, *rest)
    with forward_ad.dual_level():
        along = forward_ad.make_dual(torch.ones_like(y), torch.rand_like(y))
        found, known = (forward_ad.unpack_dual(torch.autograd.grad(out, x, along)[0]).tangent for out in (y, z))
        torch.testing.assert_close(found, known)


def test_operators_refuse_tangents():
    x, k = torch.rand(1, 4, 4, 3), torch.rand(1, 2, 9, 4, 3)
    geometry = (3, 3, [1, 1], [1, 1], [1, 1])
    operators = torch.ops.pocketcnn
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        for call in (
            lambda: operators.involution2d(dual, k, *geometry),
            lambda: operators.involution2d(dual, k[:, :1], *geometry),
            lambda: operators.depthwise_moments(dual, torch.rand(1, 9, 4)),
            lambda: operators.advect_diffuse(
                dual, x, x, x, x, None, None, None, [-1] * 4, False, 1, 0.2, 1.0, 1.0, "zero"
            ),
        ):
            with pytest.raises(
                NotImplementedError, match=r"has no forward-mode derivative; the function pocketcnn\.kernels\."
            ):
                call()


def defined(monkeypatch):
    monkeypatch.setattr(kernels, "_defined", lambda: True)


@every_method
@pytest.mark.parametrize("training", [True, False])
def test_gradient_penalty(name, training, monkeypatch):
    def penalised():
        net, x = condensed(name, training=training, dtype=torch.float64), images(3, torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, *net.parameters()], allow_unused=True)

    found = penalised()
    defined(monkeypatch)
    for one, other in zip(found, penalised(), strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-6)
    assert found[0] is not None
    assert found[0].any()


@every_method
def test_transforms_of_nets(name):
    net, x = condensed(name), images(3)
    torch.testing.assert_close(vmap(lambda image: net(image[None])[0])(x), net(x))
    along = 0.01 * torch.rand_like(x)
    wide, exact = copy.deepcopy(net).double(), (x.double(), 1e-6 * along.double())
    with torch.no_grad():
        slope = (wide(exact[0] + exact[1]) - wide(exact[0] - exact[1])) / 2e-6
    torch.testing.assert_close(
        jvp(net, (x,), (along,))[1].double(), slope, rtol=1e-2, atol=1e-3 * float(slope.abs().max())
    )
    with torch.no_grad():  # kernels that were kept must not take the place of those with tangents
        weights = {key: weight.detach() for key, weight in wide.named_parameters()}
        wide(exact[0])
        tangents = {key: torch.ones_like(weight) for key, weight in weights.items()}
        made = jvp(lambda given: functional_call(wide, given, (exact[0],)), (weights,), (tangents,))[1]
    assert made.abs().max() > 1e-3


@pytest.mark.parametrize("name", ["condconv", "involution", "pde"])
def test_gradients_of_each_image(name):
    net, x = condensed(name), images(3)
    weights = {key: weight.detach() for key, weight in net.named_parameters()}

    def loss(weights, image):
        return functional_call(net, weights, (image[None],)).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for row in range(3):
        alone = torch.autograd.grad(net(x[row : row + 1]).square().sum(), list(net.parameters()))
        for made, wanted in zip(found.values(), alone, strict=True):
            torch.testing.assert_close(made[row], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # torch warns of such traces, and that they are deprecated
@every_method
def test_script_traces_take_other_batches(name):
    net = condensed(name)
    traced = torch.jit.trace(net, images(2), check_trace=False)
    for count in (1, 3):
        torch.testing.assert_close(traced(images(count)), net(images(count)))
    assert traced(images(3)[:0]).shape == (0, 10)
    with pytest.raises(RuntimeError, match="script cannot read"):
        torch.jit.script(net)


LAYERS = {
    "ring": lambda: RingConv2d(4, 8, 3, padding=1, stride=2, padding_mode="circular"),
    "condconv": lambda: CondConv2d(4, 8, 3, padding="same", groups=2),
    "involution": lambda: Involution2d(4, 4, 3, stride=2, group_channels=2).eval(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_image_without_a_batch(name):
    layer, x = LAYERS[name](), torch.rand(4, 7, 6)
    torch.testing.assert_close(layer(x), layer(x[None])[0], rtol=1e-6, atol=1e-6)


WRONG = {
    "no batch axis": (torch.rand(6, 6), ValueError, r"the input is \[6, 6\]; it takes \[batch, 4, height, width\]"),
    "too many axes": (torch.rand(1, 1, 4, 6, 6), ValueError, r"the input is \[1, 1, 4, 6, 6\]"),
    "a number": (torch.tensor(1.0), ValueError, r"the input is \[\]"),
    "channels": (torch.rand(2, 3, 6, 6), ValueError, r"images of 4 channels, the input is \[2, 3, 6, 6\]"),
    "no pixels": (torch.rand(2, 4, 0, 6), ValueError, r"the input is \[2, 4, 0, 6\]; .* at least one pixel"),
    "whole numbers": (torch.ones(2, 4, 6, 6, dtype=torch.long), RuntimeError, "(?i)long"),
    "another precision": (torch.rand(2, 4, 6, 6, dtype=torch.float64), RuntimeError, "(?i)double"),
    "complex numbers": (torch.rand(2, 4, 6, 6) + 0j, RuntimeError, "(?i)complex"),
    "no tensor": ([1.0], TypeError, "must be a tensor of images, not a list"),
}


@pytest.mark.parametrize("layer", [*LAYERS, "pde"])
@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_inputs_are_named(layer, wrong):
    x, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        LAYERS.get(layer, lambda: GlobalLayer(4).eval())()(x)


def test_a_global_layer_asks_for_the_batch():
    with pytest.raises(ValueError, match=r"the input is \[4, 6, 6\]; it takes \[batch, 4, height, width\]"):
        GlobalLayer(4)(torch.rand(4, 6, 6))


@every_operator
@pytest.mark.parametrize("module", [kernels, numerics])
def test_empty_batches_have_empty_results_and_no_gradients(name, module):
    function, inputs = operators()[name]
    full = function(module)(*inputs).shape
    inputs = [(x[:0] if len(x) == 2 and x.dim() > 3 else x).clone().requires_grad_() for x in inputs]
    y = function(module)(*inputs)
    assert y.shape == (full if name == "moments" else (0, *full[1:]))
    for slope, x in zip(torch.autograd.grad(y.sum(), inputs), inputs, strict=True):
        assert slope.shape == x.shape
        assert not slope.any()


@pytest.mark.parametrize("computation", ["auto", "mix_kernels", "mix_outputs", "unfold"])
def test_empty_batches_of_condconv(computation):
    given = [torch.rand(*shape, requires_grad=True) for shape in ((0, 4, 6, 5), (0, 3), (3, 2, 4, 3, 3), (3, 2))]
    y = numerics.condconv2d(*given, computation=computation)
    assert y.shape == (0, 2, 4, 3)
    assert not any(slope.any() for slope in torch.autograd.grad(y.sum(), given))


@pytest.mark.parametrize(
    "options", [{"diffusivity": 0.5}, {"velocity": 0.25}, {"diffusivity": "constant", "source": False}]
)
def test_plain_numbers_compile(options):
    layer, x = GlobalLayer(4, **options).eval(), torch.rand(2, 4, 5, 5)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


_WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"):
    sys.modules[name] = None  # importing it raises ImportError
import torch, numpy, multiprocessing.connection, concurrent.futures, numba, lightning, optuna  # they know Windows themselves
for name in [n for n in vars(signal) if n.startswith(("SIG", "pthread_")) and n not in {
    "SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN",
}]:
    delattr(signal, name)
for name in ("fork", "forkpty", "sched_getaffinity", "getuid", "geteuid", "getgid", "sysconf", "uname", "mkfifo", "killpg",
             "setsid", "getpgid", "getloadavg", "O_NONBLOCK", "O_NOFOLLOW", "pread", "chown", "register_at_fork"):
    if hasattr(os, name):
        delattr(os, name)
import pocketcnn
for found in pkgutil.walk_packages(pocketcnn.__path__, "pocketcnn."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
from pocketcnn.support.signals import STOP
assert [number.name for number in STOP] == ["SIGINT", "SIGTERM"], STOP
from pocketcnn.train.callbacks import Safeguard
with Safeguard(None, 1.0):
    pass
pocketcnn.condense(pocketcnn.create_model("resnet20", width=0.125), "condconv")
"""


def test_every_module_imports_without_posix():
    done = subprocess.run([sys.executable, "-c", _WITHOUT_POSIX], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
