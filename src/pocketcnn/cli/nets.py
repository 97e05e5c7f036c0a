"""The nets and images that a command line names."""

import functools
import getpass
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketcnn.cli.arguments import ANY_TABLE, ModelArguments, TableOptions, model_options_of, table_options_of
from pocketcnn.cli.printing import complain, doing, size_in_words
from pocketcnn.errors import BadUsage, MissingPassphrase, UnknownPretrained
from pocketcnn.support.labels import labels_of
from pocketcnn.support.runs import CONFIG, MODEL

if TYPE_CHECKING:
    from torch import nn

    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.data import DataSet


@dataclass(frozen=True)
class GivenNet:
    """A net that a word of the command line names, and what is known of it.

    `path` is its file, None for a net made by name. `header` holds the notes of its file, as they are to be written again.
    """

    title: str
    net: "nn.Module"
    path: Path | None
    header: dict[str, Any]
    notes: "ImageNotes"


def open_net(word: str, given: ModelArguments | None = None) -> GivenNet:
    """Opens the net that a word names: a model file, the folder of a run, a trained net of the package, or a net by name.

    Args:
        word: as for `model_path`; or the name of a plain net or a recipe, with its options.
        given: flags that make a net by name, where the verb has them.
    Raises:
        BadUsage: flags that make a net were given for a file.
        UnknownModel: the word names no net; or another error of `model_path` and of loading.
    """
    from pocketcnn import checkpoint
    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.models import recipes
    from pocketcnn.models.spec import parse_options
    from pocketcnn.support.protocols import TakesImages

    options = model_options_of(given) if given is not None else {}
    if not is_made_by_name(word):
        path = model_path(word)
        if options:
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in options)
            raise BadUsage(
                f"{word}: the net in a model file is already built, {flags} cannot change it; leave {flags} out"
            )
        header = checkpoint.read_header(path)["notes"]
        return GivenNet(word, load_net(path), path, header, ImageNotes.from_notes(header))
    name, own = parse_options(word)
    if contrary := [key for key in own if key in options and options[key] != own[key]]:
        raise BadUsage(f"{word} and --{contrary[0].replace('_', '-')} {options[contrary[0]]} differ; give one of them")
    net = recipes.create_model(name, **{**options, **own})
    header = {"input_size": list(net.input_size)} if isinstance(net, TakesImages) else {}
    return GivenNet(word, net, None, header, ImageNotes.from_notes(header))


def is_known_name(word: str) -> bool:
    """Tells whether a word is the name of a plain net or a recipe, with its options."""
    from pocketcnn.models.recipes import BUILDERS, RECIPES

    return word.partition(":")[0] in (*BUILDERS, *RECIPES)


def is_made_by_name(word: str) -> bool:
    """Tells whether a word means a net by name, not a file; says so if a file or folder is called the same."""
    exists = Path(word).exists()
    if is_known_name(word):
        if exists:
            complain(f"{word}: taken as the net of that name; write ./{word} for the file or folder")
        return True
    return not exists and "/" not in word and not word.endswith(".safetensors")


def some_test_images(
    name: str | None, notes: "ImageNotes", most: int, title: str = "the net", tables: TableOptions = ANY_TABLE
) -> tuple[Any, Any, Any, Sequence[str]]:
    """Test images spread evenly over the split.

    Args:
        name: of the data set; by default the one that the net was trained on.
        notes: what the net knows of its images.
        most: how many images at most.
        title: name of the net, for messages.
        tables: flags that say how its tables are read.
    Returns:
        The images as uint8, the same normalised, their labels, and the names of the classes.
    Raises:
        BadUsage: the images are not of the size that the net was trained on.
    """
    import torch

    data = load_for(notes, name, title, tables=tables)
    count = len(data.test)
    chosen = torch.arange(min(count, most)) * count // min(count, most)  # a split may be sorted by class
    pixels = data.test.images[chosen]
    return pixels, _normalised(pixels, notes), data.test.labels[chosen], data.classes


