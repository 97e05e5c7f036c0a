"""Encoded images to uint8 pixels: upright, opaque, of one size and one kind of colours."""

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
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Reading:
    """How images are read; see `load`."""

    image_size: int | None = None
    channels: int | None = None
    skip_bad: bool = False


@dataclass(frozen=True)
class RawImage:
    """An encoded image, where it was found, and its label."""

    where: str
    content: bytes | Path | None
    label: Any


def decode_all(
    raw: Iterable[RawImage], reading: Reading, expected: np.ndarray | None = None
) -> tuple[list[np.ndarray], list[Any], int]:
    """Pixels [channels, height, width] and labels of all images that decode, and how many did not."""
    pixels, labels, skipped = [], [], 0
    stream = iter(raw)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(stream, 2048)):
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
    colours = {1: "grey", 3: "RGB"}
    if found[0] != first[0]:
        return (
            f"{colours[found[0]]}, but the images before are {colours[first[0]]}; "
            "pass channels=1 or channels=3 to convert all of them"
        )
    return (
        f"{found[1]} x {found[2]} pixels, but the images before are {first[1]} x {first[2]} (height x width); "
        "pass image_size= to bring all to one size"
    )


def decode_image(item: RawImage, reading: Reading) -> np.ndarray | BadImage:
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
    """Turned as its camera was held, on white where it is transparent, and of 8 bits where it had 16."""
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


def read_images(folder: Path, reading: Reading) -> tuple[torch.Tensor, int]:
    """All image files below a folder as uint8 [n, channels, height, width], in the order of their names, and how many did
    not decode."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    pixels, _, skipped = decode_all((RawImage(str(file), file, None) for file in files), reading)
    return torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0, dtype=torch.uint8), skipped


def read_image(path: str | Path, *, image_size: int | None = None, channels: int | None = None) -> torch.Tensor:
    """One image file as uint8, [channels, height, width].

    Args:
        path: of the file.
        image_size: side in pixels it is brought to, by its shorter side and a crop of the centre.
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
