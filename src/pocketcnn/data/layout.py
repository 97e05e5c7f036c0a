"""Layouts of class folders: which folders are splits, which are classes, and which readings are refused."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketcnn.data.found import Found, Part, Tally, printable
from pocketcnn.data.walk import Folder
from pocketcnn.errors import BadData

_KINDS = {
    "train": "train", "training": "train", "trn": "train", "trainval": "train",
    "test": "test", "testing": "test", "tst": "test",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "eval": "evaluation", "evaluation": "evaluation", "holdout": "evaluation",
}  # fmt: skip
_FILLERS = {
    "set", "sets", "data", "dataset", "datasets", "image", "images", "img", "imgs", "picture", "pictures", "pics",
    "photo", "photos", "split", "splits", "folder", "folders", "files", "samples", "the", "my", "all",
}  # fmt: skip
_GLUED = re.compile(f"({'|'.join(sorted(_KINDS, key=len, reverse=True))})({'|'.join(_FILLERS)})")
_UNLABELLED = {
    "pred",
    "preds",
    "predict",
    "prediction",
    "predictions",
    "unlabeled",
    "unlabelled",
    "unsup",
    "unsupervised",
}
_PIXELS = {"image", "images", "img", "imgs", "jpegimages", "rgb", "input", "inputs", "photos", "pictures"}
_ANSWERS = {
    "mask", "masks", "label", "labels", "annotation", "annotations", "annot", "gt", "groundtruth", "truth", "target",
    "targets", "segmentation", "segmentations", "segmentationclass", "segmentationobject", "depth", "bbox", "boxes", "thumb",
    "thumbs", "thumbnail", "thumbnails",
}  # fmt: skip
_MARKED = re.compile(
    r"(.+?)[ _.-]+(?:mask|segmentation|seg|label|annotation|gt|depth|thumb|thumbnail)s?[ _.-]*\d*", re.I
)
_OTHER_TASK = (
    "these look like masks, boxes or thumbnails of the images, as for segmentation or detection; to classify, give class "
    "folders of the images alone"
)
# The most test-like of the splits beside train is the test split; another one is for validation.
_TEST_ORDER = ("test", "evaluation", "validation")


_LOOSE, _EMPTY = "images outside of a class folder", "folders without images"


@dataclass(frozen=True)
class Split:
    """A split: the top folder whose name tells it, and its class folders in order of their names."""

    top: Folder
    classes: tuple[Folder, ...]


def splits_of(root: Folder, tally: Tally) -> tuple[dict[str, Split], Found]:
    """Finds the splits and class folders of a data folder.

    Args:
        root: the folder as it was walked.
        tally: gets the images that belong to no split or class.
    Returns:
        Splits by "train", "test" and "validation", in the order of their folders' names; and the same in words.
    Raises:
        BadData: no class folders, or a layout of which two readings are possible, or a data set for another task.
    """
    notes: list[str] = []
    doubts: list[str] = []
    level = _below_wrappers(root)
    if level is not root:
        notes.append(f"class folders or splits are read from {printable(level.path)}")
    wrappers = _between(root, level)
    _leave_out(wrappers, tally)
    for folder in (*wrappers, level):
        _refuse_other_tasks(folder)
    folders = _split_folders(level, tally, doubts)
    if folders is None:
        tops = {"train": (level, level)}
    else:
        _leave_out([level], tally)
        roles = _roles(level, folders, notes)
        classes = [folder.name for folder in _below_wrappers(roles["train"], "train").filled]
        inner = {
            role: _below_wrappers(folder, kind_of(folder.name), () if role == "train" else classes)
            for role, folder in roles.items()
        }
        _leave_out([step for role, top in roles.items() for step in _between(top, inner[role])], tally)
        tops = {role: (top, inner[role]) for role, top in roles.items()}
    found = {role: Split(top, _classes(role, folder, tally, doubts)) for role, (top, folder) in tops.items()}
    parts = tuple(
        Part(role, printable(found[role].top.path), sum(folder.total for folder in found[role].classes))
        for role in ("train", "validation", "test")
        if role in found
    )
    return found, Found(parts, left_out=tally.all(), notes=tuple(notes), doubts=tuple(doubts))


def words_of(name: str) -> list[str]:
    """Words of a folder's name in lower case: `seg_Train2` has `seg` and `train`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFC", name))
    found = re.sub("hold[ _-]?out", "holdout", spaced.casefold())
    words: list[str] = []
    for word in re.findall(r"[^\W\d_]+", found):
        glued = _GLUED.fullmatch(word)  # trainset, testdata
        words += glued.groups() if glued else [word]
    return words


def kind_of(name: str) -> str | None:
    """The split that a folder's name tells: train, test, validation or evaluation; None if it tells none or several."""
    kinds = {_KINDS[word] for word in words_of(name) if word in _KINDS}
    return "train" if kinds == {"train", "validation"} else kinds.pop() if len(kinds) == 1 else None


