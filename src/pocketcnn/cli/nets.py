"""The nets and images that a command line names."""

import functools
import getpass
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketcnn.cli.arguments import ModelArguments, model_options_of
from pocketcnn.cli.printing import complain, size_in_words
from pocketcnn.errors import BadUsage, MissingPassphrase, UnknownPretrained
from pocketcnn.support.labels import labels_of
from pocketcnn.support.runs import CONFIG, MODEL
from pocketcnn.support.timing import first_line

if TYPE_CHECKING:
    from torch import nn

    from pocketcnn.checkpoint.notes import ImageNotes


@dataclass(frozen=True)
class GivenNet:
    """A net that a word of the command line names, and what is known of it.

    `path` is its file, None for a net made by name. `header` holds the notes of its file, as they are to be written again.
    `trained` is False for a net by name with initial weights.
    """

    title: str
    net: "nn.Module"
    path: Path | None
    header: dict[str, Any]
    notes: "ImageNotes"
    trained: bool = True

    def needs(self, *names: str) -> "GivenNet":
        """Checks that the net is trained, and that entries of its notes are known.

        Raises:
            BadUsage: it has initial weights, or nobody has said what an entry is; the message names the flags.
        """
        if not self.trained:
            raise BadUsage(
                f"{self.title}: a net by name is not trained; give its weights with --weights, or give a model file, the folder "
                "of a run, or a net of models --pretrained"
            )
        if names and (lacking := self.notes.lacks(*names)):
            flags = dict.fromkeys(_FLAGS[name] for name in lacking)
            whose = "it is not known" if self.path is None else "not a trained net's file: it does not say"
            raise BadUsage(
                f"{self.title}: {whose} what its images and classes are ({', '.join(lacking)}); say so with {', '.join(flags)}"
            )
        return self


_FLAGS = {
    "data": "--data",
    "classes": "--classes",
    "input_size": "--image-size and --channels",
    "mean": "--mean",
    "std": "--std",
}


def open_net(word: str, given: Any = None) -> GivenNet:
    """Opens the net that a word names: a model file, the folder of a run, a trained net of the package, or a net by name.

    Args:
        word: as for `model_path`; or the name of a net, with its options: of this package, of timm or torchvision, or a
            function that makes one.
        given: flags of `ModelArguments` and `ForeignArguments`, where the verb has them.
    Raises:
        BadUsage: flags that make a net were given for a file, or contradict what it says.
        UnknownModel: the word names no net; or another error of `model_path` and of loading.
    """
    opened = _made(word, given) if is_made_by_name(word) else _read(word, given)
    header = {**opened.header, **_image_flags(opened, given)}
    return replace(opened, header=header, notes=_notes_in(header))


def _read(word: str, given: Any) -> GivenNet:
    """Opens the net of a model file."""
    from pocketcnn import checkpoint

    path = model_path(word)
    if options := model_options_of(given) if isinstance(given, ModelArguments) else {}:
        flags = ", ".join(f"--{option.replace('_', '-')}" for option in options)
        raise BadUsage(f"{word}: the net in a model file is already built, {flags} cannot change it; leave {flags} out")
    if getattr(given, "weights", None) is not None:
        raise BadUsage(
            f"{word}: the net in a model file has its weights; leave --weights out, or name the net that makes it"
        )
    header = checkpoint.read_header(path)["notes"]
    return GivenNet(word, load_net(path, getattr(given, "base", None)), path, header, _notes_in(header))


def _made(word: str, given: Any) -> GivenNet:
    """Makes a net by name, and gives it trained weights if there are any."""
    from pocketcnn import checkpoint
    from pocketcnn.models import recipes
    from pocketcnn.models.builders import image_facts
    from pocketcnn.models.spec import parse_model
    from pocketcnn.support.protocols import TakesImages

    if getattr(given, "base", None) is not None:
        raise BadUsage(f"{word}: is made by name; --base is for a model file, leave it out")
    options = model_options_of(given) if isinstance(given, ModelArguments) else {}
    name, own = parse_model(word)
    if contrary := [key for key in own if key in options and options[key] != own[key]]:
        raise BadUsage(f"{word} and --{contrary[0].replace('_', '-')} {options[contrary[0]]} differ; give one of them")
    net = recipes.create_model(name, **{**options, **own})
    header: dict[str, Any] = {"input_size": list(net.input_size)} if isinstance(net, TakesImages) else {}
    weights, pretrained = getattr(given, "weights", None), own.get("pretrained") is True
    if weights is not None:
        if pretrained:
            raise BadUsage(f"{word}: has trained weights already; leave out --weights or pretrained=True")
        checkpoint.load_weights_(net, weights)
    trained = weights is not None or pretrained
    if trained:
        # Weights of one's own may be for images of any size, but are seldom normalised otherwise.
        facts = image_facts(name)
        if {**options, **own}.get("in_channels", 3) == len(facts.get("mean", ())):
            header |= {key: value for key, value in facts.items() if pretrained or key != "input_size"}
    return GivenNet(word, net, None, header, _notes_in(header), trained)


