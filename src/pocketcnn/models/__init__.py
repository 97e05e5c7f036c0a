"""Plain nets, knowing nothing of condensing: a name, a builder."""

from collections.abc import Callable

from torch import nn

from pocketcnn.models import resnet

PLAIN: dict[str, Callable[..., nn.Module]] = {**resnet.BUILDERS}

__all__ = ["PLAIN"]
