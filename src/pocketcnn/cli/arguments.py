"""Flags that several verbs share, and what they mean for the library."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from pocketcnn.errors import BadUsage
from pocketcnn.train.hardware import Hardware

if TYPE_CHECKING:
    from pocketcnn.data import DataSet


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How images are read."""

    image_size: int | None = None
    """Bring all images to this side in pixels."""
    channels: Literal[1, 3] | None = None
    """Convert all images to grey (1) or RGB (3)."""
    skip_bad_images: bool = False
    """Leave out and count images that cannot be decoded, instead of stopping at the first."""
    validation: float = 0.1
    """Share of the training images set aside for choices; the test split is used once, at the end."""
    limit: int | None = None
    """Use at most so many training images."""
    stream: bool = False
    """Decode the images of a folder of parquet files while training, instead of all of them before; needs image_size."""
    workers: int = 0
    """Processes that read a stream, for each device."""


@dataclass(frozen=True, kw_only=True)
class DataArguments(DataOptions):
    """What is trained on."""

    data: str = "digits"
    """Built-in name (digits, mnist, fashion-mnist, cifar10, cifar100), hub id, folder of parquet files or class folders."""


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """How a net is made."""

    width: float = 1.0
    """Scales all channels."""
    stem: Literal["imagenet", "small", "deep"] | None = None
    """First layers of the net; the net's own by default."""
    in_channels: int | None = None
    """Channels of the images; the data's, or 3."""
    num_classes: int | None = None
    """Outputs; the data's, or the net's own."""


@dataclass(frozen=True, kw_only=True)
class DeviceArguments(Hardware):
    """Flags for the machines that a training runs on: the fields of `Hardware`."""

    devices: int = 1
    """Number of devices per machine; several train by distributed data parallel."""


@dataclass(frozen=True, kw_only=True)
class SurgeryArguments(ModelArguments):
    """What is condensed."""

    model: str = "resnet20"
    """A net by name, or a model file."""
    method: str = "ring"
    """How; its options follow as flags."""
    include: tuple[str, ...] | None = None
    """Dotted-name patterns of the layers to condense: "layer3.*" "*.conv2"."""
    exclude: tuple[str, ...] | None = None
    """Patterns of layers to leave alone."""
    input_size: tuple[int, int, int] | None = None
    """Channels, height and width of an image, for multiply-adds and depth; 3 32 32 by default."""


def load_data(given: Any) -> "DataSet":
    from pocketcnn.data import load, open_stream

    if given.stream:
        if given.image_size is None or given.limit is not None:
            raise BadUsage("a stream needs --image-size, and takes no --limit")
        return open_stream(
            given.data,
            validation=given.validation,
            image_size=given.image_size,
            channels=given.channels or 3,
            workers=given.workers,
            skip_bad_images=given.skip_bad_images,
        )
    if given.workers:
        raise BadUsage("--workers read a stream; add --stream")
    return load(
        given.data,
        validation=given.validation,
        image_size=given.image_size,
        channels=given.channels,
        skip_bad_images=given.skip_bad_images,
        limit=given.limit,
    )


def model_options_of(given: ModelArguments, data: "DataSet | None" = None) -> dict[str, Any]:
    """Options for `create_model`: those given, and what the data says."""
    options: dict[str, Any] = {}
    if data is not None:
        options = {"in_channels": data.input_size[0], "num_classes": len(data.classes)}
    for name in ("in_channels", "num_classes", "stem"):
        if getattr(given, name) is not None:
            options[name] = getattr(given, name)
    if given.width != 1.0:
        options["width"] = given.width
    return options


def hardware_of(given: DeviceArguments) -> Hardware:
    """The flags as `pocketcnn.train.fit` takes them."""
    return Hardware(**{field.name: getattr(given, field.name) for field in fields(Hardware)})


def input_size_of(given: SurgeryArguments, notes: dict[str, Any]) -> tuple[int, int, int]:
    return given.input_size or tuple(notes.get("input_size", ())) or (given.in_channels or 3, 32, 32)
