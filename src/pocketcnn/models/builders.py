"""Builders: the functions that make plain nets, found by a name.

| name | builder |
|---|---|
| `resnet20` | one of this package, or one that `register_model` was given |
| `timm:resnet10t` | timm's `create_model` |
| `torchvision:resnet18` | torchvision's `get_model` |
| `nets/mine.py:build` | the function `build` of a file |
| `package.module:build` | the function `build` of a module |

A file or a module is code of the user's own. It runs when the user names it, and never because a model file does: `find`
imports it, `known` only remembers.
"""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pocketcnn.errors import BadFactory, UnknownModel
from pocketcnn.methods.pde import GlobalLayer
from pocketcnn.models import PLAIN, mnist_net
from pocketcnn.models.equilibrium import EquilibriumNet
from pocketcnn.models.own_code import imported, in_one_line
from pocketcnn.support.optional import optional_import

Make = Callable[..., nn.Module]
TIMM, TORCHVISION = "timm", "torchvision"
LIBRARIES = (TIMM, TORCHVISION)

# A name of two parts: the second is no option, as no equals sign follows. A drive of Windows may come first.
_TWO_PARTS = re.compile(r"((?:[A-Za-z]:[\\/])?[^:]+):([\w.-]+)(?=:|$)")
_NAME = re.compile(r"[A-Za-z]\w*")
_registered: dict[str, Make] = {}
_imported: dict[str, Make] = {}


def _mnist_net(
    feature: str = "conv", width: float | int = 1, diffusivity: Any = "constant", **options: Any
) -> nn.Module:
    """Makes the illustrative net. As published, its pde feature has one velocity for both axes, from one convolution."""
    features = {
        "conv": mnist_net.conv_feature,
        "residual": mnist_net.residual_feature,
        "pde": lambda channels: GlobalLayer(channels, velocity="conv", shared_velocity=True, diffusivity=diffusivity),
    }
    if feature not in features:
        raise ValueError(f"no feature {feature!r}; known: {', '.join(features)}")
    if feature != "pde" and diffusivity != "constant":
        raise ValueError(f"feature {feature!r} has no diffusivity; feature='pde' has")
    return mnist_net.MnistNet(features[feature], round(width), **options)


BUILDERS: dict[str, Make] = {**PLAIN, "mnist_net": _mnist_net, "equilibrium": EquilibriumNet}
"""The builders of this package."""


