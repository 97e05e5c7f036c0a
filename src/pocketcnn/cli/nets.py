"""The nets and images that a command line names."""

import functools
import getpass
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketcnn.cli.arguments import ModelArguments, model_options_of
from pocketcnn.cli.printing import size_in_words
from pocketcnn.errors import BadUsage, MissingPassphrase, UnknownPretrained

if TYPE_CHECKING:
    from torch import nn

    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.data import DataSet


def some_test_images(name: str | None, notes: "ImageNotes", most: int) -> tuple[Any, Any, Any, Sequence[str]]:
    """Test images spread evenly over the split.

    Args:
        name: of the data set; by default the one that the net was trained on.
        notes: what the net knows of its images.
        most: how many images at most.
    Returns:
        The images as uint8, the same normalised, their labels, and the names of the classes.
    Raises:
        BadUsage: the images are not of the size that the net was trained on.
    """
    import torch

    from pocketcnn.data import load

    data = load(name or notes.data)
    count = len(data.test)
    chosen = torch.arange(min(count, most)) * count // min(count, most)  # a split may be sorted by class
    pixels = data.test.images[chosen]
    return pixels, _normalised(pixels, notes), data.test.labels[chosen], data.classes


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


def named_or_file(name: str, given: ModelArguments) -> tuple["nn.Module", dict[str, Any]]:
    """Makes a net by name, or loads it from a file.

    Returns:
        The net, and the notes in its file; for a net by name only its input size, where it has one of its own.
    Raises:
        BadUsage: flags that make a net were given for a file.
    """
    from pocketcnn import checkpoint
    from pocketcnn.models import recipes

    if Path(name).is_file() or name.endswith(".safetensors") or ("/" in name and not Path(name).is_dir()):
        path = model_path(name)
        if options := model_options_of(given):
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in options)
            raise BadUsage(
                f"{name}: the net in a model file is already built, {flags} cannot change it; leave {flags} out"
            )
        return load_net(path), checkpoint.read_header(path)["notes"]
    from pocketcnn.models.spec import parse_options
    from pocketcnn.support.protocols import TakesImages

    name, options = parse_options(name)
    net = recipes.create_model(name, **{**model_options_of(given), **options})
    return net, {"input_size": net.input_size} if isinstance(net, TakesImages) else {}


def model_path(name: str | Path) -> Path:
    """Finds the model file that a path or name means.

    Args:
        name: a file; a folder, whose `model.safetensors` or else first model file is meant; or DATA/NAME of a trained net
            in the package.
    Raises:
        FileNotFoundError: there is no such file, or no model file in the folder.
        UnknownPretrained: the package has no such net.
    """
    path = Path(name)
    if path.is_dir():
        from pocketcnn import checkpoint

        if (usual := checkpoint.file_in(path)).is_file():
            return usual
        if found := sorted(path.glob("*.safetensors")):
            return found[0]
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
    raise FileNotFoundError(f"{path}: no such model file")


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
    """Normalises a data set as a trained net expects its images.

    Classes with other names than the net's are reported on stderr; they are compared by number.

    Args:
        data: the data set.
        notes: what the net knows of its images.
        hint: advice to add to the error.
    Raises:
        BadUsage: the images are of another size than those of the training.
    """
    if data.input_size != notes.input_size:
        raise BadUsage(
            f"{data.name}: images are {size_in_words(data.input_size)}, the net was trained on {size_in_words(notes.input_size)} "
            f"(channels x height x width){hint}"
        )
    if data.classes != notes.classes:
        names = f"{', '.join(data.classes[:3])}, ...; the net's are {', '.join(notes.classes[:3])}, ..."
        print(f"{data.name}: its classes are {names}; they are compared by number", file=sys.stderr)
    return notes.applied_to(data)


def model_files(paths: Sequence[Path], titles: Sequence[str]) -> dict[str, Path]:
    """Finds model files, see `model_path`, and gives each a short title: its own, or from its folder and name.

    Raises:
        BadUsage: no paths, another number of titles than of paths, or two equal titles.
    """
    if not paths:
        raise BadUsage("give at least one model file or folder of a run")
    if titles and len(titles) != len(paths):
        raise BadUsage(f"{len(titles)} titles for {len(paths)} nets")
    files = {}
    for number, path in enumerate(paths):
        file = model_path(path)
        names = [path.name] if path.is_dir() else [path.parent.name, path.stem]
        title = titles[number] if titles else " ".join(n for n in names if n not in ("", "model"))
        if title in files:
            raise BadUsage(f"two nets are called {title!r}; --titles gives them names")
        files[title] = file
    return files


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


def images_for(given: Any, notes: "ImageNotes") -> tuple[Any, Any]:
    """Reads the images that the flags name: an image file, or test images by their numbers.

    Args:
        given: arguments with `image_file`, `images` and `data`.
        notes: what the nets know of their images.
    Returns:
        The images as uint8, and the same normalised.
    """
    from pocketcnn.data import load, read_image

    channels, height, _ = notes.input_size
    if given.image_file is not None:
        pixels = read_image(given.image_file, image_size=height, channels=channels)[None]
    else:
        test = load(given.data or notes.data, image_size=None, channels=None).test
        if not given.images or not 0 <= min(given.images) <= max(given.images) < len(test):
            raise BadUsage(f"images are numbers from 0 to {len(test) - 1}, got {', '.join(map(str, given.images))}")
        pixels = test.images[list(given.images)]
    return pixels, _normalised(pixels, notes)


def _normalised(pixels: Any, notes: "ImageNotes") -> Any:
    """Normalises images as in the nets' training; raises BadUsage if they are of another size."""
    if tuple(pixels.shape[1:]) != notes.input_size:
        raise BadUsage(f"the images are {list(pixels.shape[1:])}, the nets were trained on {list(notes.input_size)}")
    return notes.normalise(pixels)
