"""The depth of each image in a net whose depth depends on it, and the kernels that the differential equation makes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.explore.graphs import Tap
from pocketcnn.methods.puppet import Puppeteer, PuppetStage, gauge_of, puppeteers_of
from pocketcnn.pictures import Images
from pocketcnn.support.modules import evaluating

_SIDE, _STATES, _BARS = 4, 12, 40
_MANY = 2000  # images


def taps(net: nn.Module) -> Iterator[Tap]:
    """Yields a tap that measures the image, if the depth of the net depends on it."""
    if gauge_of(net) is not None:
        yield Tap("puppet", "", _measured)


def _measured(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The measure of each image in its unit, and the level that it puts the image at, [batch]."""
    gauge: Any = gauge_of(net)
    return {"value": gauge.value(x).float(), "level": gauge.level_of(gauge(x)).float()}


def facts(net: nn.Module, images: Images | None) -> dict[str, Any]:
    """Blocks passed at each level, the calibration curve, a histogram of the measure, and corners of the states."""
    gauge: Any = gauge_of(net)
    stages = [module for module in net.modules() if isinstance(module, PuppetStage)]
    found: dict[str, Any] = {
        "blocks": sum(len(stage.blocks) for stage in stages),
        "kernels": [_states(puppeteer) for puppeteer in puppeteers_of(net)],
    }
    if gauge is not None:
        found |= {
            "measure": gauge.measure,
            "calibrated": bool(gauge.calibrated),
            "quantiles": gauge.quantiles.tolist(),
            "depths": [sum(stage.depth_of(level) for stage in stages) for level in range(gauge.levels)],
        }
        if images is not None:
            found["histogram"] = _histogram(gauge, net, images)
    return found


def _histogram(gauge: Any, net: nn.Module, images: Images) -> dict[str, Any]:
    """Counts of the measure over test images."""
    with evaluating(net):
        values = torch.cat([gauge.value(batch) for batch in images.labelled(_MANY)[1].split(500)]).float()
    low, high = float(values.min()), float(values.max())
    counts = torch.histc(values, _BARS, low, high if high > low else low + 1)
    return {"low": low, "high": high, "counts": counts.int().tolist()}


def _states(puppeteer: Puppeteer) -> dict[str, Any]:
    """Kernels in a corner of the state along its path, as whole numbers up to 127, [states, rows, columns, height, width]."""
    with torch.no_grad():
        states = torch.stack([state.float() for state in puppeteer.trajectory(puppeteer.options.levels - 1)])
    states = states.view(len(states), *puppeteer.state_shape)[:, :_SIDE, :_SIDE]
    states = states[torch.linspace(0, len(states) - 1, min(_STATES, len(states))).round().long()].cpu()
    scale = float(states.abs().max()) / 127 or 1.0
    return {"shape": list(states.shape), "numbers": (states / scale).round().int().flatten().tolist()}
