"""Parsing of a command line into a dataclass of arguments, by tyro."""

import contextlib
import dataclasses
import importlib
import io
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pocketcnn.cli.printing import FLAGS, answer_in_json, doing
from pocketcnn.cli.verbs import EXAMPLES, VERBS
from pocketcnn.errors import BadUsage
from pocketcnn.support.ranges import out_of_range

Arguments = TypeVar("Arguments")


def parse(
    kind: type[Arguments], words: Sequence[str], verb: str, more: Callable[[], str] = str, **defaults: Any
) -> Arguments:
    """Parses the words of a verb.

    Args:
        kind: dataclass of the arguments.
        words: the command line after the verb.
        verb: a key of `VERBS`.
        more: makes the text for the help below the verb's line and example; called if the help is asked for.
        **defaults: values of fields that differ from the dataclass's own defaults.
    Raises:
        BadUsage: the words cannot be parsed, or a number is out of its range; the message is one line.
    """
    import tyro

    FLAGS.clear()
    FLAGS.update({name: f"--{name.replace('_', '-')}" for name in _names_of(kind)})
    _refuse_repeated(words)
    asks = any(word in ("-h", "--help") for word in words)
    settings: dict[str, Any] = {}
    if defaults:
        fields: Any = dataclasses.fields(kind)  # type: ignore[arg-type]
        needed = {f.name: tyro.MISSING for f in fields if f.default is f.default_factory is dataclasses.MISSING}
        settings["default"] = kind(**needed, **defaults)
    # Help needs some room. Lines of a message are joined, so they may be long and break inside of no word.
    columns = max(shutil.get_terminal_size().columns, 40) if asks else 2000
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured), _columns(columns):
            given = tyro.cli(
                kind,
                args=list(words),
                prog=f"pocketcnn {verb}",
                description="\n\n".join([VERBS[verb], f"Example: {EXAMPLES[verb]}", more() if asks else ""]),
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_strict_words(),
                **settings,
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise BadUsage(_one_line(captured.getvalue(), verb)) from None
    if bad := [fault for record in _records_of(given) for fault in out_of_range(record)]:
        raise BadUsage("; ".join(bad))
    if getattr(given, "json", False):
        answer_in_json()
    with doing("importing torch"):
        importlib.import_module("torch")  # whatever a verb does next needs it
    return given


@contextlib.contextmanager
def _columns(count: int) -> Iterator[None]:
    """Makes the terminal look as wide as so many letters."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


def _names_of(kind: Any) -> list[str]:
    """The names of the fields of a dataclass, those of the dataclasses inside it included."""
    names = []
    for name, hint in get_type_hints(kind).items():
        inside = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        names += _names_of(hint) if inside else [name]
    return names


def _records_of(given: Any) -> list[Any]:
    """A dataclass of arguments, and those inside it."""
    values = (getattr(given, entry.name) for entry in dataclasses.fields(given))
    inner = [value for value in values if dataclasses.is_dataclass(value) and not isinstance(value, type)]
    return [given, *(record for value in inner for record in _records_of(value))]


def _refuse_repeated(words: Iterable[str]) -> None:
    """Refuses a flag that is given twice, of which one would win in silence."""
    given: set[str] = set()
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        own = f"--{flag[5:]}" if flag.startswith("--no-") else flag
        if own in FLAGS.values():
            if own in given:
                raise BadUsage(f"{own} is given twice; give it once")
            given.add(own)


def _strict_words() -> Any:
    """Rules for single words: no number is infinite or NaN, or written with other digits than 0 to 9; no word is empty."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    def rule(type_info: Any) -> Any:
        read = {int: _whole, float: _finite, str: _text, Path: _path}.get(type_info.type)
        if read is None:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH" if type_info.type is Path else type_info.type.__name__.upper(),
            instance_from_str=lambda words: read(words[0]),
            is_instance=lambda value: (
                type(value) is type_info.type
                or (type_info.type is Path and isinstance(value, Path))
                or ("~" if type_info.type is float and type(value) is int else False)
            ),
            str_from_instance=lambda value: [str(value)],
        )

    registry.primitive_rule(rule)
    return registry


def _whole(word: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9](?:[0-9_]*[0-9])?", word) or len(word) > 100:
        raise ValueError(f"a whole number is needed, not {_shown(word)}")
    return int(word)


