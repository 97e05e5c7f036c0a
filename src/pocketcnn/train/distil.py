"""A small net learns from a trained one: it starts from its weights, then is trained to give what the other gives."""

import dataclasses
import hashlib
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.storage import hold_zeros_
from pocketcnn.cost import gauge_of
from pocketcnn.data import DataSet, load_unlabelled
from pocketcnn.errors import BadData
from pocketcnn.methods import METHODS
from pocketcnn.models.recipes import create_model
from pocketcnn.models.spec import PLAIN_METHOD, parse_method, parse_options
from pocketcnn.support.files import make_folder, read_json, write_json
from pocketcnn.surgery import condense, provenance
from pocketcnn.surgery.fitting import recalibrate_
from pocketcnn.train import TrainConfig, evaluate, fit
from pocketcnn.train.devices import is_first_process
from pocketcnn.train.images import calibrate, normalized
from pocketcnn.train.teacher import Teacher

IMAGES = 2000
INITIALIZATIONS = ("fit", "fresh")
_PATIENCE = 3600.0  # seconds that a process waits for the first one to make the student
_log = logging.getLogger(__name__)


def distil(
    teacher: str | Path,
    student: str,
    data: DataSet,
    config: TrainConfig,
    folder: str | Path,
    *,
    initialize: str = "fit",
    images: int = IMAGES,
    hold_zeros: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a student on what a teacher gives, in a folder like that of `pocketcnn.train.fit`.

    The folder gets two more files: `start.safetensors`, the student before its first step, from which a stopped run goes
    on, and `start.json` with its accuracy on the validation images. Images are normalised as the teacher's were.

    Args:
        teacher: the file of a trained net, or the folder of its run. It must be a net of `create_model`, condensed or not,
            and saved without a passphrase.
        student: a method with its options (`"ring:size=0.25"`), by which the teacher is condensed; the file of a net; or
            the name of a net, which starts fresh.
        data: images of the classes that the teacher knows. With `config.teacher_weight` 1 their labels are not learnt from.
        config: the recipe; its teacher is the one given here.
        folder: of the run; made when missing.
        initialize: how a condensed student starts, as in `pocketcnn.condense`.
        images: how many training images a fit looks at.
        hold_zeros: whether weights that are zero at the start, as in a pruned net, stay zero.
        **settings: of `pocketcnn.train.fit`: devices and the like.
    Returns:
        The result of the run, and as `"start"` the content of `start.json`.
    Raises:
        BadData: the teacher has other classes or images than the data.
        MissingBase: the teacher is no net of `create_model`.
        UnknownModel: the student is neither a method nor a file nor a net.
        ValueError: an option out of range, or the folder holds a student that began otherwise; or as in
            `pocketcnn.train.fit`.
    """
    if initialize not in INITIALIZATIONS:
        raise ValueError(f"no initialization {initialize!r}; known: {', '.join(INITIALIZATIONS)}")
    folder = make_folder(Path(folder))
    config = dataclasses.replace(config, teacher=str(teacher))
    known, notes = Teacher.open(str(teacher), data), checkpoint.read_header(teacher)["notes"]
    data = dataclasses.replace(data, mean=tuple(notes["mean"]), std=tuple(notes["std"]))
    began = {
        "student": _digest(student),
        "initialize": initialize,
        "images": images,
        "hold_zeros": hold_zeros,
        "seed": config.seed,
        "teacher": known.digest,
        "fingerprint": data.fingerprint,
    }
    start = folder / "start.safetensors"
    if not start.is_file() and not is_first_process():
        _wait_for(start)
    if start.is_file():
        found = read_json(folder / "start.json")
        if other := [key for key, value in began.items() if found.get(key) != value]:
            raise ValueError(
                f"{folder}: holds a student that began otherwise ({other[0]} was {found.get(other[0])!r}, now "
                f"{began[other[0]]!r}); give another output folder, or delete this one"
            )
        net = checkpoint.load(start)
    else:
        torch.manual_seed(config.seed)
        net = _student(known.net, student, data, initialize, images)
        accuracy = evaluate(net, data, split="validation")["validation_accuracy"]
        _log.info("%s: %.2f %% of the validation images are right before the first step", student, 100 * accuracy)
        write_json(folder / "start.json", {**began, "validation_accuracy": accuracy})
        checkpoint.save(net, start)
    if hold_zeros:
        hold_zeros_(net)
    identity = _identity(net, student, initialize)
    result = fit(net, data, config, folder, name=identity["label"], identity=identity, **settings)
    return {**result, "start": read_json(folder / "start.json")}


def condensed(
    trained: nn.Module, method: str, data: DataSet, *, initialize: str = "fit", images: int = IMAGES, **options: Any
) -> nn.Module:
    """A trained net condensed, with what its parts learn of images alone learnt from a data set.

    Args:
        trained: the net; it is left alone.
        method: as in `pocketcnn.condense`; so are the options.
        data: whose training images are shown, normalised by its mean and deviation.
        initialize: `"fit"`, or `"fresh"`, whose batch norms take their statistics anew as well.
        images: how many images are shown.
        **options: of `pocketcnn.condense`.
    """
    shown = torch.cat(list(normalized(data.train.sample(images).in_order(500), data)))
    if initialize == "fresh":
        net = condense(trained, method, **options)
    else:
        net = condense(trained, method, initialize=initialize, images=shown, **options)
    calibrate(net, data)
    if initialize == "fresh" or gauge_of(net) is not None:  # which images go how deep is known only now
        recalibrate_(net, shown)
    return net


def _wait_for(path: Path) -> None:
    """Waits for what the first process is making."""
    deadline = time.monotonic() + _PATIENCE
    while not path.is_file():
        if time.monotonic() > deadline:
            raise BadData(f"{path}: the first process has not made it; is the folder the same on all machines?")
        time.sleep(0.5)


def pseudo_labelled(teacher: str | Path, folder: str | Path, *, skip_bad_images: bool = False) -> DataSet:
    """Images without labels for `distil`, with the teacher's answers in their place, as it was shown its own.

    Args:
        teacher: the file of a trained net.
        folder: with image files, in whatever folders.
        skip_bad_images: as in `pocketcnn.data.load_unlabelled`; so are the errors.
    """
    known, notes = Teacher.read(str(teacher))

    def answer(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return known(images).argmax(dim=1)

    return load_unlabelled(
        folder,
        answer,
        classes=notes["classes"],
        mean=notes["mean"],
        std=notes["std"],
        input_size=tuple(notes["input_size"]),
        skip_bad_images=skip_bad_images,
    )


def _student(teacher: nn.Module, student: str, data: DataSet, initialize: str, images: int) -> nn.Module:
    if Path(student).exists():
        return checkpoint.load(Path(student))
    if _is_method(student):
        method, options = parse_method(student)
        # A trained net is condensed with all of its numbers to be learnt.
        return condensed(teacher.requires_grad_(True), method, data, initialize=initialize, images=images, **options)
    name, options = parse_options(student)
    net = create_model(name, **{"in_channels": data.input_size[0], "num_classes": len(data.classes), **options})
    calibrate(net, data)
    return net


def _is_method(student: str) -> bool:
    return student.partition(":")[0] in METHODS


def _digest(student: str) -> str:
    """What a student is made of: its words, or of a file its content."""
    path = checkpoint.file_in(Path(student))
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else student


def _identity(net: nn.Module, student: str, initialize: str) -> dict[str, Any]:
    """What tables call the student: its plain net, and the last method that condensed it."""
    made = provenance(net)
    method, options = (made.steps[-1].method, made.steps[-1].options) if made.steps else (PLAIN_METHOD, {})
    model = made.base["name"] if made.base else type(net).__name__
    if Path(student).exists():
        student, initialize = checkpoint.file_in(Path(student)).stem, "file"
    elif _is_method(student):
        options = parse_method(student)[1]  # those given; the others are at their defaults
    else:
        initialize = "fresh"
    words = {"file": f"{student}, distilled", "fresh": f"{student} fresh", "fit": f"{student} fit"}
    label = f"{model} {words[initialize]}" if _is_method(student) else words[initialize]
    return {"model": model, "method": method, "options": dict(options), "student": student, "initialize": initialize,
            "label": label}  # fmt: skip
