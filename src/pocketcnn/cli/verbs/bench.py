"""`pocketcnn bench`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pocketcnn.cli.parsing import parse


def bench(words: Sequence[str]) -> None:

    @dataclass
    class Bench:
        only: tuple[Literal["layers", "nets", "goals"], ...] = ("layers", "nets", "goals")
        """Sections to measure; goals that need another one are left out."""
        quick: bool = False
        """Small shapes, few rounds and no compiler: a minute or two, to try it out."""
        output: Path = Path("runs/bench")
        """Folder for bench.json, table.md and bench.svg."""

    given = parse(Bench, words, "bench")
    from pocketcnn.experiments import bench

    bench.run(bench.QUICK if given.quick else bench.FULL, given.output, only=given.only)
    print((given.output / "table.md").read_text(encoding="utf-8"))
    print(f"records: {given.output / 'bench.json'}")
