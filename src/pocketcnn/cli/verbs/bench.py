"""`pocketcnn bench`: times layers and nets of every method on this machine, and writes a table and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pocketcnn.cli.arguments import AnswerOptions
from pocketcnn.cli.parsing import parse
from pocketcnn.cli.printing import answer


def bench(words: Sequence[str]) -> None:

    @dataclass(frozen=True)
    class Bench(AnswerOptions):
        only: tuple[Literal["layers", "nets", "goals"], ...] = ("layers", "nets", "goals")
        """Sections to measure; goals that need a section left out are skipped."""
        quick: bool = False
        """Try it out in a minute or two: small shapes, few rounds and no compiler."""
        output: Path = Path("runs/bench")
        """Folder for bench.json, table.md and bench.svg."""

    given = parse(Bench, words, "bench")
    from pocketcnn.experiments import bench
    from pocketcnn.support.files import read_json

    bench.run(bench.QUICK if given.quick else bench.FULL, given.output, only=given.only)
    records = given.output / "bench.json"
    found = read_json(records)
    answer((given.output / "table.md").read_text(encoding="utf-8"), found.pop("goals"), **found, records=records)
    print(f"records: {records}")
