"""`pocketcnn train`: trains one net, plain or condensed, and writes its run folder."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pocketcnn.cli.arguments import (
    DataArguments,
    DeviceArguments,
    ModelArguments,
    hardware_of,
    load_data,
    model_options_of,
)
from pocketcnn.cli.parsing import method_help, parse, preset_of
from pocketcnn.cli.printing import can_redraw, import_lightning, print_table
from pocketcnn.support.runs import MODEL


def train(words: Sequence[str]) -> None:
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Train(DataArguments, ModelArguments, DeviceArguments):
        model: str = "resnet20"
        """A plain net or a recipe by name, with its options: mnist_net:feature=pde"""
        method: str = "plain"
        """plain, or a method with its options: ring:size=0.1"""
        output: Path = Path("runs/train")
        """Folder of the run; the same command resumes where it stopped."""
        preset: str = "default"
        """Training settings to start from; the flags below change them."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = parse(Train, words, "train", method_help, train=preset_of(words, PRESETS))
    import_lightning()
    from pocketcnn.models.recipes import check_name
    from pocketcnn.models.spec import NetSpec, parse_method, parse_options
    from pocketcnn.report import summarize
    from pocketcnn.train import fit

    method, options = parse_method(given.method)
    model, model_options = parse_options(given.model)
    check_name(model)
    data = load_data(given)
    row = NetSpec(model, method, options, {**model_options_of(given, data), **model_options})
    result = fit(
        row.build(given.train.seed),
        data,
        given.train,
        given.output,
        name=row.label,
        identity={**dataclasses.asdict(row), "label": row.label},
        progress=can_redraw(),
        hardware=hardware_of(given),
    )
    print_table(summarize([result]))
    print(f"model file: {given.output / MODEL}")
