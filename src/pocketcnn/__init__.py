"""Convolutional networks that are small because their weights are generated, shared or solved for.

Names resolve lazily: importing the package is free, the first name used costs importing torch.

    import pocketcnn as pc

    net = pc.create_model("resnet18", num_classes=10)
    small = pc.condense(net, "ring", size=0.1)
    print(pc.measure(small, input_size=(3, 32, 32)))
"""

import importlib
from typing import TYPE_CHECKING, Any

from pocketcnn.support.version import __version__

_HOMES = {
    "pocketcnn.recipes": ("list_models",),
    "pocketcnn.zoo": ("create_model",),
    "pocketcnn.surgery": ("plan", "condense", "materialize", "fold_norm", "Plan"),
    "pocketcnn.checkpoint": ("save", "load"),
    "pocketcnn.cost": (
        "measure",
        "measure_latency",
        "measure_memory",
        "measure_images",
        "Cost",
        "Latency",
        "ImageCosts",
    ),
    "pocketcnn.methods": ("METHODS",),
}
_SUBMODULES = ("checkpoint", "compare", "cost", "data", "errors", "export", "hub", "methods", "models", "numerics", "recipes",
               "report", "search", "storage", "surgery", "timm_models", "train", "zoo")  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, "__version__"]

if TYPE_CHECKING:
    from pocketcnn.checkpoint import load as load
    from pocketcnn.checkpoint import save as save
    from pocketcnn.cost import Cost as Cost
    from pocketcnn.cost import ImageCosts as ImageCosts
    from pocketcnn.cost import Latency as Latency
    from pocketcnn.cost import measure as measure
    from pocketcnn.cost import measure_images as measure_images
    from pocketcnn.cost import measure_latency as measure_latency
    from pocketcnn.cost import measure_memory as measure_memory
    from pocketcnn.methods import METHODS as METHODS
    from pocketcnn.recipes import list_models as list_models
    from pocketcnn.surgery import Plan as Plan
    from pocketcnn.surgery import condense as condense
    from pocketcnn.surgery import fold_norm as fold_norm
    from pocketcnn.surgery import materialize as materialize
    from pocketcnn.surgery import plan as plan
    from pocketcnn.zoo import create_model as create_model


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"pocketcnn.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'pocketcnn' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
