"""The fields in each Global layer: its coefficients, and the features on their way through the steps of the solver."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.explore.graphs import Tap
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.numerics import advect_diffuse
from pocketcnn.pictures import Images
from pocketcnn.pictures.panels import spread_over

_STEPS = 12  # the most that are shown: each is a whole map


def taps(net: nn.Module) -> Iterator[Tap]:
    """Yields a tap for each Global layer; its keys are among those of `fields`."""
    for name, layer in net.named_modules():
        if isinstance(layer, GlobalLayer):
            yield Tap(f"pde/{name}", name, _shown)


def _shown(layer: Any, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The fields of a layer without the steps that the page leaves out."""
    found = fields(layer, x)
    left_out = {f"H{step}" for step in range(layer.options.num_steps + 1)} - {f"H{step}" for step in steps_of(layer)}
    return {name: field for name, field in found.items() if name not in left_out}


def steps_of(layer: Any) -> list[int]:
    """The steps that the page shows: all, or some from the first to the last."""
    return spread_over(range(layer.options.num_steps + 1), _STEPS)


def fields(layer: Any, x: Tensor) -> dict[str, Tensor]:
    """The fields of a Global layer for its input: velocity, diffusivity, and H[0] to H[num_steps].

    Args:
        layer: a `GlobalLayer`.
        x: its input, [batch, channels, height, width].
    Returns:
        `u`, `v`, `Dx`, `Dy` and `H0`, `H1`, ..., each of the shape of `x`.
    """
    options = layer.options
    coefficients = (*layer.velocities(x), *layer.diffusivities(x))
    whole = {name: torch.as_tensor(c).expand(x.shape).float() for name, c in zip(["u", "v", "Dx", "Dy"], coefficients, strict=True)}  # fmt: skip
    source = x if options.source else torch.zeros_like(x)
    before, now = x, x if layer.initial is None else layer.initial(x)
    states = [now]
    for _ in range(options.num_steps):
        after = advect_diffuse(
            source, *coefficients, initial=now, previous=before, num_steps=1,
            dt=options.dt, dx=options.dx, dy=options.dy, boundary=options.boundary,
        )  # fmt: skip
        before, now = now, after
        states.append(after)
    return {**whole, **{f"H{step}": state for step, state in enumerate(states)}}


def facts(net: nn.Module, images: Images | None) -> dict[str, Any]:
    """The steps of each layer that are shown, and the length of a step in time."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, GlobalLayer)}
    return {name: {"steps": steps_of(layer), "dt": layer.options.dt} for name, layer in layers.items()}