def reading_for(
    notes: "ImageNotes", name: str, title: str, *, image_size: int | None = None, channels: int | None = None
) -> dict[str, Any]:
    """How to read a data set for a trained net: as given, and what is not given as in the net's training.

    A built-in data set has a size of its own, which is kept; any other is brought to the size that the net knows.

    Returns:
        `image_size` and `channels`, as `pocketcnn.data.load` takes them.
    Raises:
        BadUsage: what is given contradicts what the net knows.
    """
    from pocketcnn.data.sets import BUILT_IN_SIZES

    if notes.lacks("input_size") == []:
        known_channels, height, width = notes.input_size
        if (image_size or height, image_size or width, channels or known_channels) != (height, width, known_channels):
            asked = " and ".join(f"{k} {v}" for k, v in (("--image-size", image_size), ("--channels", channels)) if v)
            raise BadUsage(
                f"{title}: was trained on images of {size_in_words(notes.input_size)} (channels x height x width), which "
                f"{asked} contradicts; leave {asked} out"
            )
        if name not in BUILT_IN_SIZES or name == notes.data:
            native = notes.input_size == BUILT_IN_SIZES.get(name)  # read from the cache as it is
            image_size = image_size or (height if height == width and not native else None)
            channels = channels or (known_channels if not native else None)
    return {"image_size": image_size, "channels": channels}


def load_for(
    notes: "ImageNotes",
    name: str | None,
    title: str,
    *,
    image_size: int | None = None,
    channels: int | None = None,
    skip_bad_images: bool = False,
    tables: TableOptions = ANY_TABLE,
    hint: str = "",
) -> "DataSet":
    """Loads a data set as a trained net expects it: of its size, normalised by its mean and deviation, with its classes.

    Every verb that shows a data set to a trained net does so by this function.

    Args:
        notes: what the net knows of its images.
        name: of the data set; by default the one that the net was trained on.
        title: name of the net, for messages.
        image_size: as given on the command line; by default the net's, see `reading_for`. So is `channels`.
        channels: likewise.
        skip_bad_images: leaves out images that cannot be decoded.
        tables: flags that say how tables are read; of the net's own data by default as in its training.
        hint: advice to add to the error if the images are of another size.
    Raises:
        BadUsage: the net was trained on other images, or on data that are not here; or what is given contradicts it.
    """
    from pocketcnn.data import load
    from pocketcnn.errors import UnknownData

    if name is None and notes.lacks("data"):
        raise BadUsage(f"{title}: does not say which data it was trained on; name some with --data")
    own = name is None or name == notes.data
    name = name or notes.data
    reading = reading_for(notes, name, title, image_size=image_size, channels=channels)
    columns = table_options_of(tables, notes.reading if own else {})
    try:
        with doing(f"reading {name}"):
            data = load(name, skip_bad_images=skip_bad_images, **reading, **columns)
    except UnknownData as error:
        if not own:
            raise
        raise BadUsage(f"{title}: was trained on {name}, which is not here; give a data set with --data") from error
    if not own and any(reading.values()) and image_size is None and channels is None:
        complain(f"{name}: read as images of {size_in_words(notes.input_size)}, as {title} was trained on")
    return as_trained(data, notes, hint)


def load_net(path: Path) -> "nn.Module":
    """Loads the net of a model file; asks for the passphrase if the file has one."""
    from pocketcnn import checkpoint

    return checkpoint.load(path, passphrase=passphrase_of(path))


@functools.cache  # so that it is asked for once
def passphrase_of(path: Path) -> str | None:
    """The passphrase of a model file; None if the file has none."""
    from pocketcnn import checkpoint

    return _secret("POCKETCNN_PASSPHRASE", f"passphrase of {path}") if "key" in checkpoint.read_header(path) else None


def new_passphrase(path: Path) -> str:
    """Asks for the passphrase of a file to be written; asks twice, because a typing mistake would lock the file for ever."""
    words = f"new passphrase of {path}"
    given = _secret("POCKETCNN_NEW_PASSPHRASE", words)
    if given != _secret("POCKETCNN_NEW_PASSPHRASE", f"{words}, once more"):
        raise BadUsage("the two passphrases differ; nothing was written")
    return given


def _secret(variable: str, words: str) -> str:
    """Reads a secret from the environment, or asks on the terminal; never from the command line, which others can see."""
    if given := os.environ.get(variable):
        return given
    if not sys.stdin.isatty():
        raise MissingPassphrase(f"{words} is needed; set {variable}, or start from a terminal")
    return getpass.getpass(f"{words}: ")


