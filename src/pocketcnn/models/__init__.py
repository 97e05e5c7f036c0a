"""Nets by name. `PLAIN` holds the builders of the plain nets, which know nothing of condensing."""

from collections.abc import Callable

from torch import nn

from pocketcnn.models import resnet, speednet

PLAIN: dict[str, Callable[..., nn.Module]] = {**resnet.BUILDERS, **speednet.BUILDERS}

__all__ = ["PLAIN"]