def _finite(word: str) -> float:
    number = float(word) if re.fullmatch(r"[+-]?[0-9._]+(?:[eE][+-]?[0-9]+)?", word) else math.nan
    if not math.isfinite(number) or (number == 0 and re.search("[1-9]", word.lower().partition("e")[0])):
        raise ValueError(f"a finite number is needed, not {_shown(word)}")
    return number


def _text(word: str) -> str:
    if not word.strip() or "\0" in word:
        raise ValueError(f"{_shown(word)} means nothing here")
    return word


def _path(word: str) -> Path:
    if not word.strip() or "\0" in word:
        raise ValueError(f"{_shown(word)} is no path")
    return Path(word)


def _shown(word: str) -> str:
    return ascii(word if len(word) <= 60 else f"{word[:57]}...")  # letters that look like others, or like nothing, show


def _one_line(box: str, verb: str) -> str:
    """Extracts the message from the box that tyro draws, with the flag that it suggests."""
    border = "│╭╮╰╯─|+- "  # drawn in ASCII where the terminal has no box characters
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)  # colours, on a terminal
    rules = [number for number, line in enumerate(box.splitlines()) if re.search("[─-]{6}", line)]
    lines = [line.strip("│| ") for line in box.splitlines()]
    # The first rule is under or around the title; the message goes from there to the next one.
    first, last = rules[0] + 1 if rules else 0, rules[1] if len(rules) > 1 else len(lines)
    message = [line for line in lines[first:last] if line.strip(border)]
    near = re.search(r"Perhaps you meant:.*?(--[\w-]+)", " ".join(lines))
    guess = f"; did you mean {near[1]}" if near else ""
    words = " ".join(message) or "the command line cannot be understood"
    words = re.sub(r"^Error parsing (?:[A-Z]?[a-z_]+)+: ", "", words)
    words = re.sub(
        r"no type matching (.+?) could be instantiated from (\[.*?\])\. Got errors:.*", r"\1 is needed, not \2", words
    )
    return f"{words}{guess}; pocketcnn {verb} --help lists the flags"


def parse_surgery(kind: type[Arguments], words: Sequence[str], verb: str) -> tuple[Arguments, dict[str, Any]]:
    """Parses the words of a verb that condenses; the method's options are flags too, or follow the method's name.

    Returns:
        The arguments, with the method's name alone as `method`; and the options, `include` and `exclude` among them.
    Raises:
        BadUsage: an option has one value as a flag and another one after the method's name.
    """
    from pocketcnn.methods import get_method
    from pocketcnn.models.spec import parse_options

    chosen, spelled = parse_options(value_of("--method", words) or "ring")
    method = get_method(chosen)
    known = {entry.name for entry in dataclasses.fields(method.options)}
    own = {key: value for key, value in spelled.items() if key in known}
    checked = _options_of(method, own)
    merged: Any = dataclasses.make_dataclass(
        kind.__name__,
        [(method.name, method.options, field(default_factory=lambda: checked))],
        bases=(kind,),
        frozen=True,
        kw_only=True,
    )
    given: Any = parse(merged, words, verb, method_help)
    options = {name: getattr(getattr(given, method.name), name) for name in known}
    options |= {"include": given.include, "exclude": given.exclude}
    for key, value in spelled.items():
        if key in ("include", "exclude") and options[key] is None:
            options[key] = value
        elif key not in options:
            options[key] = value  # unknown, which the library reports
        elif options[key] != value and (key in own or options[key] != _patterns(value)):
            raise BadUsage(
                f"--method {given.method} says {key}={value}, and {FLAGS[key]} says {options[key]}; give one of them"
            )
    return dataclasses.replace(given, method=chosen), options


def _options_of(method: Any, options: dict[str, Any]) -> Any:
    """The options that follow a method's name, checked as the library does."""
    from pocketcnn.surgery import check_step
    from pocketcnn.surgery.provenance import Step

    check_step(Step(method.name, options, ()))
    return method.options(**options)


def _patterns(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """The value that a flag has among some words, before they are parsed; None where the flag is absent."""
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == flag:
            if equals:
                return value
            return words[number + 1] if number + 1 < len(words) else None
    return None


def preset_of(words: Sequence[str], presets: dict[str, Any], default: str = "default") -> Any:
    """The preset that `--preset` names; its fields are the defaults of the flags."""
    name = value_of("--preset", words) or default
    if name not in presets:
        raise BadUsage(f"no preset {_shown(name)}; known: {', '.join(presets)}")
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
