"""Output of the verbs: tables or JSON, sizes, log messages and exit codes."""

import contextlib
import dataclasses
import importlib
import io
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

_PATIENCE = 0.1  # seconds
_waited_for: list[bool] = []  # not empty if this process was started for one command
_for_document: list[Any] = []  # with --json, the stream that the document is for
FLAGS: dict[str, str] = {}  # the flags of the verb that runs, by the names of the library's arguments
DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130


def size_in_words(input_size: Sequence[int] | Sequence[Sequence[int]]) -> str:
    """The size of an image, `3x32x32`, or of several inputs, `3x32x32 and 5`."""
    from pocketcnn.support.calls import sizes_of

    return " and ".join("x".join(map(str, size)) for size in sizes_of(tuple(input_size)))  # type: ignore[arg-type]


def with_commas(value: Any) -> str:
    """A count with commas between thousands; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


@contextlib.contextmanager
def one_answer() -> Iterator[None]:
    """Surrounds a verb: puts stdout back where `answer_in_json` has moved it."""
    before = sys.stdout
    try:
        yield
    finally:
        _for_document.clear()
        sys.stdout = before


def answer_in_json() -> None:
    """Has `answer` print JSON; all else that is printed goes to stderr, so that stdout holds one document."""
    _for_document.append(sys.stdout)
    sys.stdout = sys.stderr


def answer(text: str | Callable[[], None], rows: Iterable[Any], /, **facts: Any) -> None:
    """Prints the answer of a verb, once: its table; or with --json a document of its rows and of the facts around them.

    Args:
        text: the table, or a function that prints it.
        rows: a mapping or a record for each row, its values with their types. Names say the unit: `_bytes`, `_ms`.
        **facts: whatever else the verb found, likewise.
    """
    if _for_document:
        print(json.dumps(_plain({"rows": list(rows), **facts}), indent=2, allow_nan=False), file=_for_document[-1])
    elif callable(text):
        text()
    else:
        print(text)


def _plain(value: Any) -> Any:
    """A value as JSON has it: records are objects, numbers that are not finite are null, paths are text."""
    if dataclasses.is_dataclass(value):
        value = {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


class _StderrHandler(logging.Handler):
    """Prints to the current `sys.stderr`, which a live table redirects so that messages appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_above_bars(spoken(self.format(record)))
        except OSError:  # nobody reads any more; that is no reason to stop
            return


def log_to_stderr(debug: bool) -> None:
    """Sends the library's log messages to stderr, with `debug` also those for debugging."""
    logger = logging.getLogger("pocketcnn")
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


def complain(line: str) -> None:
    """Prints a line on stderr."""
    print(line, file=sys.stderr, flush=True)


def can_redraw() -> bool:
    """Tells whether stderr is a terminal on which a line can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def write_above_bars(line: str) -> None:
    """Prints a line on stderr, above the progress bars that are drawn there."""
    if can_redraw() and "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        complain(line)


def spoken(message: str, most: int = 1000) -> str:
    """A message of the library as the command line says it: in one line, its arguments spelled as flags.

    What cannot be seen is escaped, and a very long message is cut.
    """
    text = as_flags(" ".join(message.split()))
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def open_streams() -> None:
    """Makes the standard streams safe to print to: letters that they cannot write are escaped, closed ones lead nowhere."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which a file of ours would take otherwise
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process lives
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.environ.get("NO_COLOR"):
        os.environ["PYTHON_TYRO_ANSI_CODES"] = "False"  # tyro, which draws the help, reads this when it is imported


_BEFORE, _AFTER = r"(?<![\w.:=/\\'\"`*-])", r"(?![\w.=/\\'\"`*-])"  # no part of a path, a label or a quotation
_WITH_VALUE = re.compile(_BEFORE + r"([a-z][a-z0-9_]*)=(\([^()]*\)|\"[^\"]*\"|'[^']*'|[\w+-]*(?:\.\w+)*)")
_BARE = re.compile(_BEFORE + r"([a-z][a-z0-9_]*)" + _AFTER + r"(?=( must |(?:, \w+)*,? and \w+ must )?)")


