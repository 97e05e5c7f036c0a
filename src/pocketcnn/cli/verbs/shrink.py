"""`pocketcnn shrink`: makes a trained net small enough for a budget of bytes, with as little loss as the time allows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from pocketcnn.cli.arguments import AnswerOptions, DataOptions, ForeignArguments
from pocketcnn.cli.images import completed, data_for
from pocketcnn.cli.nets import open_net
from pocketcnn.cli.parsing import method_help, parse, preset_of
from pocketcnn.cli.printing import answer, import_lightning
from pocketcnn.errors import BadUsage
from pocketcnn.support.ranges import Positive


def shrink(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Shrink(AnswerOptions, DataOptions, ForeignArguments):
        model: Positional[str]
        """A trained net: a model file, the folder of a run, a trained net of the package (cifar10/resnet20), or a net by name
        (timm:resnet10t, nets/mine.py:build) with --weights."""
        max_bytes: str
        """Longest model file in bytes: 100k, 0.1M, 100_000; k is 1000."""
        data: str | None = None
        """Built-in name (digits, mnist, fashion-mnist, cifar10, cifar100), hub id, folder of parquet files or of class folders;
        by default the data that the net was trained on."""
        method: str | None = None
        """Method that condenses the net, with its options: ring:scheme=windows; plain for none; by default the best of several."""
        storage: Literal["float32", "float16", "int8"] | None = None
        """Number type in the file; by default the best that fits."""
        minutes: Positive = 10.0
        """Minutes of training, about; the same command resumes where it stopped."""
        sensitive: bool = True
        """Try to leave the layers as they are that suffer most."""
        onnx: bool = True
        """Write model.onnx too."""
        output: Path = Path("runs/shrink")
        """Folder for model.safetensors, model.onnx, report.html and the runs."""
        preset: str = "distil"
        """Training settings to start from; the flags below change them. Epochs follow from --minutes."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = parse(Shrink, words, "shrink", method_help, train=preset_of(words, PRESETS, "distil"))
    import_lightning()
    from pocketcnn.experiments.shrink import shrink as run

    if given.stream:
        raise BadUsage("shrink reads its images into memory; leave --stream out, and give a --limit")
    opened = open_net(given.model, given).needs()
    data = data_for(opened, given)
    opened = completed(opened, data)
    notes = replace(opened.notes, classes=data.classes)  # by name or, as was said, by number
    found = run(
        opened.net,
        data,
        max_bytes=given.max_bytes, method=given.method, storage=given.storage, minutes=given.minutes, notes=notes,
        sensitive=given.sensitive, train=given.train, onnx=given.onnx, seed=given.train.seed, output=given.output,
    )  # fmt: skip
    sides = (("before", found.bytes_before, found.before), ("after", found.bytes_after, found.after))
    rows = [{"net": title, "file_bytes": size, **scores} for title, size, scores in sides]
    answer(
        str(found), rows, chosen=found.label, candidates=found.candidates, seconds=found.seconds,
        file=found.path, onnx=found.onnx, onnx_bytes=found.onnx_bytes, report=found.page,
    )  # fmt: skip
    print(*(path for path in (found.path, found.onnx, found.page) if path is not None), sep="\n")
