"""The cache of decoded data sets: one file for each source and way of reading it, replaced when it is damaged."""

import hashlib
import json
import logging
import os
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pocketcnn.data.columns import Asked
from pocketcnn.data.decode import Reading
from pocketcnn.data.folders import find_source
from pocketcnn.data.found import Found
from pocketcnn.data.sets import Images
from pocketcnn.data.sources import Decoded
from pocketcnn.errors import CannotWrite
from pocketcnn.support.files import make_folder, write_atomically
from pocketcnn.support.schema import parse_json, shaped

_log = logging.getLogger(__name__)
_VERSION = 3
_ABOUT = "about"  # the entry of the file's metadata
_REMEDY = "delete it"


@dataclass(frozen=True)
class _About:
    """What a cache file says beside its tensors; `checksums` are those of the tensors by name."""

    classes: tuple[str, ...]
    skipped: Annotated[int, msgspec.Meta(ge=0)]
    found: Found
    checksums: dict[str, int]


def decoded_once(name: str, reading: Reading, asked: Asked, folder: Path) -> Decoded:
    """Reads a source from the cache; decodes it and caches it if it is not there.

    What decoding found is cached; what the names of the files tell is found afresh.

    Args:
        name: of the data set, as given by the user.
        reading: options for reading images.
        asked: columns that the user asks for.
        folder: the cache.
    """
    source = find_source(name, asked)
    options = [
        reading.image_size,
        reading.channels,
        reading.skip_bad,
        *([] if reading.bits is None else [reading.bits]),
    ]
    described = json.dumps([_VERSION, source.fingerprint(), *options])
    key = hashlib.sha256(described.encode()).hexdigest()[:16]
    path = folder / f"{source.label[:50]}-{key}.safetensors"
    decoded = _read(path, reading)
    if decoded is None:
        decoded = source.decode(reading)
        try:
            write_atomically(make_folder(folder) / path.name, _in_bytes(decoded))
        except CannotWrite as error:
            _log.warning("the decoded data is not cached; set $POCKETCNN_CACHE to a writable folder (%s)", error)
    return replace(decoded, found=source.found + decoded.found)


def cache_folder() -> Path:
    """The folder of the cache: `$POCKETCNN_CACHE`, else `pocketcnn` in the user's cache folder."""
    if chosen := os.environ.get("POCKETCNN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pocketcnn"


def _in_bytes(decoded: Decoded) -> bytes:
    """The content of a cache file."""
    tensors: dict[str, Tensor] = {}
    for split in ("train", "test", "validation"):
        images: Images | None = getattr(decoded, split)
        if images is not None:
            tensors |= {f"{split}_images": images.images, f"{split}_labels": images.labels}
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    about = _About(decoded.classes, decoded.skipped, decoded.found, checksums)
    return serialize(tensors, {_ABOUT: json.dumps(asdict(about))})


def _read(path: Path, reading: Reading) -> Decoded | None:
    """Reads a cache file; None if there is none, or if it is not as it was written."""
    if not os.path.lexists(path):
        return None
    try:
        if not path.is_file():
            raise ValueError("it is no plain file")
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            content = parse_json((file.metadata() or {})[_ABOUT], str(path), remedy=_REMEDY)
        about = shaped(content, _About, str(path), remedy=_REMEDY)
        if {name: _checksum(tensor) for name, tensor in tensors.items()} != about.checksums:
            raise ValueError("its checksums are others")
        splits = {
            split: Images(tensors[f"{split}_images"], tensors[f"{split}_labels"])
            for split in ("train", "test", "validation")
            if split == "train" or f"{split}_images" in tensors
        }
        for split in splits.values():
            _check(split, splits["train"], len(about.classes), reading)
    except Exception as error:  # damaged files raise many kinds
        _log.warning("%s is damaged and will be replaced (%s)", path, (str(error).splitlines() or [""])[0])
        return None
    rest = splits.get("validation")
    return Decoded(splits["train"], splits.get("test"), about.classes, about.skipped, rest, about.found)


def _check(split: Images, train: Images, num_classes: int, reading: Reading) -> None:
    """Checks types, shapes and labels of a split."""
    images, labels = split.images, split.labels
    if images.dtype != torch.uint8 or labels.dtype != torch.int64 or images.ndim != 4 or labels.ndim != 1:
        raise ValueError("its tensors have other types or axes")
    sides = (reading.image_size,) * 2 if reading.image_size else tuple(train.images.shape[2:])
    channels = (reading.channels,) if reading.channels else (1, 3)
    if (
        len(images) != len(labels)
        or not len(labels)
        or tuple(images.shape[2:]) != sides
        or images.shape[1] not in channels
    ):
        raise ValueError("its tensors have other shapes")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError("it has labels beyond its classes")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().numpy().data)