def _is_plain(name: str) -> bool:
    """Tells a name that says nothing but the split: `test`, `Test set 2`, but not `seg_test` or `test_tube`."""
    words = words_of(name)
    return any(word in _KINDS for word in words) and all(word in _KINDS or word in _FILLERS for word in words)


def _holds_folders(folder: Folder) -> bool:
    return bool(folder.filled)


def _below_wrappers(folder: Folder, kind: str | None = None, classes: Sequence[str] = ()) -> Folder:
    """Goes down through folders that hold nothing but one folder of folders, or of the same split's images."""
    while len(inner := folder.filled) == 1 and inner[0].name not in classes:
        [only] = inner
        is_wrapper = _holds_folders(only) and not only.images
        is_same = (
            kind is not None
            and not only.filled
            and (
                only.name.casefold() == folder.name.casefold()
                or kind_of(only.name) == kind
                or set(words_of(only.name)) <= _FILLERS
            )
        )
        if not (is_wrapper or is_same):
            break
        folder = only
    return folder


def _between(top: Folder, inner: Folder) -> list[Folder]:
    """The folders from the top one down to the one before the inner one."""
    steps = []
    while top is not inner:
        steps.append(top)
        [top] = top.filled
    return steps


def _leave_out(wrappers: Sequence[Folder], tally: Tally) -> None:
    """Counts what lies beside the one folder of a wrapper."""
    for folder in wrappers:
        if folder.images:
            tally.add(_LOOSE, folder.images[0], count=len(folder.images))
        _leave_out_empty(folder, tally)


def _leave_out_empty(level: Folder, tally: Tally) -> None:
    """Counts folders without images; an empty split may be missed."""
    for folder in level.folders:
        if not folder.total:
            tally.add(_EMPTY, folder.path, is_data=kind_of(folder.name) is not None)


def _split_folders(level: Folder, tally: Tally, doubts: list[str]) -> list[Folder] | None:
    """The folders that are splits; None if they are classes.

    Raises:
        BadData: both readings are possible.
    """
    where, filled = printable(level.path), level.filled
    named = [folder for folder in filled if kind_of(folder.name)]
    aside = [folder for folder in filled if folder not in named and set(words_of(folder.name)) & _UNLABELLED]
    rest = [folder for folder in filled if folder not in named and folder not in aside]
    deep = [folder for folder in named if _has_classes(folder)]
    plain = [folder for folder in named if _is_plain(folder.name)]
    kinds = {kind_of(folder.name) for folder in deep}
    if not named:
        return None
    if rest:
        is_sure = ("train" in kinds and len(kinds) > 1) or any(folder in deep for folder in plain)
        is_sure = is_sure and kind_of(level.name) != "train"  # in a folder 'train' lie classes
        if is_sure or any(kind_of(folder.name) == "test" for folder in plain):
            raise BadData(
                f"{where}: {_listed(named)} {'are' if len(named) > 1 else 'is'} named like a split, but {_listed(rest)} "
                f"beside {'are' if len(rest) > 1 else 'is'} not; if all are classes, rename those or put all of them in "
                "a folder 'train'; if not, move away what is no split"
            )
    if rest or (not deep and not plain and len({kind_of(folder.name) for folder in named}) == 1):
        doubts.append(f"{_listed(named)} in {where}: taken as classes like the folders beside, not as splits")
        return None
    for folder in named:
        _refuse_other_tasks(folder)
    if "train" not in kinds and deep:
        raise BadData(
            f"{where}: no training split; found {_listed(filled)}; name the folder of training images 'train'"
        )
    if "train" not in kinds:
        raise BadData(
            f"{where}: labels are missing: {_listed(named)} hold images but no class folders; put the images of each class "
            f"in a folder of the class's name{_hint(level)}"
        )
    for folder in [*aside, *(folder for folder in named if folder not in deep)]:
        tally.add(f"images of {printable(folder.name)!r} without class folders", folder.path, count=folder.total)
    return deep


def _has_classes(folder: Folder) -> bool:
    """Tells a split folder that holds class folders from one that holds images only."""
    return _holds_folders(_below_wrappers(folder, kind_of(folder.name)))


def _roles(level: Folder, folders: Sequence[Folder], notes: list[str]) -> dict[str, Folder]:
    """The splits train, test and validation, by what the folders' names say, in the order of the names."""
    by_kind: dict[str, list[Folder]] = {}
    for folder in folders:
        by_kind.setdefault(str(kind_of(folder.name)), []).append(folder)
    others = [kind for kind in _TEST_ORDER if kind in by_kind]
    if len(others) > 2 or any(len(found) > 1 for found in by_kind.values()):
        raise BadData(
            f"{printable(level.path)}: several of {_listed(folders)} are named like the same split; leave one folder for "
            "train, one for validation and one for test"
        )
    roles = {"train": by_kind["train"][0]} | dict(
        zip(("test", "validation"), (by_kind[kind][0] for kind in others), strict=False)
    )
    if others and others[0] != "test":
        notes.append(
            f"{printable(roles['test'].path)} is the test split, as there is no folder 'test' with class folders"
        )
    return dict(sorted(roles.items(), key=lambda item: item[1].path))


