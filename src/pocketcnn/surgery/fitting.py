"""Starting a small net from trained weights: from the weights alone if the method can, else by matching outputs on images.

Layers that make one kernel, such as a ring's, are brought near to the trained kernels directly. A layer that solves an
equation, or makes a kernel for every pixel, has no kernel to compare. So the stage around it is trained for a while to
give the outputs of the trained stage, on images without labels, one stage after the other. Each stage gets the small
net's own features as its input, so that it makes up for the stages before. Reconstruction of this kind, layer by layer:
Luo, Wu, Lin: ThiNet, ICCV 2017.

In the end the batch norms take their statistics from the images, because other weights have other statistics.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pocketcnn.methods import Method, Site
from pocketcnn.methods._blocks import block_of
from pocketcnn.methods._passes import LISTS
from pocketcnn.support.calls import Inputs, as_inputs, batches_of, distance, tensors_in
from pocketcnn.support.modules import device_and_dtype, evaluating, hooked, in_mode, learning
from pocketcnn.support.protocols import is_condensed

BATCH = 64  # images a step
STEPS = 300  # for each stage
_LR = 3e-3
_TINY = 1e-12
_SAME = 1e-4  # outputs that differ by less, as a share of the largest, are the same


def start_from_trained_(
    small: nn.Module, trained: nn.Module, method: Method, sites: Sequence[Site], images: Tensor | None
) -> None:
    """Brings a freshly condensed net near to the trained one it was made from, in place.

    Args:
        small: the condensed net.
        trained: the net before, with its weights; it is left alone.
        method: the method that condensed the sites.
        sites: places of the trained net that were condensed.
        images: as the nets are given them, [count, channels, height, width], no labels; None if the method needs the
            weights only, and batch norms shall stay as they are.
    Raises:
        ValueError: the method needs images and there are none, they are no batch of images, or a stage to be matched
            returns something other than a map.
    Cost: `STEPS` training steps of `BATCH` images for each stage to be matched, minutes on a CPU.
    """
    made = {site.name: _find(small, site.name) for site in sites}
    device, dtype = device_and_dtype(trained)
    if images is not None:
        if not isinstance(images, Tensor) or images.dim() < 2 or not images.is_floating_point() or len(images) < 2:
            raise ValueError(
                "images must be two or more normalised ones in a float tensor, [count, channels, height, width]"
            )
        if not torch.isfinite(images).all():
            raise ValueError(
                "images hold numbers that are not finite; remove images that were not decoded or normalised well"
            )
        images = images.to(dtype)
    if method.match is not None:
        method.match({site.name: site.modules for site in sites}, made)
    elif images is None:
        raise ValueError(
            f'{method.name} is fitted to the outputs of the trained layers: initialize="fit" needs images= like those that '
            "the net was trained on, a thousand or so, normalised, without labels"
        )
    else:
        _match_stages(small, trained, sites, images)
    if images is not None and not _same(small, trained, images[:BATCH].to(device)):
        recalibrate_(small, images)


def _find(model: nn.Module, name: str) -> nn.Module | None:
    """Finds the module of a name; None if there is none, because blocks were dropped."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


@torch.no_grad()
def _same(small: nn.Module, trained: nn.Module, images: Tensor) -> bool:
    """Tells whether two nets have the same outputs."""
    with evaluating(small), evaluating(trained):
        pairs = zip(tensors_in(small(images)), tensors_in(trained(images)), strict=True)
    return all(bool((one - other).abs().max() <= _SAME * other.abs().max()) for one, other in pairs)


@torch.no_grad()
def recalibrate_(model: nn.Module, images: Inputs, *, batch_size: int = 256) -> None:
    """Replaces the running statistics of a net's batch norms, frozen ones too, by those of some images.

    Norms that no image reaches keep their statistics.

    Args:
        model: changed in place; all of it but its batch norms is in evaluation mode meanwhile.
        images: as the net is given them, [count, channels, height, width]; a tuple of tensors for a net of several inputs.
        batch_size: images at once.
    """
    take_statistics_(model, batches_of(as_inputs(images), batch_size, model))


