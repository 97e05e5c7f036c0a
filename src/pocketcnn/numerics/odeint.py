"""Ordinary differential equations by fixed steps: Runge-Kutta methods as tables of coefficients.

Source of the tables: Hairer, Norsett & Wanner, Solving Ordinary Differential Equations I. With fixed steps the cost is
known in advance, the result is the same on every machine, and gradients flow through plain operations.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

Derivative = Callable[[float, Tensor], Tensor]


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method.

    Stage i is the derivative at time + nodes[i] * step, reached by the stages before it, weighted by stages[i]. The step
    adds the stages weighted by `weights`. The error at a fixed time falls as step ** order.
    """

    order: int
    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


SOLVERS: dict[str, Tableau] = {
    "euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "midpoint": Tableau(2, (0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0)),
    "heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": Tableau(
        4, (0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}


def odeint(
    derivative: Derivative,
    initial: Float[Tensor, "*state"],
    times: Sequence[float],
    *,
    solver: str = "euler",
) -> Float[Tensor, "times *state"]:
    """Solves dy/dt = derivative(t, y), with one step from each of the given times to the next.

    Args:
        derivative: `derivative(t, y)`, of the shape of `y`.
        initial: the state at `times[0]`.
        times: rising or falling, at least one.
        solver: `"euler"` (order 1, one call of `derivative` a step), `"midpoint"` and `"heun"` (order 2, two calls) or
            `"rk4"` (order 4, four calls).
    Returns:
        The state at every time, the first one being `initial`.
    Raises:
        ValueError: an unknown solver, or no times.
    Example:
        >>> odeint(lambda t, y: -y, torch.ones(1), [0.0, 0.5, 1.0]).flatten().tolist()
        [1.0, 0.5, 0.25]
    """
    check_solver(solver)
    if not len(times):
        raise ValueError("odeint needs at least one time, the initial state's")
    states = [initial]
    for start, end in pairwise(times):
        states.append(_step(derivative, SOLVERS[solver], start, end - start, states[-1]))
    return torch.stack(states)


def check_solver(solver: str) -> None:
    """Checks the name of a solver.

    Raises:
        ValueError: a name that is not in `SOLVERS`.
    """
    if solver not in SOLVERS:
        raise ValueError(f"no solver {solver!r}; known: {', '.join(SOLVERS)}")


def _step(derivative: Derivative, tableau: Tableau, time: float, step: float, state: Tensor) -> Tensor:
    """Takes one Runge-Kutta step."""
    slopes: list[Tensor] = []
    for node, row in zip(tableau.nodes, tableau.stages, strict=True):
        slopes.append(derivative(time + node * step, _along(state, step, row, slopes)))
    return _along(state, step, tableau.weights, slopes)


def _along(state: Tensor, step: float, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """Moves a state along a weighted sum of slopes."""
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            state = state + step * weight * slope
    return state
