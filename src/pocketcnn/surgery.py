"""Putting condensed layers into a net, and taking them out again.

Works on any `nn.Module`: a shared module is replaced wherever it is referenced, and device, dtype, training mode and
`requires_grad` of what was replaced are kept. A net remembers how it was made, so that a file can rebuild it.
"""

import copy
import dataclasses
import math
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pocketcnn.cost import Cost, count_params, macs_by_module, measure
from pocketcnn.errors import CannotMaterialize, NothingToCondense, UnstableStep, UnsupportedLayer
from pocketcnn.fit import fit_
from pocketcnn.folding import fold_norms_
from pocketcnn.methods import METHODS, Method, Site, get_method
from pocketcnn.methods._method import is_condensed
from pocketcnn.methods._sites import matches

Patterns = str | Sequence[str]
Where = Callable[[nn.Module, str], bool]


@dataclass(frozen=True)
class Step:
    """One condensing: a method, its options, and the dotted names of the layers it replaced."""

    method: str
    options: Mapping[str, Any]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class Provenance:
    """How a net was made. `base` is the name and the options given to `create_model`, None for a foreign net."""

    base: Mapping[str, Any] | None
    steps: tuple[Step, ...]
    folded: bool = False  # batch norms were folded since, which no file describes


@dataclass(frozen=True)
class PlanRow:
    """What a plan says of one layer; `numbers` are distinct trainable ones that the layer holds alone."""

    name: str
    layer: str
    becomes: str
    numbers_before: int
    numbers_after: int
    reason: str
    macs_before: int | None = None  # of an image, where the plan was given its size
    macs_after: int | None = None


