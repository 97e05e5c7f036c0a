"""Blocks that repeat in an `nn.Sequential`: finding them, comparing them, and reasons not to replace them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pocketcnn.methods._method import Site
from pocketcnn.methods._passes import LISTS, chains_of
from pocketcnn.methods._sites import LOST, STAYS, Ties
from pocketcnn.support.copying import skeleton
from pocketcnn.support.modules import carried_by, device_and_dtype, evaluating, lazy_parts, patched_methods
from pocketcnn.support.protocols import MakesKernel, is_condensed

RUNS = (
    "run of equal blocks of convolutions in an nn.Sequential",
    "runs of equal blocks of convolutions in an nn.Sequential",
)  # the places of a method that replaces such runs: one, several


def neighbours(model: nn.Module) -> Iterator[tuple[list[str], list[tuple[str, nn.Module]]]]:
    """Yields runs of modules of one type in each `nn.Sequential` of a net; a run is all blocks or has none.

    Blocks in an `nn.ModuleList` or `nn.ModuleDict` are a run if the net calls them one right after the other, see `chains_of`.
    Sequences inside a block are part of the block.

    Yields:
        The dotted prefixes that lead to the sequence, and the modules of a run with their names in it.
    """
    paths: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(f"{name}." if name else "")
    inside: set[nn.Module] = set()
    chains = chains_of(model)
    for stage, prefixes in paths.items():
        if not (in_order(stage) or type(stage) in LISTS) or stage in inside:
            continue
        children = [(name, child) for name, child in stage._modules.items() if child is not None]
        inside.update(part for _, child in children if is_block(child) for part in child.modules())
        # A stage of a single block is a block itself; those beside it are not, and their blocks are found inside them.
        for (_, all_blocks), blocks in groupby(children, lambda named: (type(named[1]), is_block(named[1]))):
            if type(stage) not in LISTS:
                yield prefixes, list(blocks)
            elif all_blocks:
                yield from ((prefixes, chain) for chain in _chained(list(blocks), chains) if len(chain) > 1)


def _chained(
    blocks: Sequence[tuple[str, nn.Module]], chains: Mapping[nn.Module, nn.Module]
) -> Iterator[list[tuple[str, nn.Module]]]:
    """Cuts blocks into those that are called one right after the other."""
    chain = [blocks[0]]
    for before, block in pairwise(blocks):
        if chains.get(before[1]) is not block[1]:
            yield chain
            chain = []
        chain.append(block)
    yield chain


def condensed_sites(prefixes: Sequence[str], blocks: Sequence[tuple[str, nn.Module]], kind: type[Any]) -> list[Site]:
    """Lists the layers of a method among neighbours that are no blocks, as places condensed already."""
    return [
        Site(names_of(prefixes, name), layer, f"already condensed by {layer.condensed_by!r}", False)
        for name, layer in blocks
        if isinstance(layer, kind)
    ]


def elsewhere(model: nn.Module) -> list[Site]:
    """Lists equal blocks side by side in a module that calls them in another order, as places that are left alone."""
    found: list[Site] = []
    chains = chains_of(model)
    inside: set[nn.Module] = set()
    for prefix, parent in model.named_modules():
        if in_order(parent) or parent in inside:
            continue
        children = [(f"{prefix}.{name}".removeprefix("."), child) for name, child in parent.named_children()]
        for equal, run in groupby(children, lambda named: structure(named[1]) if is_block(named[1]) else None):
            (name, first), *rest = run
            if equal and rest and chains.get(first) is not rest[0][1]:
                inside.update(part for child in (first, *(block for _, block in rest)) for part in child.modules())
                kind = type(parent).__name__ + " with a forward of its own" * (type(parent) is nn.Sequential)
                reason = f"in {kind}, which need not call them one after the other as an nn.Sequential does"
                words = f"{1 + len(rest)} x {type(first).__name__}"
                found.append(Site((name,), first, reason, False, tuple(rest), words))
    return found


def kept_channels(block: nn.Module) -> tuple[int, str]:
    """Finds the number of channels that a block takes and returns, by running a copy that shares its weights.

    The first convolution's channels are tried, then twice as many: a block of ShuffleNet V2 gives it half of them.

    Returns:
        The number and an empty string; or, if the block changes the channels or the image's size, 0 and what was wrong.
    """
    first: Any = next((m for m in block.modules() if isinstance(m, nn.Conv2d | MakesKernel)), None)
    if first is None:
        return 0, "its blocks are layers that are condensed already"
    try:
        bare, _ = skeleton(block, weights=True)
    except Exception as error:  # as in `tried_out`
        return 0, f"its blocks cannot be tried out{_in_brackets(error)}"
    problem = ""
    for channels in (first.in_channels, 2 * first.in_channels):
        if not (wrong := tried_out(bare, channels)):
            return channels, ""
        problem = problem or f"its blocks do not turn {channels} channels into as many of the same size{wrong}"
    return 0, problem


def names_of(prefixes: Sequence[str], name: str) -> tuple[str, ...]:
    """All dotted paths to a module of a sequence."""
    return tuple(f"{prefix}{name}" for prefix in prefixes)


def is_block(module: nn.Module) -> bool:
    """Tells whether a module is a block: it holds convolutions, and no such modules that repeat, as a stage does."""
    if is_condensed(module) or not any(True for _ in module.children()):
        return False
    for part in module.modules():
        if type(part) is nn.Sequential:
            blocks = [structure(child) for child in part if is_block(child)]
            if any(one == other for one, other in pairwise(blocks)) or (part is module and blocks):
                return False
    return any(isinstance(part, nn.Conv2d) or is_condensed(part) for part in module.modules())


def block_of(model: nn.Module, name: str) -> str:
    """Name of the outermost block around a module; the module's own name if there is none."""
    words = name.split(".")
    prefixes = (".".join(words[:end]) for end in range(1, len(words)))
    return next((prefix for prefix in prefixes if is_block(model.get_submodule(prefix))), name)


