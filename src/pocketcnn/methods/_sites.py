"""The walk over a net that a method's `sites` starts from, and choosing sites by dotted-name patterns."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from pocketcnn.methods._method import Site
from pocketcnn.methods._passes import ends_of
from pocketcnn.support.copying import kept_things
from pocketcnn.support.modules import carried_by, lazy_parts
from pocketcnn.support.protocols import is_condensed

KEPT = (", which would be lost", ", where it would stay")  # ends of reasons to leave what carries something of its own
LOST, STAYS = KEPT


@dataclass(frozen=True)
class Ties:
    """Who else has parts of a net: the number of names that lead to each parameter, and plain attributes that keep parts.

    Both are by the part's id.
    """

    owners: Counter[int]
    kept: Mapping[int, str]

    @classmethod
    def of(cls, model: nn.Module) -> "Ties":
        """Finds them in a net."""
        owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        return cls(owners, {id(thing): path for path, thing in kept_things(model)})


def conv_sites(
    model: nn.Module, obstacle: Callable[[Any], str], kinds: tuple[type[nn.Module], ...] = (nn.Conv2d,)
) -> list[Site]:
    """Lists the convolutions of a net in the order of definition, for methods that replace single convolutions.

    The first convolution (the stem) and the last layer with weights (the classifier) are left alone by default: of those
    that the net calls for an image, or, if it cannot be run, by definition. A layer that carries something of its own
    (hooks, another `forward`, parts) is left alone. Layers inside a condensed layer are part of it and are not listed.

    Args:
        model: any net.
        obstacle: says why the method cannot replace a layer; an empty string if it can.
        kinds: what the method replaces. If `nn.Linear` is among it, linear layers are listed too, as optional.
    """
    paths: dict[nn.Module, list[str]] = {}
    inside: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not any(name.startswith(prefix) for prefix in inside):
            paths.setdefault(module, []).append(name)
        if is_condensed(module):
            inside.append(f"{name}.")
    layers = [m for m in paths if isinstance(m, _ConvNd | nn.Linear) or is_condensed(m) or _foreign(m)]
    ties = Ties.of(model)
    convs: list[Any] = [layer for layer in layers if nn.Linear in kinds or not isinstance(layer, nn.Linear)]
    found = [(conv, _fixed(conv, len(paths[conv]), ties, kinds) or obstacle(conv)) for conv in convs]
    first = last = None
    guess = ""
    if any(not reason for _, reason in found):
        first, last, guess = ends_of(model, layers)
    sites = []
    for module, reason in found:
        possible = not reason
        if possible and module is first:
            reason = f"the stem: the first layer is left alone by default{guess}"
        elif possible and module is last:
            reason = f"the classifier: the last layer is left alone by default{guess}"
        sites.append(Site(tuple(paths[module]), module, reason, possible, optional=isinstance(module, nn.Linear)))
    return sites


def _foreign(module: Any) -> str:
    """Names the kind of a convolution that is no ordinary module: of a scripted or a quantized net."""
    if "Conv" in (kind := getattr(module, "original_name", "")):
        return f"scripted {kind}"
    return f"quantized {type(module).__name__}" if hasattr(module, "weight") and _is_quantized(module) else ""


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module)
    return "Conv" in kind.__name__ and ".quantized." in f"{kind.__module__}."


def _fixed(module: Any, references: int, ties: Ties, kinds: tuple[type[nn.Module], ...]) -> str:
    """Says why no method can replace a layer; empty if one might."""
    if is_condensed(module):
        return f"already condensed by {module.condensed_by!r}"
    if lazy := lazy_parts(module):
        return next(iter(lazy.values()))
    if type(module) not in kinds:
        return f"a {_foreign(module) or type(module).__name__}, not a plain nn.Conv2d"
    for name, parameter in module.named_parameters(recurse=False):
        if ties.owners[id(parameter)] > references:
            return f"its {name} is shared with another module"
    if words := carried_by(module):
        return f"it has {words}{LOST}"
    parts = [*module._modules, *module._buffers, *(n for n in module._parameters if n not in ("weight", "bias"))]
    if parts:
        return f"it has {parts[0]}, a part of its own{LOST}"
    for name in ("weight", "bias"):
        if name in vars(module) or name not in module._parameters:
            return f"its {name} is no parameter, but made by something else{LOST}"
        if path := ties.kept.get(id(module._parameters[name])):
            return f"its {name} is kept in {path} too{STAYS}"
    if path := ties.kept.get(id(module)):
        return f"it is kept in {path} too{STAYS}"
    if not module.weight.is_floating_point():
        return f"its weights are {module.weight.dtype}, not floating-point ones"
    if 0 in module.weight.shape:
        return f"its weights are {list(module.weight.shape)}, none at all"
    return ""


def matches(site: Site, pattern: str) -> bool:
    """Tells whether a dotted-name pattern matches one of a site's names or a module around it."""
    return any(fnmatch.fnmatchcase(name, p) for name in site.names for p in (pattern, f"{pattern}.*"))


def sites_by_pattern(sites: Sequence[Site], patterns: Iterable[str], option: str) -> dict[str, str]:
    """Finds the pattern that matches each site, by the site's name; sites that no pattern matches are left out.

    Raises:
        ValueError: a pattern matches no place where the method could work, or two patterns match one place.
    """
    found: dict[str, str] = {}
    could = [site for site in sites if site.possible]
    for pattern in patterns:
        hits = [site.name for site in could if matches(site, pattern)]
        if not hits:
            names = ", ".join(site.name for site in could[:4]) or "none"
            raise ValueError(
                f"{option}: pattern {pattern!r} matches nothing that could be replaced; there are {names}, ..."
            )
        if twice := next((name for name in hits if name in found), None):
            raise ValueError(
                f"{option}: {twice} matches both {found[twice]!r} and {pattern!r}; make them exclude each other"
            )
        found.update(dict.fromkeys(hits, pattern))
    return found
