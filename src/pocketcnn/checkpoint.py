"""Model files: one `.safetensors` with the distinct tensors and, in its metadata, the JSON that rebuilds the net.

Nothing in a file is ever unpickled. Shared tensors are written once; places and signs of a ring are rebuilt from its
seed, so they are not in the file at all. With a passphrase the seed is not in it either: the file holds it hidden by a
number that `hashlib.scrypt` derives from the passphrase and the file's salt. All weights are in the file, readable; who
lacks the seed does not know where each belongs.
"""

import copy
import dataclasses
import hashlib
import json
import logging
import os
import struct
import unicodedata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import nn

from pocketcnn.cost import distinct_tensors, separate
from pocketcnn.errors import (
    BrokenFile,
    CannotWrite,
    ForeignFile,
    MissingBase,
    MissingPassphrase,
    NewerFormat,
    NotEnoughMemory,
    PocketError,
)
from pocketcnn.recipes import create_model
from pocketcnn.storage import Storage, pack, unpack
from pocketcnn.support.files import refuse_exported, write_atomically
from pocketcnn.support.version import __version__
from pocketcnn.surgery import Provenance, Step, check_step, provenance, rebuild, remember

FORMAT, VERSION = "pocketcnn", 2
FILE = "model.safetensors"  # in the folder of a run, or of a repository
_log = logging.getLogger(__name__)
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}  # 32 MiB and about a tenth of a second for each guess
_MEMORY = 1 << 28  # bytes that a file may ask for
_GUESSABLE = 1 << 32  # smaller seeds are tried in hours, whatever the passphrase


def save(
    model: nn.Module,
    path: str | Path,
    *,
    notes: dict[str, Any] | None = None,
    storage: Storage | None = None,
    passphrase: str | None = None,
) -> int:
    """Writes a net to one file, atomically: the old file stays until the new one is complete.

    Args:
        model: a net of `create_model`, or any net, condensed or not; for a net not made by `create_model`, loading
            needs the plain net as `base`.
        path: of the file, by convention ending in `.safetensors`.
        notes: anything JSON can hold that should travel along, such as the normalisation of the images.
        storage: the type of the weights in the file, `"float32"`, `"float16"` or `"int8"`, see `pocketcnn.storage`; they
            load as what they were, rounded. None stores every tensor as it is.
        passphrase: hides the seeds of the net's rings or puppets. It does not encrypt the numbers, and somebody with data
            can train them on; a seed below 2**32 can be found by trying, so draw one with `secrets.randbits(64)`.
    Returns:
        The length of the file in bytes.
    Raises:
        ValueError: no such storage, or a passphrase that is empty or has no seed to hide.
        CannotWrite: the folder does not exist or is not writable, the disk is full, or the net's batch norms are folded
            (`fold_norm`), which no file describes; the old file is intact.
    """
    path, model = Path(path), getattr(model, "_orig_mod", model)  # torch.compile wraps the net
    made = provenance(model)
    if any(getattr(provenance(module), "folded", False) for module in model.modules()):
        raise CannotWrite(
            f"{path}: this {type(model).__name__} has batch norms folded into its convolutions, and could not be rebuilt "
            "from a file; save the net it was made of, and fold what load gives, by fold_norm or "
            "materialize(..., fold_norm=True)"
        )
    if not path.parent.is_dir():
        raise CannotWrite(f"{path}: there is no folder {path.parent}; make it first")
    header = {
        "format": FORMAT,
        "version": VERSION,
        "base": made.base,
        "steps": [dataclasses.asdict(step) for step in made.steps],
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "notes": notes or {},
    }
    if passphrase is not None:
        if any(0 <= step.options.get("seed", _GUESSABLE) < _GUESSABLE for step in made.steps):
            _log.warning("a seed below 2**32 can be found by trying; draw one with secrets.randbits(64)")
        header["key"] = {"salt": os.urandom(16).hex(), **_SCRYPT}
        _hide(header, passphrase)
    tensors = distinct_tensors(model)
    if storage is not None:
        tensors, header["storage"] = pack(tensors, model, storage)
    content = serialize(separate(tensors), metadata={FORMAT: json.dumps(header)})
    write_atomically(path, content)
    return len(content)


def _needs_seed(options: dict[str, Any]) -> bool:
    return "seed" in options and options.get("scheme") not in ("identity", "windows")


def _hide(header: dict[str, Any], passphrase: str) -> None:
    """Hides the seeds of a header's steps, or brings hidden ones back: the same numbers lie over them."""
    if not passphrase:
        raise ValueError("an empty passphrase protects nothing")
    # A ring that is read round and round, or by stored codes, has a seed but does without.
    seeded = [step["options"] for step in header["steps"] if _needs_seed(step["options"])]
    if not seeded:
        raise ValueError("a passphrase hides the seeds of rings and puppets; this net has none that matters")
    key = header["key"]
    settings = {name: int(key[name]) for name in _SCRYPT}
    drawn = hashlib.scrypt(
        unicodedata.normalize("NFC", passphrase).encode(),
        salt=bytes.fromhex(key["salt"]),
        maxmem=_MEMORY,
        dklen=8 * len(seeded),
        **settings,
    )
    for number, options in enumerate(seeded):
        options["seed"] ^= int.from_bytes(drawn[8 * number : 8 * number + 8], "little")