def _classes(role: str, folder: Folder, tally: Tally, doubts: list[str]) -> tuple[Folder, ...]:
    """The class folders of a split."""
    where = printable(folder.path)
    if not folder.filled:
        raise BadData(
            f"{where}: labels are missing: {len(folder.images)} images lie in the folder itself; "
            f"put the images of each class in a folder of the class's name{_hint(folder)}"
        )
    if folder.images:
        tally.add(_LOOSE, folder.images[0], count=len(folder.images))
    for empty in (inner for inner in folder.folders if not inner.total):
        if role == "train":
            why = tally.below(empty.path)
            held = f" ({why})" if why else f" ({len(empty.others):,} other files in it)" if empty.others else ""
            raise BadData(f"{printable(empty.path)}: no images of this class{held}; add some or remove the folder")
        tally.add(_EMPTY, empty.path, is_data=False)
    _refuse_other_tasks(folder)
    for inner in folder.filled:
        for deep in inner.everything():
            _refuse_other_tasks(deep, in_class=True)
        below = [
            deep for deep in inner.filled if _is_plain(deep.name) and (deep.filled or kind_of(deep.name) != "train")
        ]
        if below:
            raise BadData(
                f"{printable(inner.path)}: class folders that hold splits ({_listed(below)}); put the splits above the "
                f"classes, as {printable(below[0].name)}/{printable(inner.name)}"
            )
    _check_series(folder, doubts)
    return tuple(folder.filled)


def _check_series(folder: Folder, doubts: list[str]) -> None:
    """Refuses parts such as fold1 and fold2 that hold the same class folders, and doubts others that do."""
    parts = folder.filled
    if len(parts) < 2 or any(part.images for part in parts):
        return
    shared = sorted(set.intersection(*({deep.name for deep in part.filled} for part in parts)))
    if len(shared) < 2:
        return
    stems = {" ".join(words_of(part.name)) for part in parts}
    where, same = printable(folder.path), ", ".join(map(printable, shared[:3]))
    if len(stems) == 1 and not stems & {"", "class", "label", "category"}:
        raise BadData(
            f"{where}: {_listed(parts)} hold the same folders ({same}); if those are the classes, put the images of each "
            "class in one folder; if not, put the images in the class folders directly"
        )
    doubts.append(f"{_listed(parts)} in {where}: taken as the classes, though each holds the same folders ({same})")


def _refuse_other_tasks(level: Folder, *, in_class: bool = False) -> None:
    """Refuses pairs of images with masks, boxes, thumbnails or the like: as many, or files of equal names.

    In a class folder, text files such as boxes do no harm.
    """
    answers = [folder for folder in level.folders if set(words_of(folder.name)) & _ANSWERS]
    pixels = [folder for folder in level.filled if set(words_of(folder.name)) & _PIXELS] if answers else []
    own = {file.stem for file in level.images}
    pairs = [({file.stem for file in images.all_images()}, images, answer) for images in pixels for answer in answers]
    for stems, images, answer in [*pairs, *((own, level, answer) for answer in answers if own)]:
        has_classes = in_class or any(kind_of(folder.name) is None for folder in images.filled)
        names = {path for folder in answer.everything() for path in (*folder.images, *map(Path, folder.others))}
        same = stems & {_bare(path.stem) for path in names}
        is_pair = 2 * len(same) >= len(stems) or answer.total == images.total
        if answer is not images and is_pair and (answer.total or not has_classes):
            raise BadData(
                f"{printable(images.path)} and {printable(answer.path)}: files that belong together; {_OTHER_TASK}"
            )
    if in_class:
        folded = {stem.casefold() for stem in own}
        for file in level.images:
            bare = _bare(file.stem)
            if bare != file.stem and bare.casefold() in folded:
                raise BadData(f"{printable(file)}: belongs to {printable(bare)!r} beside it; {_OTHER_TASK}")


def _bare(stem: str) -> str:
    """The name of the image that a mask such as `7_mask` belongs to."""
    match = _MARKED.fullmatch(stem)
    return match[1] if match else stem


def _hint(level: Folder) -> str:
    """Words for images whose answers lie in files of a detection set."""
    below = [*level.folders, *(deep for inner in level.folders for deep in inner.folders)]
    beside = [folder for folder in below if set(words_of(folder.name)) & _ANSWERS]
    return f" ({printable(beside[0].path)} looks like the answers of a data set for detection)" if beside else ""


def _listed(folders: Sequence[Folder]) -> str:
    """Names of some folders."""
    names = [repr(printable(folder.name)) for folder in folders]
    return ", ".join(names if len(names) < 8 else [*names[:6], f"... ({len(names)} in all)"])
