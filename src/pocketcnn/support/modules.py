"""Small things done to any `nn.Module`: modes, hooks, where it lives."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn


def check_input_size(input_size: tuple[int, ...], batch: int = 1) -> None:
    """Checks (channels, height, width) and a batch size.

    Raises:
        ValueError: not three whole numbers of at least 1, or a batch below 1.
    """
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size is (channels, height, width), each at least 1, not {tuple(input_size)}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, not {batch}")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a net in evaluation mode without gradients, and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a net lives and in which precision, from its first floating-point tensor; CPU and float32 without one."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


@contextlib.contextmanager
def learning(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Lets parameters be trained, frozen or not; afterwards each is as it was, and has no gradient."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, trained in zip(parameters, before, strict=True):
            parameter.requires_grad_(trained)
            parameter.grad = None


@contextlib.contextmanager
def maps_of(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the named parts of a net give while it is called; filled in by the call."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        seen[name] = output

    hooks = [net.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def at_inputs(net: nn.Module, x: Tensor, watched: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """What functions make of the inputs of modules, by their names, when a batch comes by in evaluation mode.

    A function is called as its module is, before anything can change the input in place; a module that the batch never
    reaches is left out.
    """
    known = dict(net.named_modules())
    found: dict[str, Tensor] = {}
    handles = [
        known[name].register_forward_pre_hook(
            lambda _, given, name=name, function=function: found.__setitem__(name, function(given[0]))
        )
        for name, function in watched.items()
    ]
    try:
        with evaluating(net):
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    return found
