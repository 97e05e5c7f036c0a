"""A small net learns from a trained one: it starts from its weights, then is trained to give what the other gives."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn._files import make_folder, read_json, write_json
from pocketcnn.data import DataSet, load_unlabelled
from pocketcnn.errors import BadData
from pocketcnn.methods import METHODS
from pocketcnn.recipes import PLAIN_METHOD, create_model, parse_method, parse_options
from pocketcnn.storage import hold_zeros_
from pocketcnn.surgery import condense, provenance
from pocketcnn.train import TrainConfig, evaluate, fit
from pocketcnn.train.devices import is_first_process
from pocketcnn.train.loop import calibrate, normalized
from pocketcnn.train.teacher import Teacher

IMAGES = 2000
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
    on, and `start.json` with its accuracy on the validation images.

    Args:
        teacher: the file of a trained net.
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
        The result of the run.
    Raises:
        BadData: the teacher has other classes or images than the data.
        UnknownModel: the student is neither a method nor a file nor a net.
        ValueError: an option out of range; or as in `pocketcnn.train.fit`.
    """
    folder = make_folder(Path(folder))
    config = dataclasses.replace(config, teacher=str(teacher))
    known = Teacher.open(str(teacher), data)  # before anything takes long
    began = {
        "student": student,
        "initialize": initialize,
        "images": images,
        "seed": config.seed,
        "teacher": known.digest,
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
        calibrate(net, data)
        accuracy = evaluate(net, data, split="validation")["validation_accuracy"]
        _log.info("%s: %.2f %% of the validation images are right before the first step", student, 100 * accuracy)
        write_json(folder / "start.json", {**began, "validation_accuracy": accuracy})
        checkpoint.save(net, start)
    if hold_zeros:
        hold_zeros_(net)
    identity = _identity(known.net, Path(teacher).stem, student)
    condensed = identity["method"] in METHODS
    label = f"{identity['model']} {student} {initialize}" if condensed else f"{identity['model']} distilled"
    identity |= {"student": student, "initialize": initialize, "label": label}
    result = fit(net, data, config, folder, name=label, identity=identity, **settings)
    return {**result, "start": read_json(folder / "start.json")}


def _wait_for(path: Path) -> None:
    """Waits for what the first process is making."""
    deadline = time.monotonic() + _PATIENCE
    while not path.is_file():
        if time.monotonic() > deadline:
            raise BadData(f"{path}: the first process has not made it; is the folder the same on all machines?")
        time.sleep(0.5)


def answered(teacher: str | Path, folder: str | Path, *, skip_bad_images: bool = False) -> DataSet:
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
    if Path(student).is_file():
        return checkpoint.load(Path(student))
    name = student.partition(":")[0]
    if name not in METHODS:
        name, options = parse_options(student)
        return create_model(name, **{"in_channels": data.input_size[0], "num_classes": len(data.classes), **options})
    method, options = parse_method(student)
    # A trained net is condensed with all of its numbers to be learnt.
    teacher = teacher.requires_grad_(True)
    if initialize != "fit":
        return condense(teacher, method, initialize=initialize, **options)
    shown = torch.cat(list(normalized(data.train.sample(images).in_order(500), data)))
    return condense(teacher, method, initialize=initialize, images=shown, **options)


def _identity(teacher: nn.Module, stem: str, student: str) -> dict[str, Any]:
    """What tables call the student: the net that the teacher is, and the method that condenses it."""
    if student.partition(":")[0] not in METHODS:
        return {"model": Path(student).stem, "method": PLAIN_METHOD, "options": {}}
    base = provenance(teacher).base
    method, options = parse_method(student)
    return {"model": base["name"] if base else stem, "method": method, "options": options}
