"""How a net calls its parts, found by running a copy without weights; its structure does not tell."""

import contextlib
import contextvars
import logging
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from pocketcnn.methods._method import Site
from pocketcnn.support.copying import skeleton
from pocketcnn.support.modules import hooked
from pocketcnn.support.protocols import MakesKernel, SetsDepth, TakesImages, gauge_of

_log = logging.getLogger(__name__)
SIZES = (32, 28, 64, 224)  # pixels, tried on a net without an `input_size`
_MOST = 6  # numbers of channels tried
_structural = contextvars.ContextVar("structural", default=False)


@dataclass(frozen=True)
class Call:
    """A call of a module: who made it, what was given, and whether one tensor was given by position and one returned."""

    module: nn.Module
    caller: nn.Module | None
    given: Any
    plain: bool


@contextlib.contextmanager
def by_structure() -> Iterator[None]:
    """Makes `calls_of` find nothing, where a recorded choice is repeated and no defaults are looked for."""
    token = _structural.set(True)
    try:
        yield
    finally:
        _structural.reset(token)


def calls_of(model: nn.Module) -> list[Call] | None:
    """Lists the calls of a net's modules for one image, in their order; None if the net takes no image of a usual size.

    The net is left alone: a copy without weights and without the hooks of users is run. Modules inside scripted ones are
    not seen.
    """
    return None if _structural.get() else _tried(model, _listened)