def load(
    path: str | Path,
    *,
    base: nn.Module | None = None,
    device: torch.device | str = "cpu",
    passphrase: str | None = None,
) -> nn.Module:
    """Rebuilds the net of a file, bit for bit, in evaluation mode.

    Args:
        path: of a file written by `save`, or of a folder with one: a run's, or what `pocketcnn.hub` writes.
        base: for a net that `create_model` did not make: a fresh plain net of the same architecture; it is left alone.
        device: where the net goes.
        passphrase: that the file was saved with. A wrong one is not noticed: the net has other places and signs, and is
            right no more often than by chance.
    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged, or its tensors do not fit the net.
        ForeignFile: the file was not written by `save`.
        NewerFormat: the file was written by a newer version, or asks for an option that this version does not know.
        MissingPassphrase: the file was saved with a passphrase.
        ValueError: a passphrase for a file that was saved without.
        MissingBase: the file describes changes to a net that must be given as `base`.
        ExportedFile: the file was exported for serving.
    """
    path = file_in(Path(path))
    header = read_header(path)
    if passphrase is not None and "key" not in header:
        raise ValueError(f"{path}: saved without a passphrase; leave it out")
    if "key" in header:
        if not passphrase:
            raise MissingPassphrase(f"{path}: saved with a passphrase; pass it as load(path, passphrase=...)")
        try:
            _hide(header, passphrase)
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenFile(f"{path}: what it says of its passphrase is damaged ({error})") from error
    steps = [Step(s["method"], s["options"], tuple(s["sites"])) for s in header["steps"]]
    if base is None and header["base"] is None:
        raise MissingBase(
            f"{path}: this net was not made by create_model; pass a fresh plain one as base=net, to "
            f"which {len(steps)} condensing steps will be applied"
        )
    for step in steps:
        try:
            check_step(step)
        except (ValueError, PocketError) as error:
            raise NewerFormat(
                f"{path}: this version does not know what it asks for ({error}); upgrade pocketcnn, which is {__version__}"
            ) from error
    try:
        with torch.random.fork_rng():
            net = base if base is not None else create_model(header["base"]["name"], **header["base"]["options"])
            model = rebuild(net, steps) if steps else copy.deepcopy(net)
    except NotEnoughMemory:
        raise
    except (ValueError, PocketError) as error:
        raise BrokenFile(f"{path}: the net it describes cannot be rebuilt: {error}") from error
    if header["base"] is not None:
        remember(model, Provenance(header["base"], tuple(steps)))
    fill_(model, path, header.get("storage"))
    frozen = set(header["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.to(device).eval()


def fill_(model: nn.Module, path: Path, storage: dict[str, Any] | None = None) -> None:
    """Puts the numbers of a model file into a net of the same structure, in the dtype they were saved in.

    Args:
        model: the net.
        path: of the file.
        storage: what the file's header says of it.
    Raises:
        BrokenFile: names or shapes differ.
    """
    wanted = distinct_tensors(model)
    places = model.state_dict(keep_vars=True)
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in list(file.keys())}
    if storage is not None:
        try:
            stored = unpack(stored, wanted, model, storage)
        except NewerFormat as error:
            raise NewerFormat(f"{path}: {error}; upgrade pocketcnn") from error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            raise BrokenFile(f"{path}: its weights do not fit {type(model).__name__}: {error}") from error
    if keys := sorted(stored.keys() ^ wanted.keys()):
        raise BrokenFile(
            f"{path}: its tensors do not fit {type(model).__name__}: {keys[0]!r} and {len(keys) - 1} more are only "
            "in one of them; was the net changed after condense?"
        )
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape:
            shapes = f"{list(stored[name].shape)} in the file, {list(tensor.shape)} in the net"
            raise BrokenFile(f"{path}: {name} is {shapes}")
        # With the dtype it was saved in; a copy, because memory of another alignment would round differently.
        places[name].data = stored[name].clone()


def file_in(path: Path) -> Path:
    """The model file that is meant by its own path or that of its folder."""
    return path / FILE if path.is_dir() else path


def read_header(path: str | Path) -> dict[str, Any]:
    """What a model file says of itself: base, steps, notes, version.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged.
        ForeignFile: not a safetensors file, or one that `save` did not write.
        NewerFormat: written by a newer version.
        ExportedFile: a file for serving.
    """
    path = file_in(Path(path))
    refuse_exported(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such model file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        if _looks_like_safetensors(path):
            raise BrokenFile(f"{path}: damaged or cut short ({error}); copy or train it again") from error
        raise ForeignFile(f"{path}: not a safetensors file ({error}); only files of pocketcnn.save load") from error
    if FORMAT not in metadata:
        raise ForeignFile(
            f"{path}: a safetensors file, but not written by pocketcnn.save; build the net and load it there"
        )
    try:
        header = json.loads(metadata[FORMAT])
        if int(header["version"]) > VERSION:
            raise NewerFormat(
                f"{path}: format version {header['version']}, this pocketcnn reads up to {VERSION}; upgrade pocketcnn"
            )
        base = header["base"]
        complete = {"steps", "frozen", "notes"} <= header.keys() and (
            base is None or {"name", "options"} <= base.keys()
        )
        if not complete or not all({"method", "options", "sites"} <= step.keys() for step in header["steps"]):
            raise KeyError("an entry is missing")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenFile(f"{path}: its description of the net is damaged ({error}); copy or train it again") from error
    return header


def renote_(path: Path, notes: dict[str, Any]) -> None:
    """Gives a model file other notes; the rest of its header and the bytes of its tensors stay."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    metadata = header["__metadata__"]
    metadata[FORMAT] = json.dumps({**json.loads(metadata[FORMAT]), "notes": notes})
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the tensors begin at a multiple of 8
    write_atomically(path, struct.pack("<Q", len(head)) + head + content[start:])


def _looks_like_safetensors(path: Path) -> bool:
    """Whether the file begins as the format does: a length of 8 bytes, then a JSON object."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 0 or (len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 32)