def _image_flags(opened: GivenNet, given: Any) -> dict[str, Any]:
    """The entries of a net's notes that flags give.

    Raises:
        BadUsage: a flag contradicts the net's file, or the flags each other.
    """
    found: dict[str, Any] = {}
    if opened.path is None or opened.notes.lacks("input_size"):  # else they are for other uses
        side, size = getattr(given, "image_size", None), getattr(given, "input_size", None)
        if side is not None:
            size = (getattr(given, "channels", None) or 3, side, side)
        found = {} if size is None else {"input_size": list(size)}
    for name in ("mean", "std"):
        if values := getattr(given, name, None):
            found[name] = list(values)
    if (path := getattr(given, "classes", None)) is not None:
        found["classes"] = _lines_of(path)
    for name, value in found.items():
        if opened.path is not None and not opened.notes.lacks(name) and list(getattr(opened.notes, name)) != value:
            raise BadUsage(f"{opened.title}: its file says otherwise than {_FLAGS[name]}; leave {_FLAGS[name]} out")
    known = {**{name: getattr(opened.notes, name) for name in ("mean", "std")}, **found}
    if bool(known["mean"]) != bool(known["std"]):
        raise BadUsage("give --mean and --std, or neither")
    channels = {len(found[name]) for name in ("mean", "std") if name in found}
    if "input_size" in found or not opened.notes.lacks("input_size"):
        channels.add((found.get("input_size") or opened.notes.input_size)[0])
    if len(channels) > 1:
        raise BadUsage("give a --mean and a --std for each channel of an image")
    if any(not -1 <= value <= 2 for value in found.get("mean", ())):
        raise BadUsage("--mean is of pixels scaled to [0, 1]; divide by 255")
    return found


def _lines_of(path: Path) -> list[str]:
    """The names of classes in a text file, one on each line.

    Raises:
        BadUsage: no such file, fewer than two names, or a name twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"{path}: names of classes cannot be read from it ({first_line(error)})") from error
    if len(names) < 2:
        raise BadUsage(f"{path}: {len(names)} names of classes; two or more are needed, one on each line")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadUsage(f"{path}: names the class {twice!r} twice")
    return names


def is_known_name(word: str) -> bool:
    """Tells whether a word is the name of a net or a recipe, with its options."""
    from pocketcnn.models.builders import is_foreign, names, split_name
    from pocketcnn.models.recipes import RECIPES

    name, _ = split_name(word, RECIPES)
    return name in (*names(), *RECIPES) or (is_foreign(name) and not Path(word).exists())


def is_made_by_name(word: str) -> bool:
    """Tells whether a word means a net by name, not a file; says so if a file or folder is called the same."""
    exists = Path(word).exists()
    if is_known_name(word):
        if exists:
            complain(f"{word}: taken as the net of that name; write ./{word} for the file or folder")
        return True
    return not exists and "/" not in word and not word.endswith(".safetensors")


def _notes_in(header: Mapping[str, Any]) -> "ImageNotes":
    from pocketcnn.checkpoint.notes import ImageNotes

    return ImageNotes.from_notes(header)


def load_net(path: Path, base: str | None = None) -> "nn.Module":
    """Loads the net of a model file, with the plain net named as `base`; asks for the passphrase if the file has one."""
    from pocketcnn import checkpoint

    return checkpoint.load(path, base=base, passphrase=passphrase_of(path))


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


def open_nets(words: Sequence[str], titles: Sequence[str], given: Any = None) -> dict[str, GivenNet]:
    """Opens trained nets, see `open_net`, by title: their own, or the parts of their paths that tell them apart.

    Raises:
        BadUsage: no words, another number of titles than of words, or two equal titles.
    """
    if not words:
        raise BadUsage("give at least one model file or folder of a run")
    if titles and len(titles) != len(words):
        raise BadUsage(f"{len(titles)} titles for {len(words)} nets")
    if len(words) > 1 and getattr(given, "weights", None) is not None:
        raise BadUsage("--weights are those of one net; give the nets one by one, or save them as model files")
    found = [open_net(word, given) for word in words]
    paths = [net.path.with_suffix("") if net.path is not None else Path(net.title) for net in found]
    titles = titles or labels_of(paths, dull=(Path(MODEL).stem,))
    if len(set(titles)) < len(titles):
        twice = next(title for title in titles if list(titles).count(title) > 1)
        raise BadUsage(f"two nets are called {twice!r}; --titles gives them names")
    return dict(zip(titles, found, strict=True))
