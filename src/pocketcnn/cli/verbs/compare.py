"""`pocketcnn compare`: trains several nets alike and sets accuracy, size and speed side by side."""

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
from pocketcnn.cli.printing import DONE, FAILED, import_lightning, live_table, print_table
from pocketcnn.errors import NonFiniteLoss
from pocketcnn.support.ranges import Count


def compare(words: Sequence[str]) -> int:
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Compare(DataArguments, ModelArguments, DeviceArguments):
        models: tuple[str, ...] = ("resnet20",)
        """Plain nets to condense; pocketcnn models lists them."""
        methods: tuple[str, ...] = ("plain", "ring", "condconv", "involution")
        """plain, and methods with their options: ring ring:size=0.1 condconv:num_experts=8"""
        equal_size: bool = False
        """Beside each small net, train the plain net that has as many parameters."""
        seeds: Count = 1
        """Number of runs of each net, 1 or more, with seeds from --seed on."""
        output: Path = Path("runs/compare")
        """Folder of the runs; the same command resumes where it stopped."""
        preset: str = "default"
        """Training settings to start from; the flags below change them."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = parse(Compare, words, "compare", method_help, train=preset_of(words, PRESETS))
    import_lightning()
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
