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

# Public name -> where it lives: a name in a module, or a whole module.
_NAMES = {
    "list_models": "pocketcnn.models.recipes",
    "create_model": "pocketcnn.zoo",
    "register_model": "pocketcnn.models.builders",
    "plan": "pocketcnn.surgery",
    "condense": "pocketcnn.surgery",
    "materialize": "pocketcnn.surgery",
    "fold_norm": "pocketcnn.surgery",
    "Plan": "pocketcnn.surgery",
    "save": "pocketcnn.checkpoint",
    "load": "pocketcnn.checkpoint",
    "measure": "pocketcnn.cost",
    "measure_latency": "pocketcnn.cost",
    "measure_memory": "pocketcnn.cost",
    "measure_images": "pocketcnn.cost",
    "Cost": "pocketcnn.cost",
    "Latency": "pocketcnn.cost",
    "ImageCosts": "pocketcnn.cost",
    "METHODS": "pocketcnn.methods",
    "sensitivity": "pocketcnn.experiments.sensitivity",
}
_NAMES_OF_EXTRAS = {
    "shrink": "pocketcnn.experiments.shrink",
    "from_pretrained": "pocketcnn.hub",
    "push_to_hub": "pocketcnn.hub",
}  # not in __all__: these need the extras train and hub
_MODULES = {
    "checkpoint": "pocketcnn.checkpoint",
    "compare": "pocketcnn.experiments.compare",
    "cost": "pocketcnn.cost",
    "data": "pocketcnn.data",
    "distil": "pocketcnn.train.distil",
    "errors": "pocketcnn.errors",
    "explore": "pocketcnn.explore",
    "export": "pocketcnn.export",
    "hub": "pocketcnn.hub",
    "methods": "pocketcnn.methods",
    "models": "pocketcnn.models",
    "numerics": "pocketcnn.numerics",
    "recipes": "pocketcnn.models.recipes",
    "report": "pocketcnn.report",
    "search": "pocketcnn.experiments.search",
    "storage": "pocketcnn.checkpoint.storage",
    "surgery": "pocketcnn.surgery",
    "timm_models": "pocketcnn.hub.timm",
    "train": "pocketcnn.train",
    "zoo": "pocketcnn.zoo",
}

__all__ = [*_NAMES, "__version__"]

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
    from pocketcnn.experiments.sensitivity import sensitivity as sensitivity
    from pocketcnn.experiments.shrink import shrink as shrink
    from pocketcnn.hub import from_pretrained as from_pretrained
    from pocketcnn.hub import push_to_hub as push_to_hub
    from pocketcnn.methods import METHODS as METHODS
    from pocketcnn.models.builders import register_model as register_model
    from pocketcnn.models.recipes import list_models as list_models
    from pocketcnn.surgery import Plan as Plan
    from pocketcnn.surgery import condense as condense
    from pocketcnn.surgery import fold_norm as fold_norm
    from pocketcnn.surgery import materialize as materialize
    from pocketcnn.surgery import plan as plan
    from pocketcnn.zoo import create_model as create_model


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(_MODULES[name])
    elif home := _NAMES.get(name) or _NAMES_OF_EXTRAS.get(name):
        value = getattr(importlib.import_module(home), name)
    else:
        raise AttributeError(f"module 'pocketcnn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *_NAMES_OF_EXTRAS, *_MODULES})
