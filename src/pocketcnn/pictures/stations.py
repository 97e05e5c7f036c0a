"""The maps after the stations of a net."""

from collections.abc import Sequence

from torch import Tensor, nn

from pocketcnn.support.modules import evaluating, maps_of
from pocketcnn.support.protocols import is_condensed


def stations(net: nn.Module) -> list[str]:
    """Names of the modules whose outputs are the net's feature maps, in order: convolutions and blocks.

    Each block of a sequence of several blocks is a station; any other part that holds convolutions is one as a whole.
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
    return any(isinstance(part, nn.Conv2d) or is_condensed(part) for part in module.modules())


def feature_maps(net: nn.Module, x: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Outputs of some modules for a batch, [batch, channels, height, width], in evaluation mode.

    Args:
        net: any net that takes images; left as it was.
        x: normalised images.
        names: of the modules; None for those of `stations`.
    Raises:
        ValueError: the net has no module of that name, or its output is no map.
    """
    known = dict(net.named_modules())
    names = stations(net) if names is None else names
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"{type(net).__name__} has no module {missing[0]!r}; it has {', '.join(stations(net))}, ...")
    with evaluating(net), maps_of(net, names) as maps:
        net(x)
    if flat := [name for name in names if name not in maps or maps[name].dim() != 4]:
        raise ValueError(f"{flat[0]} of {type(net).__name__} gives no feature map")
    return {name: maps[name].float() for name in names}
