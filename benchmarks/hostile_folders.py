"""Opens folders of images in 500 layouts: right ones with a known answer, and hostile ones.

    .venv/bin/python benchmarks/hostile_folders.py [COUNT]

A right layout must give each image its class and its split, which its colour tells. A hostile one must end in one line of ours,
or be read rightly. tests/data/test_folders.py tries some of them in every run.
"""

import io
import logging
import os
import random
import shutil
import socket
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from PIL import Image

from pocketcnn.data import DataSet, load
from pocketcnn.errors import PocketError

ROLES = ("train", "validation", "test")
SPLITS: tuple[dict[str, str], ...] = (
    {"train": ""},
    {"train": "train"},
    {"train": "train", "test": "test"},
    {"train": "Training", "test": "Testing"},
    {"train": "seg_train/seg_train", "test": "seg_test/seg_test"},
    {"train": "train_data", "test": "test_data"},
    {"train": "training_set/training_set", "test": "test_set/test_set"},
    {"train": "train images", "test": "test images"},
    {"train": "TRAIN", "test": "eval"},
    {"train": "train", "test": "holdout"},
    {"train": "train", "test": "valid"},
    {"train": "train2017", "test": "val2017"},
    {"train": "my-train.v2", "test": "my-test.v2"},
    {"train": "train", "validation": "val", "test": "test"},
    {"train": "training", "validation": "validation", "test": "testing"},
    {"train": "Train", "validation": "dev", "test": "Test"},
    {"train": "trainset", "validation": "valset", "test": "testset"},
    {"train": "train", "validation": "validation", "test": "evaluation"},
    {"train": "train/images", "validation": "valid/images", "test": "test/images"},
)
WRAPPERS = ("", "archive", "dataset/archive", "data set (1)/images", "tr\u00e4ining.zip")
CLASSES = (
    "cat", "dog", "Dog", "10", "9", "n01440764", "a b", "caf\u00e9", "cafe\u0301s", "\u732b", "\U0001f408", "train station", "x.png",
    "none", "null", "-1", "nan", "a,b", "a\nb", "\x1b[31mred", "\udcff\udcfe", "q" * 200, "con", "labels of wine", " edge ", "{}", "%s",
)  # fmt: skip
FORMATS = {
    ".png": "PNG", ".PNG": "PNG", ".bmp": "BMP", ".jpg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".JPEG": "JPEG", ".tif": "TIFF",
    ".webp": "WEBP", ".ppm": "PPM", ".tga": "TGA", ".pcx": "PCX", ".jp2": "JPEG2000", ".qoi": "QOI", ".ico": "ICO", ".dib": "DIB",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A layout of class folders: folders above them, splits, classes, suffixes of the images, and what lies about."""

    splits: int = 0
    wrapper: str = ""
    classes: tuple[str, ...] = ("cat", "dog")
    suffixes: tuple[str, ...] = (".png",)
    is_nested: bool = False
    litter: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Writes the layout into an empty folder."""
        for role, split in SPLITS[self.splits].items():
            for index, name in enumerate(self.classes):
                place = folder / self.wrapper / split / name / ("deeper" if self.is_nested and index else "")
                for number in range(6):
                    suffix = self.suffixes[(number + index) % len(self.suffixes)]
                    put(place / f"{role}{number}{suffix}", index, ROLES.index(role), number)
        own = folder / self.wrapper / SPLITS[self.splits]["train"] / self.classes[0]
        for name in self.litter:
            LITTER[name](folder, own)

    def check(self, data: DataSet) -> None:
        """Checks that each image has the class and the split that its colour tells, and that none is missing."""
        names = [shown_name(name) for name in self.classes]
        assert sorted(data.classes) == sorted(names), data.classes
        have = set(SPLITS[self.splits])
        seen: Counter[tuple[str, str]] = Counter()
        for split in ROLES:
            images, labels = getattr(data, split)[:]
            for colour, label in zip(images[:, :, 0, 0].tolist(), labels.tolist(), strict=True):
                name, role = names[round(colour[0] / 20) - 1], ROLES[round(colour[1] / 60)]
                assert name == data.classes[label], f"{name} has the label {data.classes[label]}"
                assert role == (split if split in have else "train"), f"an image of {role} is in {split}"
                seen[role, name] += 1
        wanted = Counter({(role, name): 6 for role in have for name in names})
        wanted["train", names[0]] += sum(name in MORE for name in self.litter) * 2
        assert seen == wanted, (seen, wanted)


def shown_name(folder: str) -> str:
    """The class name of a folder."""
    escaped = unicodedata.normalize("NFC", folder).strip().replace("\n", "\\n").replace("\x1b", "\\x1b")
    return escaped.encode("utf-8", "surrogatepass").replace(b"\xed\xb3\xbf\xed\xb3\xbe", b"\\udcff\\udcfe").decode()


@cache
def _encoded(kind: str, colour: tuple[int, int, int], side: int = 16) -> bytes:
    buffer = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    Image.new("RGB", (side, side), colour).save(buffer, kind, **options)
    return buffer.getvalue()


def put(path: Path, index: int = 0, role: int = 0, number: int = 0) -> None:
    """Writes an image whose colour tells its class, split and number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(FORMATS[path.suffix], (20 * index + 20, 60 * role, 8 * number)))


def _write(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _linked_folder(root: Path, own: Path) -> None:
    other = root.with_name(f"{root.name}-more")
    for number in (6, 7):
        put(other / "deep" / f"more{number}.png", 0, 0, number)
    (own / "more").symlink_to(other)


def _linked_files(root: Path, own: Path) -> None:
    other = root.with_name(f"{root.name}-single")
    for number in (8, 9):
        put(other / f"one{number}.png", 0, 0, number)
        (own / f"one{number}.png").symlink_to(other / f"one{number}.png")


def _annexed_files(root: Path, own: Path) -> None:
    for number in (10, 11):
        put(root / ".git" / "annex" / f"key{number}.png", 0, 0, number)
        (own / f"key{number}.png").symlink_to(os.path.relpath(root / ".git" / "annex" / f"key{number}.png", own))


def _socket(root: Path, own: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(own)  # a socket's path may have 107 bytes only
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("s.png")
    finally:
        os.chdir(here)


def _deep(root: Path, own: Path) -> None:
    here = os.getcwd()
    try:
        os.chdir(own)
        for _ in range(300):
            os.mkdir("d" * 40)
            os.chdir("d" * 40)
    finally:
        os.chdir(here)


MORE = ("linked folder", "linked files", "annexed files")  # these add two images to the first class
LITTER: dict[str, Callable[[Path, Path], None]] = {
    "linked folder": _linked_folder,
    "linked files": _linked_files,
    "annexed files": _annexed_files,
    "checkpoints": lambda root, own: put(own / ".ipynb_checkpoints" / "0-checkpoint.png", 3),
    "resource fork": lambda root, own: _write(own / "._0.png"),
    "macosx": lambda root, own: _write(root / "__MACOSX" / "cat" / "._0.png"),
    "macosx images": lambda root, own: put(root / "__MACOSX" / "train" / "cat" / "0.png", 3),
    "thumbnails": lambda root, own: put(own / "@eaDir" / "0.png" / "SYNOPHOTO_THUMB_M.png", 3),
    "thumbs": lambda root, own: _write(own / "Thumbs.db"),
    "desktop": lambda root, own: _write(root / "Desktop.ini"),
    "trash": lambda root, own: put(root / "$RECYCLE.BIN" / "0.png", 3),
    "texts": lambda root, own: _write(root / "README.md"),
    "table": lambda root, own: _write(own / "labels.csv"),
    "other format": lambda root, own: _write(own / "0.heic"),
    "postscript": lambda root, own: _write(own / "0.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n"),
    "empty file": lambda root, own: _write(own / "zero.png", b""),
    "fifo": lambda root, own: os.mkfifo(own / "pipe.png"),
    "socket": _socket,
    "folder like an image": lambda root, own: (own / "y.png").mkdir(),
    "loop": lambda root, own: (own / "again").symlink_to(own.parent),
    "loop to the root": lambda root, own: (own / "root").symlink_to(root),
    "loop above the root": lambda root, own: (own / "above").symlink_to(root.parent),
    "loop to the disk": lambda root, own: (own / "disk").symlink_to("/"),
    "link to itself": lambda root, own: (own / "self.png").symlink_to(own / "self.png"),
    "dead link": lambda root, own: (own / "dead.png").symlink_to(root / "nowhere.png"),
    "link inside": lambda root, own: (own / "twin.png").symlink_to(next(own.parent.rglob("train0.*"))),
    "device": lambda root, own: (own / "zero.bmp").symlink_to("/dev/zero"),
    "deep folders": _deep,
    "hidden parquet": lambda root, own: _write(root / ".cache" / "train.parquet"),
    "unlabelled split": lambda root, own: put(root / "seg_pred" / "seg_pred" / "0.png", 3),
}
_WRAPPED_ONLY = {"unlabelled split": (2, 3, 4, 5, 6, 7)}  # beside splits


def _plain(folder: Path) -> None:
    Layout().write(folder)


def _tops(*places: str, suffix: str = ".png") -> Callable[[Path], None]:
    """Writes two images into each of some folders."""

    def make(folder: Path) -> None:
        for index, place in enumerate(places):
            for number in range(2):
                put(folder / place / f"{number}{suffix}", index % 10, 0, number)

    return make


def _after(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for step in steps:
            step(folder)

    return make


def _texts(*places: str) -> Callable[[Path], object]:
    return lambda folder: [_write(folder / place) for place in places]


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda folder: None, "neither images nor parquet files"),
    "texts only": (_texts("a.txt", "cat/b.txt"), "neither images nor parquet files in it, but 2 .txt"),
    "archives": (_texts("images.zip", "train/b.tar"), "neither images nor parquet files"),
    "loading script": (_texts("name.py", "README.md"), "loading scripts are never run"),
    "flat": (_tops(""), "labels are missing: 2 images lie in the folder itself"),
    "flat splits": (_tops("train", "test"), "labels are missing: 'test', 'train' hold images but no class folders"),
    "splits beside a class": (_tops("train", "test", "cat"), "named like a split"),
    "deep splits beside a class": (_tops("train/a", "train/b", "test/a", "test/b", "cat"), "named like a split"),
    "test beside classes": (_tops("cat", "dog", "test"), "named like a split"),
    "two trains": (_tops("train/a", "train/b", "Training/a", "Training/b"), "named like the same split"),
    "val and dev": (_tops("train/a", "train/b", "val/a", "dev/a", "test/a"), "named like the same split"),
    "no train": (_tops("val/a", "val/b", "test/a", "test/b"), "no training split"),
    "folds": (_tops("fold1/a", "fold1/b", "fold2/a", "fold2/b"), "hold the same folders"),
    "splits below classes": (_tops("cat/train", "cat/test", "dog/train", "dog/test"), "class folders that hold splits"),
    "splits in classes": (_tops("x/train/a", "x/train/b", "y/extra/a", "y/extra/b"), "class folders that hold splits"),
    "splits apart": (_tops("x/train/a", "x/train/b", "y/val/a", "y/val/b"), "class folders that hold splits"),
    "splits twice": (_tops("train/a", "train/b", "set/train/a", "set/train/b"), "named like a split"),
    "classes with splits in their names": (_tops("cat_train", "dog_train", "cat_test"), "labels are missing"),
    "masks": (_tops("images", "masks"), "segmentation or detection"),
    "masks of other names": (
        lambda folder: [put(folder / f"{kind}s" / f"{kind}_{n}.png") for n in range(3) for kind in ("image", "mask")],
        "segmentation or detection",
    ),
    "masks in splits": (_tops("train/images", "train/masks", "test/images", "test/masks"), "segmentation or detection"),
    "masks of splits": (_tops("images/train", "masks/train"), "segmentation or detection"),
    "masks in classes": (_tops("cat/images", "cat/masks", "dog/images", "dog/masks"), "segmentation or detection"),
    "masks below images": (_tops("cat", "cat/masks", "dog", "dog/masks"), "segmentation or detection"),
    "thumbnails below images": (_tops("cat", "cat/thumbs", "dog", "dog/thumbs"), "thumbnails"),
    "masks beside images": (
        _after(_plain, lambda folder: put(folder / "cat" / "train1_mask.png")),
        "train1_mask.png: belongs to 'train1' beside it",
    ),
    "yolo": (_after(_tops("images/train", "images/val"), _texts("labels/train/0.txt", "labels/val/1.txt")), "detection"),
    "roboflow": (_after(_tops("train/images", "valid/images"), _texts("train/labels/0.txt", "train/labels/1.txt")), "detection"),
    "coco": (_after(_tops("train2017", "val2017"), _texts("annotations/instances.json")), "detection"),
    "one class": (_tops("cat"), "only one class"),
    "empty class": (_after(_plain, lambda folder: (folder / "emu").mkdir()), "no images of this class"),
    "texts as a class": (_after(_plain, _texts("emu/a.txt")), "no images of this class"),
    "hidden images as a class": (_after(_plain, lambda folder: put(folder / "emu" / ".0.png")), "no images of this class"),
    "pipe as a class": (
        _after(_plain, lambda folder: (folder / "emu").mkdir(), lambda folder: os.mkfifo(folder / "emu" / "0.png")),
        "no images of this class",
    ),
    "linked class": (_after(_plain, lambda folder: (folder / "emu").symlink_to(folder / "cat")), ""),
    "unknown test class": (_tops("train/a", "train/b", "test/yak"), "'yak' is not one of the training classes"),
    "another case": (_tops("train/Cat", "train/b", "test/cat", "test/b"), "'cat' of the test split is called 'Cat' in training"),
    "two forms": (_tops("caf\u00e9", "cafe\u0301", "b"), "same class name"),
    "blanks": (_tops("cat", "cat ", "b"), "same class name"),
    "broken image": (_after(_plain, _texts("cat/x.png")), "cannot be decoded"),
    "broken parquet": (_after(_plain, _texts("train.parquet")), ""),
    "other size": (
        _after(_plain, lambda folder: _write(folder / "cat" / "z.png", _encoded("PNG", (1, 2, 3), 17))),
        "17 x 17 pixels",
    ),
    "few images": (_tops("a", "b"), "a class needs at least 3"),
    "long name": (_after(_plain, lambda folder: _write(folder / ("n" * 250 + ".jpg"), b"")), ""),
}  # fmt: skip


def folder_trials(seed: int, count: int) -> Iterator[tuple[str, Callable[[Path], object], Callable[[Path], object]]]:
    """Yields trials: a name, a function that fills an empty folder, and one that opens it and checks what it gives.

    The latter raises an error of the package, or AssertionError if what it gives is wrong.
    """
    chance = random.Random(seed)
    hostile = list(HOSTILE.items())
    for number in range(count):
        if number % 4 == 3:
            name, (make, words) = hostile[number // 4 % len(hostile)]
            yield f"{number}: {name}", make, _refusal(words)
        else:
            layout = random_layout(chance)
            yield f"{number}: {layout}", layout.write, _right(layout)


def random_layout(chance: random.Random) -> Layout:
    """Draws a layout."""
    classes = tuple(chance.sample(CLASSES, chance.randint(2, 4)))
    splits = chance.randrange(len(SPLITS))
    litter = [
        name for name in LITTER if splits in _WRAPPED_ONLY.get(name, range(len(SPLITS))) and chance.random() < 0.2
    ]
    layout = Layout(
        splits, chance.choice(WRAPPERS), classes, tuple(chance.sample(sorted(FORMATS), 3)), chance.random() < 0.3
    )
    # Beside splits in a wrapper, a folder at the top would hide that it is one.
    return replace(layout, litter=tuple(litter), wrapper="" if "unlabelled split" in litter else layout.wrapper)


def _right(layout: Layout) -> Callable[[Path], object]:
    def check(folder: Path) -> None:
        try:
            data = _load(folder)
        except PocketError as error:
            raise AssertionError(f"refused: {error}") from error
        layout.check(data)

    return check


def _refusal(words: str) -> Callable[[Path], object]:
    def check(folder: Path) -> None:
        said = None
        try:
            _load(folder)
        except PocketError as error:
            said = error
        if words:
            assert said is not None, "no error"
            assert words in str(said), f"{words!r} is not in {said}"
        if said is not None:
            assert "\n" not in str(said), "an error of several lines"
            raise said

    return check


def _load(folder: Path) -> DataSet:
    return load(folder, cache=folder.with_name(f"{folder.name}-cache"))


def try_folder(
    make: Callable[[Path], object], opened: Callable[[Path], object], base: Path
) -> tuple[PocketError | None, float]:
    """Fills a folder below `base`, opens it, and removes it: our error if there was one, and the seconds it took."""
    folder = base / "data"
    folder.mkdir()
    make(folder)
    begin = time.perf_counter()
    try:
        opened(folder)
    except PocketError as error:
        return error, time.perf_counter() - begin
    finally:
        for path in base.iterdir():
            shutil.rmtree(path)
    return None, time.perf_counter() - begin


def main() -> None:
    logging.getLogger("pocketcnn").setLevel(logging.ERROR)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    outcomes: Counter[str] = Counter()
    longest = (0.0, "")
    with tempfile.TemporaryDirectory() as base:
        for name, make, opened in folder_trials(0, count):
            try:
                error, seconds = try_folder(make, opened, Path(base))
            except Exception as problem:
                print(f"{name!a}: {type(problem).__name__}: {problem}")
                outcomes["WRONG"] += 1
                continue
            outcomes["refused" if error else "right"] += 1
            longest = max(longest, (seconds, ascii(name)))
    print(f"{count} layouts: {dict(outcomes)}; the longest took {longest[0]:.2f} s ({longest[1]})")


if __name__ == "__main__":
    main()
