"""The compiled solver against the definition: gradients, layouts, threads, as a registered operator."""

import subprocess
import sys

import pytest
import torch

from pocketcnn import kernels, numerics
from pocketcnn.cost import measure_memory
from pocketcnn.kernels import cpu, torch_ops
from pocketcnn.numerics.stencil import BOUNDARIES

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def fields(*shape, dtype=torch.float64):
    tensors = [torch.randn(*shape, dtype=dtype) for _ in range(3)] + [torch.rand(*shape, dtype=dtype) for _ in range(2)]
    return [t.requires_grad_() for t in tensors]


def gradients(solve, inputs, **options):
    y = solve(*inputs, **options)
    wanted = [t for t in inputs if isinstance(t, torch.Tensor) and t.requires_grad]
    return [y, *torch.autograd.grad(y, wanted, torch.ones_like(y).cumsum(-1))]


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("size", [(2, 2), (5, 7), (9, 3)])
@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_gradients_equal_the_definitions(boundary, size, num_steps):
    inputs = fields(3, 2, *size)
    inputs[4] = torch.rand(1, 2, 1, 1, dtype=torch.float64).requires_grad_()
    options = dict(num_steps=num_steps, dt=0.3, dx=0.8, dy=1.2, boundary=boundary)
    if num_steps == 0:
        assert torch.equal(kernels.advect_diffuse(*inputs, **options), inputs[0])
        return
    for ours, theirs in zip(
        gradients(kernels.advect_diffuse, inputs, **options),
        gradients(numerics.advect_diffuse, inputs, **options),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_chunks_equal_the_definition(monkeypatch):
    """What devices without a compiled solver use: a few images at a time, and again in the backward pass."""
    monkeypatch.setattr(torch_ops, "_CHUNKS", 3)
    inputs = fields(5, 1, 4, 5)
    inputs[3] = torch.rand(1, 1, 1, 5, dtype=torch.float64).requires_grad_()

    def in_chunks(*tensors):
        return torch_ops.advect_diffuse(*tensors, None, None, 4, 0.2, 1.0, 1.0, "replicate")

    for ours, theirs in zip(
        gradients(in_chunks, inputs),
        gradients(numerics.advect_diffuse, inputs, num_steps=4, boundary="replicate"),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_takes_any_layout():
    inputs = [t.detach() for t in fields(2, 4, 5, 6)]
    expected = numerics.advect_diffuse(*inputs)
    for turn in (
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.mT.contiguous().mT,
        lambda t: torch.stack([t, t], dim=-1)[..., 0],
    ):
        torch.testing.assert_close(kernels.advect_diffuse(*map(turn, inputs)), expected, rtol=1e-12, atol=1e-12)


def test_threads_share_the_planes(monkeypatch):
    monkeypatch.setattr(cpu, "_NUMBERS_A_THREAD", 1)
    inputs = fields(3, 5, 4, 5)
    alone = gradients(kernels.advect_diffuse, inputs)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for ours, theirs in zip(gradients(kernels.advect_diffuse, inputs), alone, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4)])
def test_nothing_to_solve(shape):
    empty = torch.zeros(*shape, requires_grad=True)
    y = kernels.advect_diffuse(empty, 0.1, 0.2, 1.0, 1.0)
    assert y.shape == shape
    y.sum().backward()
    numbers = torch.ones(4, 1, 1, 1, 1)
    assert torch_ops.advect_diffuse(empty, *numbers, None, None, 5, 0.2, 1.0, 1.0, "zero").shape == shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_is_a_proper_operator(dtype):
    f, u, v, along_x, _along_y = fields(2, 2, 4, 5, dtype=dtype)
    arguments = (
        f,
        u,
        v,
        along_x,
        torch.ones(1, 1, 1, 1, dtype=dtype),
        None,
        f.detach().clone(),
        3,
        0.2,
        1.0,
        1.0,
        "periodic",
    )
    torch.library.opcheck(cpu.advect_diffuse, arguments, test_utils=TESTS)


def test_memory_of_the_process_does_not_grow_with_the_steps():
    """The largest size the process ever had, in maps, after 1 step and after 20: less than one map per 4 steps more."""
    code = (
        "import resource, torch\n"
        "from pocketcnn.methods.pde import GlobalLayer\n"
        "x = torch.randn(64, 16, 32, 32)\n"
        "def peak(num_steps):\n"
        "    layer = GlobalLayer(16, num_steps=num_steps)\n"
        "    for _ in range(2): layer(x).sum().backward()\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(1)\n"
        "print((peak(20) - before) / (x.numel() * 4))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 19 / 4


def test_memory_in_chunks_grows_by_less_than_a_map_per_four_steps():
    class InChunks(torch.nn.Module):
        def __init__(self, num_steps):
            super().__init__()
            self.num_steps = num_steps
            self.speed = torch.nn.Parameter(torch.rand(8, 16, 16))

        def forward(self, x):
            speed = self.speed * x
            rest = (x.new_ones(1, 1, 1, 1), x.new_ones(1, 1, 1, 1), None, None)
            return torch_ops.advect_diffuse(x, speed, speed, *rest, self.num_steps, 0.2, 1.0, 1.0, "periodic")

    one_map = 64 * 8 * 16 * 16 * 4
    few, many = (measure_memory(InChunks(k), (8, 16, 16), batch=64, training=True) / one_map for k in (1, 21))
    assert many - few < 5
