"""`pocketcnn train`: trains one net, plain or condensed, and writes its run folder."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from pocketcnn.cli.images import as_trained
from pocketcnn.cli.nets import is_made_by_name, open_net
from pocketcnn.cli.parsing import method_help, parse, preset_of
from pocketcnn.cli.printing import can_redraw, import_lightning, print_table
from pocketcnn.support.runs import MODEL


def train(words: Sequence[str]) -> None:
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Train(AnswerOptions, DataArguments, ModelArguments, ForeignArguments, DeviceArguments):
        model: str = "resnet20"
        """A net by name, with its options: resnet20, mnist_net:feature=pde, timm:resnet10t, nets/mine.py:build. With --weights
        training starts from these. A model file or the folder of a run is trained further, after --method has
        condensed it, if that is given."""
        method: str = "plain"
        """plain, or a method with its options: ring:size=0.1"""
        output: Path = Path("runs/train")
        """Folder of the run; the same command resumes where it stopped."""
        preset: str = "default"
        """Training settings to start from; the flags below change them."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = parse(Train, words, "train", method_help, train=preset_of(words, PRESETS))
    import_lightning()
    import torch

    from pocketcnn.models.recipes import check_name
    from pocketcnn.models.spec import PLAIN_METHOD, NetSpec, parse_method, parse_model
    from pocketcnn.report import summarize
    from pocketcnn.surgery import condense
    from pocketcnn.train import fit
    from pocketcnn.train.teacher import digest_of

    method, options = parse_method(given.method)
    start: dict[str, Any] = {}
    if given.weights is None and is_made_by_name(given.model):
        model, model_options = parse_model(given.model)
        check_name(model)
        data = load_data(given)
        row = NetSpec(model, method, options, {**model_options_of(given, data, model), **model_options})
        net = row.build(given.train.seed)
    else:
        opened = open_net(given.model, given)
        data = as_trained(load_data(given), opened.notes)
        row, net, start = NetSpec(given.model, method, options), opened.net, {"start": digest_of(opened.net)}
        if method != PLAIN_METHOD:
            torch.manual_seed(given.train.seed)
            net = condense(net, method, **options)
    result = fit(
        net,
        data,
        given.train,
        given.output,
        name=row.label,
        identity={**dataclasses.asdict(row), "label": row.label, **start},
        progress=can_redraw(),
        hardware=hardware_of(given),
    )
    print_table(summarize([result]), model_file=given.output / MODEL)
    print(f"model file: {given.output / MODEL}")
