"""Feature maps of nets side by side, and the fields inside a Global layer."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.support.files import make_folder, write_atomically
from pocketcnn.support.modules import at_inputs, evaluating
from pocketcnn.support.plots import pyplot

_PANEL = 1.55  # inches
_MAPS, _GREY, _SPEED, _SPREAD = "viridis", "gray", "magma", "cividis"
_STRIP = 8  # at most so many steps are shown
Item = TypeVar("Item")


@dataclass(frozen=True)
class Fields:
    """What a Global layer makes of its input: each [batch, channels, height, width], velocities and diffusivities None
    where the equation has no such term. `steps` are H[0] to H[num_steps]."""

    before: Tensor
    velocity: tuple[Tensor, Tensor] | None
    diffusivity: tuple[Tensor, Tensor] | None
    steps: list[Tensor]
    after: Tensor


def stations(net: nn.Module) -> list[str]:
    """Names of the modules after which a reader would look at the map: convolutions and blocks, in order.

    Of a sequence of several blocks, each block is one; any other part of the net that holds convolutions is one as it is.
    """
    found = []
    for name, part in net.named_children():
        inner = [child for child, module in part.named_children() if _convolves(module) and any(module.children())]
        if isinstance(part, nn.Sequential) and len(inner) > 1:
            found += [f"{name}.{child}" for child in inner]
        elif _convolves(part):
            found.append(name)
    return found


def _convolves(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) or hasattr(part, "condensed_by") for part in module.modules())


def feature_maps(net: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """The outputs of some modules for a batch, [batch, channels, height, width], in evaluation mode.

    Args:
        net: any net that takes images; left as it was.
        x: normalised images.
        names: of the modules; None for those of `stations`.
    Raises:
        ValueError: the net has no module of a name, or its output is no map.
    """
    known = dict(net.named_modules())
    names = stations(net) if names is None else names
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"{type(net).__name__} has no module {missing[0]!r}; it has {', '.join(stations(net))}, ...")
    maps: dict[str, Tensor] = {}
    handles = [
        known[name].register_forward_hook(lambda _, __, output, name=name: maps.__setitem__(name, output))
        for name in names
    ]
    try:
        with evaluating(net):
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    if flat := [name for name in names if name not in maps or maps[name].dim() != 4]:
        raise ValueError(f"{flat[0]} of {type(net).__name__} gives no feature map")
    return {name: maps[name].float() for name in names}


def solver_fields(net: nn.Module, layer: str, x: Tensor) -> Fields:
    """What the Global layer of a name does inside a net, for a batch of normalised images.

    Raises:
        ValueError: there is no Global layer of that name.
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


def draw_maps(
    images: Tensor, nets: Mapping[str, nn.Module], x: Tensor, *, layer: str | None = None, channel: int | None = None
) -> Any:
    """Images and the feature maps that nets make of them: a row an image.

    One net is shown station by station, each with a colour scale of its own; of several nets, one map each on a common
    scale.

    Args:
        images: [batch, channels, height, width] as uint8, what the reader knows.
        nets: by the title of their column.
        x: the same images, normalised.
        layer: whose map is shown of each of several nets, or the only one of one net; None for the last station.
        channel: of the maps; None for their mean over channels.
    Returns:
        A matplotlib figure.
    """
    several = len(nets) > 1
    columns: list[tuple[str, Tensor]] = []
    for title, net in nets.items():
        names = [layer] if layer else stations(net)[-1:] if several else None
        columns += [(title if several else name, maps) for name, maps in feature_maps(net, x, names).items()]
    label = "" if all(maps.shape[1] == 1 for _, maps in columns) else "mean over channels"
    if channel is not None:
        label = f"channel {channel}"
    planes = [(title, _plane(maps, channel, title)) for title, maps in columns]
    common = _limits([plane for _, plane in planes]) if several else None
    plots = pyplot()
    rows, count = len(images), len(planes) + 1
    figure, axes = plots.subplots(
        rows, count, figsize=(_PANEL * count + 0.5, 0.95 * _PANEL * rows + 0.45 + 0.3 * (not several)), squeeze=False,
        layout="constrained", gridspec_kw={"hspace": 0.02, "wspace": 0.02},
    )  # fmt: skip
    for row in range(rows):
        _show_image(axes[row, 0], images[row])
        drawn = [
            _show(axes[row, place], plane[row], _MAPS, common or _limits([plane]))
            for place, (_, plane) in enumerate(planes, start=1)
        ]
    for axis, title in zip(axes[0], ["input", *(title for title, _ in planes)], strict=True):
        axis.set_title(title, fontsize=9)
    if several:
        _bar(figure, drawn[-1], axes[:, 1:], "right", label)
    else:
        for place, last in enumerate(drawn, start=1):
            _bar(figure, last, axes[:, place], "bottom")
        figure.supxlabel(label, fontsize=9)
    return figure


