"""`pocketcnn report`: rebuilds table, figures and report.html from the records of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcnn.cli.arguments import AnswerOptions
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import print_table


def report(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Report(AnswerOptions):
        folder: Positional[Path]
        """Folder of runs, as written by compare or train."""

    given = parse(Report, words, "report")
    from pocketcnn.report import read_results, read_speeds, summarize, write_report

    summaries = summarize(read_results(given.folder), read_speeds(given.folder))
    page = write_report(given.folder)
    print_table(summaries, report=page)
    print(f"report: {page}")
