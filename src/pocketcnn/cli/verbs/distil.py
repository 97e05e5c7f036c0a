"""`pocketcnn distil`: makes a small net from a trained one, and trains it to give the same outputs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketcnn.cli.arguments import (
    AnswerOptions,
    DataOptions,
    DeviceArguments,
    ForeignArguments,
    hardware_of,
)
from pocketcnn.cli.images import data_for
from pocketcnn.cli.nets import open_net
from pocketcnn.cli.parsing import method_help, parse, preset_of
from pocketcnn.cli.printing import can_redraw, import_lightning, print_table
from pocketcnn.errors import BadUsage
from pocketcnn.support.ranges import Count
from pocketcnn.support.runs import MODEL

if TYPE_CHECKING:
    from pocketcnn.data import DataSet
    from pocketcnn.train.teacher import Teacher


def distil(words: Sequence[str]) -> None:
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass(frozen=True)
    class Distil(AnswerOptions, DataOptions, ForeignArguments, DeviceArguments):
        student: str = "ring:size=0.25,scheme=windows"
        """A method with its options, which condenses the teacher; plain for a copy of it; a model file; or a net by name."""
        initialize: Literal["fit", "fresh"] = "fit"
        """Start a condensed student from the teacher's weights (fit), or from random ones (fresh)."""
        unlabelled: Path | None = None
        """Folder of images without labels to learn from instead, labelled by the teacher; accuracy is agreement with it."""
        images: Count = 2000
        """Number of training images, 1 or more, that the fit to the teacher's weights uses."""
        hold_zeros: bool = False
        """Keep weights at zero that are zero in the student's file, as pruning leaves them."""
        data: str | None = None
        """Built-in name (digits, mnist, fashion-mnist, cifar10, cifar100), hub id, folder of parquet files or of class folders;
        by default the data that the teacher was trained on, and images of its size."""
        output: Path = Path("runs/distil")
        """Folder of the run; the same command resumes where it stopped."""
        preset: str = "distil"
        """Training settings to start from; the flags below change them."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = parse(Distil, words, "distil", method_help, train=preset_of(words, PRESETS, "distil"))
    import_lightning()
    if not given.train.teacher:
        raise BadUsage(
            "distil needs --teacher: the file of a trained net, the folder of its run, DATA/NAME of models, or a net by name with "
            "--weights"
        )
    from pocketcnn.report import summarize
    from pocketcnn.train.distil import distil as run

    teacher, data = _teacher_and_data(given)
    result = run(
        teacher,
        given.student,
        data,
        given.train,
        given.output,
        initialize=given.initialize,
        images=given.images,
        hold_zeros=given.hold_zeros,
        progress=can_redraw(),
        hardware=hardware_of(given),
    )
    started, file = result["start"]["validation_accuracy"], given.output / MODEL
    print_table(summarize([result]), start_validation_accuracy=started, model_file=file)
    print(f"accuracy before the first step, on validation images: {100 * started:.2f} %")
    print(f"model file: {file}")


def _teacher_and_data(given: Any) -> tuple["Teacher", "DataSet"]:
    """Opens the teacher, and loads the images for it."""
    from pocketcnn.train.distil import pseudo_labelled
    from pocketcnn.train.teacher import Teacher, digest_of, digest_of_file

    opened = open_net(given.train.teacher, given).needs()
    digest = digest_of(opened.net) if opened.path is None else digest_of_file(opened.path)
    teacher = Teacher(opened.net, opened.notes, digest, opened.title)
    if given.unlabelled is not None:
        if given.data is not None:
            raise BadUsage("give --data, or --unlabelled with images that the teacher labels, not both")
        return teacher, pseudo_labelled(teacher, given.unlabelled, skip_bad_images=given.skip_bad_images)
    return teacher, data_for(opened, given)
