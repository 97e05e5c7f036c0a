"""`pocketcnn compare`: trains several nets alike and sets accuracy, size and speed side by side."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketcnn.cli.arguments import (
    AnswerOptions,
    DataArguments,
    DeviceArguments,
    ForeignArguments,
    ModelArguments,
    hardware_of,
    load_data,
    model_options_of,
)
from pocketcnn.cli.images import as_trained, common_notes
from pocketcnn.cli.nets import open_nets
from pocketcnn.cli.parsing import method_help, parse, preset_of
from pocketcnn.cli.printing import DONE, FAILED, import_lightning, live_table, print_table
from pocketcnn.errors import BadUsage, NonFiniteLoss
from pocketcnn.support.ranges import Count

if TYPE_CHECKING:
    from torch import nn

    from pocketcnn.models.spec import NetSpec


def compare(words: Sequence[str]) -> int:
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Compare(AnswerOptions, DataArguments, ModelArguments, ForeignArguments, DeviceArguments):
        models: tuple[str, ...] = ("resnet20",)
        """Plain nets to condense, by name: resnet20 timm:resnet10t nets/mine.py:build; pocketcnn models lists ours."""
        methods: tuple[str, ...] = ("plain", "ring", "condconv", "involution")
        """plain, and methods with their options: ring ring:size=0.1 condconv:num_experts=8"""
        from_trained: bool = False
        """Start each net from a trained one, by fitting its method to the weights; the models are then trained nets: model
        files, folders of runs, nets of the package (cifar10/resnet20), or a net by name with --weights."""
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
    from pocketcnn.experiments.compare import compare
    from pocketcnn.report import summarize, write_report

    data, rows, trained = _rows(given)
    total = len(rows) * given.seeds
    with live_table() as show:

        def on_result(results: list[dict[str, Any]]) -> None:
            show(summarize(results), f"{len(results)} of {total} runs")

        outcome = compare(
            data,
            rows,
            given.train,
            given.output,
            seeds=given.seeds,
            trained=trained,
            on_result=on_result,
            hardware=hardware_of(given),
        )
    if not outcome.results:
        raise NonFiniteLoss(f"every run diverged: {outcome.failures[0]}")
    page = write_report(given.output)
    print_table(summarize(outcome.results, outcome.speeds), report=page, failures=outcome.failures)
    print(f"\nreport: {page}")
    for failure in outcome.failures:
        print(f"diverged: {failure}", file=sys.stderr)
    return FAILED if outcome.failures else DONE


def _rows(given: Any) -> tuple[Any, list["NetSpec"], dict[str, "nn.Module"] | None]:
    """Loads the data, and makes the rows of the table and the trained nets that they start from, if they do.

    Raises:
        BadUsage: flags that do not go together.
    """
    from pocketcnn.experiments.compare import net_specs, trained_specs

    data = load_data(given)
    if not given.from_trained:
        if given.weights is not None:
            raise BadUsage("--weights are where --from-trained starts; give both")
        options = {"in_channels": data.input_size[0], "num_classes": len(data.classes), **model_options_of(given)}
        return data, net_specs(given.models, given.methods, options, equal_size=given.equal_size), None
    if given.equal_size:
        raise BadUsage("--equal-size nets have no trained weights to start from; leave it or --from-trained out")
    opened = open_nets(given.models, (), given)
    trained = {title: one.net for title, one in opened.items()}
    return as_trained(data, common_notes(opened, given.data)), trained_specs(list(trained), given.methods), trained