def draw_fields(image: Tensor, fields: Fields, *, title: str = "", channel: int | None = None) -> Any:
    """One image through a Global layer: its input, velocity, diffusivity and output above, H step by step below.

    Args:
        image: [channels, height, width] as uint8.
        fields: of a batch whose first image is shown.
        title: above everything.
        channel: which is shown, as the solver never mixes them; None for the one that the layer changes most.
    Returns:
        A matplotlib figure.
    """
    if channel is None:
        channel = int((fields.steps[-1][0] - fields.steps[0][0]).flatten(1).std(1, unbiased=False).argmax())
    if not 0 <= channel < fields.before.shape[1]:
        raise ValueError(f"channel must lie in [0, {fields.before.shape[1]}), got {channel}")

    def plane(field: Tensor) -> Tensor:
        return field[0, channel]

    h = _most([plane(step) for step in fields.steps])
    panels: list[tuple[str, Any, str, tuple[float, float] | None]] = [
        ("layer's input h", plane(fields.before), _MAPS, h)
    ]
    if fields.velocity is not None:
        u, v = map(plane, fields.velocity)
        panels += [("velocity", (u, v), _GREY, None), ("|velocity|", (u**2 + v**2).sqrt(), _SPEED, None)]
    if fields.diffusivity is not None:
        along_x, along_y = map(plane, fields.diffusivity)
        if torch.equal(along_x, along_y):
            panels.append(("diffusivity Dx = Dy", along_x, _SPREAD, None))
        else:
            both = _limits([along_x, along_y])
            panels += [("diffusivity Dx", along_x, _SPREAD, both), ("diffusivity Dy", along_y, _SPREAD, both)]
    panels.append(("output", plane(fields.after), _MAPS, None))
    chosen = _spread(range(len(fields.steps)), _STRIP)
    plots = pyplot()
    width = max(len(panels) + 1, len(chosen))
    figure = plots.figure(figsize=(_PANEL * width + 0.6, 2 * _PANEL + 1.25), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    axes = above.subplots(1, len(panels) + 1, squeeze=False)[0]
    axes[0].set_title("image", fontsize=9)
    _bar(above, _show_image(axes[0], image), axes[0], "bottom", hidden=True)
    for axis, (name, field, colours, limits) in zip(axes[1:], panels, strict=True):
        if isinstance(field, tuple):
            drawn, constant = _quiver(axis, field[0], field[1], plane(fields.before)), True
        else:
            low, high = limits or _limits([field])
            drawn, constant = _show(axis, field, colours, (low, high)), low == high
            name = f"{name} = {low:.3g}" if constant else name
        _bar(above, drawn, axis, "bottom", hidden=constant, extend="both" if limits == h else "neither")
        axis.set_title(name, fontsize=9)
    axes = below.subplots(1, len(chosen), squeeze=False)[0]
    for axis, step in zip(axes, chosen, strict=True):
        drawn = _show(axis, plane(fields.steps[step]), _MAPS, h)
        axis.set_title(f"H[{step}]", fontsize=9)
    _bar(below, drawn, axes, "right", extend="both")
    several = f", channel {channel} of {fields.before.shape[1]}" if fields.before.shape[1] > 1 else ""
    figure.suptitle(f"{title}{several}".removeprefix(", "), fontsize=10)
    return figure


def write_figure(figure: Any, folder: str | Path, name: str) -> list[Path]:
    """Writes a figure as PNG and as SVG, closes it, and returns both paths.

    Raises:
        CannotWrite: the folder is not writable.
    """
    folder = make_folder(Path(folder))
    paths = []
    for suffix, options in (("png", {"dpi": 200}), ("svg", {"metadata": {"Date": None}, "dpi": 200})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix, **options)
        paths.append(folder / f"{name}.{suffix}")
        write_atomically(paths[-1], buffer.getvalue())
    pyplot().close(figure)
    return paths


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """All items, or `most` of them at equal distances from the first to the last."""
    count = min(len(items), most)
    return [items[round(i * (len(items) - 1) / max(count - 1, 1))] for i in range(count)]


def _plane(maps: Tensor, channel: int | None, name: str) -> Tensor:
    """[batch, height, width] of a batch of maps."""
    if channel is None:
        return maps.mean(1)
    if not 0 <= channel < maps.shape[1]:
        raise ValueError(f"{name}: channel must lie in [0, {maps.shape[1]}), got {channel}")
    return maps[:, channel]


def _limits(planes: Sequence[Tensor]) -> tuple[float, float]:
    return min(float(plane.min()) for plane in planes), max(float(plane.max()) for plane in planes)


def _most(planes: Sequence[Tensor]) -> tuple[float, float]:
    """Limits that leave out the most extreme hundredth of the values: a few pixels would darken all others."""
    low, high = torch.stack(list(planes)).flatten().quantile(torch.tensor([0.005, 0.995])).tolist()
    return low, high


def _show(axis: Any, plane: Tensor, colours: str, limits: tuple[float, float]) -> Any:
    axis.grid(False)
    axis.set_axis_off()
    low, high = limits
    low, high = (low, high) if high > low else (low - 1, high + 1)
    return axis.imshow(plane.numpy(), cmap=colours, vmin=low, vmax=high, interpolation="nearest")


def _show_image(axis: Any, image: Tensor) -> Any:
    axis.grid(False)
    axis.set_axis_off()
    pixels = image.permute(1, 2, 0).numpy()
    grey = {"cmap": _GREY, "vmin": 0, "vmax": 255} if pixels.shape[2] == 1 else {}
    return axis.imshow(pixels[..., 0] if grey else pixels, interpolation="nearest", **grey)


def _quiver(axis: Any, u: Tensor, v: Tensor, behind: Tensor) -> Any:
    """Arrows over the map they carry; x to the right and y down, as the solver counts them."""
    low, high = _limits([behind])
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
        scale=speed / (1.2 * every), color="#D55E00", width=0.014, headwidth=3, headlength=3.2, headaxislength=3,
    )  # fmt: skip
    axis.set_xlim(-0.5, width - 0.5)
    axis.set_ylim(height - 0.5, -0.5)
    return drawn


def _bar(
    figure: Any, drawn: Any, axes: Any, where: str, label: str = "", *, hidden: bool = False, extend: str = "neither"
) -> None:
    """A colour bar; a hidden one keeps the place, so that panels stay in line."""
    bar = figure.colorbar(
        drawn, ax=axes, location=where, shrink=0.85, aspect=14 if where == "bottom" else 22, pad=0.03, extend=extend
    )
    bar.ax.tick_params(labelsize=7, length=2)
    bar.ax.grid(False)
    bar.outline.set_visible(False)
    if hidden:
        bar.ax.clear()
        bar.ax.set_axis_off()
        return
    bar.locator = pyplot().MaxNLocator(3, steps=[1, 2, 5, 10])
    bar.update_ticks()
    if label:
        bar.set_label(label, fontsize=8)
