"""The fields inside a Global layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.pictures.images import Images
from pocketcnn.pictures.panels import (
    GREY,
    MAPS,
    PANEL,
    SPEED,
    SPREAD,
    colour_bar,
    limits_of,
    most_of,
    show_image,
    show_plane,
    spread_over,
)
from pocketcnn.support.modules import at_inputs, evaluating
from pocketcnn.support.plots import VERMILION, arranged, pyplot

_STRIP = 8  # the most steps that are shown


def draw(net: nn.Module, images: Images, title: str) -> Iterator[tuple[str, Any]]:
    """Yields the name and the figure of the fields in each Global layer, for the first image."""
    for name, module in net.named_modules():
        if isinstance(module, GlobalLayer):
            fields = solver_fields(net, name, images.x[:1])
            figure = draw_fields(images.pixels[0], fields, title=f"{title}: {name}", channel=images.channel)
            yield f"fields-{title}-{name}", figure


@dataclass(frozen=True)
class Fields:
    """The fields in a Global layer, each [batch, channels, height, width].

    `before` is the layer's input, `after` its output, and `steps` are H[0] to H[num_steps]. `velocity` or `diffusivity` is
    None if the equation has no such term.
    """

    before: Tensor
    velocity: tuple[Tensor, Tensor] | None
    diffusivity: tuple[Tensor, Tensor] | None
    steps: list[Tensor]
    after: Tensor


def solver_fields(net: nn.Module, layer: str, x: Tensor) -> Fields:
    """Computes the fields in a Global layer inside a net, for a batch of normalised images.

    Raises:
        ValueError: `layer` names no Global layer.
    """
    module = dict(net.named_modules()).get(layer)
    if not isinstance(module, GlobalLayer):
        known = [name for name, part in net.named_modules() if isinstance(part, GlobalLayer)]
        raise ValueError(f"{layer!r} is no Global layer; the net has {', '.join(known) or 'none'}")
    h = at_inputs(net, x, {layer: lambda h: h})[layer]
    with evaluating(module):
        pairs = [
            tuple(torch.as_tensor(value).expand(h.shape).float() for value in values)
            for values in (module.velocities(h), module.diffusivities(h))
        ]
        steps = [module.solve(h, step).float() for step in range(module.options.num_steps + 1)]
        after = module(h).float()
    velocity, diffusivity = ((p[0], p[1]) if any(bool(f.any()) for f in p) else None for p in pairs)
    return Fields(h.float(), velocity, diffusivity, steps, after)


def draw_fields(image: Tensor, fields: Fields, *, title: str = "", channel: int | None = None) -> Any:
    """Draws an image's way through a Global layer: input, velocity, diffusivity and output above, H step by step below.

    Args:
        image: [channels, height, width] as uint8.
        fields: of a batch whose first image is shown.
        title: above everything.
        channel: the one that is shown, as the solver never mixes channels; None for the one that the layer changes most.
    Returns:
        A matplotlib figure.
    """
    if channel is None:
        channel = int((fields.steps[-1][0] - fields.steps[0][0]).flatten(1).std(1, unbiased=False).argmax())
    if not 0 <= channel < fields.before.shape[1]:
        raise ValueError(f"channel must lie in [0, {fields.before.shape[1]}), got {channel}")

    def plane(field: Tensor) -> Tensor:
        return field[0, channel]

    h = most_of([plane(step) for step in fields.steps])
    panels: list[tuple[str, Any, str, tuple[float, float] | None]] = [
        ("layer's input h", plane(fields.before), MAPS, h)
    ]
    if fields.velocity is not None:
        u, v = map(plane, fields.velocity)
        panels += [("velocity", (u, v), GREY, None), ("|velocity|", (u**2 + v**2).sqrt(), SPEED, None)]
    if fields.diffusivity is not None:
        along_x, along_y = map(plane, fields.diffusivity)
        if torch.equal(along_x, along_y):
            panels.append(("diffusivity Dx = Dy", along_x, SPREAD, None))
        else:
            both = limits_of([along_x, along_y])
            panels += [("diffusivity Dx", along_x, SPREAD, both), ("diffusivity Dy", along_y, SPREAD, both)]
    panels.append(("output", plane(fields.after), MAPS, None))
    chosen = spread_over(range(len(fields.steps)), _STRIP)
    plots = pyplot()
    width = max(len(panels) + 1, len(chosen))
    figure = plots.figure(figsize=(PANEL * width + 0.6, 2 * PANEL + 1.25), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    axes = above.subplots(1, len(panels) + 1, squeeze=False)[0]
    axes[0].set_title("image", fontsize=9)
    colour_bar(above, show_image(axes[0], image), axes[0], "bottom", hidden=True)
    for axis, (name, field, colours, limits) in zip(axes[1:], panels, strict=True):
        if isinstance(field, tuple):
            drawn, constant = _quiver(axis, field[0], field[1], plane(fields.before)), True
        else:
            low, high = limits or limits_of([field])
            drawn, constant = show_plane(axis, field, colours, (low, high)), low == high
            name = f"{name} = {low:.3g}" if constant else name
        colour_bar(above, drawn, axis, "bottom", hidden=constant, extend="both" if limits == h else "neither")
        axis.set_title(name, fontsize=9)
    axes = below.subplots(1, len(chosen), squeeze=False)[0]
    for axis, step in zip(axes, chosen, strict=True):
        drawn = show_plane(axis, plane(fields.steps[step]), MAPS, h)
        axis.set_title(f"H[{step}]", fontsize=9)
    colour_bar(below, drawn, axes, "right", extend="both")
    several = f", channel {channel} of {fields.before.shape[1]}" if fields.before.shape[1] > 1 else ""
    figure.suptitle(f"{title}{several}".removeprefix(", "), fontsize=10)
    return arranged(figure)


def _quiver(axis: Any, u: Tensor, v: Tensor, behind: Tensor) -> Any:
    """Draws velocities as arrows over the map that they move; x points right and y down, as in the solver."""
    low, high = limits_of([behind])
    axis.grid(False)
    axis.set_axis_off()
    drawn = axis.imshow(
        behind.numpy(), cmap="Greys", vmin=low, vmax=low + 1.6 * max(high - low, 1e-9), interpolation="nearest"
    )
    height, width = u.shape
    every = max(1, round(max(height, width) / 10))
    rows, columns = np.arange(every // 2, height, every), np.arange(every // 2, width, every)
    speed = max(float((u**2 + v**2).sqrt().flatten().quantile(0.9)), 1e-9)  # one fast pixel should not shrink the rest
    axis.quiver(
        columns, rows, u[rows][:, columns].numpy(), v[rows][:, columns].numpy(), angles="xy", scale_units="xy",
        scale=speed / (1.2 * every), color=VERMILION, width=0.014, headwidth=3, headlength=3.2, headaxislength=3,
    )  # fmt: skip
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    return drawn