def chains_of(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Finds the blocks in an `nn.ModuleList` or `nn.ModuleDict` that a net calls one right after the other, as `nn.Sequential` does.

    Returns:
        For each such block the next one: both are called once, the next one is given what the block returns, alone, and
        nothing else reads that.
    """
    if not any(type(module) in LISTS for module in model.modules()):
        return {}
    return _tried(model, _followed) or {}


LISTS = (nn.ModuleList, nn.ModuleDict)  # they hold modules, and whoever has them calls these


class PassOn(nn.Module):
    """Returns what it is given: what is left in an `nn.ModuleList` of a block whose work another one does now."""

    def forward(self, x: Any) -> Any:
        return x


def _tried(model: nn.Module, run: Callable[[nn.Module, dict[nn.Module, nn.Module], Tensor], Any]) -> Any:
    """Runs a copy of a net without weights on images of usual sizes, until it takes one; None if it takes none.

    Args:
        model: the net; it is left alone.
        run: is given the copy, the module of the net that each of its modules was made of, and an image.
    """
    state = random.getstate()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            bare, origins = skeleton(model)
            gauge = gauge_of(bare)
            dtype = next((p.dtype for p in bare.parameters() if p.is_floating_point()), torch.get_default_dtype())
            for size in image_sizes(model):
                with contextlib.suppress(Exception):  # a foreign net may raise anything about an image it cannot take
                    x = torch.empty(1, *size, device="meta", dtype=dtype)
                    with _most_complex(gauge), torch.compiler.set_stance("force_eager"):
                        return run(bare, origins, x)
        except Exception as error:
            _log.debug("%s: no copy without weights: %s", type(model).__name__, error)
        finally:
            random.setstate(state)
    _log.info(
        "%s: could not be run on an image of a usual size; its layers are taken to be called in the order of definition",
        type(model).__name__,
    )
    return None


def _most_complex(gauge: SetsDepth | None) -> AbstractContextManager[Any]:
    """Holds a gauge at its highest level, unless it is held already or there is none."""
    return gauge.pinned(gauge.levels - 1) if gauge is not None and gauge.pin is None else contextlib.nullcontext()


def _listened(bare: nn.Module, origins: dict[nn.Module, nn.Module], x: Tensor) -> list[Call]:
    """Runs a net and lists the calls."""
    calls: list[Call] = []
    running: list[tuple[nn.Module | None, int]] = [(None, -1)]

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if len(args) == 1 and not kwargs else None
        calls.append(Call(origins[module], running[-1][0], given, isinstance(given, Tensor)))
        running.append((origins[module], len(calls) - 1))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        _, number = running.pop()
        calls[number] = replace(calls[number], plain=calls[number].plain and isinstance(output, Tensor))

    def listen() -> Iterator[Any]:
        for module in origins:
            if not isinstance(module, torch.jit.ScriptModule):
                yield module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
                yield module.register_forward_hook(leave)

    with hooked(listen()):
        bare(x)
    return calls


def _followed(bare: nn.Module, origins: dict[nn.Module, nn.Module], x: Tensor) -> dict[nn.Module, nn.Module]:
    """Runs a net and finds the chains of `chains_of`."""
    blocks = {block for held in bare.modules() if type(held) in LISTS for block in held.children()}
    with _Follow() as follow, hooked(follow.hooks_on(blocks)):
        bare(x)
    return {origins[one]: origins[other] for one, other in follow.chains().items()}


class _Follow(TorchDispatchMode):
    """Follows what some blocks return: which block, or what else, reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = WeakTensorKeyDictionary()  # of the tensors that blocks returned
        self._made: dict[int, nn.Module] = {}
        self._given: dict[nn.Module, list[int | None]] = {}
        self._readers: dict[int, set[nn.Module | None]] = {}
        self._running: list[nn.Module] = []

    def hooks_on(self, blocks: Iterable[nn.Module]) -> Iterator[RemovableHandle]:
        """Hooks itself to blocks."""
        for block in blocks:
            yield block.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
            yield block.register_forward_hook(self._leave)

    def chains(self) -> dict[nn.Module, nn.Module]:
        """For each block the next one, where nothing but that reads what the block returned."""
        found = {}
        for block, given in self._given.items():
            number = given[0] if len(given) == 1 else None
            if (
                number is not None
                and self._readers.get(number) == {block}
                and len(self._given[self._made[number]]) == 1
            ):
                found[self._made[number]] = block
        return found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tree_iter((args, kwargs)):
            if isinstance(tensor, Tensor) and (number := self._numbers.get(tensor)) is not None:
                self._readers.setdefault(number, set()).add(self._running[0] if self._running else None)
        return func(*args, **kwargs)

    def _enter(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        one = args[0] if len(args) == 1 and not kwargs else kwargs.get("x") if not args and len(kwargs) == 1 else None
        self._given.setdefault(block, []).append(self._numbers.get(one) if isinstance(one, Tensor) else None)
        self._running.append(block)

    def _leave(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._running.pop()
        if isinstance(output, Tensor):
            number = len(self._made)
            self._numbers[output], self._made[number] = number, block


def image_sizes(model: nn.Module) -> list[tuple[int, int, int]]:
    """Lists sizes of images to try: the net's own, if it has one, then usual ones, with the channels of its convolutions.

    The first convolution need not be the stem. Likely channels are those that no layer puts out.
    """
    own: Any = model.input_size if isinstance(model, TakesImages) else None
    layers: list[Any] = [module for module in model.modules() if isinstance(module, _ConvNd | MakesKernel)]
    made = {layer.out_channels for layer in layers if hasattr(layer, "out_channels")}
    taken = [layer.in_channels for layer in layers if hasattr(layer, "in_channels")]
    channels = list(dict.fromkeys([*taken[:1], 3, 1, *sorted(taken, key=made.__contains__)]))[:_MOST]
    sizes = [(count, size, size) for count in channels for size in SIZES]
    return [own] * (isinstance(own, tuple) and len(own) == 3) + sizes


def ends_of(model: nn.Module, layers: Sequence[nn.Module]) -> tuple[nn.Module | None, nn.Module | None, str]:
    """Finds the first and the last of some layers that a net calls.

    Of layers side by side that are given the same image, the one defined first is the first.

    Args:
        model: the net.
        layers: in the order of definition.
    Returns:
        Both, and an empty string; or, if the net could not be run, those defined first and last, and words that say so.
    """
    places = {layer: place for place, layer in enumerate(layers)}
    called = [call for call in calls_of(model) or () if call.module in places]
    if called:
        beside = {call.module for call in called if call.given is called[0].given and call.plain} | {called[0].module}
        return min(beside, key=places.__getitem__), called[-1].module, ""
    if not layers:
        return None, None, ""
    return layers[0], layers[-1], " (guessed by the order of definition)"


def called_in_order(model: nn.Module, sites: Sequence[Site]) -> list[Site]:
    """Refuses runs of blocks that the net calls in another way than `nn.Sequential` does, naming who calls them."""
    if not any(site.possible for site in sites):
        return list(sites)
    calls: dict[nn.Module, list[Call]] = {}
    for call in calls_of(model) or ():
        calls.setdefault(call.module, []).append(call)
    names = {module: name for name, module in model.named_modules()}

    def obstacle(site: Site) -> str:
        stage = model.get_submodule(site.name.rpartition(".")[0])
        if type(stage) in LISTS:
            return ""  # `chains_of` has looked
        for block in site.modules:
            for call in calls.get(block, ()):
                if call.caller is not stage:
                    who = names.get(call.caller, "") if call.caller is not None else ""
                    kind = type(call.caller).__name__
                    return (
                        f"{who or kind} calls {names[block]} itself, not by its nn.Sequential; it may need each block"
                    )
                if not call.plain:
                    return f"{names[block]} is given or returns something other than one map"
        return ""

    found = []
    for site in sites:
        reason = obstacle(site) if site.possible else ""
        found.append(replace(site, reason=reason, possible=False) if reason else site)
    return found
