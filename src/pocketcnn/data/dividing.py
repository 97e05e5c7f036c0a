"""Labels to classes, images to splits, and two summaries of the images: their moments and a fingerprint."""

import hashlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from pocketcnn.data.sets import Images
from pocketcnn.errors import BadData

TEST_FRACTION = 0.2  # share of the images that become the test split if the source has none, by a fixed seed


def check_fraction(validation: float) -> None:
    """Checks the fraction of the images that a user sets aside for validation."""
    if not 0 < validation < 1:
        raise ValueError(f"validation must be a fraction between 0 and 1, not {validation}")


def check_labels(name: str, labels: Tensor, classes: tuple[str, ...], least: int) -> None:
    """Checks that there are at least two classes, and at least `least` training images of each."""
    if len(classes) < 2:
        raise BadData(f"{name}: only one class ({', '.join(classes)}); a classifier needs at least two")
    counts = torch.bincount(labels, minlength=len(classes))
    if empty := [classes[i] for i in (counts == 0).nonzero().flatten().tolist()]:
        raise BadData(f"{name}: no training images of class {empty[0]!r}; add some or remove the class")
    if int(counts.min()) < least:
        few = classes[int(counts.argmin())]
        raise BadData(
            f"{name}: class {few!r} has {int(counts.min())} images; a class needs at least {least}, one for each split"
        )


def divided(images: Images, fraction: float, *, seed: int) -> tuple[Images, Images]:
    """Divides images into two parts, class by class, so that both parts hold images of every class."""
    generator = torch.Generator().manual_seed(seed)
    second = torch.zeros(len(images), dtype=torch.bool)
    for label in images.labels.unique():
        members = (images.labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        second[members[:count]] = True
    return tuple(Images(images.images[part], images.labels[part]) for part in (~second, second))  # type: ignore[return-value]


def fingerprint_of(*splits: Images) -> str:
    """Hashes all pixels and labels, so that the same images stored elsewhere have the same fingerprint."""
    digest = hashlib.sha256()
    for split in splits:
        for tensor in (split.images, split.labels):
            digest.update(repr(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def moments_of(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, with values scaled to [0, 1]; exact, by counting values."""
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share /= share.sum()
        mean = float((share * values).sum())
        means.append(round(mean, 6))
        stds.append(round(max(1e-3, float((share * (values - mean) ** 2).sum()) ** 0.5), 6))
    return tuple(means), tuple(stds)


def is_label(label: Any) -> bool:
    """Tells a label from the two values that stand for a missing one: none and -1."""
    return label is not None and label != -1


def class_index(
    label: str, train: list[Any], test: list[Any], classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of the classes, and the index of the class that each label in the files stands for."""
    if missing := sum(not is_label(value) for value in train):
        raise BadData(f"{label}: {missing} of {len(train)} training images have no label (none, or -1)")
    if strange := next((value for value in (*train, *test) if not isinstance(value, int | str)), None):
        raise BadData(f"{label}: label {strange!r} is neither a whole number nor a text; give each image one class")
    if classes is None:
        known = sorted(set(train))
        classes, index = tuple(map(str, known)), {value: number for number, value in enumerate(known)}
    else:
        index = {i: i for i in range(len(classes))} | {value: i for i, value in enumerate(classes)}
    if unknown := sorted(str(value) for value in {*train, *test} if value not in index):
        raise BadData(f"{label}: label {unknown[0]!r} is not one of the training classes {', '.join(classes)}")
    return classes, index


def shared_images(first: Images, second: Images) -> int:
    """Counts the images of the second split whose pixels equal those of an image in the first."""
    seen = _digests(first)
    return sum(digest in seen for digest in _digests(second).elements())


def contradicting_images(*splits: Images) -> int:
    """Counts the different images that occur under several labels."""
    labels: dict[bytes, set[int]] = {}
    for split in splits:
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            labels.setdefault(_digest(image), set()).add(label)
    return sum(len(found) > 1 for found in labels.values())


def _digest(image: Tensor) -> bytes:
    return hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()


def _digests(split: Images) -> Counter[bytes]:
    return Counter(map(_digest, split.images))
