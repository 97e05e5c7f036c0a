"""Copies of nets: with the hooks on their parameters, without gradient graphs, or without weights."""

import copy
import functools
import logging
import types
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from pocketcnn.errors import UnsupportedNet
from pocketcnn.support.modules import HOOKS, patched_methods

_log = logging.getLogger(__name__)
Net = TypeVar("Net", bound=nn.Module)
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, str, bytes, logging.Logger)


def copied(model: Net) -> Net:
    """Copies a net with all that it carries, as `copy.deepcopy` does, and more.

    The copy has the hooks and the attributes of the parameters too. Functions that the net keeps as hooks or in the place
    of its methods, and that hold parts of the net, hold those of the copy. A tensor that the net keeps with its gradient
    graph, such as the output of its last call, is copied without the graph; one line in the log names it, unless a hook
    makes it anew in every call, as pruning and weight norm do.

    Raises:
        UnsupportedNet: a part of the net cannot be copied; the message names it.
    """
    memo: dict[int, Any] = {}
    left = []
    for path, value in kept_things(model):
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            continue
        if is_lazy(value):
            kind: Any = UninitializedBuffer
            memo[id(value)] = kind(False, value.device, value.dtype)
        elif not value.is_leaf:
            memo[id(value)] = value.detach().clone()
            if not _is_made_anew(model, path):
                left.append(path)
    if left:
        _log.warning(
            "%s: copied without the gradient graph of %s, kept from an earlier call",
            type(model).__name__,
            ", ".join(left),
        )
    given = dict(memo)
    try:
        new = copy.deepcopy(model, memo)
    except Exception as error:  # a part may raise anything
        raise UnsupportedNet(
            f"{_culprit(model, given)} cannot be copied ({type(error).__name__}: {' '.join(str(error).split())[:160]}); "
            "remove or detach it, and condense or copy the net then"
        ) from error
    for parameter in model.parameters():
        _carry_over(parameter, memo)
    for module in new.modules():
        for key, value in vars(module).items():
            if isinstance(value, types.FunctionType | functools.partial):
                vars(module)[key] = _rebound(value, memo)
        for hooks in HOOKS:
            registered = getattr(module, hooks)
            for key, hook in registered.items():
                registered[key] = _rebound(hook, memo)
    return new


def skeleton(model: nn.Module, *, weights: bool = False) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """Copies the structure of a net, to be run without any effect on the net or on what is outside of it.

    The copy is in evaluation mode. Functions of users (hooks, and methods that they replaced) are left out.

    Args:
        model: any net.
        weights: True to share the net's parameters; else the copy is on the meta device, and costs nothing to run.
    Returns:
        The copy, and its modules with those that they are copies of.
    Raises:
        Exception: something that cannot be copied so.
    """
    memo: dict[int, Any] = {}
    tensors = [*model.parameters(), *model.buffers(), *(v for _, v in kept_things(model) if isinstance(v, Tensor))]
    for tensor in tensors:
        if is_lazy(tensor):
            kind: Any = UninitializedParameter if isinstance(tensor, nn.Parameter) else UninitializedBuffer
            memo[id(tensor)] = kind(False, "meta", tensor.dtype)
        elif weights:
            memo[id(tensor)] = tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
        else:
            bare = tensor.detach().to("meta")
            memo[id(tensor)] = nn.Parameter(bare, False) if isinstance(tensor, nn.Parameter) else bare
    bare_net = copy.deepcopy(model, memo)
    for module in bare_net.modules():
        for hooks in HOOKS:
            registered = getattr(module, hooks)
            for key in [key for key, hook in registered.items() if isinstance(hook, types.FunctionType)]:
                del registered[key]
        for key in patched_methods(module):
            if "_orig_mod" not in module._modules:  # of `torch.compile`
                delattr(module, key)
    origins = {memo[id(module)]: module for module in model.modules() if id(module) in memo}
    return bare_net.eval(), origins


