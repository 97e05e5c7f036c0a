"""Output of the verbs: tables, sizes, log messages and exit codes."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130


def size_in_words(input_size: Sequence[int]) -> str:
    """The size of an image: `3x32x32`."""
    return "x".join(map(str, input_size))


def with_commas(value: Any) -> str:
    """A count with commas between thousands; anything else as it is."""
    return f"{value:,}" if isinstance(value, int) else str(value)


class _StderrHandler(logging.Handler):
    """Prints to the current `sys.stderr`, which a live table redirects so that messages appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def log_to_stderr(debug: bool) -> None:
    """Sends the library's log messages to stderr, with `debug` also those for debugging."""
    logger = logging.getLogger("pocketcnn")
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


@contextlib.contextmanager
def live_table() -> Iterator[Callable[[Any, str], None]]:
    """A table that grows while rows arrive: redrawn on a terminal, elsewhere one line for each row.

    Yields a function that shows the rows so far under a title.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        seen: set[tuple[str, int]] = set()

        def line(summaries: Any, title: str) -> None:
            from pocketcnn.report.tables import cells

            latest = summaries[-1]
            if (latest.label, latest.seeds) not in seen:
                seen.add((latest.label, latest.seeds))
                print(f"[{title}] " + " | ".join(cells(latest)), flush=True)

        yield line
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda summaries, title: live.update(_rich_table(summaries, title), refresh=True)


def print_table(summaries: Any) -> None:
    """Prints the final table: drawn on a terminal, as Markdown elsewhere."""
    from pocketcnn.report import markdown

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(_rich_table(summaries, ""))
    else:
        print(markdown(summaries))


def _rich_table(summaries: Any, title: str) -> Any:
    from rich.table import Table

    from pocketcnn.report.tables import cells, header

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(header()):
        table.add_column(column.replace(" ", "\n", 1) if number else column, justify="right" if number else "left")
    for summary in summaries:
        row = [cell.replace(" (", "\n(") for cell in cells(summary)]
        table.add_row(*row, style="dim" if summary.rival_of else None)
    return table
