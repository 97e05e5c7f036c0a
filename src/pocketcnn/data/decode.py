"""Decoding of images to uint8 pixels: upright, opaque, of one size, all grey or all RGB."""

import io
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketcnn.errors import BadImage
from pocketcnn.support.optional import optional_import

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """Options for reading images; see `load`."""

    image_size: int | None = None
    channels: int | None = None
    skip_bad: bool = False


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
    Raises:
        BadImage: an image that differs in shape, or that cannot be decoded unless bad images are skipped.
    """
    pixels, labels, skipped = [], [], 0
    remaining = iter(raw)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(remaining, 2048)):
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
    """Decodes an image to [channels, height, width]; returns, not raises, the error if it cannot be decoded."""
    image_module = optional_import("PIL.Image", extra="train", purpose="decoding images")
    try:
        if item.content is None:
            raise ValueError("there is no image in the row")
        source = io.BytesIO(item.content) if isinstance(item.content, bytes) else item.content
        with image_module.open(source) as opened:
            image = _upright_and_opaque(opened, image_module)
            channels = reading.channels or (1 if opened.mode in ("1", "L", "LA", "I;16") else 3)
            converted = image.convert("L" if channels == 1 else "RGB")
        if reading.image_size:
            converted = _fit_square(converted, reading.image_size, image_module)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise many kinds
        return BadImage(
            f"{item.where}: cannot be decoded ({error}); repair it or pass skip_bad_images (--skip-bad-images)"
        )
    pixels = np.asarray(converted, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _upright_and_opaque(image: Any, image_module: Any) -> Any:
    """Turns an image upright, lays a transparent one on white, and reduces 16 bits to 8."""
    operations = optional_import("PIL.ImageOps", extra="train", purpose="decoding images")
    image = operations.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return image_module.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"pixels of mode {image.mode} have no known range; convert them to 8 or 16 bits first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return image_module.alpha_composite(image_module.new("RGBA", image.size, "white"), image)
    return image


def read_image(path: str | Path, *, image_size: int | None = None, channels: int | None = None) -> torch.Tensor:
    """Reads an image file as uint8, [channels, height, width].

    Args:
        path: path of the file.
        image_size: side in pixels; the image is resized by its shorter side and cropped in the centre.
        channels: 1 or 3 converts to grey or RGB.
    Raises:
        FileNotFoundError: there is no such file.
        BadImage: it cannot be decoded.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such image file")
    found = decode_image(RawImage(str(path), Path(path), None), Reading(image_size, channels))
    if isinstance(found, BadImage):
        raise found
    return torch.from_numpy(found.copy())


def _fit_square(image: Any, side: int, image_module: Any) -> Any:
    """Resizes by the shorter side, then crops the centre."""
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = image.resize((width, height), image_module.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))
