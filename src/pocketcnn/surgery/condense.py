"""Putting condensed layers into a net, and taking them out again.

Works on any `nn.Module`: a shared module is replaced wherever it is referenced, and device, dtype, training mode and
`requires_grad` of what was replaced are kept. A net remembers how it was made, so that a file can rebuild it.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from pocketcnn.errors import NothingToCondense, UnsupportedLayer
from pocketcnn.methods import Method
from pocketcnn.surgery.fitting import start_from_trained_
from pocketcnn.surgery.provenance import Step, provenance, remember
from pocketcnn.surgery.selection import Patterns, Where, resolve_method, select_sites


def condense(
    model: nn.Module,
    method: str,
    *,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    where: Where | None = None,
    on_unsupported: str = "skip",
    initialize: str = "fresh",
    images: Any = None,
    **options: Any,
) -> nn.Module:
    """Replaces layers of a net by condensed ones; the given net is left alone.

    Args:
        model: any net; may hold layers condensed before.
        method: a name in `METHODS`.
        include: dotted-name patterns (`"layer4.*"`, `"*.conv2"`) of the layers to condense, whatever the method would
            choose by default; a pattern also matches what lies inside a module it names.
        exclude: patterns of layers to leave alone.
        where: `where(module, name)` must be true of every layer condensed.
        on_unsupported: what to do with layers asked for that the method cannot stand for: `"skip"` or `"error"`.
        initialize: `"fresh"` draws the new layers' numbers anew; `"fit"` brings them near to the weights that they replace,
            see `pocketcnn.fit`. Other parts of the net keep their weights, but for the blocks around layers that are fitted
            to outputs, and the batch norms' statistics.
        images: for `"fit"`: images as the net is given them, normalised, [count, channels, height, width], without labels; a
            thousand or more. Methods that make kernels do without, but then batch norms keep statistics that no longer fit.
        **options: the fields of the method's options, as in `METHODS[method].options`.
    Returns:
        A new net on the same device, in the same mode.
    Raises:
        UnknownMethod: no such method.
        NothingToCondense: the method found no place to work.
        UnsupportedLayer: `on_unsupported="error"` and a layer asked for cannot be replaced.
        ValueError: an option out of range, a pattern that matches nothing, or images missing or of no use.
    """
    if initialize not in ("fresh", "fit"):
        raise ValueError(f"no initialization {initialize!r}; known: fresh, fit")
    if images is not None and initialize == "fresh":
        raise ValueError('no image is looked at with initialize="fresh"; leave images out, or take initialize="fit"')
    record, settings = resolve_method(method, options)
    if initialize == "fit":
        settings = dataclasses.replace(settings, **record.match_options)
    sites = select_sites(record, record.sites(model, settings), include, exclude, where, on_unsupported)
    chosen = tuple(site.name for site in sites if not site.reason)
    if not chosen:
        reasons = "; ".join(f"{site.name}: {site.reason}" for site in sites[:3]) or f"it has no {record.places[1]}"
        more = f"; and {len(sites) - 3} more" if len(sites) > 3 else ""
        raise NothingToCondense(
            f"{method!r} found no {record.places[0]} to work on in {type(model).__name__} ({reasons}{more}); "
            f"plan(model, {method!r}) lists every one and why it was passed over"
        )
    small = apply_step(model, record, settings, chosen)
    if initialize == "fit":
        start_from_trained_(small, model, record, [site for site in sites if not site.reason], images)
    return small


def rebuild(model: nn.Module, steps: Sequence[Step]) -> nn.Module:
    """Applies recorded steps to a plain net: what loading a file does.

    Raises:
        UnknownMethod: a method this version does not have.
        ValueError: the net has no layer of a recorded name, or it does not fit.
    """
    for step in steps:
        record, settings = resolve_method(step.method, dict(step.options))
        model = apply_step(model, record, settings, tuple(step.sites))
    return model


def apply_step(model: nn.Module, record: Method, settings: Any, names: tuple[str, ...]) -> nn.Module:
    """A copy of the net with the named sites replaced, and the step recorded in it."""
    small = copy.deepcopy(model)
    by_name = {name: site for site in record.sites(small, settings) for name in site.names}
    sites = []
    for name in names:
        if name not in by_name:
            raise ValueError(f"{name}: {type(model).__name__} has no such layer for {record.name!r} to replace")
        if not by_name[name].possible:
            raise UnsupportedLayer(f"{name}: {by_name[name].reason}")
        sites.append(by_name[name])
    old = {id(parameter) for site in sites for module in site.modules for parameter in module.parameters()}
    frozen = {site.name: all(map(_is_frozen, site.modules)) for site in sites}
    built = record.build(sites, settings)
    # A number that several layers share, the ring's, is frozen only where all of them were.
    trained: set[int] = set()
    for site in sites:
        if (new := built[site.name]) is not None and not frozen[site.name]:
            trained.update(map(id, new.parameters()))
    for site in sites:
        if (new := built[site.name]) is not None:
            kept = {part for module in site.modules for part in module.modules()}
            for part in new.modules():
                part.training = part.training if part in kept else site.module.training
            for parameter in new.parameters():
                if id(parameter) not in old:
                    parameter.requires_grad_(id(parameter) in trained)
        small = put_in_place(small, site.names, new)
        for rest, _ in site.rest:
            put_in_place(small, [rest], None)
    record.finish(small, built)
    made = provenance(model)
    step = Step(record.name, dataclasses.asdict(settings), names)
    return remember(small, dataclasses.replace(made, steps=(*made.steps, step)))


def _is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def put_in_place(model: nn.Module, names: Sequence[str], new: nn.Module | None) -> nn.Module:
    """Puts `new` wherever the names lead, or takes out what is there from its sequence; the others keep their names.

    The net itself, named "", is replaced by being returned.
    """
    for name in names:
        if name == "" and new is not None:
            return new
        parent, _, child = name.rpartition(".")
        if new is not None:
            setattr(model.get_submodule(parent), child, new)
        elif hasattr(model.get_submodule(parent), child):  # a parent of several names is the same each time
            delattr(model.get_submodule(parent), child)
    return model
