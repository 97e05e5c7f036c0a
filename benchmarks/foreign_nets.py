"""Tries each method on each net of timm and torchvision: makes the records and the table of docs/nets.md.

    .venv/bin/pip install --upgrade --no-deps --constraint constraints.txt --target .venv/nets timm torchvision
    POCKETCNN_NETS=.venv/nets .venv/bin/python benchmarks/foreign_nets.py

Every net goes through every method as in tests/test_foreign_nets.py, which tries the smaller nets in every run. If you give
names of nets, only those are tried, and the records of the others are kept.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import foreign  # noqa: E402
from pocketcnn import METHODS  # noqa: E402
from pocketcnn.support.files import read_json, write_atomically, write_json  # noqa: E402

RECORDS, PAGE = ROOT / "results" / "foreign-nets" / "outcomes.json", ROOT / "docs" / "nets.md"
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end of table -->)", re.DOTALL)


def table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Table as Markdown, with the numbered reasons below it why a method replaces nothing in a net."""
    notes: dict[str, int] = {}
    lines = [f"| net | of | numbers | {' | '.join(METHODS)} |", f"|---|---|---:|{'---:|' * len(METHODS)}"]
    for name, outcomes in records.items():
        net = foreign.NETS[name]
        title = name if net.slow else f"**{name}**"
        numbers = next((f"{o['before']:,}" for o in outcomes.values() if "before" in o), "")
        cells = [_cell(outcomes[method], notes) for method in METHODS]
        lines.append(f"| {title} | {net.library} | {numbers} | {' | '.join(cells)} |")
    listed = [f"{number}. {reason}" for reason, number in notes.items()]
    return "\n".join([*lines, "", *listed]) + "\n"


def _cell(outcome: Mapping[str, Any], notes: dict[str, int]) -> str:
    if "after" in outcome:
        return f"{outcome['replaced']}/{outcome['places']}: {outcome['after']:,}"
    reason = f"it fails: {outcome['failure']}" if "failure" in outcome else outcome["reason"]
    return f"({notes.setdefault(reason, len(notes) + 1)})"


def main(names: Sequence[str]) -> None:
    # Imported first: otherwise a missing library would be recorded as the failure of a method.
    versions = {name: foreign.version(foreign.import_library(name)) for name in ("timm", "torchvision")}
    records = read_json(RECORDS) if RECORDS.exists() else {}
    if names and records.get("versions", versions) != versions:
        raise SystemExit(
            f"the records were made with {records['versions']}, but {versions} are installed; give no names, to try all nets"
        )
    for name in names or foreign.NETS:
        records[name] = {method: foreign.outcome(foreign.NETS[name], method) for method in METHODS}
        print(table({name: records[name]}).splitlines()[2], flush=True)
    records = {name: records[name] for name in foreign.NETS if name in records}
    RECORDS.parent.mkdir(exist_ok=True)
    write_json(RECORDS, {"versions": versions, **records})
    page = PAGE.read_text(encoding="utf-8")
    write_atomically(PAGE, _TABLE.sub(lambda _: table(records), page))


if __name__ == "__main__":
    main(sys.argv[1:])
