"""Recipes: the papers' nets by name, each a plain net, the methods that condense it and their options."""

import dataclasses
import fnmatch
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pocketcnn.errors import NotEnoughMemory, UnknownModel
from pocketcnn.methods import get_method
from pocketcnn.models.builders import BUILDERS, LIBRARIES, Builder, find, made, names
from pocketcnn.support.files import refuse_exported
from pocketcnn.support.kinds import in_words, is_a
from pocketcnn.support.memory import require_memory
from pocketcnn.surgery import condense, record_of, remember


@dataclass(frozen=True)
class Recipe:
    """A named net: `base` condensed by each of `steps` in turn."""

    base: str
    base_options: Mapping[str, Any]
    steps: Sequence[tuple[str, Mapping[str, Any]]]  # a method and its options, include and exclude among them
    source: str


_COMPARISON = "Kao, comparison of Convolution, Involution and CondConv in ResNet-18"
_RING = "Wang et al., Recurrent Parameter Generators, WACV 2023"
_REDNET = "Li et al., Involution, CVPR 2021"
_PUPPET = "Puppet-CNN: Input-Adaptive Convolutional Networks Using Ordinary Differential Equations"
_GLOBAL = "Mukherjee, re-implementation of Kag & Saligrama, CVPR 2022"
_SECOND_CONVS = "layer*.conv2"
RECIPES: dict[str, Recipe] = {
    "resnet18_involution": Recipe(
        "resnet18",
        {"stem": "small", "num_classes": 10},
        [("involution", {"include": _SECOND_CONVS, "kernel_size": 3, "num_groups": 8, "generator_bias": False})],
        _COMPARISON,
    ),
    "resnet18_condconv": Recipe(
        "resnet18",
        {"stem": "small", "num_classes": 10},
        [("condconv", {"include": _SECOND_CONVS, "num_experts": 4})],
        _COMPARISON,
    ),
    "resnet18_ring": Recipe("resnet18", {}, [("ring", {"size": 0.5})], _RING),
    "resnet34_ring": Recipe("resnet34", {}, [("ring", {"size": 0.5})], _RING),
    **{
        f"rednet{depth}": Recipe(
            f"resnet{depth}",
            {"stem": "deep"},
            [("involution", {"include": ("conv1.3", _SECOND_CONVS), "kernel_size": {"conv1.3": 3, _SECOND_CONVS: 7}})],
            _REDNET,
        )
        for depth in (26, 38, 50, 101, 152)
    },
    "puppet_plain": Recipe("plainnet20", {}, [("puppet", {})], _PUPPET),
    "resnet32_puppet": Recipe("resnet32_4stage", {}, [("puppet", {})], _PUPPET),
    "resnet18_puppet": Recipe("resnet18", {}, [("puppet", {"size": 0.04})], _PUPPET),
    # The rows of the report's second table, but for the first, which is the plain resnet32_4stage.
    **{
        name: Recipe("resnet32_4stage", {}, [("pde", {"last_stage": "drop", **options})], _GLOBAL)
        for name, options in {
            "resnet32_global": {},
            "resnet32_global_identity": {"velocity": "identity", "diffusivity": "constant"},
            "resnet32_global_residual": {"velocity": "residual", "diffusivity": "residual"},
            "resnet32_global_perona_malik": {"diffusivity": "perona_malik"},
            "resnet32_global_initial": {"initial": "residual"},
            "resnet32_global_diffusion": {"equation": "diffusion"},
            "resnet32_global_advection": {"equation": "advection"},
        }.items()
    },
}


def create_model(name: str, **options: Any) -> nn.Module:
    """Makes a net by name, with initial weights drawn from torch's random numbers.

    Args:
        name: a plain net (`"resnet20"`) or a recipe (`"resnet18_ring"`), which `list_models()` lists; a net of timm
            (`"timm:resnet10t"`) or torchvision (`"torchvision:resnet18"`); or a function of yours that makes a net, in a
            file (`"nets/mine.py:build"`) or a module (`"package.module:build"`), which is imported.
        **options: options of the plain net (`num_classes`, `in_channels`, `stem`, `width`); for a recipe with one method
            also that method's options (`size=0.1`).
    Returns:
        A net in training mode that `save` can write and `load` can rebuild.
    Raises:
        UnknownModel: no net has that name; the message offers the nearest.
        ExportedFile: the name is that of a file exported for serving.
        ValueError: an option is unknown, of another type or out of range.
        BadFactory: your function cannot be imported, raises an error, or returns no net.
        NotEnoughMemory: the net is larger than the machine's memory.
    Example:
        >>> sum(p.numel() for p in create_model("resnet18", num_classes=10, stem="small").parameters())
        11173962
    """
    if (builder := find(name)) is not None:
        return build(builder, options)
    check_name(name)
    recipe = RECIPES[name]
    steps = [(method, dict(step_options)) for method, step_options in recipe.steps]
    fields = {field.name for method, _ in steps for field in dataclasses.fields(get_method(method).options)}
    if len(steps) == 1:
        steps[0][1].update({key: options.pop(key) for key in fields & options.keys()})
    model = create_model(recipe.base, **{**recipe.base_options, **options})
    for method, step_options in steps:
        model = condense(model, method, **step_options)
    return model