def structure(block: nn.Module) -> dict[str, Any]:
    """Describes a block; equal for blocks that differ only in weights, dropout probabilities and what is attached to them."""
    found: dict[str, Any] = {}
    for name, module in block.named_modules():
        found[f"{name}'s type"] = type(module)
        attached = ("p", "drop_prob", "training", "_is_full_backward_hook", *patched_methods(module))
        for key, value in vars(module).items():
            if key not in attached and isinstance(
                value, bool | int | float | str | tuple | FunctionType | BuiltinFunctionType
            ):
                found[f"{name}.{key}".removeprefix(".")] = value
        for key, parameter in module.named_parameters(recurse=False):
            found[f"{name}.{key}".removeprefix(".")] = None if is_lazy(parameter) else tuple(parameter.shape)
    return found


def difference(one: nn.Module, other: nn.Module) -> str:
    """Names the first thing in which two blocks differ, "nothing" if none."""
    first, second = structure(one), structure(other)
    return next((key for key in {**first, **second} if first.get(key) != second.get(key)), "nothing")


def obstacle_to(blocks: Sequence[nn.Module], references: int, ties: Ties) -> str:
    """Gives the reason why blocks must not be taken out of a net; an empty string if there is none."""
    modules = [module for block in blocks for module in block.modules()]
    if any(is_condensed(module) for module in modules):
        return "its blocks hold layers that are condensed already"
    if lazy := next((why for block in blocks for why in lazy_parts(block).values()), ""):
        return f"in its blocks, {lazy}"
    if words := next(filter(None, map(carried_by, modules)), ""):
        return f"its blocks have {words}{LOST}"
    parts = [*modules, *(parameter for block in blocks for parameter in block.parameters())]
    if path := next((ties.kept[id(part)] for part in parts if id(part) in ties.kept), ""):
        return f"a part of its blocks is kept in {path} too{STAYS}"
    if odd := next((p.dtype for block in blocks for p in block.parameters() if not p.is_floating_point()), None):
        return f"its blocks have {odd} weights, not floating-point ones"
    own = Counter(id(p) for block in blocks for _, p in block.named_parameters(remove_duplicate=False))
    if any(ties.owners[parameter] > references * count for parameter, count in own.items()):
        return "its blocks share weights with other parts of the net"
    return ""


def tried_out(block: nn.Module, channels: int) -> str:
    """Runs a block on a small image and says what is wrong if the output's shape differs."""
    device, dtype = device_and_dtype(block)
    x = torch.zeros(1, channels, 16, 16, device=device, dtype=dtype)
    try:
        with torch.random.fork_rng(devices=[]), evaluating(block):
            y = block(x)
    except Exception as error:  # a block may raise anything
        return _in_brackets(error)
    return "" if isinstance(y, Tensor) and y.shape == x.shape else ", tried with 16 x 16 pixels"


def _in_brackets(error: Exception) -> str:
    return f" ({type(error).__name__}: {' '.join(str(error).split())[:120]})"


def in_order(stage: nn.Module) -> bool:
    """Tells whether a module calls its parts one after the other, as `nn.Sequential` does."""
    return type(stage) is nn.Sequential and not patched_methods(stage)
