"""Checking a method's options, and selecting the sites that a user asks for."""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from pocketcnn.errors import UnstableStep, UnsupportedLayer
from pocketcnn.methods import METHODS, Method, Site, get_method
from pocketcnn.methods._sites import matches
from pocketcnn.support.kinds import in_words, is_a
from pocketcnn.surgery.provenance import Step

Patterns = str | Sequence[str]
Where = Callable[[nn.Module, str], bool]


def check_step(step: Step) -> None:
    """Checks that this version knows a recorded step's method and options.

    Raises:
        UnknownMethod: it does not know the method.
        ValueError: it does not know an option or its value.
    """
    resolve_method(step.method, dict(step.options))


def needs_seed(method: str, options: Mapping[str, Any]) -> bool:
    """Tells whether rebuilding a step needs the seed among its options; a method that this version lacks needs its seed."""
    record = METHODS.get(method)
    return "seed" in options if record is None else record.needs_seed(options)


def resolve_method(method: str, options: Mapping[str, Any]) -> tuple[Method, Any]:
    """Looks up a method and checks its options; returns the record and the options as its dataclass."""
    record = get_method(method)
    known = [field.name for field in dataclasses.fields(record.options)]
    if unknown := sorted(options.keys() - set(known)):
        holders = [m.name for m in METHODS.values() if unknown[0] in {f.name for f in dataclasses.fields(m.options)}]
        hint = f"; it belongs to {' and '.join(holders)}" if holders else ""
        raise ValueError(f"{method} has no option {unknown[0]!r}{hint}; its options: {', '.join(known)}")
    for field, hint in typing.get_type_hints(record.options).items():
        if field in options and not is_a(options[field], hint):
            raise ValueError(f"{method}: {field} must be {in_words(hint)}, not {options[field]!r}")
    try:
        return record, record.options(**options)
    except (ValueError, UnstableStep) as error:
        raise type(error)(f"{method}: {error}") from error


def select_sites(
    record: Method,
    sites: Sequence[Site],
    include: Patterns | None,
    exclude: Patterns | None,
    where: Where | None,
    on_unsupported: str,
) -> list[Site]:
    """Updates the reasons of sites by the user's choices; sites without a reason are chosen, and optional ones that nobody
    asked for are left out."""
    if on_unsupported not in ("skip", "error"):
        raise ValueError(f"on_unsupported must be 'skip' or 'error', not {on_unsupported!r}")
    included = _matches(record, sites, include, "include")
    excluded = _matches(record, sites, exclude, "exclude")
    selected = []
    for site in sites:
        if site.optional and site.name not in included:
            continue
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


def _matches(record: Method, sites: Sequence[Site], patterns: Patterns | None, argument: str) -> set[str]:
    """Names the sites that patterns match; each pattern must match one. Optional sites need a pattern of their own."""
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        hits = {site.name for site in sites if matches(site, pattern)}
        usual = {site.name for site in sites if not site.optional}
        hits = (hits & usual) or hits
        if not hits:
            examples = ", ".join(site.name for site in sites[:4]) or "none"
            raise ValueError(f"{argument} pattern {pattern!r} matches no {record.places[0]}; there are {examples}, ...")
        found |= hits
    return found