def build(builder: Builder, options: Mapping[str, Any]) -> nn.Module:
    """Makes a plain net, and records its name and options; the errors are those of `create_model`."""
    name = builder.name
    if name in BUILDERS:
        _check_options(name, options)
    try:
        model = made(builder, options)
    except TypeError as error:
        raise ValueError(f"{name}: {str(error).split('() ')[-1]}") from error
    # Trained weights are in the model file, so its reader need not fetch them.
    of_library = name.partition(":")[0] in LIBRARIES
    kept = {key: value for key, value in options.items() if not (of_library and key == "pretrained")}
    return remember(model, dataclasses.replace(record_of(model), base={"name": name, "options": kept}))


def options_for(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some options that a net of this name takes; all of them for a recipe or an unknown name.

    Raises:
        BadFactory: or another error of finding the net's builder.
    """
    builder = find(name)
    return dict(options) if builder is None else builder.known_of(options)


def check_name(name: str) -> None:
    """Checks that a net has this name; imports it if it is one of the user's own.

    Raises:
        UnknownModel: none has; the message offers the nearest.
        BadFactory: a file or module cannot be imported, or lacks the function.
        ExportedFile: the name is that of a file exported for serving.
    """
    if name not in RECIPES and find(name) is None:
        refuse_exported(name)
        raise UnknownModel(name, (*names(), *RECIPES))


# The largest values of options: far beyond use, but small enough that nothing overflows or runs for hours.
_MOST = {"num_classes": 10**6, "in_channels": 10**6, "width": 10**3, "max_steps": 10**4, "train_steps": 10**4}
_USUAL = {
    "width": 4
}  # nets of options up to this, or else up to 4096, are small; others are counted before they are made


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Checks the types and sizes of a plain net's options, and that the machine can hold the net."""
    builder = BUILDERS[name]
    maker: Any = builder.func if isinstance(builder, partial) else builder
    hints = typing.get_type_hints(vars(maker)["__init__"] if isinstance(maker, type) else maker)
    for key, value in options.items():
        if key in hints and not is_a(value, hints[key]):
            raise ValueError(f"{name}: {key} must be {in_words(hints[key])}, not {value!r}")
        if isinstance(value, int | float) and not abs(value) <= (most := _MOST.get(key, 2**31)):
            raise ValueError(f"{name}: {key} may be at most {most:,}, not {value!r}")
    if torch.get_default_device().type == "meta":
        return
    if all(value <= _USUAL.get(key, 4096) for key, value in options.items() if isinstance(value, int | float)):
        return
    what, remedy = f"{name} with {', '.join(f'{k}={v}' for k, v in options.items())}", "make a smaller net"
    try:
        with torch.device("meta"):  # where no memory is taken
            net = builder(**options)
    except (RuntimeError, OverflowError) as error:
        raise NotEnoughMemory(f"{what}: more weights than can be counted; {remedy}") from error
    except TypeError:
        return  # an unknown option, which the builder reports
    require_memory(4 * sum(p.numel() for p in net.parameters()), what, remedy)


def list_models(pattern: str = "*") -> list[str]:
    """Lists the plain nets and the recipes whose names match a shell pattern, sorted.

    Example:
        >>> list_models("*_ring")
        ['resnet18_ring', 'resnet34_ring']
    """
    return sorted(fnmatch.filter((*names(), *RECIPES), pattern), key=_by_number)


def _by_number(name: str) -> tuple[str, int, str]:
    """A key that sorts resnet20 before resnet110."""
    found = re.match(r"([a-z]+)(\d*)", name)
    return (found[1], int(found[2] or 0), name) if found else (name, 0, name)
