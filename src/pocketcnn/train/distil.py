"""Distilling: a small net starts from the weights of a trained one, the teacher, and is trained to give its outputs."""

import dataclasses
import hashlib
import logging
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.checkpoint.storage import hold_zeros_
from pocketcnn.cost import gauge_of
from pocketcnn.data import DataSet, load_unlabelled
from pocketcnn.errors import BadData
from pocketcnn.methods import METHODS
from pocketcnn.models.recipes import create_model, options_for
from pocketcnn.models.spec import PLAIN_METHOD, parse_method, parse_model
from pocketcnn.support.copying import copied
from pocketcnn.support.files import make_folder, write_json
from pocketcnn.support.runs import Share, read_record
from pocketcnn.surgery import condense, provenance
from pocketcnn.surgery.fitting import recalibrate_
from pocketcnn.train import PRESETS, TrainConfig, evaluate, fit
from pocketcnn.train.hardware import is_first_process
from pocketcnn.train.images import calibrate, normalized
from pocketcnn.train.scores import Scores
from pocketcnn.train.teacher import Teacher, digest_of

START = "start.json"
IMAGES = 2000
INITIALIZATIONS = ("fit", "fresh")
_PATIENCE = 3600.0  # seconds that the other processes wait for the first one to make the student
_log = logging.getLogger(__name__)


