"""What other people's code may rely on: names with their signatures, and operators with their schemas."""

import dataclasses
import importlib
import inspect

import pytest
import torch

import pocketcnn as pc
from pocketcnn import kernels

MODULES = (
    "checkpoint", "compare", "cost", "data", "errors", "export", "hub", "methods", "models", "numerics", "recipes", "report",
    "search", "storage", "surgery", "timm_models", "train", "zoo",
)  # fmt: skip
# Names of modules that users import: layers, pure functions, and what verbs call.
NAMES = {
    "pocketcnn.methods": ("METHODS", "get_method"),
    "pocketcnn.methods.ring": ("ParameterRing", "RingConv2d", "RingOptions"),
    "pocketcnn.methods.puppet": ("PuppetOptions", "PuppetStage", "Puppeteer", "gauge_of"),
    "pocketcnn.methods.pde": ("GlobalLayer", "PdeOptions"),
    "pocketcnn.methods.condconv": ("CondConv2d", "CondConvOptions"),
    "pocketcnn.methods.involution": ("Involution2d", "InvolutionOptions"),
    "pocketcnn.numerics": (
        "advect_diffuse",
        "condconv2d",
        "image_entropy",
        "involution2d",
        "odeint",
        "ring_indices",
        "ring_kernel",
    ),
    "pocketcnn.data": ("DataSet", "Images", "load", "load_unlabelled", "open_stream", "read_image"),
    "pocketcnn.train": ("PRESETS", "TrainConfig", "evaluate", "fit"),
    "pocketcnn.cost": ("Cost", "ImageCosts", "Latency", "count_params", "measure", "measure_images", "measure_latency"),
    "pocketcnn.checkpoint": ("load", "read_header", "save"),
    "pocketcnn.surgery": ("Plan", "condense", "fold_norm", "materialize", "plan", "provenance"),
}


def described(value):
    """A name in a line: what it is, its signature, and of a frozen record its fields."""
    if inspect.ismodule(value):
        return "module"
    if dataclasses.is_dataclass(value):
        fields = (
            f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}" for f in dataclasses.fields(value)
        )
        return f"record of {', '.join(fields)}"
    if callable(value):
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(value).parameters.values()]
        return str(inspect.Signature(bare))
    return (
        f"{type(value).__name__} of {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
    )


def schema_of(operator):
    return str(getattr(torch.ops.pocketcnn, operator.removeprefix("pocketcnn::")).default._schema)


def face():
    lines = [
        f"pc.{name} {described(getattr(pc, name))}" for name in [*sorted(pc.__all__), "from_pretrained", "push_to_hub"]
    ]
    lines += [f"pc.{name} {described(getattr(pc, name))}" for name in MODULES]
    for module, names in NAMES.items():
        lines += [f"{module}.{name} {described(getattr(importlib.import_module(module), name))}" for name in names]
    kernels.compiled(torch.empty(1))  # has the compiled kernels register their operators
    operators = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("pocketcnn::")]
    return "\n".join([*lines, *map(schema_of, sorted(operators))]) + "\n"


@pytest.mark.golden
def test_the_public_face(golden):
    golden("public_face.txt", face())
