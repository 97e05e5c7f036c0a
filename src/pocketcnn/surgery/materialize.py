"""Ordinary convolutions in the place of condensed layers, and nets as they are served."""

import math
from typing import Any

from torch import Tensor, nn

from pocketcnn.errors import CannotMaterialize
from pocketcnn.support.calls import ExampleSize
from pocketcnn.support.copying import copied
from pocketcnn.support.modules import carried_by, uncompiled
from pocketcnn.support.protocols import Listener, LooksAtEntropy, MakesKernel, ServesOtherwise, is_condensed
from pocketcnn.surgery.condense import put_in_place
from pocketcnn.surgery.folding import fold_norms_
from pocketcnn.surgery.provenance import Provenance, forget_steps_, record_of, remember


def as_served(model: nn.Module, *, fold: bool = False) -> nn.Module:
    """Makes the net as one would serve it: with ordinary layers if these are exact, else with its own.

    A layer that is cheaper otherwise than as an ordinary one says how, see `ServesOtherwise`.

    Args:
        model: any net; it is not changed.
        fold: also fold batch norms, as `fold_norm` does; the new net is then in evaluation mode.
    Returns:
        A net with equal outputs; the given one itself if no ordinary kernels equal its own and `fold` is off.
    Raises:
        ValueError: as in `fold_norm`.
    """
    try:
        return materialize(model, fold_norm=fold, serving=True)
    except CannotMaterialize:
        return fold_norm(model) if fold else model


def materialize(
    model: nn.Module,
    *,
    entropy: float | None = None,
    fold_norm: bool = False,
    input_size: ExampleSize | None = None,
    partly: bool = False,
    serving: bool = False,
) -> nn.Module:
    """Puts ordinary `nn.Conv2d` in the place of every condensed layer; the given net is left alone.

    Args:
        model: any net.
        entropy: entropy of the images in bits, as `image_entropy` gives it, or the net's other measure in its own unit. A
            net whose depth depends on its images becomes the net that images of this entropy pass.
        fold_norm: folds batch norms into the convolutions before them afterwards, as `pocketcnn.fold_norm` does; the new
            net is then in evaluation mode, and not for saving or training.
        input_size: as in `pocketcnn.fold_norm`.
        partly: leaves layers whose kernels depend on the image as they are, instead of refusing the net.
        serving: takes what a layer is served as, see `pocketcnn.support.protocols.ServesOtherwise`, if it is no single
            `nn.Conv2d`.
    Returns:
        A new net with equal outputs, as large and as fast as the plain one.
    Raises:
        CannotMaterialize: a layer's kernel depends on the image, so that no ordinary convolution equals it, or hooks or the
            like are attached to it.
        UnsupportedNet: a part of the net cannot be copied.
        ValueError: an entropy for a net that does not use it, or one that is not a number; an input_size without
            `fold_norm`; or as in `pocketcnn.fold_norm`.
    Example:
        >>> import torch, pocketcnn as pc
        >>> small = pc.condense(pc.create_model("resnet20"), "ring", size=0.1).eval()
        >>> x = torch.randn(2, 3, 32, 32)
        >>> bool(torch.allclose(pc.materialize(small)(x), small(x), atol=1e-5))
        True
    """
    if input_size is not None and not fold_norm:
        raise ValueError("input_size is for fold_norm=True only; leave it out")
    condensed = {name: module for name, module in model.named_modules() if is_condensed(module)}
    looking = {
        name for name, module in condensed.items() if isinstance(module, LooksAtEntropy) and module.needs_entropy
    }
    if entropy is not None and not looking:
        raise ValueError(f"nothing in this {type(model).__name__} depends on the image's entropy; leave entropy out")
    if entropy is not None and not math.isfinite(entropy):
        raise ValueError(f"entropy is a number of bits, not {entropy}")
    obstacles = {
        name: f"{module.condensed_by}: {why}"
        for name, module in condensed.items()
        if (why := ("" if entropy is not None and name in looking else module.why_not_dense) or _attached(module))
    }
    if obstacles and not partly:
        name, why = next(iter(obstacles.items()))
        others = f" (and {len(obstacles) - 1} more layers)" if len(obstacles) > 1 else ""
        raise CannotMaterialize(
            f"{name}{others}: {why}, so no ordinary convolution equals it; run or export the net as it is"
        )
    dense = copied(model)
    same_form = not obstacles
    layer: Any
    for layer, names in paths_of(dense).items():
        if is_condensed(layer) and obstacles.keys().isdisjoint(names):
            new = layer.served() if serving and isinstance(layer, ServesOtherwise) else layer.dense(entropy)
            dense = put_in_place(dense, names, new)
            if not isinstance(new, nn.Conv2d):
                same_form = False  # parts have other names than in the plain net
        if not obstacles.keys().isdisjoint(looking):
            continue  # stages that stay need the hooks
        for hook in list(layer._forward_pre_hooks.values()):
            owner = getattr(hook, "__self__", None)  # of a bound method
            if isinstance(owner, Listener) and not isinstance(owner, Tensor):
                owner.detach(layer)
    dense = forget_steps_(remember(dense, record_of(model)), keep_base=same_form)
    return _folded(dense, input_size) if fold_norm else dense


def _attached(layer: nn.Module) -> str:
    """Says what hooks or methods of its own a condensed layer has, which would not be called in an ordinary one."""
    own = (part for part in layer.modules() if part is layer or isinstance(part, MakesKernel))
    return next((f"it has {words}" for part in own if (words := carried_by(part))), "")


def fold_norm(model: nn.Module, *, input_size: ExampleSize | None = None) -> nn.Module:
    """Folds every batch norm that directly follows a convolution into it; the given net is left alone.

    In evaluation mode a batch norm is a factor and a summand for each channel. The convolution takes them over: it has a
    bias afterwards, and the norm is an `nn.Identity`. One image, sent through a copy of the net, shows which pairs can be
    folded: convolution and norm ran once, only the norm read the convolution's output, and nothing else read their
    parameters. These are left alone: other norms, modules with hooks, subclasses of `nn.Conv2d` and `nn.BatchNorm2d`, and
    norms after layers that make their kernels. `materialize` turns ring layers into convolutions first; the routing
    weights of a `CondConv2d` need not sum to 1 and would mix the summand too.

    The new net is for serving and exporting. It lacks its norms in training, and `pocketcnn.save` refuses it, because a
    file does not describe folding: save the given net, and fold the net that `load` returns.

    Args:
        model: any net.
        input_size: (channels, height, width) of an image for the net, a tuple of sizes for one of several inputs. None tries some sizes, with the channels of the
            first convolution.
    Returns:
        A new net in evaluation mode, with the outputs of the given one in evaluation mode.
    Raises:
        ValueError: the net takes no image of that size, or of any size tried; or a norm that would be folded keeps no
            running statistics.
    Cost: one pass of one image, through a copy. Each folded norm saves a pass over its map.
    Example:
        >>> net = fold_norm(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
        >>> net
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )
    """
    return _folded(copied(uncompiled(model)), input_size)


def _folded(model: nn.Module, input_size: ExampleSize | None) -> nn.Module:
    """Folds the net itself, and records in it that norms are gone."""
    if not fold_norms_(model, input_size):
        return model
    return remember(model, Provenance(base=None, steps=(), folded=True))


def paths_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Lists all dotted paths to each module."""
    paths: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    return paths