def distil(
    teacher: str | Path | nn.Module,
    student: str | nn.Module,
    data: DataSet,
    config: TrainConfig | None = None,
    folder: str | Path = "runs/distil",
    *,
    initialize: str = "fit",
    images: int = IMAGES,
    hold_zeros: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a student to give the outputs of a teacher, in a run folder like that of `pocketcnn.train.fit`.

    The folder has one more file: `start.json` with the student's accuracy on the validation images before its first step;
    and, unless the student is given as a net, `start.safetensors` with its weights then, from which a stopped run resumes.

    Args:
        teacher: a trained net, which is left alone; the file of one, saved without a passphrase; the folder of its run; or
            a `Teacher`, which says how its images are normalised.
        student: a method with its options (`"ring:size=0.25"`), which condenses the teacher; `"plain"` for a copy of the teacher,
            as for `config.bits`; the file of a net, made by name
            or from the teacher; the name of a net, which starts fresh; or a net, which is trained in place.
        data: images of the classes that the teacher knows. With `config.teacher_weight` 1 their labels are not used. A
            student that is given as a net sees them normalised by their own mean and deviation, one from a file as the file
            says, any other as the teacher.
        config: how the student is trained, by default as `PRESETS["distil"]`; its teacher is replaced by the one given here.
        folder: folder of the run; made when missing.
        initialize: how a condensed student starts, as in `pocketcnn.condense`.
        images: number of training images that a fit uses.
        hold_zeros: keeps weights at zero that are zero at the start, as in a pruned net.
        **settings: as in `pocketcnn.train.fit`: devices, `loss` and `metric` of nets with other outputs, and the like.
    Returns:
        The result of the run, and the content of `start.json` as its `"start"`.
    Raises:
        BadData: the teacher has other classes or images than the data.
        MissingBase: the file of the teacher or the student needs a plain net; load it, and give it as a net.
        UnknownModel: the student is neither a method nor a file nor a net.
        ValueError: an option is out of range, or the folder holds a student that began differently; or as in
            `pocketcnn.train.fit`.
    """
    if initialize not in INITIALIZATIONS:
        raise ValueError(f"no initialization {initialize!r}; known: {', '.join(INITIALIZATIONS)}")
    folder = make_folder(Path(folder))
    named = str(teacher) if isinstance(teacher, str | Path) else ""
    config = config or PRESETS["distil"]
    config = dataclasses.replace(config, teacher=named or config.teacher)
    scored: dict[str, Any] = {name: settings[name] for name in ("loss", "metric") if name in settings}
    trained = Teacher.of(teacher).fitting(data, Scores(**scored))
    if not isinstance(student, nn.Module):
        data = _notes_of(student, trained).applied_to(data)
    began = {
        "student": digest_of(student) if isinstance(student, nn.Module) else _digest(student),
        "initialize": initialize,
        "images": images,
        "hold_zeros": hold_zeros,
        "seed": config.seed,
        "teacher": trained.digest,
        "fingerprint": data.fingerprint,
    }
    if not isinstance(student, nn.Module):
        net = _begun(trained, student, data, folder, began, scored)
    else:
        net = student
        if not (folder / START).is_file() and is_first_process():
            _note_start(net, data, folder, began, scored)
        _wait_for(folder / START)
        _check_start(folder, began)
    if hold_zeros:
        hold_zeros_(net)
    identity = _identity(net, student, initialize)
    result = fit(net, data, config, folder, name=identity["label"], identity=identity, teacher=trained, **settings)
    return {**result, "start": _start_of(folder)}


def _begun(
    trained: Teacher, student: str, data: DataSet, folder: Path, began: dict[str, Any], scored: dict[str, Any]
) -> nn.Module:
    """Makes the student that some words name, and keeps it in a file, from which it is read again."""
    start = folder / "start.safetensors"
    if not start.is_file() and not is_first_process():
        _wait_for(start)
    if start.is_file():
        _check_start(folder, began)
        return _loaded(start, trained.net)
    torch.manual_seed(began["seed"])
    net = _student(trained.net, student, data, began["initialize"], began["images"])
    _note_start(net, data, folder, began, scored)
    checkpoint.save(net, start)
    return net


def _note_start(net: nn.Module, data: DataSet, folder: Path, began: dict[str, Any], scored: dict[str, Any]) -> None:
    """Measures a student before its first step, and writes `start.json`."""
    accuracy = evaluate(net, data, split="validation", **scored)["validation_accuracy"]
    _log.info("%.2f %% of the validation images are right before the first step", 100 * accuracy)
    write_json(folder / START, {**began, "validation_accuracy": accuracy})


def condensed(
    trained: nn.Module, method: str, data: DataSet, *, initialize: str = "fit", images: int = IMAGES, **options: Any
) -> nn.Module:
    """Condenses a trained net, and lets those parts of it learn from images that need no labels.

    These parts are a gauge of the depth, and batch norms of a fresh net or of one with a gauge.

    Args:
        trained: the net; it is not changed.
        method: as in `pocketcnn.condense`.
        data: the data set whose training images are used, normalised by its mean and deviation.
        initialize: `"fit"` or `"fresh"`, as in `pocketcnn.condense`.
        images: number of training images used.
        **options: as in `pocketcnn.condense`.
    """
    shown = torch.cat(list(normalized(data.train.sample(images).in_order(500), data)))
    if initialize == "fresh":
        net = condense(trained, method, **options)
    else:
        net = condense(trained, method, initialize=initialize, images=shown, **options)
    calibrate(net, data)
    if initialize == "fresh" or gauge_of(net) is not None:  # only now is it known how deep each image goes
        recalibrate_(net, shown)
    return net


@dataclasses.dataclass(frozen=True)
class Start:
    """`start.json`: how a student began, and its accuracy before the first step."""

    student: str
    initialize: str
    seed: int
    validation_accuracy: Share


def _check_start(folder: Path, began: dict[str, Any]) -> None:
    """Checks that the student in a folder began as the one asked for.

    Raises:
        ValueError: it began differently.
    """
    found = _start_of(folder)
    if other := [key for key, value in began.items() if found.get(key) != value]:
        raise ValueError(
            f"{folder}: holds a student that began differently ({other[0]} was {found.get(other[0])!r}, now "
            f"{began[other[0]]!r}); give another output folder, or delete this one. A net that is given as student is trained in "
            "place: to repeat a call, make it afresh"
        )


def _notes_of(student: str, trained: Teacher) -> ImageNotes:
    """The notes by which a student's images are normalised: those of its file if it has one, else the teacher's."""
    if Path(student).exists():
        own = ImageNotes.read(student)
        if not own.lacks("mean", "std"):
            return own
    return trained.notes


def _start_of(folder: Path) -> dict[str, Any]:
    return read_record(folder / START, Start, remedy="restore it, or delete the run's folder to start afresh")


def _wait_for(path: Path) -> None:
    """Waits until the first process has written a file."""
    deadline = time.monotonic() + _PATIENCE
    while not path.is_file():
        if time.monotonic() > deadline:
            raise BadData(f"{path}: the first process has not made it; is the folder the same on all machines?")
        time.sleep(0.5)


def pseudo_labelled(teacher: str | Path | Teacher, folder: str | Path, *, skip_bad_images: bool = False) -> DataSet:
    """Loads images without labels for `distil`, and labels them by the classes that the teacher finds.

    The images are converted and normalised as for the teacher.

    Args:
        teacher: the file of a trained net; or a `Teacher`.
        folder: folder with image files, directly or in subfolders.
        skip_bad_images: as in `pocketcnn.data.load_unlabelled`.
    Raises:
        BadData: the teacher does not say what its images and classes are; or as in `pocketcnn.data.load_unlabelled`.
    """
    trained = Teacher.of(teacher)
    if lacking := trained.notes.lacks("classes", "input_size", "mean", "std"):
        raise BadData(
            f"the teacher's file does not say what it was trained on (it lacks {', '.join(lacking)}); take the file that a "
            "training wrote"
        )
    channels, height, width = trained.notes.input_size

    def answer(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return trained(images).argmax(dim=1)

    return load_unlabelled(
        folder,
        answer,
        classes=trained.notes.classes,
        mean=trained.notes.mean,
        std=trained.notes.std,
        input_size=(channels, height, width),
        skip_bad_images=skip_bad_images,
    )


def _student(teacher: nn.Module, student: str, data: DataSet, initialize: str, images: int) -> nn.Module:
    """Makes or loads the student that some words name."""
    if Path(student).exists():
        return _loaded(Path(student), teacher)
    if _is_method(student):
        method, options = parse_method(student)
        if method == PLAIN_METHOD:
            return copied(teacher).requires_grad_(True)
        # The teacher was frozen; all weights of the student are to be trained.
        return condensed(teacher.requires_grad_(True), method, data, initialize=initialize, images=images, **options)
    name, options = parse_model(student)
    needed = options_for(name, {"in_channels": data.input_size[0], "num_classes": len(data.classes)})
    net = create_model(name, **{**needed, **options})
    calibrate(net, data)
    return net


def _loaded(path: Path, teacher: nn.Module) -> nn.Module:
    """Loads a student, whose plain net is the teacher's if it was not made by name."""
    made_by_name = checkpoint.read_header(path)["base"] is not None
    return checkpoint.load(path, base=None if made_by_name else teacher)


def _is_method(student: str) -> bool:
    return student.partition(":")[0] in (PLAIN_METHOD, *METHODS)


def _digest(student: str) -> str:
    """Identifies a student: by its words, or by the hash of its file."""
    path = checkpoint.file_in(Path(student))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else student


def _identity(net: nn.Module, student: str | nn.Module, initialize: str) -> dict[str, Any]:
    """Describes the student for records and tables: its plain net, the last method that condensed it, and its start."""
    made = provenance(net)
    method, options = (made.steps[-1].method, made.steps[-1].options) if made.steps else (PLAIN_METHOD, {})
    model = made.base["name"] if made.base else type(net).__name__
    if isinstance(student, nn.Module):
        student, initialize = type(student).__name__, "file"
    elif Path(student).exists():
        student, initialize = checkpoint.file_in(Path(student)).stem, "file"
    elif _is_method(student):
        options = parse_method(student)[1]  # those given; the others are at their defaults
    else:
        initialize = "fresh"
    words = {"file": f"{student}, distilled", "fresh": f"{student} fresh", "fit": f"{student} fit"}
    label = f"{model} {words[initialize]}" if _is_method(student) else words[initialize]
    return {"model": model, "method": method, "options": dict(options), "student": student, "initialize": initialize,
            "label": label}  # fmt: skip


class _Callable(ModuleType):
    """This module, so that `pocketcnn.distil` is both: the module, and its function of that name."""

    def __call__(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return distil(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
