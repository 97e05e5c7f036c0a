"""Small things done to any `nn.Module`: modes, hooks, device and dtype."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.hooks import RemovableHandle

from pocketcnn.errors import UnsupportedNet
from pocketcnn.support.protocols import Listener

_WORDS = {
    "_forward_hooks": "forward hooks",
    "_forward_pre_hooks": "forward hooks",
    "_backward_hooks": "backward hooks",
    "_backward_pre_hooks": "backward hooks",
    "_state_dict_hooks": "state-dict hooks",
    "_state_dict_pre_hooks": "state-dict hooks",
    "_load_state_dict_pre_hooks": "state-dict hooks",
    "_load_state_dict_post_hooks": "state-dict hooks",
}
ON_META = "on the meta device, without values; give the net some first, by to_empty and load_state_dict"
HOOKS = tuple(_WORDS)  # attributes of an `nn.Module` that hold its hooks


def lazy_parts(model: nn.Module) -> dict[str, str]:
    """Names the modules of a net that have no weights before their first batch, such as `nn.LazyLinear`, and says so."""
    return {
        name: f"a {type(module).__name__} has no weights before its first batch; run one through the net first"
        for name, module in model.named_modules()
        if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
    }


def refuse_lazy(model: nn.Module) -> None:
    """Checks that the parameters of a net have shapes.

    Raises:
        UnsupportedNet: a part gets its parameters with its first batch; the message names it.
    """
    for name, why in lazy_parts(model).items():
        raise UnsupportedNet(f"{name or 'the net'}: {why}")


def check_weights(model: nn.Module) -> None:
    """Checks that all parts of a net have weights, so that it can be run.

    Raises:
        UnsupportedNet: a part has none yet; the message names it.
    """
    refuse_lazy(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedNet(f"{name}: {ON_META}")


def uncompiled(model: nn.Module) -> nn.Module:
    """Returns the net itself, if `torch.compile` wraps it."""
    return getattr(model, "_orig_mod", model)


_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")  # the only child of a module that runs it as it is


def unwrapped(module: nn.Module) -> nn.Module:
    """Returns the module itself, if `torch.compile` or torch's activation checkpointing wraps it, even several times."""
    while (name := next((name for name in _WRAPPERS if name in module._modules), None)) is not None:
        module = module.get_submodule(name)
    return module


def bare_name(name: str) -> str:
    """The dotted name of a module or tensor in a net without the wrappers that `unwrapped` knows.

    Example:
        >>> bare_name("layer1._orig_mod.0.conv1.weight")
        'layer1.0.conv1.weight'
    """
    return ".".join(word for word in name.split(".") if word not in _WRAPPERS)


@contextlib.contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """Takes the wrappers that `unwrapped` knows out of a net and its parts inside a `with`, so that all names are bare."""
    taken = []
    for parent in [module for module in model.modules() if unwrapped(module) is module]:
        for name, child in parent._modules.items():
            if child is not None and (inner := unwrapped(child)) is not child:
                taken.append((parent, name, child))
                parent._modules[name] = inner
    try:
        yield unwrapped(model)
    finally:
        for parent, name, child in taken:
            parent._modules[name] = child


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Finds device and precision of a net, by its first floating-point tensor; CPU and float32 without one."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return torch.device("cpu"), torch.get_default_dtype()


_FILLED_LATER: ContextVar[bool] = ContextVar("filled_later", default=False)


@contextlib.contextmanager
def filled_later() -> Iterator[None]:
    """Lets modules made inside a `with` leave out starting values that take long to compute: a file will replace them."""
    token = _FILLED_LATER.set(True)
    try:
        yield
    finally:
        _FILLED_LATER.reset(token)


def is_filled_later() -> bool:
    """Tells whether modules are being made whose parameters and buffers a file will replace."""
    return _FILLED_LATER.get()


def patched_methods(module: nn.Module) -> list[str]:
    """Names the methods that were replaced in the instance of a module, such as `forward`.

    A module that chooses among the methods of its own class, as in `self.forward = self.forward_fast`, replaced none.
    """

    def is_chosen(name: str, value: Any) -> bool:
        function = value.__func__ if isinstance(value, MethodType) and value.__self__ is module else None
        other = getattr(function, "__name__", name)
        return other != name and getattr(type(module), other, None) is function

    return [
        name
        for name, value in vars(module).items()
        if callable(value) and callable(getattr(type(module), name, None)) and not is_chosen(name, value)
    ]


def is_watched(module: nn.Module) -> bool:
    """Tells whether a module has hooks or a `forward` of its own instance, which a pass around the module would skip.

    It is asked in every pass, and the compiler must be able to trace it.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module) or "_conv_forward" in vars(module)


def _is_ours(hook: Any) -> bool:
    owner = getattr(hook, "__self__", None)  # of a bound method
    return isinstance(owner, Listener) and not isinstance(owner, Tensor)


def carried_by(module: nn.Module) -> str:
    """Says what was attached to a module, or to its own parameters, and would be lost with it; empty if nothing was."""
    for hooks, words in _WORDS.items():
        if any(not _is_ours(hook) for hook in getattr(module, hooks).values()):
            return words
    for name in patched_methods(module):
        return f"a {name} of its own"
    for name, parameter in module.named_parameters(recurse=False):
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"hooks on its {name}"
    return ""


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Puts a net in training or evaluation mode, and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train() if training else model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a net in evaluation mode without gradients, and every module back in its own mode afterwards."""
    with in_mode(model, training=False), torch.no_grad():
        yield


@contextlib.contextmanager
def learning(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Makes parameters trainable, frozen or not; afterwards each is as it was, and has no gradient."""
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
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks at the end of a `with`; also those made so far, if `handles` is a generator that fails."""
    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield


@contextlib.contextmanager
def maps_of(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of the named modules of a net while it is called, by their names."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        seen[name] = output

    with hooked(net.get_submodule(name).register_forward_hook(partial(keep, name)) for name in names):
        yield seen


def at_inputs(net: nn.Module, x: Tensor, watched: Mapping[str, Callable[[Tensor], Tensor]]) -> dict[str, Tensor]:
    """Applies functions to the inputs of modules while a net runs on a batch in evaluation mode.

    A function is called just before its module, so that nothing has changed the input in place yet.

    Args:
        net: any net; left as it was.
        x: the batch.
        watched: functions of a module's first input, by the module's name.
    Returns:
        Their results by the same names, without modules that the batch never reaches.
    """
    known = dict(net.named_modules())
    found: dict[str, Tensor] = {}

    def look(name: str, module: nn.Module, args: tuple) -> None:
        found[name] = watched[name](args[0])

    with hooked(known[name].register_forward_pre_hook(partial(look, name)) for name in watched), evaluating(net):
        net(x)
    return found