def model_path(name: str | Path) -> Path:
    """Finds the model file that a path or name means.

    Args:
        name: a file; a folder, whose `model.safetensors` or else only model file is meant; or DATA/NAME of a trained net
            in the package.
    Raises:
        FileNotFoundError: there is no such file, or no model file in the folder, whose run may not be finished.
        BadUsage: the folder holds several nets.
        UnknownPretrained: the package has no such net.
        BadUsage: the name is that of an untrained net.
    """
    path = Path(name)
    if path.is_dir():
        from pocketcnn import checkpoint

        if (usual := checkpoint.file_in(path)).is_file():
            return usual
        if (path / CONFIG).is_file():
            raise FileNotFoundError(f"{path}: the run in this folder is not finished; repeat its command to finish it")
        found = sorted(path.glob("*.safetensors"))
        found = found or sorted(file for depth in ("*", "*/*") for file in path.glob(f"{depth}/{checkpoint.FILE}"))
        if len(found) == 1:
            complain(f"{path}: taken as {found[0]}, the only net in this folder")
            return found[0]
        if found:
            some = ", ".join(str(file) for file in found[:4]) + (", ..." if len(found) > 4 else "")
            raise BadUsage(f"{path}: holds {len(found)} nets; give one of them: {some}")
        raise FileNotFoundError(f"{path}: no model file (*.safetensors) in this folder")
    if path.is_file():
        return path
    data, _, own = path.as_posix().partition("/")
    if own and "/" not in own and path.suffix != ".safetensors":
        from pocketcnn import zoo

        try:
            return zoo.path_of(zoo.find(own, data))
        except UnknownPretrained:
            if not path.parent.is_dir():  # a file was meant if its folder exists
                raise
    if is_known_name(str(name)):
        raise BadUsage(
            f"{name}: a net by name is not trained; give a model file, the folder of a run, or a net of models --pretrained"
        )
    raise FileNotFoundError(f"{path}: no such model file")


def input_size_of(given: Any, opened: GivenNet, *, batch: int = 1) -> tuple[int, int, int]:
    """(channels, height, width) as given, else as the net's file says, else of 32x32 pixels.

    Raises:
        BadUsage: other channels are given than the net has.
        NotEnoughMemory: the machine cannot hold a pass of such images.
    """
    from pocketcnn.cost.memory import check_room

    asked, known = given.input_size, opened.notes.input_size or getattr(opened.net, "input_size", ())
    if asked and known and tuple(asked) != tuple(known):
        has, wanted = size_in_words(known), size_in_words(asked)
        if asked[0] != known[0]:
            raise BadUsage(
                f"{opened.title}: takes images of {has} (channels x height x width), not {wanted}; leave --input-size out"
            )
        complain(f"{opened.title}: trained on images of {has}; images of {wanted} are used, as --input-size says")
    channels, height, width = asked or known or (getattr(given, "in_channels", None) or 3, 32, 32)
    if 0 not in (channels, height, width):
        check_room(opened.net, (channels, height, width), batch=batch)
    return channels, height, width


def size_of(opened: GivenNet) -> int:
    """The length of a net's file in bytes; for a net made by name of the file that it would have."""
    if opened.path is not None:
        return opened.path.stat().st_size
    from pocketcnn import checkpoint

    with tempfile.TemporaryDirectory() as place:
        return checkpoint.save(opened.net, Path(place) / MODEL, notes=opened.header)


def trained_notes(title: str, path: Path) -> "ImageNotes":
    """Reads what a trained net's file says of its images.

    Raises:
        BadUsage: an entry is lacking, so the net was not trained by this package.
    """
    from pocketcnn.checkpoint.notes import ImageNotes

    notes = ImageNotes.read(path)
    if lacking := notes.lacks():
        raise BadUsage(
            f"{title}: not a trained net's file: it does not say what its images and classes are (it lacks "
            f"{', '.join(lacking)})"
        )
    return notes


