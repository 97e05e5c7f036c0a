"""Putting condensed layers into a net, and applying recorded steps again.

Works on any `nn.Module`: a shared module is replaced wherever it is referenced, and the new one keeps device, dtype,
training mode and, parameter by parameter, `requires_grad` of the old. A layer that carries something of its own, such as
hooks, is left alone, and the log names it. A net carries the record of its steps, so that a file can rebuild it.
"""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from pocketcnn.errors import NothingToCondense, UnsupportedLayer
from pocketcnn.methods import Method, Site
from pocketcnn.methods._passes import LISTS, PassOn, by_structure
from pocketcnn.methods._sites import KEPT, matches
from pocketcnn.support.copying import copied
from pocketcnn.support.modules import uncompiled
from pocketcnn.surgery.fitting import start_from_trained_
from pocketcnn.surgery.keeping import Before, keep_flags_
from pocketcnn.surgery.provenance import Step, mark_made_, record_of, remember
from pocketcnn.surgery.selection import Patterns, Where, resolve_method, select_sites

_log = logging.getLogger(__name__)


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
        model: any net; may hold condensed layers already.
        method: a name in `METHODS`.
        include: dotted-name patterns (`"layer4.*"`, `"*.conv2"`) of the layers to condense, instead of the method's default
            choice; a pattern also matches the layers inside a module it names. Linear layers are condensed by methods that
            can if a pattern matches nothing but linear layers.
        exclude: patterns of layers to leave alone.
        where: `where(module, name)` must be true of every layer condensed.
        on_unsupported: `"skip"` or `"error"`, for layers asked for that the method cannot replace.
        initialize: `"fresh"` draws the new layers' parameters at random; `"fit"` brings them near to the weights that they
            replace, see `pocketcnn.surgery.fitting`. Other parts of the net keep their weights, except the blocks around
            layers that are fitted to outputs, and the batch norms' statistics.
        images: for `"fit"`: a thousand or more images as the net is given them, normalised, [count, channels, height,
            width], without labels. Methods that make kernels need none, but then batch norms keep statistics that no longer
            fit.
        **options: the fields of the method's options, as in `METHODS[method].options`.
    Returns:
        A new net on the same device, in the same mode; of a net that `torch.compile` wraps, the net inside, condensed.
    Raises:
        UnknownMethod: no such method.
        NothingToCondense: the method found no place to work.
        UnsupportedLayer: `on_unsupported="error"`, and a layer asked for cannot be replaced.
        UnsupportedNet: a part of the net cannot be copied.
        ValueError: an option out of range, a pattern that matches nothing, or images missing or useless.
    Example:
        >>> import pocketcnn as pc
        >>> small = pc.condense(pc.create_model("resnet20"), "ring", size=0.1)
        >>> pc.measure(small).trainable_params
        29632
    """
    if initialize not in ("fresh", "fit"):
        raise ValueError(f"no initialization {initialize!r}; known: fresh, fit")
    if images is not None and initialize == "fresh":
        raise ValueError('initialize="fresh" uses no images; leave images out, or pass initialize="fit"')
    record, settings = resolve_method(method, options)
    if initialize == "fit":
        settings = dataclasses.replace(settings, **record.match_options)
    model = uncompiled(model)
    sites = select_sites(record, record.sites(model, settings), include, exclude, where, on_unsupported)
    chosen = tuple(site.name for site in sites if not site.reason)
    if not chosen:
        reasons = "; ".join(f"{site.name}: {site.reason}" for site in sites[:3]) or f"it has no {record.places[1]}"
        more = f"; and {len(sites) - 3} more" if len(sites) > 3 else ""
        raise NothingToCondense(
            f"{method!r} found no {record.places[0]} to work on in {type(model).__name__} ({reasons}{more}); "
            f"plan(model, {method!r}) lists every one and why it was left alone"
        )
    _say_what_stays(record, sites, include)
    small = apply_step(model, record, settings, chosen)
    if initialize == "fit":
        start_from_trained_(small, model, record, [site for site in sites if not site.reason], images)
    return small


def _say_what_stays(record: Method, sites: Sequence[Site], include: Patterns | None) -> None:
    """Logs the names of layers asked for that are left alone because they carry something of their own."""
    patterns = ["*"] if include is None else [include] if isinstance(include, str) else include
    names: dict[str, list[str]] = {}
    for site in sites:
        if site.reason.endswith(KEPT) and any(matches(site, pattern) for pattern in patterns):
            names.setdefault(site.reason, []).append(site.name)
    for reason, those in names.items():
        _log.warning("%s leaves %s as before: %s", record.name, ", ".join(those), reason)


def rebuild(model: nn.Module, steps: Sequence[Step]) -> nn.Module:
    """Applies recorded steps to a copy of a plain net, each to its part of the net, as loading a file does.

    Raises:
        UnknownMethod: a method that this version does not have.
        ValueError: the net has no part or layer of a recorded name, or the layer does not fit.
    """
    return rebuild_(copied(model), steps)


def rebuild_(model: nn.Module, steps: Sequence[Step]) -> nn.Module:
    """Applies recorded steps to the net itself, see `rebuild`; returns it, or what replaced it."""
    for step in steps:
        record, settings = resolve_method(step.method, dict(step.options))
        parts: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            parts.setdefault(module, []).append(name)
        whole = next((module for module, names in parts.items() if step.part in names), None)
        if whole is None:
            raise ValueError(f"{type(model).__name__} has no part {step.part!r} for {step.method!r} to condense")
        inside = len(step.part) + 1 if step.part else 0
        new = apply_step_(whole, record, settings, tuple(site[inside:] for site in step.sites))
        model = put_in_place(model, parts[whole], new) if new is not whole else model
    return model


def apply_step(model: nn.Module, record: Method, settings: Any, names: tuple[str, ...]) -> nn.Module:
    """Copies the net, replaces the named sites in the copy, and records the step in it."""
    return apply_step_(copied(model), record, settings, names)


def apply_step_(small: nn.Module, record: Method, settings: Any, names: tuple[str, ...]) -> nn.Module:
    """Replaces the named sites in the net itself, and records the step in it; returns the net, or its only layer's heir."""
    made = record_of(small)
    with by_structure():
        by_name = {name: site for site in record.sites(small, settings) for name in site.names}
    sites = []
    for name in names:
        if name not in by_name:
            raise ValueError(f"{name}: {type(small).__name__} has no such layer for {record.name!r} to replace")
        if not by_name[name].possible:
            raise UnsupportedLayer(f"{name}: {by_name[name].reason}")
        sites.append(by_name[name])
    before = list(map(Before.of, sites))
    built = record.build(sites, settings)
    keep_flags_(before, built)
    for site in sites:
        small = put_in_place(small, site.names, built[site.name])
        for rest, _ in site.rest:
            put_in_place(small, [rest], None)
    record.finish(small, built)
    mark_made_(built.values())
    step = Step.now(record.name, dataclasses.asdict(settings), names)
    return remember(small, dataclasses.replace(made, steps=(*made.steps, step)))


def put_in_place(model: nn.Module, names: Sequence[str], new: nn.Module | None) -> nn.Module:
    """Puts `new` wherever the names lead; None removes the module from its sequence, and the others keep their names.

    In an `nn.ModuleList`, whose owner may call its modules by number, a module that passes on its input takes the place.

    Returns:
        The net; or `new`, if it replaces the net itself, whose name is "".
    """
    for name in names:
        if name == "" and new is not None:
            return new
        parent, _, child = name.rpartition(".")
        if new is not None:
            setattr(model.get_submodule(parent), child, new)
        elif type(model.get_submodule(parent)) in LISTS:
            setattr(model.get_submodule(parent), child, PassOn())
        elif hasattr(model.get_submodule(parent), child):  # several names may lead to one parent
            delattr(model.get_submodule(parent), child)
    return model
