"""`pocketcnn reproduce`: compares published results with ours, and trains what is missing as far as time allows."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pocketcnn.cli.arguments import AnswerOptions
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import DONE, FAILED, answer, can_redraw
from pocketcnn.errors import BadUsage
from pocketcnn.support.ranges import Count
from pocketcnn.support.tables import columns


def reproduce(words: Sequence[str]) -> int:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Reproduce(AnswerOptions):
        table: Positional[str]
        """Published table: report_table1, report_table2, compare_table, ring_curve, puppet, or all."""
        budget: str = "0"
        """Minutes to spend on runs, or full for all that are missing; 0 only reads the records and writes the page."""
        seeds: Count = 1
        """Number of runs of each row, 1 or more."""
        recipe: Literal["table", "quick"] = "table"
        """Train rows by the table's own preset, or by the quick one, which only compares them with each other."""
        rates: bool = False
        """First measure how fast each net trains on this machine, to estimate how long a run takes."""
        data_folder: Path | None = None
        """Folder that holds the folders cifar10 and mnist; by default the data come from the hub."""
        results: Path = Path("results")
        """Folder of the records; runs are written to its subfolder reproduce."""
        docs: Path = Path("docs/results.md")
        """The page to write; figures are written beside it."""

    given = parse(Reproduce, words, "reproduce")
    if given.budget != "full" and not re.fullmatch("[0-9]{1,9}", given.budget):
        raise BadUsage(f"budget is a whole number of minutes, or full, not {given.budget!r}")
    from pocketcnn.experiments.reproduce import reproduce as run

    minutes = float("inf") if given.budget == "full" else int(given.budget)
    found = run(
        given.table, minutes=minutes, seeds=given.seeds, recipe=given.recipe, rates=given.rates,
        data_folder=given.data_folder, results=given.results, docs=given.docs, progress=can_redraw(),
    )  # fmt: skip
    tables = ["\n".join([name, columns(cells), *found.sentences[name], ""]) for name, cells in found.cells.items()]
    answer("\n".join(tables), found.rows, sentences=found.sentences, failures=found.failures, page=given.docs)
    for failure in found.failures:
        print(f"diverged: {failure}", file=sys.stderr)
    print(f"page: {given.docs}")
    return FAILED if found.failures else DONE