def as_flags(message: str) -> str:
    """Spells the library's arguments in a message as flags of the verb that runs: `image_size=64` as `--image-size 64`.

    Arguments are recognised where they have a value or an underscore, or where the message says what they must be. The
    place that a message begins with, up to a colon, stays as it is: labels of nets look like arguments.
    """

    def with_value(found: re.Match[str]) -> str:
        name, value = found[1], " ".join(re.sub(r"[()\"',]", " ", found[2]).split())
        if name not in FLAGS:
            return found[0]
        return FLAGS[name] if value in ("", "True") else f"{FLAGS[name]} {value}"

    def bare(found: re.Match[str]) -> str:
        return FLAGS.get(found[1], found[0]) if "_" in found[1] or found[2] else found[0]

    where, colon, rest = message.partition(": ") if ": " in message else ("", "", message)
    if _WITH_VALUE.fullmatch(where):
        where = _WITH_VALUE.sub(with_value, where)
    spelled = _BARE.sub(bare, _WITH_VALUE.sub(with_value, rest))
    return where + colon + re.sub(r"(--[\w-]+) \(\1\)", r"\1", spelled)  # where a message names both


def somebody_waits() -> None:
    """Notes that this process was started for one command, so that somebody looks at an empty line until it speaks."""
    _waited_for.append(True)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Says on stderr what the command does, if somebody waits for it."""
    if not _waited_for:
        yield
        return
    timer = threading.Timer(_PATIENCE, complain, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def import_lightning() -> None:
    """Imports what trains, which takes seconds.

    Raises:
        MissingExtra: the packages of the `train` extra are not installed.
    """
    with doing("importing Lightning"):
        importlib.import_module("pocketcnn.train.loop")


@contextlib.contextmanager
def live_table() -> Iterator[Callable[[Any, str], None]]:
    """A table that grows while rows arrive: redrawn on a terminal, elsewhere one line for each row.

    Yields a function that shows the rows so far under a title.
    """
    from rich.live import Live

    console = _console()
    if not console.is_terminal:
        seen: set[tuple[str, int]] = set()

        def line(summaries: Any, title: str) -> None:
            from pocketcnn.report.tables import rows_of

            latest = summaries[-1]
            if (latest.label, latest.seeds) not in seen:
                seen.add((latest.label, latest.seeds))
                print(f"[{title}] " + " | ".join(rows_of([latest])[1][0]), flush=True)

        yield line
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda summaries, title: live.update(_rich_table(summaries, title), refresh=True)


def print_table(summaries: Any, **facts: Any) -> None:
    """Answers with the final table of trainings: drawn on a terminal, as Markdown elsewhere; `facts` as `answer` takes them.

    Of the processes that train together, the first one answers.
    """
    from pocketcnn.report import markdown
    from pocketcnn.report.tables import records_of
    from pocketcnn.train.hardware import is_first_process

    def draw() -> None:
        console, table = _console(), _rich_table(summaries, "")
        if _fits(table, console):
            console.print(table)
        else:
            _print_blocks(summaries)

    if is_first_process():
        answer(draw if sys.stdout.isatty() else markdown(summaries), records_of(summaries), **facts)


def _console() -> Any:
    """The terminal for tables; under NO_COLOR without bold and dim letters too, which rich would keep."""
    from rich.console import Console

    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto")


def _fits(table: Any, console: Any) -> bool:
    """Tells whether a terminal is wide enough for a table with no cell broken."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum <= console.width


def _print_blocks(summaries: Any) -> None:
    """Prints a table as blocks of lines, one for each row: it fits into a narrow terminal."""
    from pocketcnn.report.tables import rows_of
    from pocketcnn.support.tables import columns

    titles, rows = rows_of(summaries)
    for first, *others in rows:
        print(first)
        print(columns([(f"  {title}", cell) for title, cell in zip(titles[1:], others, strict=True)], "ll"))


def _rich_table(summaries: Any, title: str) -> Any:
    from rich.table import Table

    from pocketcnn.report.tables import rows_of

    titles, rows = rows_of(summaries)
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(titles):
        table.add_column(column.replace(" ", "\n", 1) if number else column, justify="right" if number else "left")
    for summary, row in zip(summaries, rows, strict=True):
        table.add_row(*(cell.replace(" (", "\n(") for cell in row), style="dim" if summary.rival_of else None)
    return table
