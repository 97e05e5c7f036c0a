"""Decoding of images to uint8 pixels: upright, opaque, of one size, all grey or all RGB.

Pixels of more than 8 bits keep their range: one scale holds for all images of a data set, that of the fewest bits
among `BITS` that hold its largest value.
"""

import functools
import io
import logging
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from pocketcnn.data.found import NOTHING, Found
from pocketcnn.errors import BadData, BadImage
from pocketcnn.support.optional import optional_import

_log = logging.getLogger(__name__)
BITS = (8, 10, 12, 14, 16)
"""Bits that the largest value of an image may take."""
# Formats that Pillow lists but does not decode by itself: stubs, and those for which it asks another program.
NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF", "EPS", "WMF"}
_SWAPPED = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
}
_CHUNK = 2048  # encoded images that are held at a time, unless they have more than:
CHUNK_BYTES = 1 << 28
"""Bytes of encoded images that are held at a time."""
_MOST_ASPECT = 16  # a longer image is cropped to this multiple of its shorter side before it is resized


@dataclass(frozen=True)
class Reading:
    """Options for reading images; see `load`. Without `bits`, pixels of more than 8 bits stay 16 bits."""

    image_size: int | None = None
    channels: int | None = None
    skip_bad: bool = False
    bits: int | None = None


@dataclass(frozen=True)
class DecodedSplit:
    """The images of a split as [channels, height, width] uint8, and their labels.

    `skipped` counts images that could not be decoded, and `seen` holds all labels, theirs too.
    """

    images: list[np.ndarray]
    labels: list[Any]
    skipped: int
    seen: set[Any]


def check_bits(bits: int | None) -> None:
    """Checks the bits that a user says pixels have."""
    if bits is not None and bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, not {bits}")


