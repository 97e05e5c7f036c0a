"""Types of options: whether a value has the type that an annotation asks for, and the type in words."""

import numbers
import typing
from typing import Any


def is_a(value: Any, hint: Any) -> bool:
    """Tells whether an option has the type of its field, whole numbers of 64 bits; its taker checks the words it knows."""
    if hint is Any:
        return True
    if typing.get_origin(hint) is typing.Literal:
        return isinstance(value, str)
    if typing.get_origin(hint) is typing.Annotated:
        return is_a(value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is dict:
        of_keys, of_values = typing.get_args(hint)
        return isinstance(value, dict) and all(is_a(k, of_keys) and is_a(v, of_values) for k, v in value.items())
    if parts := typing.get_args(hint):
        return any(is_a(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    if isinstance(value, numbers.Integral) and not -(2**63) <= int(value) < 2**64:
        return False
    return isinstance(value, {float: numbers.Real, int: numbers.Integral}.get(hint, hint))


def in_words(hint: Any) -> str:
    """Spells a type for a message."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is dict:
        return "a mapping of {} to {}".format(*map(in_words, typing.get_args(hint)))
    if parts := typing.get_args(hint):
        return " or ".join(map(in_words, parts))
    return {type(None): "None"}.get(hint, getattr(hint, "__name__", str(hint)))
