"""The solvers: orders by halving the step, known solutions, gradients, and torchdiffeq where it is installed."""

import itertools
import math

import pytest
import torch

from pocketcnn.numerics import odeint
from pocketcnn.numerics.odeint import SOLVERS

every_solver = pytest.mark.parametrize("solver", SOLVERS)


def spiral(time, state):
    """dy/dt of a nonlinear system that depends on time."""
    return torch.stack([state[1] * math.cos(time), -torch.sin(state[0]) - 0.1 * state[1]])


def times(steps, end=2.0):
    return [end * i / steps for i in range(steps + 1)]


@every_solver
def test_order_by_halving_the_step(solver):
    start = torch.tensor([1.0, 0.5], dtype=torch.float64)
    exact = odeint(spiral, start, times(4096), solver="rk4")[-1]
    errors = [(odeint(spiral, start, times(n), solver=solver)[-1] - exact).norm().item() for n in (32, 64, 128)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(SOLVERS[solver].order, abs=0.2)


@every_solver
def test_tables_are_consistent(solver):
    tableau = SOLVERS[solver]
    assert sum(tableau.weights) == pytest.approx(1)
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        assert sum(row) == pytest.approx(node)


@every_solver
def test_every_time_is_returned_and_the_first_is_the_start(solver):
    start = torch.randn(3, 2)
    states = odeint(lambda t, y: -y, start, [0.0, 0.1, 0.3, 0.2], solver=solver)
    assert states.shape == (4, 3, 2)
    assert torch.equal(states[0], start)
    assert torch.equal(odeint(lambda t, y: -y, start, [5.0], solver=solver), start[None])


@every_solver
def test_is_deterministic_and_goes_backwards(solver):
    start = torch.randn(2, dtype=torch.float64)
    forward = odeint(spiral, start, times(200), solver=solver)
    assert torch.equal(forward, odeint(spiral, start, times(200), solver=solver))
    if solver != "euler":
        back = odeint(spiral, forward[-1], times(200)[::-1], solver=solver)[-1]
        torch.testing.assert_close(back, start, rtol=0, atol=1e-3)


@every_solver
def test_gradcheck(solver):
    start = torch.randn(2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: odeint(spiral, y, times(5), solver=solver), start)


@every_solver
def test_exports(solver, unchecked_shapes):
    class Net(torch.nn.Module):
        def forward(self, x):
            return odeint(spiral, x, times(3), solver=solver)

    x = torch.randn(2)
    torch.testing.assert_close(torch.export.export(Net(), (x,)).module()(x), Net()(x))


@pytest.mark.parametrize(("solver", "theirs"), [("euler", "euler"), ("midpoint", "midpoint"), ("heun", "heun2")])
def test_equals_torchdiffeq(solver, theirs):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    start = torch.randn(2, dtype=torch.float64)
    expected = torchdiffeq.odeint(spiral, start, torch.tensor(times(7), dtype=torch.float64), method=theirs)
    torch.testing.assert_close(odeint(spiral, start, times(7), solver=solver), expected)


def test_rk4_reaches_torchdiffeqs_adaptive_solution():
    """Their rk4 is another method of order 4, the 3/8 rule; so the comparison is with what both approach."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    start = torch.randn(2, dtype=torch.float64)
    expected = torchdiffeq.odeint(spiral, start, torch.tensor(times(64), dtype=torch.float64), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(odeint(spiral, start, times(64), solver="rk4"), expected, rtol=0, atol=1e-7)


def test_bad_arguments():
    with pytest.raises(ValueError, match="no solver 'leapfrog'; known: euler, midpoint, heun, rk4"):
        odeint(spiral, torch.ones(2), [0.0, 1.0], solver="leapfrog")
    with pytest.raises(ValueError, match="at least one time"):
        odeint(spiral, torch.ones(2), [])