def check_shape(image_size: int | None, channels: int | None) -> None:
    """Checks the side in pixels and the number of channels that a user asks for."""
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, not {image_size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, not {channels}")


@dataclass(frozen=True)
class RawImage:
    """An encoded image, the place where it was found, and its label."""

    where: str
    content: bytes | Path | None
    label: Any


def decode_splits(
    name: str, splits: Mapping[str, Iterable[RawImage]], reading: Reading
) -> tuple[dict[str, DecodedSplit], Found]:
    """Decodes all splits of a data set, training images first, to one shape and one range.

    Returns:
        The splits, and how pixels of more than 8 bits were read, if there are any.
    Raises:
        BadImage: as `decode_all` does.
        BadData: a split without images, or none of which can be decoded.
    """
    found: dict[str, DecodedSplit] = {}
    first = None
    for split in sorted(splits, key=lambda split: split != "train"):
        seen: set[Any] = set()
        raw = _noting(splits[split], seen)
        found[split] = DecodedSplit(*decode_all(raw, reading, expected=first), seen)
        if not found[split].images:
            why = f"none of {found[split].skipped} images can be decoded" if found[split].skipped else "no images"
            raise BadData(f"{name}: {why} in the split {split!r}; copy it again, or remove it")
        first = found[split].images[0]
    images, read = in_one_range([split.images for split in found.values()])
    return {split: replace(found[split], images=own) for split, own in zip(found, images, strict=True)}, read


def _chunks(raw: Iterable[RawImage]) -> Iterator[list[RawImage]]:
    """Some images at a time, of so many bytes together that they fit in memory beside the decoded ones."""
    chunk: list[RawImage] = []
    held = 0
    for item in raw:
        chunk.append(item)
        held += len(item.content) if isinstance(item.content, bytes) else 0
        if len(chunk) == _CHUNK or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _noting(raw: Iterable[RawImage], seen: set[Any]) -> Iterator[RawImage]:
    """Passes images on and notes their labels."""
    for item in raw:
        seen.add(item.label)
        yield item


def in_one_range(splits: Sequence[list[np.ndarray]]) -> tuple[list[list[np.ndarray]], Found]:
    """Brings images of 16 bits to 8, all by the fewest bits that hold the largest value of any of them.

    Returns:
        The images, and which bits were taken, if there are images of 16 bits.
    """
    bits = bits_of(image for images in splits for image in images)
    if bits is None:
        return list(splits), NOTHING
    note = f"pixels of 16 bits are read as {bits} bits, the fewest that hold the largest value"
    return [[in_8_bits(image, bits) for image in images] for images in splits], Found(notes=(note,), bits=bits)


def bits_of(images: Iterable[np.ndarray]) -> int | None:
    """The fewest bits that hold all values of the images of 16 bits; None if all images have 8 bits."""
    largest = max((int(image.max()) for image in images if image.dtype == np.uint16), default=None)
    return None if largest is None else next(bits for bits in BITS if largest < 1 << bits)


def in_8_bits(image: np.ndarray, bits: int) -> np.ndarray:
    """Brings an image of 16 bits, of which so many are used, to 8; leaves others as they are.

    Raises:
        ValueError: a value needs more bits.
    """
    if image.dtype != np.uint16:
        return image
    if (largest := int(image.max())) >> bits:
        raise ValueError(
            f"its largest value {largest} needs more than {bits} bits; give the range with --pixel-bits (bits=)"
        )
    return (image >> (bits - 8)).astype(np.uint8)


def decode_all(
    raw: Iterable[RawImage], reading: Reading, expected: np.ndarray | None = None
) -> tuple[list[np.ndarray], list[Any], int]:
    """Decodes images, all of one shape.

    Args:
        raw: the encoded images.
        reading: options for reading.
        expected: an image with the shape that all others must have; the first one by default.
    Returns:
        Pixels [channels, height, width] and labels of the images that could be decoded, and the number of the others.
        Pixels are uint8, or uint16 where an image has them and `reading` does not say how many of their bits are used.
    Raises:
        BadImage: an image that differs in shape, or that cannot be decoded unless bad images are skipped.
    """
    pixels, labels, skipped = [], [], 0
    with ThreadPoolExecutor() as pool:
        for chunk in _chunks(raw):
            for item, result in zip(chunk, pool.map(lambda item: decode_image(item, reading), chunk), strict=True):
                if isinstance(result, BadImage):
                    if not reading.skip_bad:
                        raise result
                    skipped += 1
                    _log.warning("skipped: %s", result)
                    continue
                first = expected if expected is not None else result
                if result.shape != first.shape:
                    raise BadImage(f"{item.where}: {_difference(result.shape, first.shape)}")
                expected = first
                pixels.append(result)
                labels.append(item.label)
    return pixels, labels, skipped


def _difference(found: tuple[int, ...], first: tuple[int, ...]) -> str:
    """Tells how the shape of an image differs from that of the first one, and how to unify them."""
    colours = {1: "grey", 3: "RGB"}
    if found[0] != first[0]:
        return (
            f"{colours[found[0]]}, but the images before are {colours[first[0]]}; "
            "pass channels=1 or channels=3 to convert all of them"
        )
    return (
        f"{found[1]} x {found[2]} pixels, but the images before are {first[1]} x {first[2]} (height x width); "
        "pass image_size= to bring all of them to one size"
    )


def decode_image(item: RawImage, reading: Reading) -> np.ndarray | BadImage:
    """Decodes an image to [channels, height, width]; returns, not raises, the error if it cannot be decoded.

    Pixels are uint8, or uint16 where an image has them and `reading` does not say how many of their bits are used.
    """
    image_module = optional_import("PIL.Image", extra="train", purpose="decoding images")
    try:
        if item.content is None:
            raise ValueError("there is no image in the row")
        pixels = _pixels(item.content, reading, image_module)
        return pixels if reading.bits is None else in_8_bits(pixels, reading.bits)
    except image_module.UnidentifiedImageError:
        reason = "its format is not that of an image, or is not known"
    except OSError as error:
        reason = error.strerror or _first_line(error)
    except Exception as error:  # decoders raise many kinds
        reason = _first_line(error)
    return BadImage(
        f"{item.where}: cannot be decoded ({reason}); repair it or pass skip_bad_images (--skip-bad-images)"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def open_plain(path: Path) -> BinaryIO:
    """Opens a file to read it, unless it is a pipe, a device or a folder, which could block or never end.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no plain file.
    """
    if stat.S_ISREG(os.stat(path).st_mode):  # merely opening a device may already do something
        file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise ValueError("it is no plain file")


@functools.cache
def _formats() -> tuple[str, ...]:
    """Formats that Pillow decodes by itself."""
    image_module = optional_import("PIL.Image", extra="train", purpose="decoding images")
    image_module.init()
    return tuple(name for name in image_module.OPEN if name not in NO_PICTURES)


def _pixels(content: bytes | Path, reading: Reading, image_module: Any) -> np.ndarray:
    """Decodes an image to [channels, height, width] of uint8 or uint16."""
    source: BinaryIO
    with io.BytesIO(content) if isinstance(content, bytes) else open_plain(content) as source:
        with image_module.open(source, formats=_formats()) as opened:
            most = image_module.MAX_IMAGE_PIXELS
            if most is not None and opened.width * opened.height > most:
                raise ValueError(
                    f"{opened.width} x {opened.height} pixels, more than PIL.Image.MAX_IMAGE_PIXELS, {most:,}"
                )
            if (deep := _deep_pixels(opened, source, image_module)) is not None:
                return _fit_deep(deep, reading, image_module)
            image = _upright_and_opaque(opened, image_module)
            channels = reading.channels or (1 if opened.mode in ("1", "L", "LA") else 3)
            converted = image.convert("L" if channels == 1 else "RGB")
    if reading.image_size:
        converted = _fit_square(converted, reading.image_size, image_module)
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _deep_pixels(image: Any, source: BinaryIO, image_module: Any) -> np.ndarray | None:
    """Upright pixels [channels, height, width] as uint16 of an image of more than 8 bits; None for others."""
    operations = optional_import("PIL.ImageOps", extra="train", purpose="decoding images")
    layouts = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile if tile.args]
    if image.mode.startswith(("I", "F")):
        values = np.asarray(operations.exif_transpose(image))
        if image.mode.startswith("F") or values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError(f"pixels of mode {image.mode} have no known range; convert them to 8 or 16 bits first")
        return values.astype(np.uint16)[None]
    # An alpha channel says that all bits are used. Then Pillow's reading, which takes the upper 8, is right.
    if not any(";16" in str(layout) for layout in layouts) or image.has_transparency_data:
        return None
    if image.mode != "RGB" or not all(layout in _SWAPPED for layout in layouts):
        raise ValueError(f"16 bits in the layout {layouts[0]} are not read; convert it to 8 bits, or to plain RGB")
    high = np.asarray(operations.exif_transpose(image), dtype=np.uint16)
    # Pillow keeps the upper byte of each value. The layout of the other order of bytes gives the lower one.
    with image_module.open(source, formats=(image.format,)) as again:
        again.tile = [
            tile._replace(args=_SWAPPED[layout] if isinstance(tile.args, str) else (_SWAPPED[layout], *tile.args[1:]))
            for tile, layout in zip(again.tile, layouts, strict=True)
        ]
        low = np.asarray(operations.exif_transpose(again), dtype=np.uint16)
    return (high << 8 | low).transpose(2, 0, 1)


def _fit_deep(pixels: np.ndarray, reading: Reading, image_module: Any) -> np.ndarray:
    """Brings pixels of 16 bits to the channels and the size asked for."""
    largest = pixels.max()
    if reading.channels == 1 and len(pixels) == 3:
        weights = np.array([299, 587, 114], dtype=np.uint32)  # those of Pillow
        pixels = ((np.tensordot(weights, pixels.astype(np.uint32), 1) + 500) // 1000).astype(np.uint16)[None]
    if reading.image_size:
        images = (image_module.fromarray(channel.astype(np.float32)) for channel in pixels)
        resized = np.stack([np.asarray(_fit_square(image, reading.image_size, image_module)) for image in images])
        pixels = np.clip(np.rint(resized), 0, largest).astype(np.uint16)
    return np.repeat(pixels, 3, 0) if reading.channels == 3 and len(pixels) == 1 else np.ascontiguousarray(pixels)


def _upright_and_opaque(image: Any, image_module: Any) -> Any:
    """Turns an image upright, and lays a transparent one on white."""
    operations = optional_import("PIL.ImageOps", extra="train", purpose="decoding images")
    image = operations.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image_module.alpha_composite(image_module.new("RGBA", image.size, "white"), image)
    return image


def read_image(
    path: str | Path, *, image_size: int | None = None, channels: int | None = None, bits: int | None = None
) -> torch.Tensor:
    """Reads an image file as uint8, [channels, height, width].

    Args:
        path: path of the file.
        image_size: side in pixels; the image is resized by its shorter side and cropped in the centre.
        channels: 1 or 3 converts to grey or RGB.
        bits: bits that pixels of more than 8 bits use: 8, 10, 12, 14 or 16; by default the fewest that hold the
            image's largest value, which is logged.
    Raises:
        FileNotFoundError: there is no such file.
        BadImage: it is no plain file, or cannot be decoded.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path}: no such image file")
    if not os.path.isfile(path):
        raise BadImage(f"{path}: a folder, a pipe, a device or a dead link; give an image file")
    check_bits(bits)
    found = decode_image(RawImage(str(path), Path(path), None), Reading(image_size, channels, bits=bits))
    if isinstance(found, BadImage):
        raise found
    used = bits_of([found])
    if used is not None:
        _log.info("%s: pixels of 16 bits are read as %d bits, which hold the largest value", path, used)
    return torch.from_numpy(in_8_bits(found, used or 8).copy())


def _fit_square(image: Any, side: int, image_module: Any) -> Any:
    """Resizes by the shorter side, then crops the centre."""
    most = _MOST_ASPECT * min(image.size)
    if max(image.size) > most:
        width, height = (min(length, most) for length in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), image_module.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))
