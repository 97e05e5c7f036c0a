"""The walk over a net that a method's `sites` starts from, and choosing sites by dotted-name patterns."""

import fnmatch
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from pocketcnn.methods._method import Site
from pocketcnn.support.protocols import is_condensed


def conv_sites(model: nn.Module, obstacle: Callable[[nn.Conv2d], str]) -> list[Site]:
    """Lists the convolutions of a net in the order of definition, for methods that replace single convolutions.

    The first convolution (the stem) and the last layer with weights (the classifier) are left alone by default. Layers
    inside a condensed layer are part of it and are not listed.

    Args:
        model: any net.
        obstacle: says why the method cannot replace a convolution; an empty string if it can.
    """
    paths: dict[nn.Module, list[str]] = {}
    inside: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if not any(name.startswith(prefix) for prefix in inside):
            paths.setdefault(module, []).append(name)
        if is_condensed(module):
            inside.append(f"{name}.")
    layers = [m for m in paths if isinstance(m, _ConvNd | nn.Linear) or is_condensed(m)]
    owners = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    sites = []
    for module in layers:
        if isinstance(module, nn.Linear):
            continue
        reason, possible = "", False
        if is_condensed(module):
            reason = f"already condensed by {module.condensed_by!r}"
        elif type(module) is not nn.Conv2d:
            reason = f"a {type(module).__name__}, not a plain nn.Conv2d"
        elif owners[id(module.weight)] > len(paths[module]):
            reason = "its weight is shared with another module"
        elif module._forward_hooks or module._forward_pre_hooks:
            reason = "it has forward hooks, which would be lost"
        elif not (reason := obstacle(module)):
            possible = True
            if module is layers[0]:
                reason = "the stem: the first layer is left alone by default"
            elif module is layers[-1]:
                reason = "the classifier: the last layer is left alone by default"
        sites.append(Site(tuple(paths[module]), module, reason, possible))
    return sites


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
