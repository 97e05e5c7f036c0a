"""A net in words: `resnet20 ring:size=0.1`. A name with options is read by `parse_options` and written by `spell`.

After the name comes a colon, then `key=value` pairs between commas. A value that begins with a quote or a bracket is a
Python literal and may hold commas. Any other value ends at the next comma that is not inside of braces; it is a number, a
truth value or None where it reads as one, else a string.
"""

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
from pocketcnn.models.builders import split_name
from pocketcnn.models.recipes import RECIPES, create_model
from pocketcnn.surgery import condense

PLAIN_METHOD = "plain"  # stands where a method's name could: the net is not condensed


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Reads a method and its options: `"ring:size=0.1,seed=3"`. `include` and `exclude` patterns may be among them.

    Raises:
        UnknownMethod: the name is neither a method's nor `plain`.
        ValueError: an option has no value, or `plain` has options.
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


def parse_model(text: str) -> tuple[str, dict[str, Any]]:
    """Reads the name of a net and its options, as `create_model` takes them; `spell` writes them.

    Raises:
        ValueError: as in `parse_options`.
    Example:
        >>> parse_model("mnist_net:feature=pde,width=8")
        ('mnist_net', {'feature': 'pde', 'width': 8})
        >>> parse_model("nets/mine.py:build:num_classes=3")
        ('nets/mine.py:build', {'num_classes': 3})
    """
    _check_length(text)
    name, options = split_name(text, RECIPES)
    return name, _options_of(name, options)


def parse_options(text: str) -> tuple[str, dict[str, Any]]:
    """Reads a name without a colon and the options behind it; `spell` writes them.

    Raises:
        ValueError: an option has no value or is given twice, or the text is longer than any that has a meaning.
    Example:
        >>> parse_options("ring:level={'layer1': 'early', 'layer[23]': 'late'}")
        ('ring', {'level': {'layer1': 'early', 'layer[23]': 'late'}})
    """
    _check_length(text)
    name, _, rest = text.partition(":")
    return name, _options_of(name, rest)


def _check_length(text: str) -> None:
    if len(text) > _LONGEST:
        raise ValueError(
            f"{text[:40]!r}...: {len(text):,} characters; a name with its options has at most {_LONGEST:,}"
        )


def _options_of(name: str, rest: str) -> dict[str, Any]:
    """Reads the options behind a name."""
    text = f"{name}:{rest}"
    options: dict[str, Any] = {}
    while rest:
        key, equals, after = rest.partition("=")
        if not equals or "," in key:
            part, _, rest = rest.partition(",")
            if part:
                raise ValueError(f"{text!r}: option {part!r} has no value; write {name}:{part}=VALUE")
            continue
        end = _value_end(after)
        if not key.isidentifier() or end == 0:
            lacking = f"option {key!r} has no value" if key.isidentifier() else f"{key!r} cannot be an option's name"
            raise ValueError(f"{text!r}: {lacking}; write {name}:OPTION=VALUE,OPTION=VALUE")
        if key in options:
            raise ValueError(f"{text!r}: gives {key} twice; give it once")
        options[key], rest = _read_value(after[:end]), after[end + 1 :]
    return options


def spell(name: str, options: Mapping[str, Any]) -> str:
    """Writes a name and its options in one word, which `parse_options` reads back.

    Values may be finite numbers, truth values, None, strings, and tuples, lists and dictionaries of them.

    Example:
        >>> spell("ring", {"size": 0.1, "include": ("layer2", "layer3")})
        "ring:size=0.1,include=('layer2', 'layer3')"
        >>> spell("plain", {})
        'plain'
    """
    return ":".join(filter(None, (name, ",".join(f"{key}={_spell_value(value)}" for key, value in options.items()))))


_LONGEST = 2000  # characters; more would keep Python's parser busy, which reads nested literals
_UNREADABLE = (ValueError, SyntaxError, MemoryError, RecursionError)  # the last two: nested too deeply
_OPENING = ("(", "[", "{", "'", '"')  # what a Python literal that may hold commas begins with
_BARE = re.compile(r"(?:\{[^{}]*\}|[^,])*")  # another value: up to a comma, but not inside of braces


def _value_end(text: str) -> int:
    """The length of the value that a text begins with."""
    if text.startswith(_OPENING):
        for end in (*(found.start() for found in re.finditer(",", text)), len(text)):
            try:
                ast.literal_eval(text[:end])
            except _UNREADABLE:
                continue
            return end
    bare = _BARE.match(text)
    return bare.end() if bare else 0


def _read_value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except _UNREADABLE:
        return text


def _spell_value(value: Any) -> str:
    """A value in words; a string is quoted only where it would not be read back as itself."""
    if isinstance(value, str) and (
        not value or value.startswith(_OPENING) or re.search("[,{}]", value) or _read_value(value) != value
    ):
        return repr(value)
    return str(value)


@dataclass(frozen=True)
class NetSpec:
    """One row of a comparison: a net by name, and the method that condenses it or `plain`.

    `rival_of` is the label of the small net whose number of parameters this plain net was narrowed or widened to.
    """

    model: str
    method: str = PLAIN_METHOD
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    model_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rival_of: str = ""

    @property
    def label(self) -> str:
        """The row's name in tables and records: `resnet20 ring:size=0.1`, `resnet20 width=0.5 plain`.

        Options that the data decide are left out, and so is a width of 1.
        """
        hidden = ("in_channels", "num_classes")  # the data's
        given = {k: v for k, v in self.model_options.items() if k not in hidden and (k, v) != ("width", 1.0)}
        shown = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in given.items()]
        # Not by `spell`, which quotes what would be read back otherwise: labels name folders, old ones too.
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return " ".join([self.model, *shown, f"{self.method}:{options}" if options else self.method])

    def build(self, seed: int) -> nn.Module:
        """Makes the net, with initial weights drawn from the seed."""
        torch.manual_seed(seed)
        net = create_model(self.model, **self.model_options)
        return net if self.method == PLAIN_METHOD else condense(net, self.method, **self.options)
