"""Nets under `torch.compile`: no graph breaks, one compilation for all batches of one shape, equal results."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import pocketcnn as pc
from pocketcnn.train.optimizers import turned_kernels
from test_contract import Small

CASES = [
    ("plain", {}),
    ("ring", {}),
    ("puppet", {"depth": "fixed"}),
    ("pde", {}),
    ("pde", {"boundary": "reflect", "initial": "residual", "diffusivity": "perona_malik"}),
    ("pde", {"velocity_limit": 0.5, "source": False}),
    ("condconv", {}),
    ("involution", {}),
]


@pytest.fixture
def compiler(unchecked_shapes):
    """Backend that compiles forward and backward passes, but not to machine code, and counts the compilations."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the compiler
        yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def condensed(method, options):
    return Small() if method == "plain" else pc.condense(Small(), method, **options)


def assert_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * max(float(t.abs().max()) for t in theirs))


@pytest.mark.parametrize(("method", "options"), CASES)
def test_serves_without_a_break_and_compiles_once(method, options, compiler):
    net = condensed(method, options).eval()
    compiled = torch.compile(net, backend=compiler, fullgraph=True)
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(4, 3, 8, 8)
            assert_close([compiled(x)], [net(x)])
    assert compiler.frame_count == 1


@pytest.mark.parametrize("method", ["pde", "involution"])
def test_serves_channels_last(method, compiler):
    net = condensed(method, {}).to(memory_format=torch.channels_last).eval()
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_close([torch.compile(net, backend=compiler, fullgraph=True)(x)], [net(x)])


@pytest.mark.parametrize("method", ["pde", "condconv", "involution"])
def test_batches_of_any_size_take_one_compilation_more(method, compiler):
    net = condensed(method, {}).eval()
    compiled = torch.compile(net, backend=compiler, fullgraph=True)
    with torch.no_grad():
        for size in (4, 2, 3, 6):
            x = torch.randn(size, 3, 8, 8)
            assert_close([compiled(x)], [net(x)])
    assert compiler.frame_count <= 2


def test_only_training_by_entropy_takes_a_break(compiler):
    """Batch norm must not see images that have stopped, and which have is known only once the images are."""
    net = pc.condense(Small(), "puppet").eval()
    x = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        assert_close([torch.compile(net, backend=compiler, fullgraph=True)(x)], [net(x)])
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        torch.compile(net.train(), backend=compiler, fullgraph=True)(x)


@pytest.mark.parametrize(("method", "options"), CASES)
def test_learns_without_a_break_and_compiles_once(method, options, compiler):
    """Compares outputs, all gradients and running statistics over three training steps."""
    net = condensed(method, options)
    other = copy.deepcopy(net)
    compiled = torch.compile(other, backend=compiler, fullgraph=True)
    for _ in range(3):
        x = torch.randn(4, 3, 8, 8)
        found = []
        for each, call in ((net, net), (other, compiled)):
            image = x.clone().requires_grad_()
            y = call(image)
            y.square().sum().backward()
            found.append([y.detach(), image.grad, *(p.grad for p in each.parameters())])
            each.zero_grad()
        assert_close(*found)
        assert_close([b.double() for b in other.buffers()], [b.double() for b in net.buffers()])
    assert compiler.frame_count == 1


def test_a_graph_that_was_compiled_before_kernels_are_turned_is_not_used_while_they_are(compiler):
    def gradient(turned):
        net.zero_grad()
        with turned_kernels(net) if turned else contextlib.nullcontext():
            compiled(images).square().mean().backward()
        return next(p for name, p in net.named_parameters() if name.endswith("ring.values")).grad.clone()

    torch.manual_seed(0)
    net, images = condensed("ring", {}), torch.randn(4, 3, 16, 16)
    compiled = torch.compile(net, backend=compiler)
    before, turned, after = gradient(False), gradient(True), gradient(False)
    assert_close([before], [after])
    assert torch.nn.functional.cosine_similarity(turned, before, dim=0) < 0.99
    assert turned.norm() > 10 * before.norm()
