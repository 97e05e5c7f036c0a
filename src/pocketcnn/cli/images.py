"""Images for the nets that a command line names: data sets and image files, read and normalised as in a net's training."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pocketcnn.cli.arguments import ANY_TABLE, TableOptions, load_data, table_options_of
from pocketcnn.cli.nets import GivenNet
from pocketcnn.cli.printing import complain, doing, size_in_words
from pocketcnn.errors import BadUsage

if TYPE_CHECKING:
    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.data import DataSet


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

    from pocketcnn.checkpoint.notes import ImageNotes

    data = load_for(notes, name, title, tables=tables)
    count = len(data.test)
    chosen = torch.arange(min(count, most)) * count // min(count, most)  # a split may be sorted by class
    pixels = data.test.images[chosen]
    return pixels, _normalised(pixels, ImageNotes.of(data)), data.test.labels[chosen], data.classes


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
        raise BadUsage(
            f"{title}: not a trained net's file: it does not say which data it was trained on; name some with --data"
        )
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
    if (count := len(notes.mean or notes.std)) not in (0, data.input_size[0]):
        raise BadUsage(
            f"{data.name}: images have {data.input_size[0]} channels, and the net a mean for {count}; give --mean and --std"
        )
    seen = notes.applied_to(data)
    if notes.lacks("mean", "std"):
        complain(
            f"{data.name}: normalised by its own mean and deviation; nobody says those of the net's training (--mean, --std)"
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


def data_for(opened: GivenNet, given: Any) -> "DataSet":
    """Loads or streams the data that flags of `DataOptions` describe for a trained net; by default those of its training.

    The images are as `as_trained` makes them.

    Raises:
        BadUsage: no data are given or known, or a flag contradicts what the net knows.
    """
    name = given.data or opened.needs("data").notes.data
    reading = reading_for(opened.notes, name, opened.title, image_size=given.image_size, channels=given.channels)
    columns = table_options_of(given, opened.notes.reading if name == opened.notes.data else {})
    return as_trained(
        load_data(replace(given, data=name, **reading, pixel_bits=columns.pop("bits"), **columns)), opened.notes
    )


def completed(opened: GivenNet, data: "DataSet") -> GivenNet:
    """Fills what is not known of a trained net's images with what its data set is, as `load_for` returned it.

    A file that says something of its images is left as it is.

    Raises:
        BadUsage: the names that `--classes` gives are more or fewer than the net's outputs.
    """
    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.support.modules import evaluating

    if opened.path is None and not opened.notes.lacks("classes"):
        with evaluating(opened.net):
            outputs = opened.net(ImageNotes.of(data).normalise(data.train[:2][0])).shape[-1]
        if outputs != (count := len(opened.notes.classes)):
            raise BadUsage(
                f"{opened.title}: has {outputs} outputs, and --classes names {count} classes; give one for each"
            )
    if opened.path is not None and not opened.notes.lacks("input_size"):
        return opened
    own = ImageNotes.of(data).as_dict()
    header = {**opened.header, **{name: own[name] for name in opened.notes.lacks() if name in own}}
    return replace(opened, header=header, notes=ImageNotes.from_notes(header))


def common_notes(nets: Mapping[str, GivenNet], data: str | None = None) -> "ImageNotes":
    """Checks that several trained nets, by title, were trained on images alike, and returns the notes of the first.

    Args:
        nets: the nets.
        data: name of the data set that was given; it says what is lacking.
    Raises:
        BadUsage: a net is not trained, or lacks an entry and no data were given; or the nets differ in input size, mean or
            deviation.
    """
    needed = () if data else ("data", "input_size", "mean", "std")
    known = {title: net.needs(*needed).notes for title, net in nets.items()}
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
    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.data import read_image

    if given.image_file is not None:
        if lacking := notes.lacks("input_size", "mean", "std"):
            raise BadUsage(
                f"{title}: it is not known what its images are ({', '.join(lacking)}); give --data with such images"
            )
        channels, height, _ = notes.input_size
        found = read_image(given.image_file, image_size=height, channels=channels, bits=notes.reading.get("bits"))
        return found[None], _normalised(found[None], notes)
    data = load_for(notes, given.data, title, tables=given)
    if not given.images or not 0 <= min(given.images) <= max(given.images) < len(data.test):
        raise BadUsage(f"images are numbers from 0 to {len(data.test) - 1}, got {', '.join(map(str, given.images))}")
    pixels = data.test.images[list(given.images)]
    return pixels, _normalised(pixels, ImageNotes.of(data))


def _normalised(pixels: Any, notes: "ImageNotes") -> Any:
    """Normalises images as in the nets' training; raises BadUsage if they are of another size."""
    if tuple(pixels.shape[1:]) != notes.input_size:
        raise BadUsage(f"the images are {list(pixels.shape[1:])}, the nets were trained on {list(notes.input_size)}")
    return notes.normalise(pixels)