def as_trained(data: "DataSet", notes: "ImageNotes", hint: str = "") -> "DataSet":
    """Normalises a data set as a trained net expects its images, and gives its classes the numbers of the net's outputs.

    Classes are matched by their names. If no name is one of the net's, they are compared by number, which is reported.

    Args:
        data: the data set.
        notes: what the net knows of its images.
        hint: advice to add to the error.
    Raises:
        BadUsage: the images are of another size than those of the training, or the net knows some classes but not all.
    """
    if not notes.lacks("input_size") and data.input_size != notes.input_size:
        raise BadUsage(
            f"{data.name}: images are {size_in_words(data.input_size)}, the net was trained on {size_in_words(notes.input_size)} "
            f"(channels x height x width){hint}"
        )
    seen = notes.applied_to(data)
    if notes.lacks("mean", "std"):
        complain(
            f"{data.name}: normalised by its own mean and deviation; the net's file does not say those of its training"
        )
    if notes.lacks("classes") or seen.classes == notes.classes:
        return seen
    known, unknown = notes.knows(data.classes)
    if known and unknown:
        raise BadUsage(
            f"{data.name}: has classes that the net does not know ({', '.join(unknown[:3])}), beside those that it knows "
            f"({', '.join(known[:3])}); leave them out, or give data with the net's classes"
        )
    if known:
        complain(f"{data.name}: its {len(known)} classes are matched by name with the net's {len(notes.classes)}")
        return notes.numbered(seen)
    names = f"{', '.join(data.classes[:3])}, ...; the net's are {', '.join(notes.classes[:3])}, ..."
    complain(f"{data.name}: its classes are {names}; they are compared by number")
    return seen


def model_files(paths: Sequence[Path], titles: Sequence[str]) -> dict[str, Path]:
    """Finds model files, see `model_path`, and gives each a title: its own, or the parts of its path that tell it apart.

    Raises:
        BadUsage: no paths, another number of titles than of paths, or two equal titles.
    """
    if not paths:
        raise BadUsage("give at least one model file or folder of a run")
    if titles and len(titles) != len(paths):
        raise BadUsage(f"{len(titles)} titles for {len(paths)} nets")
    found = [model_path(path) for path in paths]
    titles = titles or labels_of([file.with_suffix("") for file in found], dull=(Path(MODEL).stem,))
    if len(set(titles)) < len(titles):
        twice = next(title for title in titles if list(titles).count(title) > 1)
        raise BadUsage(f"two nets are called {twice!r}; --titles gives them names")
    return dict(zip(titles, found, strict=True))


def common_notes(notes_of: Mapping[str, Mapping[str, Any]]) -> "ImageNotes":
    """Checks that several trained nets, by title, were trained on images alike, and returns the notes of the first.

    Raises:
        BadUsage: a file lacks an entry, or the nets differ in input size, mean or deviation.
    """
    from pocketcnn.checkpoint.notes import ImageNotes

    known = {title: ImageNotes.from_notes(notes) for title, notes in notes_of.items()}
    for title, notes in known.items():
        if lacking := notes.lacks("data", "input_size", "mean", "std"):
            raise BadUsage(
                f"{title}: not a trained net's file: it does not say what its images look like (it lacks {', '.join(lacking)})"
            )
    first, notes = next(iter(known.items()))
    looks = (notes.input_size, notes.mean, notes.std)
    if other := next((title for title, n in known.items() if (n.input_size, n.mean, n.std) != looks), None):
        raise BadUsage(f"{other} was trained on other images than {first}; take them one by one")
    return notes


def images_for(given: Any, notes: "ImageNotes", title: str) -> tuple[Any, Any]:
    """Reads the images that the flags name: an image file, or test images by their numbers.

    Args:
        given: arguments with `image_file`, `images` and `data`.
        notes: what the nets know of their images.
        title: name of a net, for messages.
    Returns:
        The images as uint8, and the same normalised.
    """
    from pocketcnn.data import read_image

    channels, height, _ = notes.input_size
    if given.image_file is not None:
        pixels = read_image(given.image_file, image_size=height, channels=channels, bits=notes.reading.get("bits"))[
            None
        ]
    else:
        test = load_for(notes, given.data, title, tables=given).test
        if not given.images or not 0 <= min(given.images) <= max(given.images) < len(test):
            raise BadUsage(f"images are numbers from 0 to {len(test) - 1}, got {', '.join(map(str, given.images))}")
        pixels = test.images[list(given.images)]
    return pixels, _normalised(pixels, notes)


def _normalised(pixels: Any, notes: "ImageNotes") -> Any:
    """Normalises images as in the nets' training; raises BadUsage if they are of another size."""
    if tuple(pixels.shape[1:]) != notes.input_size:
        raise BadUsage(f"the images are {list(pixels.shape[1:])}, the nets were trained on {list(notes.input_size)}")
    return notes.normalise(pixels)
