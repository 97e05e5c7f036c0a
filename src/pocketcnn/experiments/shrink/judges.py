"""What a shrunk net is judged by and trained with: labelled images, or the outputs of the net that it was made of."""

import contextlib
import dataclasses
import logging
import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.data import DataSet, Images
from pocketcnn.experiments.sensitivity import agreement
from pocketcnn.experiments.shrink.candidates import Candidate
from pocketcnn.models.spec import PLAIN_METHOD
from pocketcnn.support.calls import Inputs, as_inputs, distance
from pocketcnn.support.copying import copied
from pocketcnn.support.files import make_folder, read_json, write_json
from pocketcnn.support.modules import device_and_dtype, evaluating
from pocketcnn.surgery.fitting import recalibrate_
from pocketcnn.train import TrainConfig
from pocketcnn.train.agreement import learn_outputs, outputs_of
from pocketcnn.train.distil import condensed, distil
from pocketcnn.train.images import normalized
from pocketcnn.train.teacher import Teacher, digest_of

Scores = dict[str, Any]
_FITTED = 2000  # images for a fit
_JUDGED = 2000  # validation images that choose among candidates
_SENSED = 512  # images for the sensitivity of places
_HELD_OUT = 0.1  # share of examples without labels that choose, and as many report
_FEWEST = 4
_USED = 0.8  # share of the time that goes into steps; the rest is for images, validation and records
_log = logging.getLogger(__name__)


class Judge(Protocol):
    """Measures and trains nets that stand for a trained one.

    `measure` says what the score is. `fingerprint` changes when the examples do. `plain` is the trained net, in float32.
    """

    measure: str
    fingerprint: str
    plain: nn.Module

    def examples(self) -> Inputs:
        """Some inputs as the net gets them, for the sensitivity of its places."""
        ...

    def start(self, candidate: Candidate) -> nn.Module:
        """Makes a candidate from the trained net."""
        ...

    def score(self, net: nn.Module) -> float:
        """How good a net is, for choosing; the higher the better."""
        ...

    def improve(self, candidate: Candidate, start: Path, seconds: float, folder: Path) -> nn.Module:
        """Trains a candidate, which lies in a file, for so long; resumes what the folder holds."""
        ...

    def report(self, net: nn.Module) -> Scores:
        """Scores on examples that chose nothing."""
        ...


