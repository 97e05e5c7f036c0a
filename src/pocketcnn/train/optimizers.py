"""The optimizers of `fit`: SGD and AdamW of torch, and Muon for kernels beside SGD for everything else."""

import contextlib
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.support.modules import hooked
from pocketcnn.support.protocols import SharesKernels, StacksKernels, is_condensed
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.rounding import Rounding

_KINDS = ("kernels", "states", "factors", "rest")
_OF_FACTORS = 0.1  # of the rate of states
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
# Of the quintic x -> a x + b x^3 + c x^5, which moves singular values in (0, 1] to about 1 in five rounds.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


@torch.no_grad()
def orthogonalized(matrix: Tensor) -> Tensor:
    """Moves all singular values of a matrix to about 1, and leaves its singular vectors.

    Args:
        matrix: [..., rows, columns]: a matrix, or a stack of them.
    Returns:
        float32 of the same shape; singular values lie between 0.7 and 1.2, but for those that were almost 0.
    Cost: fifteen products of matrices in bfloat16.
    Source: Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024 (the Newton-Schulz iteration).
    """
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = (matrix if wide else matrix.mT).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x if wide else x.mT).float()


class Muon(torch.optim.Optimizer):
    """Turns kernels by orthogonalized momentum and keeps their norms; trains other parameters by SGD.

    A group has a `kind`. One of `"kernels"` holds kernels [outputs, ...], each read as a matrix with a row per output; with
    `stack`, a shape [kernels, outputs, ...], each parameter of the group holds several. The rate is the length of a step as a
    share of the kernel's norm, so that it means the same for every shape and every start. In a net with norms behind its
    kernels nothing is lost by keeping the kernels' norms. A group of `"states"` holds what
    kernels are read off, such as a ring: no matrix, and turned in the same way without orthogonalization, which is done
    where the gradients of the kernels pass, see `turned_kernels`. Each of `"factors"` that scale such kernels moves by the
    rate, on average. A group of `"rest"` is trained by SGD with Nesterov momentum and weight decay.

    Args:
        groups: groups of parameters, each with `params`, `kind`, `lr`, `momentum` and `weight_decay`.
    Raises:
        ValueError: a kernel of one axis, or another kind.
    Source: Jordan et al., Muon, 2024; norms are kept as in the CIFAR-10 speed run with Muon. States are ours.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.1, "momentum": 0.6, "weight_decay": 0.0, "kind": "rest", "stack": None})
        for group in self.param_groups:
            if group["kind"] not in _KINDS:
                raise ValueError(f"no kind of parameters {group['kind']!r}; known: {', '.join(_KINDS)}")
            for p in group["params"]:
                if group["kind"] == "kernels" and p.dim() < 2:
                    raise ValueError(
                        f"a parameter of shape {list(p.shape)} is no matrix; train it in a group of kind 'rest'"
                    )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes a step; a parameter without a gradient stays."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        steps = {"rest": self._move, "factors": self._scale}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    steps.get(group["kind"], self._turn)(p, p.grad, group)
        return loss

    def _looked_ahead(self, p: Tensor, gradient: Tensor, momentum: float) -> Tensor:
        """Nesterov's gradient: that of the position to which the momentum leads."""
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        return gradient.add(buffer, alpha=momentum)

    def _turn(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        stack = (1, *p.shape) if group["stack"] is None else tuple(group["stack"])
        step, state = self._looked_ahead(p, gradient, group["momentum"]).reshape(stack), self.state[p]
        if group["kind"] == "kernels":
            step = orthogonalized(step.flatten(2)).view(stack)
        if "norm" not in state:
            state["norm"] = _norms(p.reshape(stack))
        length, norm = _norms(step), state["norm"]
        step = (step * (norm / length.clamp(min=1e-30))).reshape(p.shape)
        p.add_(step, alpha=-group["lr"])
        p.mul_((norm / _norms(p.reshape(stack)).clamp(min=1e-30)).expand(stack).reshape(p.shape))

    def _scale(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        step = self._looked_ahead(p, gradient, group["momentum"])
        p.add_(step / _size(step), alpha=-group["lr"])

    def _move(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        gradient = gradient.add(p, alpha=group["weight_decay"])
        p.add_(self._looked_ahead(p, gradient, group["momentum"]), alpha=-group["lr"])


def _norms(stack: Tensor) -> Tensor:
    """The norm of each kernel of a stack, to be multiplied with the stack; in float32."""
    return stack.flatten(1).float().norm(dim=1).view(-1, *[1] * (stack.dim() - 1))


class _Turned(torch.autograd.Function):
    """A kernel as it is; the gradient that it passes back is the direction in which Muon would turn it."""

    @staticmethod
    def forward(ctx: Any, kernel: Tensor) -> Tensor:
        ctx.size = _size(kernel)
        return kernel.view_as(kernel)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        # A depthwise kernel has one input to each output: its rows are kernels of their own, and no matrix.
        mixes = gradient.dim() < 2 or gradient.shape[1] > 1
        direction = orthogonalized(gradient.flatten(1)).view_as(gradient) if mixes else gradient.float()
        return (direction / (direction.norm().clamp(min=1e-12) * ctx.size)).to(gradient.dtype)


def _size(tensor: Tensor) -> Tensor:
    """Root of the mean square."""
    return tensor.float().square().mean().sqrt().clamp(min=1e-12)


@contextlib.contextmanager
def turned_kernels(net: nn.Module) -> Iterator[None]:
    """Inside a `with`, kernels that layers share (`SharesKernels`) pass back orthogonalized gradients.

    What they are read off is no matrix, and the gradient that reaches it is a sum over kernels of many sizes. Here each kernel
    K passes back U / (|U| rms(K)), where U is its gradient with all singular values at 1, |U| the root of its sum of squares
    and rms(K) the root of the mean square. So every kernel asks for the turn that Muon would give it, and all kernels have
    the same say, whatever their scale and their number of weights; else the large kernels of late layers would drown the
    small ones of early layers. Gradients on the way to images, and of all else, stay as they are; copies of the net that are
    made meanwhile pass back gradients as always.

    With several devices each turns the gradients of its own images, and the mean of these turns is taken.

    Args:
        net: any net; without such modules nothing changes.
    """
    makers = [module for module in net.modules() if isinstance(module, SharesKernels) and _own(module)]
    with hooked(maker.register_forward_hook(_turn_made) for maker in makers):
        _TURNING.update(makers)
        _forget_compiled(makers)
        try:
            yield
        finally:
            _TURNING.difference_update(makers)
            _forget_compiled(makers)


def _forget_compiled(makers: Sequence[nn.Module]) -> None:
    """Makes `torch.compile` look anew: it does not notice that hooks came or went."""
    if makers and "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()


def _own(maker: Any) -> bool:
    """Tells whether all that kernels are read off are parameters: pruning and torch's norms put others in their places."""
    names = [name for name in (*maker.kernels_read_from, *maker.kernels_scaled_by) if getattr(maker, name) is not None]
    return all(name in maker._parameters for name in names)


_TURNING: weakref.WeakSet[nn.Module] = weakref.WeakSet()
"""The modules whose kernels are turned: those of a net, and not of its copies, which have the same hooks."""


def _turn_made(maker: nn.Module, arguments: Any, made: Any) -> Any:
    if maker not in _TURNING:
        return made
    if isinstance(made, Tensor):
        return _Turned.apply(made) if made.requires_grad else made
    return {key: _turn_made(maker, arguments, kernel) for key, kernel in made.items()}


def make_optimizer(net: nn.Module, config: TrainConfig, rounding: Rounding | None = None) -> torch.optim.Optimizer:
    """Makes the optimizer that a configuration asks for, as `fit` does; for training loops of one's own.

    Muon reaches a ring or a puppeteer only inside `turned_kernels`.

    Args:
        net: any net.
        config: its optimizer, rates, momenta and weight decay count. The rates are the highest of the schedule.
        rounding: of the net's weights; its step sizes are trained too.
    Raises:
        ValueError: Muon for a net without kernels that it could turn.
    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> optimizer = make_optimizer(net, TrainConfig(optimizer="muon", lr=0.2, rest_lr=1.0))
        >>> [(group["kind"], group["lr"]) for group in optimizer.param_groups]
        [('kernels', 0.2), ('rest', 1.0)]
    """
    every = list(net.parameters())
    if config.optimizer == "muon":
        turning = _turning(net, config)
        turned = {id(p) for group in turning for p in group["params"]}
        if not turned and not any(map(is_condensed, net.modules())):
            raise ValueError(f"optimizer 'muon' turns kernels, and {type(net).__name__} has none; take sgd or adamw")
        rest = [p for p in every if p.requires_grad and id(p) not in turned]
        moving = [{**group, "momentum": config.rest_momentum} for group in _by_rate(net, rest, config.rest_lr, config)]
        steps = [] if rounding is None else [_steps_of(rounding, _OF_FACTORS * config.state_lr, kind="factors")]
        return Muon([*turning, *moving, *steps])
    groups = _by_rate(net, every, config.lr, config)
    groups += [] if rounding is None else [_steps_of(rounding, config.lr)]
    if config.optimizer == "sgd":
        nesterov = config.nesterov and config.momentum > 0
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=nesterov)
    return torch.optim.AdamW(groups, config.lr)


def _steps_of(rounding: Rounding, lr: float, **more: Any) -> dict[str, Any]:
    """The group of the step sizes by which weights are rounded; they do not decay."""
    return {"params": list(rounding.parameters()), "lr": lr, "weight_decay": 0.0, **more}


def _turning(net: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The groups of what Muon turns: kernels, stacks of kernels by their shape, and what kernels are read off."""
    found: dict[tuple[Any, ...], dict[int, nn.Parameter]] = {}

    def put(parameter: nn.Parameter | None, kind: str, lr: float, stack: tuple[int, ...] | None = None) -> None:
        if parameter is not None and parameter.requires_grad:
            found.setdefault((kind, lr, stack), {})[id(parameter)] = parameter

    for kernel in kernels_of(net):
        put(kernel, "kernels", config.lr)
    for module in net.modules():
        if isinstance(module, StacksKernels):
            for name, shape in module.stacked_kernels.items():
                if shape[2] > 1:
                    put(module._parameters.get(name), "kernels", config.lr, shape)
        if isinstance(module, SharesKernels) and _own(module):
            for name, factor in module.kernels_read_from.items():
                put(module._parameters.get(name), "states", factor * config.state_lr)
            for name in module.kernels_scaled_by:
                put(module._parameters.get(name), "factors", _OF_FACTORS * config.state_lr)
    return [
        {"params": list(held.values()), "kind": kind, "lr": lr, "stack": stack, "momentum": config.momentum}
        for (kind, lr, stack), held in found.items()
    ]


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
