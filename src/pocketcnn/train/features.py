"""Maps inside two nets, and how far apart they are: what a student may learn of its teacher beside the outputs.

Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015; here without a regressor between the maps, hence only
where their shapes agree, as they do where one net was condensed from the other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pocketcnn.errors import BadData
from pocketcnn.support.modules import device_and_dtype, evaluating, maps_of


def common_stages(student: nn.Module, teacher: nn.Module, x: Tensor) -> list[str]:
    """The sequences at the top of both nets, by name, that give maps of one shape for an image.

    Args:
        student: a net.
        teacher: another one.
        x: an image, [1, channels, height, width].
    Raises:
        BadData: there are none.
    """
    shapes: list[dict[str, torch.Size]] = []
    for net in (student, teacher):
        device, dtype = device_and_dtype(net)
        names = [name for name, child in net.named_children() if isinstance(child, nn.Sequential)]
        with evaluating(net), maps_of(net, names) as maps:
            net(x.to(device=device, dtype=dtype))
        shapes.append({name: y.shape for name, y in maps.items() if isinstance(y, Tensor) and y.dim() == 4})
    common = [name for name, shape in shapes[0].items() if shapes[1].get(name) == shape]
    if not common:
        raise BadData(
            f"student and teacher have no stage in common: {_listed(shapes[0])}, and {_listed(shapes[1])}; "
            "leave feature_weight out"
        )
    return common


def _listed(shapes: Mapping[str, torch.Size]) -> str:
    return ", ".join(f"{name} gives {list(shape[1:])}" for name, shape in shapes.items()) or "one has none"


def map_distance(maps: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Mean over the maps of their mean squared distance from those wanted, in units of the variance of these."""
    apart = [
        (maps[name].float() - wanted[name].float()).square().mean() / wanted[name].float().var().clamp(min=1e-12)
        for name in maps
    ]
    return torch.stack(apart).mean()
