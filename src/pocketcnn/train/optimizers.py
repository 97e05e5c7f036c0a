"""The optimizers of `fit`: SGD and AdamW of torch, and Muon for kernels beside SGD for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.support.protocols import is_condensed
from pocketcnn.train.config import TrainConfig

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
# Of the quintic x -> a x + b x^3 + c x^5, which moves singular values in (0, 1] to about 1 in five rounds.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


@torch.no_grad()
def orthogonalized(matrix: Tensor) -> Tensor:
    """Moves all singular values of a matrix to about 1, and leaves its singular vectors.

    Args:
        matrix: [rows, columns].
    Returns:
        float32 of the same shape; singular values lie between 0.7 and 1.2, but for those that were almost 0.
    Cost: fifteen products of matrices in bfloat16.
    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024 (the Newton-Schulz iteration).
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.T).bfloat16()
    x = x / (x.norm() + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.T).float()


class Muon(torch.optim.Optimizer):
    """Turns kernels by orthogonalized momentum and keeps their norms; trains other parameters by SGD.

    A group with `matrix=True` holds kernels [outputs, ...], each read as a matrix with a row per output. Its rate is the
    length of a step as a share of the kernel's norm, so that it means the same for every shape and every start. In a net
    with norms behind its kernels nothing is lost by keeping the kernels' norms. A group with `matrix=False` is trained by
    SGD with Nesterov momentum and weight decay.

    Args:
        groups: groups of parameters, each with `params`, `matrix`, `lr`, `momentum` and `weight_decay`.
    Raises:
        ValueError: a kernel of one axis in a group of matrices.
    Source: Jordan et al., Muon, 2024; norms are kept as in the CIFAR-10 speed run with Muon.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.1, "momentum": 0.6, "weight_decay": 0.0, "matrix": False})
        for group in self.param_groups:
            for p in group["params"]:
                if group["matrix"] and p.dim() < 2:
                    raise ValueError(
                        f"a parameter of shape {list(p.shape)} is no matrix; train it in a group with matrix=False"
                    )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes a step; a parameter without a gradient stays."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    (self._turn if group["matrix"] else self._move)(p, p.grad, group)
        return loss

    def _looked_ahead(self, p: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's gradient: that of the position to which the momentum leads."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum)

    def _turn(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = self._looked_ahead(p, gradient, group["momentum"])
        state = self.state[p]
        if "norm" not in state:
            state["norm"] = p.norm()
        step = orthogonalized(gradient.flatten(1)).view_as(p)
        length = step.norm()
        if length > 0 and state["norm"] > 0:
            p.add_(step * (state["norm"] / length), alpha=-group["lr"])
            p.mul_(state["norm"] / p.norm())

    def _move(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = gradient.add(p, alpha=group["weight_decay"])
        p.add_(self._looked_ahead(p, gradient, group["momentum"]), alpha=-group["lr"])


def make_optimizer(net: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Makes the optimizer that a configuration asks for.

    Raises:
        ValueError: Muon for a net without kernels that it could turn.
    """
    every = list(net.parameters())
    if config.optimizer == "muon":
        kernels = kernels_of(net)
        if not kernels and not any(map(is_condensed, net.modules())):
            raise ValueError(f"optimizer 'muon' turns kernels, and {type(net).__name__} has none; take sgd or adamw")
        turned = set(map(id, kernels))
        rest = [p for p in every if p.requires_grad and id(p) not in turned]
        turning = {"params": kernels, "matrix": True, "lr": config.lr, "momentum": config.momentum}
        groups = [
            *([turning] if kernels else []),
            *({**group, "momentum": config.rest_momentum} for group in _by_rate(net, rest, config.rest_lr, config)),
        ]
        return Muon(groups)
    groups = _by_rate(net, every, config.lr, config)
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, config.lr)


def _by_rate(net: nn.Module, parameters: list[nn.Parameter], lr: float, config: TrainConfig) -> list[dict[str, Any]]:
    """Groups parameters by their rate: the biases of norms may have one of their own, with which they decay no faster."""
    factor = config.norm_bias_factor
    biases = {id(m.bias) for m in net.modules() if isinstance(m, _NORMS)} if factor != 1 else set()
    groups = [
        {
            "params": [p for p in parameters if (id(p) in biases) is own],
            "lr": lr * scale,
            "weight_decay": config.weight_decay / scale,
        }
        for own, scale in ((False, 1.0), (True, factor))
    ]
    return [group for group in groups if group["params"]]


def kernels_of(net: nn.Module) -> list[nn.Parameter]:
    """Lists the trainable kernels of ordinary convolutions with several inputs to each output."""
    weights = [m.get_parameter("weight") for m in net.modules() if type(m) is nn.Conv2d and "weight" in m._parameters]
    found = {id(w): w for w in weights if w.requires_grad and w.shape[1] > 1}
    return list(found.values())
