"""`pocketcnn bench`: times layers and nets of every method on this machine, and writes a table and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pocketcnn.cli.parsing import parse


def bench(words: Sequence[str]) -> None:

    @dataclass
    class Bench:
        only: tuple[Literal["layers", "nets", "goals"], ...] = ("layers", "nets", "goals")
        """Sections to measure; goals that need a section left out are skipped."""
        quick: bool = False
        """Try it out in a minute or two: small shapes, few rounds and no compiler."""
        output: Path = Path("runs/bench")
        """Folder for bench.json, table.md and bench.svg."""

    given = parse(Bench, words, "bench")
    from pocketcnn.experiments import bench

    bench.run(bench.QUICK if given.quick else bench.FULL, given.output, only=given.only)
    print((given.output / "table.md").read_text(encoding="utf-8"))
    print(f"records: {given.output / 'bench.json'}")