@torch.no_grad()
def take_statistics_(
    model: nn.Module, batches: Iterable[tuple[Tensor, ...]], norms: Sequence[nn.Module] | None = None
) -> None:
    """Replaces the running statistics of batch norms by the means over some batches.

    Args:
        model: changed in place; all of it but these norms is in evaluation mode meanwhile.
        batches: inputs of the net; each counts as much as the others, so let them be of one size.
        norms: those of the net that are changed; by default all.
    """
    every = model.modules() if norms is None else norms
    taken = [m for m in every if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not taken:
        return
    before = [({name: b.clone() for name, b in norm.named_buffers(recurse=False)}, norm.momentum) for norm in taken]
    done = False
    try:
        with evaluating(model):
            for norm in taken:
                norm.reset_running_stats()
                norm.momentum = None  # the mean over all batches
                norm.training = True
            for batch in batches:
                model(*batch)
        done = True
    finally:
        for norm, (buffers, momentum) in zip(taken, before, strict=True):
            norm.momentum = momentum
            if not done or norm.num_batches_tracked == 0:  # a head that runs only in training, for example
                for name, buffer in buffers.items():
                    getattr(norm, name).copy_(buffer)


class _Reached(Exception):
    """Ends a forward pass that has come far enough."""


def _match_stages(small: nn.Module, trained: nn.Module, sites: Sequence[Site], images: Tensor) -> None:
    """Trains stage after stage of the small net to give the outputs of the trained net's stage."""
    generator = torch.Generator().manual_seed(0)
    for name in dict.fromkeys(_stage_of(trained, site.name) for site in sites):
        stage = _find(small, name)
        if stage is not None:
            _match(small, stage, trained, trained.get_submodule(name), images, generator, name)


def _stage_of(model: nn.Module, name: str) -> str:
    """Name of the sequence inside the net that holds a site's block; the block's own name if there is none.

    For a block in an `nn.ModuleList` it is the name of the module that has the list and calls its blocks.
    """
    block = block_of(model, name)
    stage = block.rpartition(".")[0]
    for held in (block, stage):
        if held and type(model.get_submodule(held)) in LISTS:
            return held.rpartition(".")[0]
    return stage if stage and isinstance(model.get_submodule(stage), nn.Sequential) else block


def _match(
    small: nn.Module,
    stage: nn.Module,
    trained: nn.Module,
    trained_stage: nn.Module,
    images: Tensor,
    generator: torch.Generator,
    name: str,
) -> None:
    """Trains a stage on its mean squared distance to another's outputs, in units of the outputs' variance."""
    made = {id(p) for module in stage.modules() if is_condensed(module) for p in module.parameters()}
    parameters = [p for p in stage.parameters() if p.requires_grad or id(p) in made]
    device, _ = device_and_dtype(trained)
    optimizer = torch.optim.Adam(parameters, _LR)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _LR * (1 + math.cos(math.pi * step / STEPS)) / 2
        batch = images[torch.randint(len(images), (BATCH,), generator=generator)].to(device)
        wanted = _passing(trained, trained_stage, batch, name)[1]
        args, kwargs = _passing(small, stage, batch, name, before=True)[0]
        with learning(parameters):
            with in_mode(stage, training=True):
                found = stage(*args, **kwargs)
            try:
                distance(tensors_in(found), tensors_in(wanted)).backward()
            except ValueError as error:
                raise ValueError(f"{name}: {error}; only stages that return like tensors can be matched") from error
            optimizer.step()


def _passing(model: nn.Module, part: nn.Module, x: Tensor, name: str, *, before: bool = False) -> tuple[Any, Any]:
    """Runs a net in evaluation mode up to one of its parts.

    Returns:
        The part's arguments (args, kwargs) and its output; None as output if the pass stops `before` the part.
    """
    seen: dict[str, Any] = {}

    def enter(module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        seen["in"] = (args, kwargs)
        if before:
            raise _Reached

    def leave(module: nn.Module, args: tuple, output: Any) -> None:
        seen["out"] = output
        raise _Reached

    hooks = [part.register_forward_pre_hook(enter, with_kwargs=True), part.register_forward_hook(leave)]
    with hooked(hooks), evaluating(model), contextlib.suppress(_Reached):
        model(x)
    if "in" not in seen:
        raise ValueError(f"{name}: the net's forward never calls this {type(part).__name__}; exclude= leaves it alone")
    return seen["in"], seen.get("out")
