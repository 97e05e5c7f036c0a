"""The solver, the definition and its fast twin alike: against a loop, known solutions, and its own promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from pocketcnn import kernels, numerics
from pocketcnn.numerics import courant, limit_velocity, perona_malik
from pocketcnn.numerics.stencil import BOUNDARIES, neighbours

both = pytest.mark.parametrize("solve", [numerics.advect_diffuse, kernels.advect_diffuse], ids=["definition", "fast"])
every_boundary = pytest.mark.parametrize("boundary", BOUNDARIES)


def fields(*shape, dtype=torch.float64):
    """Source, u, v, Dx, Dy, H[0], H[-1]: signs mixed, diffusivities positive."""
    f, u, v, start, before = (torch.randn(*shape, dtype=dtype) for _ in range(5))
    return f, u, v, torch.rand(*shape, dtype=dtype), torch.rand(*shape, dtype=dtype), start, before


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    boundary=st.sampled_from(BOUNDARIES),
    num_steps=st.integers(0, 4),
    grid=st.tuples(*3 * [st.sampled_from([0.2, 0.7, 1.5])]),
)
def test_equals_loop(size, boundary, num_steps, grid):
    if boundary == "reflect":
        size = tuple(max(2, n) for n in size)
    dt, dx, dy = grid
    *coefficients, start, before = fields(1, 2, *size)
    expected = oracles.advect_diffuse(*coefficients, start, before, num_steps, dt, dx, dy, boundary)
    options = dict(initial=start, previous=before, num_steps=num_steps, dt=dt, dx=dx, dy=dy, boundary=boundary)
    for solve in (numerics.advect_diffuse, kernels.advect_diffuse):
        torch.testing.assert_close(solve(*coefficients, **options), expected, rtol=1e-10, atol=1e-10)


@both
def test_starts_at_the_source_by_default(solve):
    f, u, v, along_x, along_y, *_ = fields(2, 1, 4, 5)
    given = solve(f, u, v, along_x, along_y, initial=f, previous=f, num_steps=3)
    assert torch.equal(solve(f, u, v, along_x, along_y, num_steps=3), given)
    assert torch.equal(solve(f, u, v, along_x, along_y, num_steps=0), f)


@both
@every_boundary
def test_coefficients_broadcast(solve, boundary):
    f, *_ = fields(2, 3, 4, 5)
    u, v = torch.randn(3, 1, 1, dtype=torch.float64), torch.randn(4, 1, dtype=torch.float64)
    along_x = torch.rand(2, 1, 1, 5, dtype=torch.float64)
    whole = [t.expand(2, 3, 4, 5).contiguous() for t in (u, v, along_x, torch.full((1,), 0.4, dtype=torch.float64))]
    torch.testing.assert_close(
        solve(f, u, v, along_x, 0.4, boundary=boundary), solve(f, *whole, boundary=boundary), rtol=1e-12, atol=1e-12
    )


@both
@every_boundary
def test_transposing_image_and_velocities_transposes_the_result(solve, boundary):
    f, u, v, along_x, along_y, start, before = fields(2, 3, 5, 4)
    options = dict(initial=start, previous=before, num_steps=4, dt=0.3, boundary=boundary)
    y = solve(f, u, v, along_x, along_y, **options, dx=0.7, dy=1.3)
    options |= dict(initial=start.mT, previous=before.mT)
    turned = solve(f.mT, v.mT, u.mT, along_y.mT, along_x.mT, **options, dx=1.3, dy=0.7)
    torch.testing.assert_close(turned.mT, y, rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize("boundary", ["periodic", "replicate", "reflect"])
def test_a_constant_field_stays_without_velocity_and_source(solve, boundary):
    *_, along_x, along_y, _, _ = fields(1, 2, 5, 6)
    field = torch.full((1, 2, 5, 6), 3.0, dtype=torch.float64)
    y = solve(torch.zeros_like(field), 0.0, 0.0, along_x, along_y, initial=field, previous=field, boundary=boundary)
    torch.testing.assert_close(y, field, rtol=1e-13, atol=0)


@both
def test_zeros_outside_drain_a_constant_field(solve):
    field = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    y = solve(torch.zeros_like(field), 0.0, 0.0, 1.0, 1.0, initial=field, previous=field, boundary="zero")
    assert y.sum() < 0.8 * field.sum()


@both
def test_periodic_diffusion_keeps_the_sum(solve):
    *_, start, before = fields(2, 3, 6, 5)
    before = before - before.mean((2, 3), keepdim=True) + start.mean((2, 3), keepdim=True)
    y = solve(torch.zeros_like(start), 0.0, 0.0, 0.7, 0.7, initial=start, previous=before, num_steps=50)
    torch.testing.assert_close(y.sum((2, 3)), start.sum((2, 3)), rtol=1e-12, atol=1e-12)


@both
@pytest.mark.parametrize(("u", "v", "shift"), [(1.0, 0.0, (0, 1)), (0.0, 1.0, (1, 0)), (0.0, -1.0, (-1, 0))])
def test_whole_cell_advection_is_a_roll(solve, u, v, shift):
    """A positive velocity carries features towards larger coordinates, x along the width."""
    *_, start, _ = fields(2, 3, 5, 4)
    before = start.roll((-shift[0], -shift[1]), (2, 3))
    y = solve(torch.zeros_like(start), u, v, 0.0, 0.0, initial=start, previous=before, num_steps=7, dt=1.0)
    torch.testing.assert_close(y, start.roll((7 * shift[0], 7 * shift[1]), (2, 3)), rtol=1e-12, atol=1e-12)


def test_rows_interact():
    """A dot in one row reaches the rows beside it, and no other channel."""
    dot = torch.zeros(1, 2, 5, 5)
    dot[0, 0, 2, 2] = 1
    y = numerics.advect_diffuse(dot, 0.0, 0.0, 1.0, 1.0, num_steps=1)
    assert y[0, 0, 1, 2] == y[0, 0, 3, 2] == y[0, 0, 2, 1] == y[0, 0, 2, 3] > 0
    assert not y[0, 1].any()


def _operator(u, v, along_x, along_y, dx, dy):
    """The equation on the grid, periodic, as a matrix: Dx H_xx + Dy H_yy - d(u H)/dx - d(v H)/dy by central differences."""
    height, width = u.shape
    matrix = np.zeros((height * width, height * width))
    for y in range(height):
        for x in range(width):
            row = matrix[y * width + x]
            for axis, d, speed, spread in ((0, dy, v, along_y), (1, dx, u, along_x)):
                after = ((y + 1) % height, x) if axis == 0 else (y, (x + 1) % width)
                before = ((y - 1) % height, x) if axis == 0 else (y, (x - 1) % width)
                row[after[0] * width + after[1]] += spread[y, x] / d**2 - speed[y, x] / (2 * d)
                row[before[0] * width + before[1]] += spread[y, x] / d**2 + speed[y, x] / (2 * d)
                row[y * width + x] -= 2 * spread[y, x] / d**2 + (speed[after] - speed[before]) / (2 * d)
    return matrix


def _slope(steps, errors):
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


@both
@pytest.mark.parametrize("terms", ["advection", "diffusion", "both"])
def test_order_2_in_dt_on_a_fixed_grid(solve, terms):
    f, u, v, along_x, along_y, start, _ = fields(1, 1, 5, 6)
    u, v = (0 * u, 0 * v) if terms == "diffusion" else (0.3 * u, 0.3 * v)
    along_x, along_y = (0 * along_x, 0 * along_y) if terms == "advection" else (0.2 * along_x, 0.2 * along_y)
    dx, dy, end = 0.9, 1.1, 1.0
    matrix = torch.from_numpy(_operator(*(t[0, 0].numpy() for t in (u, v, along_x, along_y)), dx, dy))
    # With the source as a 31st unknown that never changes: the exact solution is a matrix exponential.
    whole = torch.zeros(31, 31, dtype=torch.float64)
    whole[:30, :30], whole[:30, 30] = matrix, f.flatten()
    state = torch.cat([start.flatten(), torch.ones(1, dtype=torch.float64)])

    def exact(time):
        return (torch.linalg.matrix_exp(time * whole) @ state)[:30].reshape(1, 1, 5, 6)

    steps, errors = [end / n for n in (8, 16, 32, 64)], []
    for dt in steps:
        y = solve(
            f,
            u,
            v,
            along_x,
            along_y,
            initial=start,
            previous=exact(-dt),
            num_steps=round(end / dt),
            dt=dt,
            dx=dx,
            dy=dy,
        )
        errors.append(float((y - exact(end)).abs().max()))
    assert 1.9 < _slope(steps, errors) < 2.1


def _wave(size, time, u, v, diffusivity):
    """A Fourier mode on the unit square, carried along and decaying."""
    x = torch.arange(size, dtype=torch.float64) / size
    kx, ky = 2 * math.pi, 4 * math.pi
    phase = kx * (x[None, :] - u * time) + ky * (x[:, None] - v * time)
    return (math.exp(-diffusivity * (kx**2 + ky**2) * time) * phase.cos())[None, None]


@both
@pytest.mark.parametrize(("u", "v", "diffusivity"), [(0.5, -0.3, 0.0), (0.0, 0.0, 0.02), (0.5, -0.3, 0.02)])
def test_order_2_in_dx_with_dt_like_its_square(solve, u, v, diffusivity):
    sizes, errors = (16, 32, 64), []
    for size in sizes:
        dx, num_steps = 1 / size, size**2 // 16
        dt = 0.1 / num_steps
        start, before = _wave(size, 0.0, u, v, diffusivity), _wave(size, -dt, u, v, diffusivity)
        y = solve(
            torch.zeros_like(start), u, v, diffusivity, diffusivity,
            initial=start, previous=before, num_steps=num_steps, dt=dt, dx=dx, dy=dx,
        )  # fmt: skip
        errors.append(float((y - _wave(size, 0.1, u, v, diffusivity)).abs().max()))
    assert 1.9 < _slope([1 / n for n in sizes], errors) < 2.15


@both
def test_a_fourier_mode_decays_by_the_closed_form(solve):
    """L g^2 - (4 Bx cos kx + 4 By cos ky) g - M = 0 for a mode that is multiplied by g in each step."""
    dx, dy, dt, along_x, along_y = 0.7, 1.2, 0.3, 0.4, 0.6
    kx, ky = 2 * math.pi * 2 / 8, 2 * math.pi * 1 / 6
    bx, by = along_x * dt / dx**2, along_y * dt / dy**2
    middle = 2 * bx * math.cos(kx) + 2 * by * math.cos(ky)
    factor = (middle + math.sqrt(middle**2 + 1 - (2 * bx + 2 * by) ** 2)) / (1 + 2 * bx + 2 * by)
    x, y = torch.arange(8, dtype=torch.float64), torch.arange(6, dtype=torch.float64)
    mode = (kx * x[None, :] + ky * y[:, None]).cos()[None, None]
    options = dict(initial=mode, previous=mode / factor, num_steps=9, dt=dt, dx=dx, dy=dy)
    decayed = solve(torch.zeros_like(mode), 0.0, 0.0, along_x, along_y, **options)
    torch.testing.assert_close(decayed, factor**9 * mode, rtol=1e-10, atol=1e-12)


@both
@every_boundary
def test_gradcheck_of_every_coefficient(solve, boundary):
    inputs = [t.requires_grad_() for t in fields(2, 2, 3, 4)]

    def compute(f, u, v, along_x, along_y, start, before):
        return solve(
            f, u, v, along_x, along_y, initial=start, previous=before, num_steps=3, dt=0.3, dx=0.8, boundary=boundary
        )

    assert torch.autograd.gradcheck(compute, inputs)


@pytest.mark.parametrize("dt", [0.01, 0.2, 5.0, 1000.0])
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_diffusion_is_bounded_at_any_step(dt, boundary):
    *_, start, before = fields(1, 4, 8, 7)
    y = kernels.advect_diffuse(
        torch.zeros_like(start), 0.0, 0.0, 0.8, 0.8,
        initial=start, previous=before, num_steps=10_000, dt=dt, boundary=boundary,
    )  # fmt: skip
    # The mean and the checkerboard may drift for about as many steps as the diffusion number says, and no further.
    assert y.abs().max() < (2 + 4 * 0.8 * dt) * (start.abs().max() + before.abs().max())


def test_beyond_the_courant_limit_it_grows_and_limited_it_does_not():
    *_, start, _ = fields(1, 1, 16, 16)
    u = v = torch.full_like(start, 3.5)
    assert courant(u, v, dt=0.2) == pytest.approx(1.4)
    options = dict(initial=start, previous=start, num_steps=400)
    nothing = torch.zeros_like(start)
    assert kernels.advect_diffuse(nothing, u, v, 0.0, 0.0, **options).abs().max() > 1e30
    limited = limit_velocity(u, v, 0.95)
    assert courant(*limited) == pytest.approx(0.95)
    assert kernels.advect_diffuse(nothing, *limited, 0.0, 0.0, **options).abs().max() < 10 * start.abs().max()


def test_limited_velocities_keep_their_direction():
    u, v = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    short_u, short_v = limit_velocity(5 * u, 5 * v, 0.3, dt=0.2, dx=0.5, dy=2.0)
    torch.testing.assert_close(short_u * v, short_v * u)
    assert courant(short_u, short_v, 0.2, 0.5, 2.0) <= 0.3 + 1e-6
    assert courant(*limit_velocity(u.bfloat16() * 9, v.bfloat16() * 9, 1.0)) <= 1 + 1e-6
    assert all(torch.equal(a, b) for a, b in zip(limit_velocity(u, v, 1e6), (u, v), strict=True))


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_takes_its_steps_in_float32(solve, dtype):
    f, u, v, along_x, along_y, *_ = fields(2, 3, 6, 5, dtype=torch.float32)
    low = [t.to(dtype) for t in (f, u, v, along_x, along_y)]
    y = solve(*low, num_steps=20)
    assert y.dtype == dtype
    assert torch.equal(y, solve(*(t.float() for t in low), num_steps=20).to(dtype))


@both
def test_mistakes_are_named(solve, unchecked_shapes):
    f = torch.randn(2, 3, 1, 5)
    cases = [
        (dict(dt=0.0), r"dt, dx and dy must be positive numbers, got 0.0, 1.0, 1.0"),
        (dict(dx=-1.0), r"must be positive"),
        (dict(dy=float("nan")), r"must be positive"),
        (dict(num_steps=-1), r"num_steps must be 0 or more, got -1"),
        (dict(boundary="reflect"), r"'reflect' needs at least 2 pixels along each axis, got 1 x 5"),
        (dict(boundary="mirror"), r"no boundary 'mirror'; known: periodic, replicate, reflect, zero"),
        (dict(initial=f[:1]), r"initial is \[1, 3, 1, 5\], the source \[2, 3, 1, 5\]"),
        (
            dict(velocity_x=torch.zeros(2, 4, 1, 5)),
            r"velocity_x is \[2, 4, 1, 5\], which does not broadcast to the field",
        ),
        (dict(diffusivity_y=torch.ones(4, 1, 1)), r"diffusivity_y is \[4, 1, 1\], which does not broadcast"),
        (dict(diffusivity_x=float("nan")), r"diffusivity_x must not be negative, got nan"),
        (dict(diffusivity_x=-0.5), r"diffusivity_x must not be negative, got -0.5: the problem would be ill-posed"),
    ]
    for changed, message in cases:
        arguments = dict(velocity_x=0.0, velocity_y=0.0, diffusivity_x=1.0, diffusivity_y=1.0) | changed
        with pytest.raises(ValueError, match=message):
            solve(f, **arguments)


@both
@pytest.mark.parametrize(
    "field", [torch.zeros(3, 4, 5), torch.zeros(1, 1, 0, 4), torch.zeros(1, 1, 3, 3, dtype=torch.int64)]
)
def test_fields_that_are_none(solve, field, unchecked_shapes):
    with pytest.raises(
        ValueError, match=r"the field must be floating-point numbers \[batch, channels, height, width\]"
    ):
        solve(field, 0.0, 0.0, 1.0, 1.0)


def test_the_definition_looks_at_diffusivities_that_are_tensors():
    f = torch.randn(1, 1, 3, 3)
    with pytest.raises(ValueError, match=r"diffusivity_y must not be negative, got -0\.25"):
        numerics.advect_diffuse(f, 0.0, 0.0, 1.0, torch.tensor([1.0, -0.25, 1.0]))


@every_boundary
def test_perona_malik_equals_loop(boundary):
    h = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    kernel = {(-1, -1): 1, (0, -1): 2, (1, -1): 1, (-1, 1): -1, (0, 1): -2, (1, 1): -1}
    pad = {"periodic": "wrap", "replicate": "edge", "reflect": "reflect", "zero": "constant"}[boundary]
    framed = np.pad(h.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode=pad)
    for c in range(2):
        for y in range(4):
            for x in range(5):
                along_x = sum(-w * framed[0, c, y + 1 + i, x + 1 + j] for (i, j), w in kernel.items()) / 8
                along_y = sum(-w * framed[0, c, y + 1 + j, x + 1 + i] for (i, j), w in kernel.items()) / 8
                expected = 1 / (1 + (along_x**2 + along_y**2) / 1.5**2)
                assert float(perona_malik(h, 1.5, boundary=boundary)[0, c, y, x]) == pytest.approx(expected)


def test_perona_malik_sees_edges_of_both_directions():
    step = torch.zeros(1, 1, 6, 6)
    step[..., 3:] = 10
    across = perona_malik(step, boundary="replicate")
    assert torch.equal(perona_malik(step.mT, boundary="replicate").mT, across)
    assert across[0, 0, 2, 0] == 1
    assert across[0, 0, 2, 3] == pytest.approx(1 / (1 + 25 / 4))
    with pytest.raises(ValueError, match="contrast must be positive, got 0"):
        perona_malik(step, 0.0)


def test_courant_takes_numbers_and_tensors():
    assert courant(3.0, -4.0, dt=0.2) == pytest.approx(1.4)
    assert courant(torch.tensor([1.0, -2.0]), 0.5, dt=0.1, dx=0.5, dy=0.25) == pytest.approx(0.6)


def test_neighbours_of_one_pixel():
    one = torch.tensor([[5.0]])
    assert [float(n) for n in neighbours(one, -1, "periodic")] == [5, 5]
    assert [float(n) for n in neighbours(one, -2, "zero")] == [0, 0]
