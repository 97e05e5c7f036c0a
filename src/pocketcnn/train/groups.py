"""Groups of parameters for optimizers that decay weights and leave norms and biases alone."""

from typing import Any

from torch import nn

from pocketcnn.checkpoint.storage import weights_of


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divides the trainable parameters of a net into those that decay and the others.

    The usual rule, no decay for parameters of one axis, leaves out a ring, which is all the kernels of its layers, and
    decays the biases of experts, which have two axes. Here weights decay, whatever their shape, and norms, biases and
    factors do not. `train.fit` needs no groups: it decays all parameters alike.

    Args:
        net: any net.
        weight_decay: of the first group.
    Returns:
        One or two groups, for any of torch's optimizers. A shared parameter is in one of them, once.
    Raises:
        ValueError: the net has no trainable parameters.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> [(len(group["params"]), group["weight_decay"]) for group in parameter_groups(net, 5e-4)]
        [(1, 0.0005), (3, 0.0)]
    """
    decaying = set(map(id, weights_of(net).values()))
    decaying |= {id(p) for name, p in net.named_parameters() if p.dim() > 1 and name.rpartition(".")[2] != "bias"}
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in trained if (id(p) in decaying) == decays],
            "weight_decay": weight_decay if decays else 0.0,
        }
        for decays in (True, False)
    ]
    if not trained:
        raise ValueError(f"{type(net).__name__} has no trainable parameters; requires_grad_() makes them trainable")
    return [group for group in groups if group["params"]]
