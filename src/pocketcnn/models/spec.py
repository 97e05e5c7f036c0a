"""A net in words: `resnet20 ring:size=0.1`."""

import ast
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pocketcnn.errors import UnknownMethod
from pocketcnn.methods import METHODS
from pocketcnn.models.recipes import create_model
from pocketcnn.surgery import condense

PLAIN_METHOD = "plain"  # beside the methods' names: the net as it is


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """A method and its options from `"ring:size=0.1,seed=3"`; `include` and `exclude` patterns may be among them.

    Raises:
        UnknownMethod: no such method, nor `plain`.
        ValueError: an option without a value.
    Example:
        >>> parse_method("ring:size=0.1,include=layer3.*")
        ('ring', {'size': 0.1, 'include': 'layer3.*'})
    """
    name, options = parse_options(text)
    if name != PLAIN_METHOD and name not in METHODS:
        raise UnknownMethod(name, (PLAIN_METHOD, *METHODS))
    if name == PLAIN_METHOD and options:
        raise ValueError(f"{text!r}: plain takes no options; --width scales the plain net")
    return name, options


def parse_options(text: str) -> tuple[str, dict[str, Any]]:
    """A name and the options written behind it.

    Raises:
        ValueError: an option without a value.
    Example:
        >>> parse_options("mnist_net:feature=pde,width=8")
        ('mnist_net', {'feature': 'pde', 'width': 8})
        >>> parse_options("ring:level={'layer1': 'early', 'layer[23]': 'late'}")
        ('ring', {'level': {'layer1': 'early', 'layer[23]': 'late'}})
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, re.split(r",(?![^{]*\})", rest)):  # at commas, but not inside of braces
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: option {part!r} has no value; write {name}:{part}=VALUE")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return name, options


@dataclass(frozen=True)
class NetSpec:
    """One row of a comparison: a net by name, and the method that condenses it or `plain`.

    `rival_of` names the small net whose stored numbers this plain net was narrowed (or widened) to.
    """

    model: str
    method: str = PLAIN_METHOD
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rival_of: str = ""

    @property
    def label(self) -> str:
        """`resnet20 ring:size=0.1`, or `resnet20 width=0.5 plain`, in short what tells this row from others."""
        hidden = ("in_channels", "num_classes")  # the data's
        given = {k: v for k, v in self.model_options.items() if k not in hidden and (k, v) != ("width", 1.0)}
        shown = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in given.items()]
        model = " ".join([self.model, *shown])
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{model} {self.method}{':' + options if options else ''}"

    def build(self, seed: int) -> nn.Module:
        """The net, with initial weights drawn from the seed."""
        torch.manual_seed(seed)
        net = create_model(self.model, **self.model_options)
        return net if self.method == PLAIN_METHOD else condense(net, self.method, **self.options)
