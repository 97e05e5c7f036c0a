"""`pocketcnn compare`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketcnn.cli.arguments import (
    DataArguments,
    DeviceArguments,
    ModelArguments,
    hardware_of,
    load_data,
    model_options_of,
)
from pocketcnn.cli.parsing import method_help, parse, preset_of
from pocketcnn.cli.printing import DONE, FAILED, live_table, print_table
from pocketcnn.errors import NonFiniteLoss


def compare(words: Sequence[str]) -> int:
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Compare(DataArguments, ModelArguments, DeviceArguments):
        models: tuple[str, ...] = ("resnet20",)
        """Plain nets to start from; pocketcnn models lists them."""
        methods: tuple[str, ...] = ("plain", "ring", "condconv", "involution")
        """plain, and methods with their options: ring ring:size=0.1 condconv:num_experts=8"""
        equal_size: bool = False
        """Beside each small net, train the plain net of equal stored numbers."""
        seeds: int = 1
        """Runs of each net."""
        output: Path = Path("runs/compare")
        """Folder of the runs; the same command goes on where it stopped."""
        preset: str = "default"
        """Recipe to start from; the flags below change it."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = parse(Compare, words, "compare", method_help(), train=preset_of(words, PRESETS))
    from pocketcnn.experiments.compare import compare, net_specs
    from pocketcnn.report import summarize, write_report

    data = load_data(given)
    options = model_options_of(given, data)
    rows = net_specs(given.models, given.methods, options, equal_size=given.equal_size)
    total = len(rows) * given.seeds
    with live_table() as show:

        def on_result(results: list[dict[str, Any]]) -> None:
            show(summarize(results), f"{len(results)} of {total} runs")

        outcome = compare(
            data, rows, given.train, given.output, seeds=given.seeds, on_result=on_result, hardware=hardware_of(given)
        )
    if not outcome.results:
        raise NonFiniteLoss(f"every run diverged: {outcome.failures[0]}")
    page = write_report(given.output)
    print_table(summarize(outcome.results, outcome.speeds))
    print(f"\nreport: {page}")
    for failure in outcome.failures:
        print(f"diverged: {failure}", file=sys.stderr)
    return FAILED if outcome.failures else DONE