def kept_things(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yields the buffers of a net, and the tensors and modules that it keeps in plain attributes, however deep in lists,
    dictionaries and other objects; each with the path that leads to it, as in `head.logits`."""
    registered = set(model.modules())
    seen: set[int] = set()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_modules"):
                continue
            places = value.items() if key == "_buffers" else [(key, value)]
            for place, thing in places:
                kept = _inside(f"{name}.{place}".removeprefix("."), thing, registered, seen)
                yield from (found for found in kept if found[1] is not module)


def _inside(path: str, thing: Any, registered: set[nn.Module], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Yields the tensors and modules in a value; the parts of a module that is not registered are looked through too."""
    stack = [(path, thing)]
    while stack:
        path, thing = stack.pop()
        if isinstance(thing, Tensor | nn.Module):
            yield path, thing
            if isinstance(thing, Tensor) or thing in registered:
                continue
        if isinstance(thing, _OPAQUE) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            stack += [(f"{path}[{key!r}]", value) for key, value in thing.items()]
        elif isinstance(thing, list | tuple | set | frozenset):
            stack += [(f"{path}[{number}]", value) for number, value in enumerate(thing)]
        elif isinstance(thing, types.MethodType):
            stack.append((path, thing.__self__))
        elif isinstance(thing, functools.partial):
            stack += [(path, value) for value in (thing.func, *thing.args, *thing.keywords.values())]
        elif hasattr(thing, "__dict__"):
            stack += [(f"{path}.{key}", value) for key, value in vars(thing).items()]


def _is_made_anew(model: nn.Module, path: str) -> bool:
    """Tells whether a hook of `torch.nn.utils` makes a tensor in each call: `weight` from `weight_orig` or `weight_g`."""
    owner, _, name = path.rpartition(".")
    module = dict(model.named_modules()).get(owner)
    return module is not None and any(f"{name}_{end}" in module._parameters for end in ("orig", "g"))


def _culprit(model: nn.Module, memo: dict[int, Any]) -> str:
    """Names the part of a net that cannot be copied."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            try:
                if key != "_modules":
                    copy.deepcopy(value, dict(memo))
            except Exception:
                inner = ""
                if key in ("_parameters", "_buffers"):
                    key, inner = "", f" (one of {', '.join(value)})"
                return f"{name}.{key}".strip(".") + inner or type(model).__name__
    return type(model).__name__


def _carry_over(old: nn.Parameter, memo: dict[int, Any]) -> None:
    """Gives the copy of a parameter its attributes and hooks, which `copy.deepcopy` leaves out."""
    new = memo.get(id(old))
    if new is None or new is old:
        return
    for key, value in vars(old).items():
        vars(new).setdefault(key, copy.deepcopy(value, memo))
    for register, hooks in (
        (new.register_hook, old._backward_hooks),
        (new.register_post_accumulate_grad_hook, getattr(old, "_post_accumulate_grad_hooks", None)),
    ):
        for hook in (hooks or {}).values():
            trained = new.requires_grad
            new.requires_grad_(True)  # else it takes no hooks
            register(_rebound(copy.deepcopy(hook, memo), memo))
            new.requires_grad_(trained)


def _rebound(function: Any, memo: dict[int, Any]) -> Any:
    """Makes a function that holds the copies of what a function holds; the same function if it holds nothing copied."""
    if isinstance(function, functools.partial):
        func = _rebound(function.func, memo)
        return function if func is function.func else functools.partial(func, *function.args, **function.keywords)
    if not isinstance(function, types.FunctionType) or not _holds(function, memo, set()):
        return function
    if id(function) in memo:
        return memo[id(function)]
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    new = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    functools.update_wrapper(new, function)
    memo[id(function)] = new
    new.__defaults__ = tuple(_copy_of(v, memo) for v in function.__defaults__) if function.__defaults__ else None
    new.__kwdefaults__ = {k: _copy_of(v, memo) for k, v in (function.__kwdefaults__ or {}).items()}
    for cell, value in _contents(function, cells):
        cell.cell_contents = _copy_of(value, memo)
    return new


def _contents(function: types.FunctionType, cells: tuple[Any, ...]) -> Iterator[tuple[Any, Any]]:
    """Yields cells and the values in those of a function; a cell may be empty."""
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        try:
            yield cell, old.cell_contents
        except ValueError:
            continue


def _copy_of(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, types.MethodType):
        return types.MethodType(_rebound(value.__func__, memo), _copy_of(value.__self__, memo))
    return _rebound(value, memo)


def _holds(function: Callable[..., Any], memo: dict[int, Any], seen: set[int]) -> bool:
    """Tells whether a function's closure or defaults lead to something that was copied."""
    if id(function) in seen or not isinstance(function, types.FunctionType):
        return False
    seen.add(id(function))
    values = [value for _, value in _contents(function, function.__closure__ or ())]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for value in values:
        owner = value.__self__ if isinstance(value, types.MethodType) else value
        inner = value.func if isinstance(value, functools.partial) else value
        if id(owner) in memo or _holds(getattr(inner, "__func__", inner), memo, seen):
            return True
    return False
