"""The compiled solver and what feeds it against the definitions: gradients, layouts, threads, as registered operators."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketcnn import kernels, numerics
from pocketcnn.cost import measure_memory
from pocketcnn.kernels import _threads, torch_ops
from pocketcnn.kernels import cpu_solver as cpu
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


# --- any shape and layout --------------------------------------------------------------------------------------------

PRECISIONS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8}
every_precision = pytest.mark.parametrize("dtype", PRECISIONS)

LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "transposed": lambda t: t.mT.contiguous().mT if t.dim() > 1 else t,
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "channels last, strided": lambda t: (
        t.repeat(1, 1, 2, 1).contiguous(memory_format=torch.channels_last)[:, :, : t.shape[2]] if t.dim() == 4 else t
    ),
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
}
layouts = st.sampled_from(list(LAYOUTS.values()))


@st.composite
def shapes(draw, least=1):
    """Whole tiles of 16 planes, parts of one, and tiles that reach into the next image."""
    batch, channels = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 16, 17, 32]))
    return batch, channels, draw(st.integers(least, 9)), draw(st.integers(least, 9))


@st.composite
def problems(draw):
    """A shape, and the settings of the solver; random numbers drawn from here on are always the same."""
    torch.manual_seed(draw(st.integers(0, 2**20)))
    boundary = draw(st.sampled_from(BOUNDARIES))
    settings = {"num_steps": draw(st.integers(0, 6)), "boundary": boundary}
    settings |= {"dt": draw(st.sampled_from([0.1, 0.2, 0.5]))}
    settings |= {name: draw(st.sampled_from([0.7, 1.0, 1.5])) for name in ("dx", "dy")}
    return draw(shapes(least=2 if boundary == "reflect" else 1)), settings


@st.composite
def coefficients(draw, shape, made):
    """A number, or a tensor that broadcasts, or one that is broadcast already."""
    batch, channels, height, width = shape
    sizes = [
        shape,
        (1, channels, 1, 1),
        (channels, 1, 1),
        (batch, 1, 1, width),
        (1, channels, height, width),
        (height, 1),
    ]
    if (size := draw(st.sampled_from([*sizes, (1,), None]))) is None:
        return 0.3
    tensor = draw(layouts)(made(size))
    return tensor.expand(shape) if draw(st.booleans()) else tensor


def compare(ours, definition, inputs, dtype, data, summed=0.0):
    """Values and gradients of a function that returns several tensors, and of its definition, on the same numbers.

    Both are compared with the definition in float64. A result may be off by the tolerance of its precision times its
    largest number. Where the terms of a gradient cancel, because flows from both sides are equal or in a sum over pixels,
    little but their rounding may be left: it may be off by the tolerance times the largest terms (numbers of the output,
    times what flows back there) and the root of how many are summed, or by a few times what the definition is in the same
    precision. Where outputs are sums themselves, `summed` is how large their terms are.
    """
    inputs = [t.to(dtype) if isinstance(t, torch.Tensor) else t for t in inputs]
    wanted = [isinstance(t, torch.Tensor) and data.draw(st.booleans()) for t in inputs]
    inputs = [
        data.draw(layouts)(t) if isinstance(t, torch.Tensor) and t.dim() == 4 and 0 not in t.stride() else t
        for t in inputs
    ]
    flows = None

    def results(function, kind):
        nonlocal flows
        tensors = [t.detach().to(kind) if isinstance(t, torch.Tensor) else t for t in inputs]
        learned = [t.requires_grad_() for t, want in zip(tensors, wanted, strict=True) if want]
        outputs = function(*tensors)
        if flows is None:
            flows = [data.draw(layouts)(torch.randn_like(y)) for y in outputs]
            flows = [torch.ones_like(y[:1, :1]).expand_as(y) for y in outputs] if data.draw(st.booleans()) else flows
        upstream = [flow.to(y.dtype) for flow, y in zip(flows, outputs, strict=True)]
        if not any(y.requires_grad for y in outputs):  # after 0 steps there may be nothing to learn
            return [*outputs, *map(torch.zeros_like, learned)]
        return [*outputs, *torch.autograd.grad(outputs, learned, upstream, materialize_grads=True)]

    found, others, exact = results(ours, dtype), results(definition, dtype), results(definition, torch.float64)
    terms = max((y.detach() * flow).abs().max() for y, flow in zip(exact, flows, strict=False))
    for place, (value, other, goal) in enumerate(zip(found, others, exact, strict=True)):
        assert (value.shape, value.dtype) == (other.shape, other.dtype)
        off, others_off = ((numbers.double() - goal).abs().max() for numbers in (value, other))
        largest = max(goal.abs().max(), summed)
        if place >= len(flows):
            largest = max(largest, terms * max(1, inputs[0].numel() / goal.numel()) ** 0.5)
        assert off <= max(PRECISIONS[dtype] * largest, 4 * others_off)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), data=st.data())
@every_precision
def test_solver_equals_the_definition(dtype, problem, data):
    shape, options = problem
    velocities = [data.draw(coefficients(shape, lambda size: torch.randn(size) / 2)) for _ in range(2)]
    diffusivities = [data.draw(coefficients(shape, torch.rand)) for _ in range(2)]
    starts = [torch.randn(shape) if data.draw(st.booleans()) else None for _ in range(2)]

    def solve(function):
        return lambda *tensors: [function(*tensors[:5], initial=tensors[5], previous=tensors[6], **options)]

    inputs = [torch.randn(shape), *velocities, *diffusivities, *starts]
    compare(solve(kernels.advect_diffuse), solve(numerics.advect_diffuse), inputs, dtype, data)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), data=st.data())
@every_precision
def test_solver_of_formed_coefficients_equals_the_definition(dtype, problem, data):
    """Images, weights, scales and shifts are few bits long: what they form is exact in every precision, and so falls on
    the same side of 0, where a coefficient that is cut off has no gradient."""
    (shape, options), count = problem, data.draw(st.integers(1, 4))
    uses = data.draw(st.lists(st.integers(-1, count - 1), min_size=4, max_size=4))
    rectified, started = data.draw(st.booleans()), data.draw(st.booleans())
    formed = torch.randint(-4, 5, (count, 11, shape[1])) / 8
    made = (lambda size: torch.randn(size) / 2, lambda size: torch.randn(size) / 2, torch.rand, torch.rand)
    given = [data.draw(coefficients(shape, kind)) for kind, use in zip(made, uses, strict=True) if use < 0]

    def solve(function):
        def of(source, formed, initial, *coefficients):
            rest = iter(coefficients)
            chosen = [0.0 if use >= 0 else next(rest) for use in uses]
            return [function(source, formed, uses, chosen, rectified=rectified, initial=initial, **options)]

        return of

    inputs = [torch.randint(-8, 9, shape) / 4, formed, torch.randn(shape) if started else None, *given]
    compare(solve(kernels.advect_diffuse_formed), solve(numerics.advect_diffuse_formed), inputs, dtype, data)


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), count=st.integers(1, 4), seed=st.integers(0, 2**20), data=st.data())
@every_precision
def test_moments_equal_the_definition(dtype, shape, count, seed, data):
    torch.manual_seed(seed)
    inputs = [torch.randn(shape) + data.draw(st.sampled_from([0, 5])), torch.randn(count, 9, shape[1])]
    summed = inputs[0].abs().max() * inputs[1].abs().sum(1).max()
    compare(kernels.depthwise_moments, numerics.depthwise_moments, inputs, dtype, data, summed)


@every_precision
def test_what_follows_the_steps(dtype):
    """A line for each channel, cut off below 0, on tiles that reach into the next image; it has no gradient."""
    source, formed, uses = (convert(t, dtype) for t in convolved(3, 17, 4, 5))
    after = torch.randn(2, 17, dtype=torch.promote_types(dtype, torch.float32))
    arguments = (source, formed, uses, (0.0, 0.2, 0.0, 0.0))
    for layout in ("contiguous", "channels last", "strided"):
        image = LAYOUTS[layout](source)
        y = kernels.advect_diffuse_formed(image, *arguments[1:], after=after)
        wide = [t.double() if isinstance(t, torch.Tensor) else t for t in arguments]
        expected = numerics.advect_diffuse_formed(*wide) * after[0, :, None, None] + after[1, :, None, None]
        assert y.dtype == dtype
        torch.testing.assert_close(
            y.double(), expected.relu(), rtol=0, atol=4 * PRECISIONS[dtype] * float(expected.abs().max())
        )
    with pytest.raises(RuntimeError, match="no gradient here; leave `after` out"):
        kernels.advect_diffuse_formed(source.requires_grad_(), *arguments[1:], after=after).sum().backward()
    with pytest.raises(ValueError, match=r"after must be \[2, 17\], got \[2, 3\]"):
        kernels.advect_diffuse_formed(*arguments, after=after[:, :3])


def convert(value, dtype):
    return value.detach().to(dtype) if isinstance(value, torch.Tensor) else value


def test_moments_far_from_zero_keep_their_digits():
    """The sum of squares less the square of the sum would leave nothing of a variance of 1 around 10 000."""
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    weights = torch.zeros(1, 9, 3)
    weights[:, 4] = 1
    (mean,), (variance,) = kernels.depthwise_moments((x + 1e4).float(), weights)
    torch.testing.assert_close(mean.double(), x.mean((0, 2, 3)) + 1e4, rtol=1e-7, atol=0)
    torch.testing.assert_close(variance.double(), x.var((0, 2, 3), correction=0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_moments_far_from_zero_are_those_of_the_definition(offset):
    """In float64 what is lost is the rounding of the numbers themselves: 2e-16 of the offset for each."""
    x = torch.randn(4, 3, 9, 8, dtype=torch.float64)
    weights = torch.zeros(1, 9, 3, dtype=torch.float64)
    weights[:, 4] = 1
    _, variance = kernels.depthwise_moments(x + offset, weights)
    expected = ((x + offset) - offset).var((0, 2, 3), correction=0)[None]
    torch.testing.assert_close(variance, expected, rtol=1e-14 * offset + 1e-13, atol=0)


def test_what_is_not_a_number_stays_visible():
    """A weight that training has lost makes coefficients that are lost, though they are cut off below 0."""
    formed = torch.randn(1, 11, 3)
    formed[0, 4] = torch.nan
    for place in range(4):
        uses = [0 if place == other else -1 for other in range(4)]
        y = kernels.advect_diffuse_formed(torch.randn(2, 3, 4, 5), formed, uses, 4 * [0.1])
        assert y.isnan().all()


def convolved(*shape):
    """A source, numbers of two convolutions, and which coefficients they make."""
    source = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    return source, torch.randn(2, 11, shape[1], dtype=torch.float64, requires_grad=True), [0, -1, 1, 1]


def test_gradcheck():
    source, u, v, along_x, along_y = fields(2, 3, 3, 4)
    along_y = torch.rand(1, 3, 1, 1, dtype=torch.float64, requires_grad=True)
    start, before = (torch.randn_like(source).requires_grad_() for _ in range(2))

    def solve(f, u, v, along_x, along_y, start, before):
        options = dict(initial=start, previous=before, num_steps=3, boundary="reflect")
        return kernels.advect_diffuse(f, u, v, along_x, along_y, **options)

    assert torch.autograd.gradcheck(solve, (source, u, v, along_x, along_y, start, before))
    source, formed, uses = convolved(2, 3, 3, 4)

    def solve_formed(f, formed, v):
        return kernels.advect_diffuse_formed(f, formed, uses, (0.0, v, 0.0, 0.0), num_steps=3, boundary="zero")

    assert torch.autograd.gradcheck(solve_formed, (source, formed, v))
    assert torch.autograd.gradcheck(kernels.depthwise_moments, (source, formed[:, :9].detach().requires_grad_()))


def test_second_derivatives():
    source, u, v, along_x, along_y = fields(1, 1, 3, 3)

    def solve(f, u, along_x):  # the same coefficients along both axes
        return kernels.advect_diffuse(f, u, u, along_x, along_x, initial=2 * f, num_steps=2)

    assert torch.autograd.gradgradcheck(solve, (source, u, along_x))
    assert torch.autograd.gradgradcheck(lambda *given: kernels.advect_diffuse(*given), (source, u, v, along_x, along_y))
    source, formed, uses = convolved(2, 3, 3, 4)

    def solve_formed(f, formed):
        return kernels.advect_diffuse_formed(f, formed, uses, (0.0, 0.1, 0.0, 0.0), num_steps=2)

    assert torch.autograd.gradgradcheck(solve_formed, (source, formed))
    weights = formed[:, :9].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(kernels.depthwise_moments, (source, weights))


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 0, 3, 4)])
def test_nothing_to_solve(shape):
    empty = torch.zeros(*shape, requires_grad=True)
    y = kernels.advect_diffuse(empty, 0.1, 0.2, 1.0, 1.0)
    assert y.shape == shape
    y.sum().backward()
    formed = torch.ones(2, 11, shape[1], requires_grad=True)
    y = kernels.advect_diffuse_formed(empty, formed, [0, 1, 1, -1], (0.0, 0.0, 0.0, 1.0))
    assert y.shape == shape
    y.sum().backward()
    assert not formed.grad.any()
    assert kernels.depthwise_moments(empty, formed[:, :9])[1].shape == (2, shape[1])
    numbers = torch.ones(4, 1, 1, 1, 1)
    assert torch_ops.advect_diffuse(empty, *numbers, None, None, 5, 0.2, 1.0, 1.0, "zero").shape == shape


@pytest.mark.parametrize("functions", [kernels, numerics], ids=["fast", "definition"])
def test_what_does_not_fit_is_named(functions, unchecked_shapes):
    """What is compiled trusts its arguments: it would read whatever lies behind an array."""
    x, formed, numbers = torch.randn(2, 3, 4, 5), torch.randn(2, 11, 3), 4 * (0.1,)
    with pytest.raises(ValueError, match=r"\[kernels, 9, channels\] do not fit .* \[2, 3, 4, 5\] and \[2, 9, 6\]"):
        functions.depthwise_moments(x, torch.randn(2, 9, 6))
    with pytest.raises(ValueError, match=r"\[kernels, 11, channels\] do not fit .* \[2, 3, 4, 5\] and \[2, 9, 3\]"):
        functions.advect_diffuse_formed(x, formed[:, :9], [0, 1, 1, 1], numbers)
    for uses in ([0, 1, 1, 2], [0, 1, 1], [-2, 1, 1, 1]):
        with pytest.raises(ValueError, match="uses must be four numbers from -1 to 1, got"):
            functions.advect_diffuse_formed(x, formed, uses, numbers)
    with pytest.raises(ValueError, match=r"diffusivity_y is \[4\], which does not broadcast"):
        functions.advect_diffuse_formed(x, formed, [0, 1, 1, -1], (0.1, 0.1, 0.1, torch.rand(4)))
    with pytest.raises(ValueError, match="diffusivity_x must not be negative"):
        functions.advect_diffuse_formed(x, formed, [0, 1, -1, 1], (0.1, 0.1, -0.1, 0.1))
    with pytest.raises(ValueError, match="there are no pixels"):
        functions.depthwise_moments(x[:, :, :0], torch.randn(2, 9, 3))


# --- threads ---------------------------------------------------------------------------------------------------------


def everything():
    """Values and gradients of all compiled functions, of more tiles than threads; sums over pixels at the end."""
    torch.manual_seed(0)
    fields_found = gradients(kernels.advect_diffuse, fields(5, 17, 4, 5))
    source, formed, uses = convolved(5, 17, 4, 5)
    weights = torch.randn(2, 9, 17, dtype=torch.float64, requires_grad=True)
    y = kernels.advect_diffuse_formed(source, formed, uses, (0.0, 0.1, 0.0, 0.0))
    of_source, of_formed = torch.autograd.grad(y, (source, formed), torch.ones_like(y).cumsum(-1))
    moments = kernels.depthwise_moments(source, weights)
    # The same moments whoever computed them, so that nothing of a sum's rounding is in what is not a sum.
    of_x, of_weights = torch.autograd.grad(moments, (source, weights), [torch.ones_like(m) for m in moments])
    return [*fields_found, y, of_source], [of_formed, *moments, of_x, of_weights]


@pytest.fixture
def threads(monkeypatch):
    """Has work be shared however little it is, and gives torch its number of threads back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(_threads, "_NUMBERS_A_THREAD", 1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("workers", ["team", "pool"])
def test_threads_share_the_planes(workers, number, threads, monkeypatch):
    """A plane is computed by one thread from its first step to its last, so that threads change no bit of it; a sum over
    pixels of several images is added up in another order."""
    threads(1)
    fields_alone, sums_alone = everything()
    if workers == "pool":
        monkeypatch.setattr(_threads, "_team", lambda: np.zeros(3, dtype=np.int64))
    elif not _threads._team().any():
        pytest.skip("torch brings no GNU OpenMP here")
    threads(number)
    fields_found, sums_found = everything()
    for ours, theirs in zip(fields_found, fields_alone, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(sums_found, sums_alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13 * float(theirs.detach().abs().max()))


def in_a_process(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    return done.stdout.split()


def test_a_team_of_fewer_threads_than_asked_for_does_all_the_work():
    code = (
        "import torch\n"
        "from pocketcnn import kernels, numerics\n"
        "from pocketcnn.kernels import _threads\n"
        "_threads._NUMBERS_A_THREAD = 1\n"
        "torch.set_num_threads(4)\n"
        "x = torch.randn(4, 16, 5, 5)\n"
        "arguments = (x, 0.1, 0.2, x * x, 1.0)\n"
        "off = kernels.advect_diffuse(*arguments) - numerics.advect_diffuse(*arguments)\n"
        "print(float(off.abs().max()) < 1e-5)\n"
    )
    assert in_a_process(code, OMP_THREAD_LIMIT="2") == ["True"]


def test_too_little_memory_is_said():
    """Every thread wants some 50 MB for a tile here; what is returned must not be whatever was in memory."""
    code = (
        "import resource, torch\n"
        "from pocketcnn import kernels\n"
        "solve = lambda x: kernels.advect_diffuse(x, 0.1, 0.2, 1.0, 1.0)\n"
        "solve(torch.randn(1, 32, 8, 8))\n"
        "x = torch.randn(1, 32, 256, 256)\n"
        "for threads in (1, 2):\n"
        "    torch.set_num_threads(threads)\n"
        "    torch.ones(2**20).add(1)\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, resource.RLIM_INFINITY))\n"
        "    try: solve(x)\n"
        "    except MemoryError: print('MemoryError')\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)\n"
        "solve(torch.randn(1, 32, 8, 8))\n"
    )
    if sys.platform != "linux":
        pytest.skip("the limit of a process's memory is Linux's")
    assert in_a_process(code) == ["MemoryError", "MemoryError"]


# --- as operators ----------------------------------------------------------------------------------------------------


def solver_arguments(dtype, layout):
    """Of the forward and the backward operator, without and with formed coefficients."""
    wide = torch.promote_types(dtype, torch.float32)
    f, start = (layout(torch.randn(2, 3, 4, 5, dtype=dtype)).requires_grad_() for _ in range(2))
    u, v, along_x, along_y = (
        layout(torch.rand(*shape, dtype=wide)).requires_grad_()
        for shape in ((2, 3, 4, 5), (1, 3, 4, 1), (1, 3, 4, 5), (1, 1, 1, 1))
    )
    formed = torch.rand(3, 11, 2, dtype=wide).mT.permute(1, 2, 0).requires_grad_()
    settings = (3, 0.2, 1.0, 1.1, "periodic")
    yield f, u, v, along_x, along_y, None, start, None, [-1] * 4, False, *settings
    yield f, along_y, v, along_y, along_y, start, None, formed, [0, -1, 1, 1], True, *settings
    finish = torch.rand(2, 3, dtype=wide)
    yield *detached((f, along_y, v, along_y, along_y, start, None, formed, [0, -1, 1, 1], True, *settings)), finish


def detached(arguments):
    return [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "channels last, strided"])
@pytest.mark.parametrize("dtype", [*PRECISIONS, torch.float16])
def test_are_proper_operators(dtype, layout):
    layout = LAYOUTS[layout]
    for arguments in solver_arguments(dtype, layout):
        torch.library.opcheck(cpu.advect_diffuse, arguments, test_utils=TESTS)
        given, wanted = detached(arguments[:15]), [isinstance(a, torch.Tensor) for a in arguments[:8]]
        given = (torch.randn_like(given[0]), *given, wanted)
        torch.library.opcheck(cpu._advect_diffuse_backward, given, test_utils=("test_schema", "test_faketensor"))
    x, weights = layout(torch.randn(2, 3, 4, 5, dtype=dtype)), torch.rand(2, 9, 3, dtype=dtype)
    torch.library.opcheck(cpu.depthwise_moments, (x.requires_grad_(), weights.requires_grad_()), test_utils=TESTS)
    mean, variance = cpu.depthwise_moments(x.detach(), weights.detach())
    given = (mean, variance, mean, x.detach(), weights.detach())
    torch.library.opcheck(cpu._depthwise_moments_backward, given, test_utils=("test_schema", "test_faketensor"))


# --- memory ----------------------------------------------------------------------------------------------------------


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