class ByLabels:
    """Judges by accuracy on the validation images, and trains by distillation; the test images are for the report.

    Args:
        net: the trained net.
        data: labelled images.
        notes: how the net's images are normalised; as the data where it does not say.
        config: of the distillation; its epochs follow from the time.
    """

    measure = "validation accuracy"

    def __init__(self, net: nn.Module, data: DataSet, notes: ImageNotes, config: TrainConfig) -> None:
        self.plain = copied(net).float()
        self._teacher = Teacher(copied(net).float(), notes, digest_of(net)).fitting(data)
        self._data = notes.applied_to(data)
        self._config, self.fingerprint = config, data.fingerprint

    def examples(self) -> Inputs:
        return torch.cat(list(normalized(self._data.train.sample(_SENSED).in_order(500), self._data)))[:_SENSED]

    def start(self, candidate: Candidate) -> nn.Module:
        net = copied(self.plain).eval()
        if candidate.method == PLAIN_METHOD:
            return candidate.start(net, None)
        return condensed(net, candidate.method, self._data, images=_FITTED, **candidate.options)

    def score(self, net: nn.Module) -> float:
        part = self._data.validation.sample(_JUDGED)
        return float((self._classes(net, part.images) == part.labels).float().mean())

    def improve(self, candidate: Candidate, start: Path, seconds: float, folder: Path) -> nn.Module:
        pace = make_folder(folder) / "pace.json"
        if not pace.is_file():
            small = checkpoint.load(start, base=self._teacher.net)
            write_json(pace, {"images": round(seconds * self._rate(small))})
        config, data = self._paced(read_json(pace)["images"])
        distil(self._teacher, str(start), data, config, folder, hold_zeros=bool(candidate.pruned), test=False)
        return checkpoint.load(folder, base=self._teacher.net)

    def _paced(self, images: int) -> tuple[TrainConfig, DataSet]:
        """The settings and the data for a training that is shown so many images: whole epochs, or a part of one."""
        train, batch = self._data.train, self._config.batch_size
        count = min(len(train), max(images, 2 * batch))
        if count < len(train):
            chosen = torch.arange(count) * len(train) // count
            data = dataclasses.replace(self._data, train=Images(*train[chosen]))
        else:
            data = self._data
        epochs = max(1, images // count)
        small = min(self._config.small_epochs, epochs // 2)
        return dataclasses.replace(self._config, epochs=epochs, small_epochs=small), data

    def _rate(self, student: nn.Module) -> float:
        """About how many images a second are trained on, by a few steps of a copy."""
        net, batch = copied(student).train(), min(self._config.batch_size, len(self._data.train))
        device, _ = device_and_dtype(net)
        pixels = self._data.train[:batch][0].to(device)
        half = self._config.precision != "float32"
        for step in range(4):  # the first is not timed
            if step == 1:
                began = time.monotonic()
            with torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext():
                wanted = self._teacher(pixels)
                F.mse_loss(net(self._teacher.normalize(pixels)).float(), wanted.float()).backward()
        return _USED * 3 * batch / (time.monotonic() - began)

    def report(self, net: nn.Module) -> Scores:
        test = self._data.test
        right = (self._classes(net, test.images) == test.labels).float()
        classes = enumerate(self._data.classes)
        by_class = {name: float(right[test.labels == n].mean()) for n, name in classes if (test.labels == n).any()}
        return {"accuracy": float(right.mean()), "by_class": by_class}

    def _classes(self, net: nn.Module, pixels: Tensor) -> Tensor:
        """The likeliest class of each image."""
        own, (device, dtype) = ImageNotes.of(self._data), device_and_dtype(net)
        with evaluating(net):
            parts = [net(own.normalise(part).to(device, dtype)).argmax(1).cpu() for part in pixels.split(250)]
        return torch.cat(parts)


class ByOutputs:
    """Judges by how near outputs are to those of the trained net, on examples without labels, and trains by them.

    Of the examples, shuffled by the seed, four fifths train, a tenth chooses among candidates, and a tenth is for the report.

    Args:
        net: the trained net, whatever it takes and returns.
        inputs: a tensor or a tuple of tensors, as the net gets them; the first axis counts the examples.
        seed: of the division and the training.
    Raises:
        ValueError: fewer than four examples.
    """

    measure = "minus the error of the outputs"

    def __init__(self, net: nn.Module, inputs: Inputs, seed: int) -> None:
        examples = as_inputs(inputs)
        count = len(examples[0])
        if count < _FEWEST:
            raise ValueError(f"{count} examples are too few to train, choose and report with; give {_FEWEST} or more")
        self.plain, self._seed = copied(net).float(), seed
        self._teacher = copied(self.plain).eval().requires_grad_(False)
        order, part = (
            torch.randperm(count, generator=torch.Generator().manual_seed(seed)),
            max(1, round(_HELD_OUT * count)),
        )
        parts = (order[2 * part :], order[:part], order[part : 2 * part])
        self._train, self._chooses, self._reports = (
            tuple(one[some].float() if one.is_floating_point() else one[some] for one in examples) for some in parts
        )
        self._wanted = {id(some): outputs_of(self._teacher, some) for some in (self._chooses, self._reports)}
        self.fingerprint = digest_of(_Holder(examples))

    def examples(self) -> Inputs:
        return tuple(one[:_SENSED] for one in self._train)

    def start(self, candidate: Candidate) -> nn.Module:
        images = self._train[0][:_FITTED] if len(self._train) == 1 else None
        small = candidate.start(copied(self.plain).eval(), images)
        if candidate.method != PLAIN_METHOD or candidate.pruned:  # other weights have other statistics
            recalibrate_(small, tuple(one[:_FITTED] for one in self._train))
        return small

    def score(self, net: nn.Module) -> float:
        return -float(distance(outputs_of(net, self._chooses), self._wanted[id(self._chooses)]))

    def improve(self, candidate: Candidate, start: Path, seconds: float, folder: Path) -> nn.Module:
        small = checkpoint.load(start, base=self._teacher)
        candidate.hold(small)
        learn_outputs(
            small, self._teacher, self._train, seconds=seconds, seed=self._seed, state=make_folder(folder) / "state.pt"
        )
        return small

    def report(self, net: nn.Module) -> Scores:
        found, wanted = outputs_of(net, self._reports), self._wanted[id(self._reports)]
        scores: Scores = {"error": float(distance(found, wanted))}
        if (same := agreement(found, wanted)) is not None:
            scores["agreement"] = same
        return scores


class _Holder(nn.Module):
    """Tensors as the buffers of a module, to be hashed like one."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        super().__init__()
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"input{number}", tensor)