@dataclass(frozen=True)
class Builder:
    """A function that makes a plain net; `takes` holds the names of its options, None for any."""

    name: str
    make: Make
    takes: frozenset[str] | None

    def check(self, options: Collection[str]) -> None:
        """Checks that the builder takes options of these names.

        Raises:
            ValueError: it does not take one.
        """
        if self.takes is not None and (odd := sorted(set(options) - self.takes)):
            known = ", ".join(sorted(self.takes)) or "none"
            raise ValueError(f"{self.name}: no option {odd[0]!r}; it takes: {known}")

    def known_of(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Those of some options that the builder takes."""
        return {name: value for name, value in options.items() if self.takes is None or name in self.takes}


def register_model(name: str, builder: Make) -> None:
    """Gives a name to a function that makes nets, for every function and verb of this package that takes a net by name.

    A library calls this when it is imported. A file of such a net loads where the name is registered.

    Args:
        name: letters, digits and underscores.
        builder: function that returns an `nn.Module`, freshly initialised; its arguments are the options of the net.
    Raises:
        ValueError: the name has other characters, or belongs to another net.
    Example:
        >>> import torch
        >>> register_model("tiny", lambda num_classes=10: torch.nn.Linear(4, num_classes))
        >>> find("tiny").make(num_classes=3).out_features
        3
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be a net's name; use letters, digits and underscores")
    if name in BUILDERS or _registered.get(name, builder) is not builder:
        raise ValueError(f"{name!r} is the name of another net; choose one that is free")
    if not callable(builder) or isinstance(builder, nn.Module):
        raise ValueError(f"{name}: a builder is a function that returns a net, not a {type(builder).__name__}")
    _registered[name] = builder


def names() -> list[str]:
    """The names of the builders of this package and of those registered."""
    return [*BUILDERS, *_registered]


def split_name(text: str, known: Collection[str] = ()) -> tuple[str, str]:
    """Divides a net in words into its name, which may have a colon inside, and the options behind it.

    Args:
        text: the words.
        known: names without a colon, beside those of builders.

    Example:
        >>> [split_name(text) for text in ("resnet20:width=2", "timm:resnet10t", "nets/mine.py:build:width=0.5")]
        [('resnet20', 'width=2'), ('timm:resnet10t', ''), ('nets/mine.py:build', 'width=0.5')]
    """
    first, _, rest = text.partition(":")
    if first not in names() and first not in known and (found := _TWO_PARTS.match(text)):
        return found[0], text[found.end() + 1 :]
    return first, rest


def is_foreign(name: str) -> bool:
    """Tells whether a name is that of a net from elsewhere: of timm, torchvision, a file or a module."""
    return _TWO_PARTS.fullmatch(name) is not None


def runs_code(name: str) -> bool:
    """Tells whether finding the builder of a name runs code that is neither ours nor of a library that we know."""
    return is_foreign(name) and name.partition(":")[0] not in LIBRARIES


def known(name: str) -> Builder | None:
    """Finds the builder of a name without running code of the user's own; None if there is none, or it was never named.

    Raises:
        UnknownModel: timm or torchvision has no such net.
        MissingExtra: it is not installed, or is broken.
    """
    library, _, rest = name.partition(":")
    if library in LIBRARIES and rest:
        return _of_timm(name, rest) if library == TIMM else _of_torchvision(name, rest)
    make = BUILDERS.get(name) or _registered.get(name) or _imported.get(_place(name))
    return None if make is None else Builder(name, make, _parameters_of(make))


def find(name: str) -> Builder | None:
    """Finds the builder of a name, and imports the file or module that the name says; None if it is no builder's name.

    Raises:
        UnknownModel: timm or torchvision has no such net.
        MissingExtra: it is not installed, or is broken.
        BadFactory: there is no such file, module or function, or importing it fails.
    """
    if runs_code(name) and _place(name) not in _imported:
        _imported[_place(name)] = imported(name)
    return known(name)


def _place(name: str) -> str:
    """The name of a function in a file with the file's whole path, so that another working folder has other files."""
    file, _, function = name.rpartition(":")
    return f"{Path(file).resolve()}:{function}" if file.endswith(".py") else name


def made(builder: Builder, options: Mapping[str, Any]) -> nn.Module:
    """Calls a builder.

    Raises:
        ValueError: it does not take an option.
        BadFactory: it raises an error, or returns something else than an `nn.Module`.
    """
    builder.check(options)
    try:
        model = builder.make(**options)
    except Exception as error:  # code of others may raise anything
        if not runs_code(builder.name) and builder.name not in _registered:
            raise
        raise BadFactory(f"{builder.name}: making the net failed ({in_one_line(error)})") from error
    if not isinstance(model, nn.Module):
        raise BadFactory(f"{builder.name}: returns a {type(model).__name__}, not an nn.Module; return the net")
    return model


def _parameters_of(make: Make) -> frozenset[str] | None:
    """The names of a function's arguments; None if it takes any."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))


# Options that would read files or other sites; weights are read by `pocketcnn.checkpoint.load_weights_`.
_READING = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "weights", "weights_backbone"}


def _refuse_reading(name: str, options: Mapping[str, Any]) -> None:
    if odd := sorted(_READING & options.keys()):
        raise ValueError(f"{name}: {odd[0]} is no option here; pretrained=True and --weights FILE give trained weights")


def _of_timm(name: str, rest: str) -> Builder:
    library = optional_import("timm", extra="timm", purpose=name)
    if not library.is_model(rest) or not _plain(rest):
        raise UnknownModel(name, [f"timm:{known}" for known in library.list_models()])

    def make(
        in_channels: int = 3, num_classes: int | None = None, pretrained: bool = False, **options: Any
    ) -> nn.Module:
        _refuse_reading(name, options)
        classes = {} if num_classes is None else {"num_classes": num_classes}
        return library.create_model(rest, pretrained=pretrained, in_chans=in_channels, **classes, **options)

    return Builder(name, make, None)


def _of_torchvision(name: str, rest: str) -> Builder:
    library = optional_import("torchvision.models", extra="timm", purpose=name)
    if rest not in library.list_models():
        raise UnknownModel(name, [f"torchvision:{known}" for known in library.list_models()])

    def make(pretrained: bool = False, **options: Any) -> nn.Module:
        _refuse_reading(name, options)
        # Without this, the builders of larger nets fetch the weights of their backbones.
        backbone = inspect.signature(library.get_model_builder(rest)).parameters.keys() & {"weights_backbone"}
        return library.get_model(
            rest, weights="DEFAULT" if pretrained else None, **dict.fromkeys(backbone, None), **options
        )

    known = inspect.signature(library.get_model_builder(rest)).parameters.keys() - _READING - {"kwargs", "progress"}
    return Builder(name, make, frozenset({*known, "num_classes", "pretrained"}))


def _plain(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+", name) is not None


def image_facts(name: str) -> dict[str, Any]:
    """What timm or torchvision says of the images that a net of theirs expects: input_size, mean, std, as model files note it.

    A net of another origin has no such facts. Those of torchvision's are of the default trained weights.
    """
    library, _, rest = name.partition(":")
    if library == TIMM:
        config = optional_import("timm", extra="timm", purpose=name).get_pretrained_cfg(rest, allow_unregistered=True)
        if config is None:
            return {}
        return {"input_size": list(config.input_size), "mean": list(config.mean), "std": list(config.std)}
    if library == TORCHVISION:
        models = optional_import("torchvision.models", extra="timm", purpose=name)
        weights: Any = getattr(models.get_model_weights(rest), "DEFAULT", None)
        shown: Any = None if weights is None else weights.transforms()
        if not hasattr(shown, "crop_size"):
            return {}
        side = shown.crop_size[0]
        return {"input_size": [3, side, side], "mean": list(shown.mean), "std": list(shown.std)}
    return {}