@dataclass(frozen=True)
class Plan:
    """What condensing would change, what it passes over and why, and what it saves; `str(plan)` is a table."""

    method: str
    options: Mapping[str, Any]
    rows: tuple[PlanRow, ...]
    shared_numbers: int  # stored once for several layers: the ring
    before: Cost | int  # the whole net: Cost when an input size was given, else trainable parameters
    after: Cost | int
    places: str = "convolutions"

    @property
    def replaced(self) -> list[str]:
        """Names of the layers that would be replaced."""
        return [row.name for row in self.rows if row.becomes]

    def __str__(self) -> str:
        cells: list[tuple[str, ...]] = [("layer", "is", "becomes", "numbers", "then", "MACs", "then", "why not")]
        cells += [
            (r.name, r.layer, r.becomes or "-", *map(_thousands, (r.numbers_before, r.numbers_after)),
             *map(_thousands, (r.macs_before, r.macs_after)), r.reason)
            for r in self.rows
        ]  # fmt: skip
        if self.shared_numbers:
            cells.append(("(shared)", "", "", "0", f"{self.shared_numbers:,}", "", "", ""))
        if not any(row[5] for row in cells[1:]):
            cells = [row[:5] + row[7:] for row in cells]
        last = len(cells[0]) - 1
        widths = [max(len(row[i]) for row in cells) for i in range(last + 1)]
        lines = [
            "  ".join(
                c.rjust(w) if 3 <= i < last else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        title = f"{self.method}({options}): {len(self.replaced)} of {len(self.rows)} {self.places}"
        title = textwrap.fill(title, 120, subsequent_indent="    ")
        return "\n".join([title, *(line.rstrip() for line in lines), *self.savings()])

    def savings(self) -> list[str]:
        """One line for each total: before, after and their ratio."""
        if isinstance(self.before, int) or isinstance(self.after, int):
            pairs: list[tuple[str, Any, Any]] = [("trainable numbers", self.before, self.after)]
        else:
            names = ("trainable_params", "size_bytes", "macs", "depth")
            pairs = [(name, getattr(self.before, name), getattr(self.after, name)) for name in names]
            if self.after.macs_min is not None:
                before = self.before.macs if self.before.macs_min is None else self.before.macs_min
                pairs.append(("macs of the simplest image", before, self.after.macs_min))
        return [f"{name}: {old:,} -> {new:,} ({new / max(1, old):.3g}x)" for name, old, new in pairs]


def _thousands(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def plan(
    model: nn.Module,
    method: str,
    *,
    input_size: tuple[int, int, int] | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    where: Where | None = None,
    on_unsupported: str = "skip",
    **options: Any,
) -> Plan:
    """What `condense` with the same choice of layers would do; changes nothing, not even the random state.

    Args:
        model: any net.
        method: a name in `METHODS`.
        input_size: (channels, height, width) of an image; when given, the plan also compares multiply-adds, depth and
            file size, for which both nets run once.
        include: as in `condense`; so are `exclude`, `where` and the options.
        exclude: as in `condense`.
        where: as in `condense`.
        on_unsupported: as in `condense`.
        **options: the method's.
    Raises:
        UnknownMethod: no such method.
        UnsupportedLayer: `on_unsupported="error"` and a layer asked for cannot be replaced.
        ValueError: an option out of range, or a pattern that matches nothing.
    """
    record, settings = _resolve(method, options)
    sites = _select(record, record.sites(model, settings), include, exclude, where, on_unsupported)
    chosen = {site.name for site in sites if not site.reason}
    with torch.random.fork_rng():
        after = (
            _apply(model, record, settings, tuple(site.name for site in sites if not site.reason)) if chosen else model
        )
    made = {name: module for name, module in after.named_modules(remove_duplicate=False) if name in chosen}
    owners: dict[int, set[str]] = {}
    for name, module in made.items():
        for parameter in module.parameters():
            owners.setdefault(id(parameter), set()).add(name)
    macs_before, macs_after = (macs_by_module(m, input_size) if input_size else {} for m in (model, after))
    rows = []
    for site in sites:
        numbers = new_numbers = _numbers(site.modules)
        macs = new_macs = sum(macs_before.get(name, 0) for name in (site.name, *(name for name, _ in site.rest)))
        becomes = ""
        if site.name in chosen:
            new = [made[site.name]] if site.name in made else []
            becomes = type(new[0]).__name__ if new else "nothing"
            new_numbers = _numbers(new, lambda p: len(owners[id(p)]) == 1)
            new_macs = macs_after.get(site.name, 0)
        says = site.says or describe(site.module)
        costs = (macs, new_macs) if input_size else (None, None)
        rows.append(PlanRow(site.name, says, becomes, numbers, new_numbers, site.reason, *costs))
    shared = {id(p): p.numel() for p in after.parameters() if len(owners.get(id(p), ())) > 1}
    totals = [count_params(m)[0] if input_size is None else measure(m, input_size) for m in (model, after)]
    return Plan(
        method, dataclasses.asdict(settings), tuple(rows), sum(shared.values()), totals[0], totals[1], record.places[1]
    )


def _numbers(modules: Sequence[nn.Module], counts: Callable[[nn.Parameter], bool] = lambda p: True) -> int:
    """Distinct numbers of some modules."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters() if counts(p)}.values())


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
    record, settings = _resolve(method, options)
    if initialize == "fit":
        settings = dataclasses.replace(settings, **record.fit_options)
    sites = _select(record, record.sites(model, settings), include, exclude, where, on_unsupported)
    chosen = tuple(site.name for site in sites if not site.reason)
    if not chosen:
        reasons = "; ".join(f"{site.name}: {site.reason}" for site in sites[:3]) or f"it has no {record.places[1]}"
        more = f"; and {len(sites) - 3} more" if len(sites) > 3 else ""
        raise NothingToCondense(
            f"{method!r} found no {record.places[0]} to work on in {type(model).__name__} ({reasons}{more}); "
            f"plan(model, {method!r}) lists every one and why it was passed over"
        )
    small = _apply(model, record, settings, chosen)
    if initialize == "fit":
        fit_(small, model, record, [site for site in sites if not site.reason], images)
    return small


def check_step(step: Step) -> None:
    """Checks that this version knows a recorded step's method and options.

    Raises:
        UnknownMethod: it does not know the method.
        ValueError: or an option, or its value.
    """
    _resolve(step.method, dict(step.options))


def rebuild(model: nn.Module, steps: Sequence[Step]) -> nn.Module:
    """Applies recorded steps to a plain net: what loading a file does.

    Raises:
        UnknownMethod: a method this version does not have.
        ValueError: the net has no layer of a recorded name, or it does not fit.
    """
    for step in steps:
        record, settings = _resolve(step.method, dict(step.options))
        model = _apply(model, record, settings, tuple(step.sites))
    return model


def materialize(
    model: nn.Module,
    *,
    entropy: float | None = None,
    fold_norm: bool = False,
    input_size: tuple[int, int, int] | None = None,
    partly: bool = False,
) -> nn.Module:
    """Puts ordinary `nn.Conv2d` in the place of every condensed layer; the given net is left alone.

    Args:
        model: any net.
        entropy: in bits, as `image_entropy` gives it, or in the unit of what else a net measures: a net whose depth
            depends on its images becomes the one that images of this entropy see.
        fold_norm: whether batch norms are folded into the convolutions before them afterwards, as `pocketcnn.fold_norm`
            does; the new net is then in evaluation mode, and not for saving or training.
        input_size: as in `pocketcnn.fold_norm`.
        partly: leave layers as they are whose kernels depend on the image, instead of refusing the net.
    Returns:
        A new net with equal outputs, as large and as fast as the plain one.
    Raises:
        CannotMaterialize: a layer's kernel depends on the image, so that no ordinary convolution equals it.
        ValueError: an entropy for a net that does not look at it, or one that is not a number; an input_size without
            `fold_norm`; or as in `pocketcnn.fold_norm`.
    """
    if input_size is not None and not fold_norm:
        raise ValueError("input_size is of the image that fold_norm=True looks at; leave it out")
    condensed = {name: module for name, module in model.named_modules() if is_condensed(module)}
    looking = {name for name, module in condensed.items() if getattr(module, "needs_entropy", False)}
    if entropy is not None and not looking:
        raise ValueError(f"nothing in this {type(model).__name__} depends on the image's entropy; leave entropy out")
    if entropy is not None and not math.isfinite(entropy):
        raise ValueError(f"entropy is a number of bits, not {entropy}")
    obstacles = {
        name: f"{module.condensed_by}: {module.why_not_dense}"
        for name, module in condensed.items()
        if module.why_not_dense and (entropy is None or name not in looking)
    }
    if obstacles and not partly:
        name, why = next(iter(obstacles.items()))
        others = f" (and {len(obstacles) - 1} more layers)" if len(obstacles) > 1 else ""
        raise CannotMaterialize(
            f"{name}{others}: {why}, so no ordinary convolution equals it; run or export the net as it is"
        )
    dense = copy.deepcopy(model)
    made = provenance(model)
    base = made.base
    layer: Any
    for layer, names in _paths(dense).items():
        if is_condensed(layer) and obstacles.keys().isdisjoint(names):
            new = layer.dense(entropy)
            dense = _replace(dense, names, new)
            if not isinstance(new, nn.Conv2d):
                base = None  # parts have other names than in the plain net
        if not obstacles.keys().isdisjoint(looking):
            continue  # the stages left hear of every call
        for hook in list(layer._forward_pre_hooks.values()):
            owner: Any = getattr(hook, "__self__", None)
            if hasattr(owner, "detach") and not isinstance(owner, torch.Tensor):
                owner.detach(layer)
    if obstacles:
        base = None
    dense = remember(dense, dataclasses.replace(made, base=base, steps=()))
    return _folded(dense, input_size) if fold_norm else dense


def fold_norm(model: nn.Module, *, input_size: tuple[int, int, int] | None = None) -> nn.Module:
    """Folds every batch norm that directly follows a convolution into it; the given net is left alone.

    In evaluation mode a batch norm is a factor and a summand for each channel, which the convolution takes over: it has
    a bias afterwards, and the norm is an `nn.Identity`. A pair is folded where one image, sent through a copy of the
    net, shows that convolution and norm ran once, and that nothing but the norm looks at the convolution's output and
    nothing else at their numbers. Left alone are norms elsewhere, modules with hooks, subclasses of `nn.Conv2d` and
    `nn.BatchNorm2d`, and norms behind layers that make their kernels: `materialize` turns those of a ring into
    convolutions, but the routing weights of a `CondConv2d` need not sum to 1 and would mix the summand too.

    The new net is for serving and exporting. In training it would lack its norms, and `pocketcnn.save` refuses it, as
    no file says what became of them: save the given net, and fold what `load` makes of the file.

    Args:
        model: any net; one that takes more than an image is folded part by part.
        input_size: (channels, height, width) of an image that the net takes. None tries some sizes, with the channels
            of the first convolution.
    Returns:
        A new net in evaluation mode, with the outputs that the given one has in evaluation mode.
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
    return _folded(copy.deepcopy(getattr(model, "_orig_mod", model)), input_size)  # torch.compile wraps the net


def _folded(model: nn.Module, input_size: tuple[int, int, int] | None) -> nn.Module:
    """The net itself, folded, which it remembers."""
    if not fold_norms_(model, input_size):
        return model
    return remember(model, Provenance(base=None, steps=(), folded=True))


def provenance(model: nn.Module) -> Provenance:
    """How a net was made; of a foreign net, that its base is unknown."""
    return getattr(model, "provenance", Provenance(base=None, steps=()))


def remember(model: nn.Module, made: Provenance) -> nn.Module:
    """Writes into a net how it was made; deepcopy and `save` take it along."""
    vars(model)["provenance"] = made
    return model


def describe(module: Any) -> str:
    """A layer in a few words: `3x3, 64 -> 128, stride 2`."""
    if not hasattr(module, "kernel_size"):
        return type(module).__name__
    words = [f"{'x'.join(map(str, module.kernel_size))}, {module.in_channels} -> {module.out_channels}"]
    if set(module.stride) != {1}:
        words.append(f"stride {module.stride[0]}")
    if module.groups > 1:
        words.append(f"{module.groups} groups")
    return ", ".join(words)


def _resolve(method: str, options: Mapping[str, Any]) -> tuple[Method, Any]:
    record = get_method(method)
    known = [field.name for field in dataclasses.fields(record.options)]
    if unknown := sorted(options.keys() - set(known)):
        holders = [m.name for m in METHODS.values() if unknown[0] in {f.name for f in dataclasses.fields(m.options)}]
        hint = f"; it belongs to {' and '.join(holders)}" if holders else ""
        raise ValueError(f"{method} has no option {unknown[0]!r}{hint}; its options: {', '.join(known)}")
    for field, hint in typing.get_type_hints(record.options).items():
        if field in options and not _is_a(options[field], hint):
            raise ValueError(f"{method}: {field} must be {_in_words(hint)}, not {options[field]!r}")
    try:
        return record, record.options(**options)
    except (ValueError, UnstableStep) as error:
        raise type(error)(f"{method}: {error}") from error


def _is_a(value: Any, hint: Any) -> bool:
    """Whether an option has the type of its field; which words a field knows, the options check themselves."""
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)
    if typing.get_origin(hint) is dict:
        of_keys, of_values = typing.get_args(hint)
        return isinstance(value, dict) and all(_is_a(k, of_keys) and _is_a(v, of_values) for k, v in value.items())
    if parts := typing.get_args(hint):
        return any(_is_a(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _in_words(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is dict:
        return "a mapping of {} to {}".format(*map(_in_words, typing.get_args(hint)))
    if parts := typing.get_args(hint):
        return " or ".join(map(_in_words, parts))
    return {type(None): "None"}.get(hint, getattr(hint, "__name__", str(hint)))


def _select(
    record: Method,
    sites: Sequence[Site],
    include: Patterns | None,
    exclude: Patterns | None,
    where: Where | None,
    on_unsupported: str,
) -> list[Site]:
    """The sites with reasons updated by what the user asked for; those without a reason are chosen."""
    if on_unsupported not in ("skip", "error"):
        raise ValueError(f"on_unsupported must be 'skip' or 'error', not {on_unsupported!r}")
    included, excluded = (
        _matches(record, sites, patterns, what) for patterns, what in ((include, "include"), (exclude, "exclude"))
    )
    selected = []
    for site in sites:
        reason = site.reason
        if include is not None and site.possible:
            reason = "" if site.name in included else "not matched by include"
        asked = include is None or site.name in included
        if not reason and site.name in excluded:
            reason = "matched by exclude"
        elif not reason and where is not None and not where(site.module, site.name):
            reason = "where(module, name) is false"
        elif reason and not site.possible and on_unsupported == "error" and asked:
            raise UnsupportedLayer(
                f'{site.name}: {reason}; pass on_unsupported="skip" to leave such layers as they are'
            )
        selected.append(dataclasses.replace(site, reason=reason))
    return selected


def _matches(record: Method, sites: Sequence[Site], patterns: Patterns | None, what: str) -> set[str]:
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        hits = {site.name for site in sites if matches(site, pattern)}
        if not hits:
            examples = ", ".join(site.name for site in sites[:4]) or "none"
            raise ValueError(f"{what} pattern {pattern!r} matches no {record.places[0]}; there are {examples}, ...")
        found |= hits
    return found


def _apply(model: nn.Module, record: Method, settings: Any, names: tuple[str, ...]) -> nn.Module:
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
        small = _replace(small, site.names, new)
        for rest, _ in site.rest:
            _replace(small, [rest], None)
    record.finish(small, built)
    made = provenance(model)
    step = Step(record.name, dataclasses.asdict(settings), names)
    return remember(small, dataclasses.replace(made, steps=(*made.steps, step)))


def _is_frozen(module: nn.Module) -> bool:
    return not any(p.requires_grad for p in module.parameters())


def _replace(model: nn.Module, names: Sequence[str], new: nn.Module | None) -> nn.Module:
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


def _paths(model: nn.Module) -> dict[nn.Module, list[str]]:
    paths: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    return paths
