"""Parsing of a command line into a dataclass of arguments, by tyro."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Sequence
from dataclasses import field
from typing import Any, TypeVar

from pocketcnn.cli.verbs import VERBS
from pocketcnn.errors import BadUsage

Arguments = TypeVar("Arguments")


def parse(kind: type[Arguments], words: Sequence[str], verb: str, more: str = "", **defaults: Any) -> Arguments:
    """Parses the words of a verb.

    Args:
        kind: dataclass of the arguments.
        words: the command line after the verb.
        verb: a key of `VERBS`.
        more: text for the help, below the verb's line.
        **defaults: values of fields that differ from the dataclass's own defaults.
    Raises:
        BadUsage: the words cannot be parsed; the message is one line.
    """
    import tyro

    described = f"{VERBS[verb]}\n\n{more}"
    settings: dict[str, Any] = {"default": kind(**defaults)} if defaults else {}
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(
                kind,
                args=list(words),
                prog=f"pocketcnn {verb}",
                description=described,
                config=(tyro.conf.OmitArgPrefixes,),
                **settings,
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise BadUsage(_one_line(captured.getvalue(), verb)) from None


def _one_line(box: str, verb: str) -> str:
    """Extracts the message from the box that tyro draws, with the flag that it suggests."""
    border = "│╭╮╰╯─|+- "  # drawn in ASCII where the terminal has no box characters
    rules = [number for number, line in enumerate(box.splitlines()) if re.search("[─-]{6}", line)]
    lines = [line.strip("│| ") for line in box.splitlines()]
    # The first rule is under or around the title; the message goes from there to the next one.
    first, last = rules[0] + 1 if rules else 0, rules[1] if len(rules) > 1 else len(lines)
    message = [line for line in lines[first:last] if line.strip(border)]
    near = re.search(r"Perhaps you meant:.*?(--[\w-]+)", " ".join(lines))
    guess = f"; did you mean {near[1]}" if near else ""
    message[:1] = [re.sub(r"^Error parsing [a-z_]+: ", "", line) for line in message[:1]]
    return f"{' '.join(message) or 'the command line cannot be understood'}{guess}; pocketcnn {verb} --help lists the flags"


def parse_surgery(kind: type[Arguments], words: Sequence[str], verb: str) -> tuple[Arguments, dict[str, Any]]:
    """Parses the words of a verb that condenses: the options of the chosen method are flags too, and returned apart."""
    from pocketcnn.methods import get_method

    chosen = value_of("--method", words)
    method = get_method(chosen or "ring")
    merged: Any = dataclasses.make_dataclass(
        kind.__name__,
        [(method.name, method.options, field(default_factory=method.options))],
        bases=(kind,),
        frozen=True,
        kw_only=True,
    )
    given: Any = parse(merged, words, verb, method_help())
    return given, dataclasses.asdict(getattr(given, method.name))


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """The value that a flag has among some words, before they are parsed; None where the flag is absent."""
    for number, word in enumerate(words):
        if word == flag and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def preset_of(words: Sequence[str], presets: dict[str, Any], default: str = "default") -> Any:
    """The preset that `--preset` names; its fields are the defaults of the flags."""
    name = value_of("--preset", words) or default
    if name not in presets:
        raise BadUsage(f"no preset {name!r}; known: {', '.join(presets)}")
    return presets[name]


def method_help() -> str:
    """Lists the methods and their options, for the help of a verb."""
    from pocketcnn.methods import METHODS

    lines = ["Methods and their options:"]
    for method in METHODS.values():
        options = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(method.options))
        lines.append(f"  {method.name}: {method.summary} ({options})")
    return "\n".join(lines)


def data_help() -> str:
    """Lists the built-in data sets, for the help of a verb."""
    from pocketcnn.data import BUILT_IN

    return "Built in: " + "; ".join(f"{name} ({what})" for name, what in BUILT_IN.items())
