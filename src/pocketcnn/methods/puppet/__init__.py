"""Puppet-CNN: a small differential equation makes the kernels along the depth; the image's entropy sets how deep it goes.

The puppeteer holds one state, shaped like a kernel, and the field that moves it: dP/dt = G(P). Every convolution of the
stages reads its kernel off the state at the time of its layer, from places and with signs that a seed picks. The
complexity of an image sets the number of blocks that it passes in each stage and, if wanted, the start of the state.

Source: Puppet-CNN: Input-Adaptive Convolutional Networks Using Ordinary Differential Equations. There is no public code,
and the paper leaves much open. Our choices: G; the reading of a kernel; the map from entropy to depth (the share of the
calibration images that are simpler); and batches of mixed depth, in which each image gets the result it would get alone.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn.methods._blocks import (
    RUNS,
    condensed_sites,
    elsewhere,
    is_block,
    kept_channels,
    names_of,
    neighbours,
    obstacle_to,
    structure,
)
from pocketcnn.methods._conv import AbstractConv2d
from pocketcnn.methods._method import Method, Range, Site
from pocketcnn.methods._passes import called_in_order
from pocketcnn.methods._sites import Ties
from pocketcnn.methods.puppet.gauge import Calls, Gauge
from pocketcnn.methods.puppet.options import PuppetOptions
from pocketcnn.methods.puppet.puppeteer import Puppeteer, Slot, puppeteers_of
from pocketcnn.methods.puppet.stage import GeneratedConv2d, PuppetStage, convolutions_of, kernel_groups, kernel_shapes
from pocketcnn.support.modules import learning

__all__ = [
    "METHOD",
    "Gauge",
    "GeneratedConv2d",
    "PuppetOptions",
    "PuppetStage",
    "Puppeteer",
    "gauge_of",
    "puppeteers_of",
]
_FIT_STEPS, _FIT_RATE = 300, 0.3  # of the fit to trained kernels; the rate is in units of the state's deviation


def _subclasses_in(blocks: Sequence[nn.Module]) -> str:
    """Names the types of convolutions larger than 1x1 that are no plain `nn.Conv2d`, in brackets."""
    large = (m for block in blocks for m in block.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1)
    kinds = dict.fromkeys(type(module).__name__ for module in large if type(module) is not nn.Conv2d)
    return f" ({', '.join(kinds)} is not a plain nn.Conv2d)" if kinds else ""


def sites(model: nn.Module, options: PuppetOptions) -> list[Site]:
    """Lists the stages: blocks in an `nn.Sequential` of which all but the first are equal.

    The first may change size and width. A block that holds the net's first convolution, the stem, is left alone.
    """
    ties = Ties.of(model)
    stem = first_conv(model)
    found = []
    for prefixes, blocks in neighbours(model):
        if not is_block(blocks[0][1]):
            found += condensed_sites(prefixes, blocks, PuppetStage)
            continue
        if any(module is stem for module in blocks[0][1].modules()):
            blocks = blocks[1:]
        for stage in _stages(blocks):
            chosen = stage if options.generate == "all" else stage[1:]
            name, first = (chosen or stage)[0]
            rest = tuple((f"{prefixes[0]}{other}", block) for other, block in chosen[1:])
            modules = [block for _, block in chosen]
            obstacle = obstacle_to(modules, len(prefixes), ties)
            if not chosen:
                obstacle = 'no block after the first; generate="all" takes that too'
            elif not obstacle and options.generator != "stored" and not any(map(convolutions_of, modules)):
                obstacle = f"its blocks have no convolutions larger than 1x1 to generate{_subclasses_in(modules)}"
            words = f"{len(chosen) or 1} x {type(first).__name__}"
            found.append(Site(names_of(prefixes, name), first, obstacle, not obstacle, rest, words))
    return called_in_order(model, found or elsewhere(model))


def _stages(blocks: Sequence[tuple[str, nn.Module]]) -> Iterator[list[tuple[str, nn.Module]]]:
    """Cuts neighbours of one type into stages: a block, and the equal ones after it that keep size and channels."""
    runs = [list(run) for _, run in itertools.groupby(blocks, lambda named: structure(named[1]))]
    while runs:
        stage = runs.pop(0)
        if len(stage) == 1 and runs and _keeps_shape(runs[0][0][1]):
            stage += runs.pop(0)
        if len(stage) > 1 and not _keeps_shape(stage[-1][1]):
            yield from ([block] for block in stage)
        else:
            yield stage


def _keeps_shape(block: nn.Module) -> bool:
    return kept_channels(block)[0] > 0


def first_conv(model: nn.Module) -> Any:
    """Finds the first convolution of a net, condensed or not; None if there is none."""
    return next((m for m in model.modules() if isinstance(m, nn.Conv2d | AbstractConv2d)), None)


def build(sites: Sequence[Site], options: PuppetOptions) -> dict[str, nn.Module]:
    """Builds a stage for each site, with one puppeteer for all of them or, as `scope` says, one for each."""
    stages: list[list[nn.Module]] = [site.modules[: options.max_depth] for site in sites]
    kinds = {(p.device, p.dtype) for stage in stages for block in stage for p in block.parameters()}
    if len(kinds) > 1:
        raise ValueError(f"one puppeteer cannot serve layers of different devices or dtypes: {sorted(map(str, kinds))}")
    device, dtype = next(iter(kinds))
    given = asdict(options)

    def puppeteer_of(some: Sequence[Sequence[nn.Module]]) -> Puppeteer:
        shapes, groups = list(map(kernel_shapes, some)), list(map(kernel_groups, some))
        return Puppeteer(shapes, groups=groups, device=device, dtype=dtype, **given)

    if options.generator == "stored":
        return {site.name: PuppetStage(stage, **given) for site, stage in zip(sites, stages, strict=True)}
    if options.scope == "stage":
        return {site.name: PuppetStage(stage, puppeteer_of([stage])) for site, stage in zip(sites, stages, strict=True)}
    shared = puppeteer_of(stages)
    return {
        site.name: PuppetStage(stage, shared, number=number)
        for number, (site, stage) in enumerate(zip(sites, stages, strict=True))
    }


def finish(model: nn.Module, built: Mapping[str, nn.Module | None]) -> None:
    """Connects the stages to the calls of the net and, if images decide anything, to a gauge that they share."""
    stages = [stage for stage in built.values() if isinstance(stage, PuppetStage)]
    calls = Calls.of(model)
    if calls is None:
        calls = Calls()
        calls.attach(model)
    for stage in stages:
        stage.calls = calls
        if not stage.options.adapts:
            continue
        wanted = (stage.options.measure, stage.options.levels)
        gauge = calls.gauge
        if gauge is None:
            first = first_conv(model)
            gauge = Gauge(*wanted, channels=first.in_channels if first is not None else 3)
            calls.gauge = gauge.to(next(stage.parameters()).device)
        if (gauge.measure, gauge.levels) != wanted:
            raise ValueError(
                f"the net measures {gauge.measure} at {gauge.levels} levels already, for stages made before"
            )
        stage.gauge = gauge.train(stage.training)


def gauge_of(model: nn.Module) -> Gauge | None:
    """Finds the gauge of a net, on which `calibrate_` is called; None if nothing depends on the image."""
    return next((module for module in model.modules() if isinstance(module, Gauge)), None)


def match(trained: Mapping[str, Sequence[Any]], made: Mapping[str, nn.Module | None]) -> None:
    """Brings the trajectories of puppeteers as near to the trained kernels as they can pass, on the highest level's path.

    The loss is 1 - cos^2 of the angle between each generated kernel and the trained one, weighted by the kernel's number
    of weights. The kernel's length then comes from its stored scale.
    """
    targets: dict[Puppeteer, dict[Slot, Tensor]] = {}
    for name, stage in made.items():
        assert isinstance(stage, PuppetStage)
        if (puppeteer := stage.puppeteer) is not None:
            for b, block in enumerate(trained[name][: len(stage.blocks)]):
                for k, (_, conv) in enumerate(convolutions_of(block)):
                    targets.setdefault(puppeteer, {})[stage.number, b, k] = conv.weight.detach()
    for puppeteer, kernels_of in targets.items():
        _follow(puppeteer, kernels_of)


def _follow(puppeteer: Puppeteer, wanted: Mapping[Slot, Tensor]) -> None:
    """Trains a puppeteer's state and field until its kernels point as the wanted ones do, then sets its scales."""
    parameters = list(puppeteer.parameters())
    path = puppeteer.key(puppeteer.options.levels - 1)
    optimizer = torch.optim.Adam(parameters, _FIT_RATE * puppeteer.std)
    total = sum(w.numel() for w in wanted.values())
    with learning(parameters):
        for step in range(_FIT_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _FIT_RATE * puppeteer.std * (1 + math.cos(math.pi * step / _FIT_STEPS)) / 2
            made = puppeteer._generate(*path)
            near = [
                F.cosine_similarity(made[slot].flatten(), w.flatten(), dim=0).square() * w.numel()
                for slot, w in wanted.items()
                if slot in made
            ]
            optimizer.zero_grad()
            (-torch.stack(near).sum() / total).backward()
            optimizer.step()
    with torch.no_grad():
        for number in range(len(puppeteer.scales)):
            made = puppeteer._generate(*(puppeteer.key(number) if len(puppeteer.scales) > 1 else path))
            for place, slot in enumerate(puppeteer.slots):
                if slot in made and slot in wanted and made[slot].square().sum() > 0:
                    # With its sign: a trajectory may pass on the other side.
                    power = made[slot].square().sum()
                    puppeteer.scales[number, place] *= (made[slot] * wanted[slot]).sum() / power
        puppeteer.kept.clear()


METHOD = Method(
    name="puppet",
    summary="an ODE makes the kernels along the depth; the image's entropy sets how deep it goes",
    source="Puppet-CNN: Input-Adaptive Convolutional Networks Using Ordinary Differential Equations",
    options=PuppetOptions,
    sites=sites,
    build=build,
    places=RUNS,
    finish=finish,
    match=match,
    searched={"size": Range(0.02, 0.5), "depth": ("fixed", "entropy")},
)
