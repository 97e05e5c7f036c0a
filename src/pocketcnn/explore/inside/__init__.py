"""What a page shows inside the layers of each method.

The file of a method's name in this folder offers `taps(net)`, the places where the graph looks inside while an image passes;
and `facts(net, images)`, what does not depend on the image that is shown, as values for JSON. A method without a file has
the feature maps after each stage alone. `scripts/inside_NAME.js` draws what these two give.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from pocketcnn.explore.graphs import Tap
from pocketcnn.methods import METHODS
from pocketcnn.pictures import Images, stations
from pocketcnn.support.wings import part_of


def taps_of(net: nn.Module) -> list[Tap]:
    """The places that a page shows of a net: the maps after each stage, and what its methods add."""
    return [*_maps(net), *(tap for part in _parts(net).values() for tap in part.taps(net))]


def facts_of(net: nn.Module, images: Images | None) -> dict[str, Any]:
    """What a page shows of a net's methods, by the name of the method.

    Args:
        net: in evaluation mode.
        images: of its data set, for facts about many images; None leaves these out.
    """
    return {name: part.facts(net, images) for name, part in _parts(net).items()}


def _parts(net: nn.Module) -> Mapping[str, Any]:
    used = {getattr(module, "condensed_by", None) for module in net.modules()}
    found = {name: part_of(__name__, name) for name in METHODS if name in used}
    return {name: part for name, part in found.items() if part is not None}


def _maps(net: nn.Module) -> Iterator[Tap]:
    """Taps of the feature maps after each stage: after the last station of each part of the net."""
    last = {station.rsplit(".", 1)[0]: station for station in stations(net)}
    for stage, module in last.items():
        yield Tap(f"maps/{stage}", module, _output)


def _output(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return {"y": y}
