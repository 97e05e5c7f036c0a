"""Benchmarks of every method in one run: written out, compiled, and by the library, beside the limits of the machine.

`run` times layers, nets, and whatever else the goals need. It writes `bench.json`, `table.md` and, for the layers,
`bench.svg` into a folder. The sides of a comparison are called in turns, so ratios hold even if times drift.
"""

import dataclasses
import logging
from collections.abc import Collection
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from pocketcnn.experiments.bench import goals, layers, limits, nets, report
from pocketcnn.experiments.bench.report import Results
from pocketcnn.experiments.bench.settings import FULL, QUICK, SECTIONS, Settings
from pocketcnn.support.files import make_folder, write_atomically, write_json
from pocketcnn.support.memory import keep_memory

__all__ = ["FULL", "QUICK", "SECTIONS", "Results", "Settings", "run"]
_log = logging.getLogger(__name__)


def run(settings: Settings, folder: str | Path, *, only: Collection[str] = SECTIONS) -> Results:
    """Measures everything asked for, and writes the records, the table and the figure.

    Args:
        settings: how much is measured.
        folder: where the three files go; made if missing.
        only: the sections to measure, from `SECTIONS`; goals that need records of other sections are left out.
    Raises:
        CannotWrite: the folder is not writable.
        ValueError: no section of that name.
    """
    if unknown := sorted(set(only) - set(SECTIONS)):
        raise ValueError(f"no section {unknown[0]!r}; known: {', '.join(SECTIONS)}")
    from pocketcnn.support.environment import environment

    keep_memory()
    folder = make_folder(Path(folder))
    where = {**environment(), "numba": metadata.version("numba"), "cpu": torch.backends.cpu.get_cpu_capability()}
    _log.info("%s, %d threads", where["processor"], where["threads"])
    machine = limits.measure_machine(seconds=settings.layer_seconds)
    of_layers = tuple(layers.measure_layers(settings, machine)) if "layers" in only else ()
    of_nets = tuple(nets.measure_nets(settings)) if "nets" in only else ()
    alone = tuple(goals.measure_goals(settings, of_nets)) if "goals" in only else ()
    found = (*goals.of_layers(of_layers, settings), *goals.of_nets(of_nets), *alone)
    for method in goals.without_goal(found) if set(only) == set(SECTIONS) else ():
        _log.warning("bench has no goal for method %r; add one to experiments/bench/goals.py", method)
    results = Results(where, settings, machine, found, of_nets, of_layers)
    write_json(folder / "bench.json", _record(results))
    write_atomically(folder / "table.md", report.markdown(results))
    if of_layers:
        write_atomically(folder / "bench.svg", report.figure(of_layers))
    return results


def _record(results: Results) -> dict[str, Any]:
    """Turns everything into plain numbers and words, and adds `met` to each goal."""
    judged = [{**dataclasses.asdict(goal), "met": goal.met} for goal in results.goals]
    return {**dataclasses.asdict(results), "goals": judged}
