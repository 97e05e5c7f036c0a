"""The plan of a condensing: the layers it would change, those it leaves alone and why, and the savings."""

import dataclasses
import html
import logging
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pocketcnn.cost import Cost, macs_by_module, measure
from pocketcnn.support.calls import ExampleSize
from pocketcnn.support.modules import lazy_parts, uncompiled
from pocketcnn.support.tables import columns, html_table
from pocketcnn.surgery.condense import apply_step
from pocketcnn.surgery.selection import Patterns, Where, resolve_method, select_sites

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanRow:
    """One layer of a plan; `numbers_...` count distinct parameters that the layer holds alone."""

    name: str
    layer: str
    becomes: str
    numbers_before: int
    numbers_after: int
    reason: str
    macs_before: int | None = None  # for one image, if the plan was given its size
    macs_after: int | None = None


@dataclass(frozen=True)
class Plan:
    """A plan of condensing: changes, layers left alone and why, and savings; `str(plan)` is a table, as in a notebook.

    Example:
        >>> import pocketcnn as pc
        >>> found = pc.plan(pc.create_model("resnet20"), "involution")
        >>> found.method, len(found.replaced)
        ('involution', 9)
    """

    method: str
    options: Mapping[str, Any]
    rows: tuple[PlanRow, ...]
    shared_numbers: int  # parameters stored once for several layers
    before: Cost | int  # of the whole net: `Cost` if an input size was given, else trainable parameters
    after: Cost | int
    places: str = "convolutions"

    @property
    def replaced(self) -> list[str]:
        """Names of the layers that would be replaced."""
        return [row.name for row in self.rows if row.becomes]

    def __str__(self) -> str:
        title = textwrap.fill(self._title(), 120, subsequent_indent="    ")
        return "\n".join([title, columns(*self._table()), *self.savings()])

    def _repr_html_(self) -> str:
        savings = "".join(f"<li>{html.escape(line)}</li>" for line in self.savings())
        return f"<p>{html.escape(self._title())}</p>{html_table(*self._table())}<ul>{savings}</ul>"

    def _title(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.method}({options}): {len(self.replaced)} of {len(self.rows)} {self.places}"

    def _table(self) -> tuple[list[tuple[str, ...]], str]:
        """The cells, titles first, and the sides of the columns."""
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
        return cells, "lll" + "r" * (len(cells[0]) - 4) + "l"

    def savings(self) -> list[str]:
        """Lists one line for each total: before, after and their ratio."""
        if isinstance(self.before, int) or isinstance(self.after, int):
            pairs: list[tuple[str, Any, Any]] = [("trainable parameters", self.before, self.after)]
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
    input_size: ExampleSize | None = None,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    where: Where | None = None,
    on_unsupported: str = "skip",
    **options: Any,
) -> Plan:
    """Plans what `condense` with the same arguments would do; changes nothing, not even the random state.

    Args:
        model: any net.
        method: a name in `METHODS`.
        input_size: (channels, height, width) of an image, a tuple of sizes for a net of several inputs; if given, both nets run once, and the plan also compares
            multiply-adds, depth and file size.
        include: as in `condense`; so are `exclude`, `where` and the options.
        exclude: as in `condense`.
        where: as in `condense`.
        on_unsupported: as in `condense`.
        **options: the method's options.
    Raises:
        UnknownMethod: no such method.
        UnsupportedLayer: `on_unsupported="error"` and a layer asked for cannot be replaced.
        ValueError: an option out of range, or a pattern that matches nothing.
    Example:
        >>> import pocketcnn as pc
        >>> pc.plan(pc.create_model("resnet20"), "ring", size=0.1).replaced[:2]
        ['layer1.0.conv1', 'layer1.0.conv2']
    """
    record, settings = resolve_method(method, options)
    model = uncompiled(model)
    sites = select_sites(record, record.sites(model, settings), include, exclude, where, on_unsupported)
    chosen = {site.name for site in sites if not site.reason}
    with torch.random.fork_rng():
        after = (
            apply_step(model, record, settings, tuple(site.name for site in sites if not site.reason))
            if chosen
            else model
        )
    made = {name: module for name, module in after.named_modules(remove_duplicate=False) if name in chosen}
    owners: dict[int, set[str]] = {}
    for name, module in made.items():
        for parameter in module.parameters():
            owners.setdefault(id(parameter), set()).add(name)
    macs_before, macs_after = (macs_by_module(m, input_size) if input_size else {} for m in (model, after))
    rows = []
    for site in sites:
        params = new_params = _params(site.modules)
        macs = new_macs = sum(macs_before.get(name, 0) for name in (site.name, *(name for name, _ in site.rest)))
        becomes = ""
        if site.name in chosen:
            new = [made[site.name]] if site.name in made else []
            becomes = type(new[0]).__name__ if new else "nothing"
            new_params = _params(new, lambda p: len(owners[id(p)]) == 1)
            new_macs = macs_after.get(site.name, 0)
        says = site.says or describe(site.module)
        costs = (macs, new_macs) if input_size else (None, None)
        rows.append(PlanRow(site.name, says, becomes, params, new_params, site.reason, *costs))
    shared = _params([after], lambda p: len(owners.get(id(p), ())) > 1)
    totals = [_trainable(m) if input_size is None else measure(m, input_size) for m in (model, after)]
    if lazy := lazy_parts(model):
        _log.warning("not counted: %s: %s", ", ".join(lazy), next(iter(lazy.values())))
    return Plan(method, dataclasses.asdict(settings), tuple(rows), shared, totals[0], totals[1], record.places[1])


def _params(modules: Sequence[nn.Module], counts: Callable[[nn.Parameter], bool] = lambda p: True) -> int:
    """Counts the distinct parameters of some modules."""
    found = {id(p): p for module in modules for p in module.parameters() if not is_lazy(p) and counts(p)}
    return sum(parameter.numel() for parameter in found.values())


def _trainable(model: nn.Module) -> int:
    """Counts the trainable parameters of a net that may have lazy parts, whose parameters have no shape yet."""
    return _params([model], lambda parameter: parameter.requires_grad)


def describe(module: Any) -> str:
    """Describes a layer in a few words: `3x3, 64 -> 128, stride 2`."""
    if isinstance(module, nn.Linear):
        return f"linear, {module.in_features} -> {module.out_features}"
    if not hasattr(module, "kernel_size"):
        return type(module).__name__
    words = [f"{'x'.join(map(str, module.kernel_size))}, {module.in_channels} -> {module.out_channels}"]
    if set(module.stride) != {1}:
        words.append(f"stride {module.stride[0]}")
    if module.groups > 1:
        words.append(f"{module.groups} groups")
    return ", ".join(words)
