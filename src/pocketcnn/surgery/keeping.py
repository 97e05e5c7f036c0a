"""What new layers keep of those that they replace: frozen parameters one by one, training mode, and notes in attributes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from pocketcnn.methods import Site
from pocketcnn.support.protocols import MakesKernel

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


_PLAIN = frozenset(vars(nn.Conv2d(1, 1, 1, device="meta")))  # attributes of every convolution


@dataclass(frozen=True)
class Before:
    """The parameters and the modules of a site as they are before a method takes them apart."""

    site: Site
    parameters: Sequence[tuple[str, nn.Parameter]]
    parts: Sequence[nn.Module]

    @classmethod
    def of(cls, site: Site) -> "Before":
        """Looks at a site."""
        parameters = [pair for module in site.modules for pair in _kinds_of(module)]
        return cls(site, parameters, [part for module in site.modules for part in module.modules()])


def keep_flags_(sites: Sequence[Before], built: Mapping[str, nn.Module | None]) -> None:
    """Gives new modules the training mode, the `requires_grad` and the attributes of what they replace.

    A new bias is trained if the old one was, parameters of new norms if some of the old norms were, and the others if some
    of the old weights were. If a layer had none of a kind, all its parameters decide. A parameter that several new layers
    share is frozen only if all that it replaces was. Parameters and modules that stay keep their own. What somebody wrote
    into an attribute of a convolution, such as `conv.scale = 2`, is in the new layer too.
    """
    old = {id(parameter) for before in sites for _, parameter in before.parameters}
    trained: dict[nn.Parameter, bool] = {}
    for before in sites:
        if (new := built[before.site.name]) is None:
            continue
        _keep_modes_(before, new)
        if type(before.site.module) is nn.Conv2d:
            notes = {key: value for key, value in vars(before.site.module).items() if key not in _PLAIN}
            vars(new).update({key: value for key, value in notes.items() if not hasattr(new, key)})
        stay = set(map(id, new.parameters()))
        gone: dict[str, bool] = {}
        for kind, parameter in before.parameters:
            if id(parameter) not in stay:
                gone[kind] = gone.get(kind, False) or parameter.requires_grad
        for kind, parameter in _kinds_of(new):
            if id(parameter) not in old:
                flag = gone.get(kind, any(gone.values()) or not gone)
                trained[parameter] = trained.get(parameter, False) or flag
    for parameter, flag in trained.items():
        parameter.requires_grad_(flag)


def _kinds_of(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters of a module as weights, biases or those of norms; what makes a kernel is a weight."""
    makers = {id(p) for part in module.modules() if isinstance(part, MakesKernel) for p in part.generator_parameters()}
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            kind = "norm" if isinstance(part, _NORMS) else "bias" if name == "bias" else "weight"
            yield "weight" if id(parameter) in makers else kind, parameter


def _keep_modes_(before: Before, new: nn.Module) -> None:
    """Gives new modules the mode of the old one, and new norms that of the old norms, if there were any."""
    norms = [part.training for part in before.parts if isinstance(part, _NORMS)]
    for part in set(new.modules()).difference(before.parts):
        part.training = any(norms) if norms and isinstance(part, _NORMS) else before.site.module.training
