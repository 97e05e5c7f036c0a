"""Flags that several verbs share, and the library's arguments that they become."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pocketcnn.cli.printing import doing
from pocketcnn.errors import BadUsage
from pocketcnn.support.ranges import Channels, Count, InputSize, OpenFraction, Pixels, Positive, Width, Workers
from pocketcnn.train.hardware import Hardware

if TYPE_CHECKING:
    from pocketcnn.data import DataSet


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Flags for the answer; every verb that prints a table takes them."""

    json: bool = False
    """Print the table as one JSON document: accuracies as shares of 1, sizes in bytes, times in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Flags for what can be read in several ways; every verb that reads a data set takes them."""

    image_column: str | None = None
    """Column of the images in parquet files; needed if several columns may hold them."""
    label_column: str | None = None
    """Column of the labels in parquet files; needed if several columns may hold them."""
    pixel_bits: Literal[8, 10, 12, 14, 16] | None = None
    """Bits that pixels of more than 8 bits use; by default the fewest that hold their largest value."""


ANY_TABLE = TableOptions()


@dataclass(frozen=True, kw_only=True)
class DataOptions(TableOptions):
    """Flags for reading images."""

    image_size: Pixels | None = None
    """Resize images by their shorter side and crop the centre to a square of this side, in pixels, up to 16,384."""
    channels: Literal[1, 3] | None = None
    """Convert all images to grey (1) or RGB (3)."""
    skip_bad_images: bool = False
    """Skip and count images that cannot be decoded, instead of stopping at the first."""
    validation: OpenFraction = 0.1
    """Share of the training images set aside for making choices, in (0, 1); the test split is used once, at the end."""
    limit: Count | None = None
    """Use at most this many training images, 1 or more."""
    stream: bool = False
    """Decode the images of a folder of parquet files during training instead of before it; needs --image-size."""
    workers: Workers = 0
    """Processes per device that decode a stream, up to 1,024."""


@dataclass(frozen=True, kw_only=True)
class DataArguments(DataOptions):
    """Flags for the data set that a net is trained on."""

    data: str = "digits"
    """Built-in name (digits, mnist, fashion-mnist, cifar10, cifar100), hub id, folder of parquet files or of class folders."""


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """Flags for making a net by name."""

    width: Width = 1.0
    """Factor for the channels of every layer, in [0.001, 1000]."""
    stem: Literal["imagenet", "small", "deep"] | None = None
    """First layers of the net; by default the net's own."""
    in_channels: Channels | None = None
    """Channels of an image; by default those of the data, or 3."""
    num_classes: Count | None = None
    """Outputs of the net; by default the classes of the data, or the net's own."""


@dataclass(frozen=True, kw_only=True)
class ForeignArguments:
    """Flags for a net from elsewhere: its weights, the code that makes it, and what it expects of its images."""

    weights: Path | None = None
    """Trained weights of a net by name: a .safetensors file, or one of torch.save (.pth, .pt, .ckpt)."""
    base: str | None = None
    """Function of yours that makes the plain net of a model file, nets/mine.py:build; a file alone starts no code."""
    mean: tuple[float, ...] | None = None
    """Mean per channel, of pixels scaled to [0, 1], that the net's images are normalised by; by default as the file, timm or
    torchvision says."""
    std: tuple[Positive, ...] | None = None
    """Standard deviation per channel, likewise."""
    classes: Path | None = None
    """Text file with the names of the net's classes, one on each line, in the order of its outputs."""


@dataclass(frozen=True, kw_only=True)
class DeviceArguments(Hardware):
    """Flags for the machines that a training runs on: the fields of `Hardware`."""

    devices: Count = 1
    """Number of devices per machine; several train by distributed data parallel."""


@dataclass(frozen=True, kw_only=True)
class SurgeryArguments(ModelArguments, ForeignArguments):
    """Flags for the net to condense, and the layers in it."""

    model: str = "resnet20"
    """A net by name (resnet20, timm:resnet10t, nets/mine.py:build), a model file, the folder of a run, or a trained net of the
    package (cifar10/resnet20)."""
    method: str = "ring"
    """Method that condenses the net; its options are flags, or follow its name: ring:size=0.1"""
    include: tuple[str, ...] | None = None
    """Dotted-name patterns of the layers to condense: "layer3.*" "*.conv2"."""
    exclude: tuple[str, ...] | None = None
    """Dotted-name patterns of the layers to leave as they are."""
    input_size: InputSize | None = None
    """Channels, height and width of an image, for counting multiply-adds and depth; by default the file's, or 3 32 32."""


def load_data(given: Any) -> "DataSet":
    """Loads or streams the data set that `DataArguments` describe."""
    from pocketcnn.data import load, open_stream

    if given.stream:
        if given.image_size is None or given.limit is not None:
            raise BadUsage("a stream needs --image-size, and takes no --limit")
        with doing(f"looking through {given.data}"):
            return open_stream(
                given.data,
                validation=given.validation,
                image_size=given.image_size,
                channels=given.channels or 3,
                workers=given.workers,
                skip_bad_images=given.skip_bad_images,
                **table_options_of(given),
            )
    if given.workers:
        raise BadUsage("--workers read a stream; add --stream, or leave --workers out")
    with doing(f"reading {given.data}"):
        return load(
            given.data,
            validation=given.validation,
            image_size=given.image_size,
            channels=given.channels,
            skip_bad_images=given.skip_bad_images,
            limit=given.limit,
            **table_options_of(given),
        )


def table_options_of(given: TableOptions, usual: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The flags of `TableOptions` as `pocketcnn.data.load` takes them; where one is not given, the usual value if any."""
    names = {
        field.name: field.name.removeprefix("pixel_") for field in fields(TableOptions)
    }  # --bits are those of weights
    found = {name: getattr(given, flag) for flag, name in names.items()}
    return {name: (usual or {}).get(name) if value is None else value for name, value in found.items()}


def model_options_of(given: ModelArguments, data: "DataSet | None" = None, name: str = "") -> dict[str, Any]:
    """Options for `create_model`: those given; for others, what the data need, as far as the net of this name takes it."""
    from pocketcnn.models.recipes import options_for

    options: dict[str, Any] = {}
    if data is not None:
        options = options_for(name, {"in_channels": data.input_size[0], "num_classes": len(data.classes)})
    for option in ("in_channels", "num_classes", "stem"):
        if getattr(given, option) is not None:
            options[option] = getattr(given, option)
    if given.width != 1.0:
        options["width"] = given.width
    return options


def hardware_of(given: DeviceArguments) -> Hardware:
    """The flags as `pocketcnn.train.fit` takes them."""
    return Hardware(**{field.name: getattr(given, field.name) for field in fields(Hardware)})
