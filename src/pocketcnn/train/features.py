"""The feature loss: the distance between feature maps of a student and its teacher.

Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015. We have no regressor between the maps, so their shapes
must agree, as they do if one net was condensed from the other.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pocketcnn.errors import BadData
from pocketcnn.support.modules import device_and_dtype, evaluating, maps_of


def common_stages(student: nn.Module, teacher: nn.Module, x: Tensor) -> list[str]:
    """Finds the stages of two nets, by name, whose feature maps have the same shape.

    A stage is an `nn.Sequential` that is a direct child of the net.

    Args:
        student: a net.
        teacher: another net.
        x: an image, [1, channels, height, width].
    Raises:
        BadData: there is no such stage.
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
    return ", ".join(f"{name} gives {list(shape[1:])}" for name, shape in shapes.items()) or "one net has none"


def map_distance(maps: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Tensor:
    """Averages over the maps the mean squared distance from the wanted map, divided by the variance of the wanted map."""
    apart = [
        (maps[name].float() - wanted[name].float()).square().mean() / wanted[name].float().var().clamp(min=1e-12)
        for name in maps
    ]
    return torch.stack(apart).mean()
