"""Model files: one `.safetensors` with the distinct tensors and, in its metadata, the JSON that rebuilds the net.

Nothing in a file is ever unpickled. Shared tensors are written once; places and signs of a ring are rebuilt from its
seed, so they are not in the file at all.
"""

import copy
import dataclasses
import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import nn

from pocketcnn._files import write_atomically
from pocketcnn.cost import distinct_tensors, separate
from pocketcnn.errors import BrokenFile, CannotWrite, ForeignFile, MissingBase, NewerFormat, PocketError
from pocketcnn.recipes import create_model
from pocketcnn.surgery import Provenance, Step, provenance, rebuild, remember

FORMAT, VERSION = "pocketcnn", 1


def save(model: nn.Module, path: str | Path, *, notes: dict[str, Any] | None = None) -> int:
    """Writes a net to one file, atomically: the old file stays until the new one is complete.

    Args:
        model: a net of `create_model`, or any net, condensed or not; for a net not made by `create_model`, loading
            needs the plain net as `base`.
        path: of the file, by convention ending in `.safetensors`.
        notes: anything JSON can hold that should travel along, such as the normalisation of the images.
    Returns:
        The length of the file in bytes.
    Raises:
        CannotWrite: the folder does not exist or is not writable, or the disk is full; the old file is intact.
    """
    path, model = Path(path), getattr(model, "_orig_mod", model)  # torch.compile wraps the net
    made = provenance(model)
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
    tensors = separate(distinct_tensors(model))
    content = serialize(tensors, metadata={FORMAT: json.dumps(header)})
    write_atomically(path, content)
    return len(content)


def load(path: str | Path, *, base: nn.Module | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """Rebuilds the net of a file, bit for bit, in evaluation mode.

    Args:
        path: of a file written by `save`.
        base: for a net that `create_model` did not make: a fresh plain net of the same architecture; it is left alone.
        device: where the net goes.
    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged, or its tensors do not fit the net.
        ForeignFile: the file was not written by `save`.
        NewerFormat: the file was written by a newer version.
        MissingBase: the file describes changes to a net that must be given as `base`.
    """
    path = Path(path)
    header = read_header(path)
    steps = [Step(s["method"], s["options"], tuple(s["sites"])) for s in header["steps"]]
    if base is None and header["base"] is None:
        raise MissingBase(
            f"{path}: this net was not made by create_model; pass a fresh plain one as load(path, base=net), "
            f"to which {len(steps)} condensing steps will be applied"
        )
    try:
        with torch.random.fork_rng():
            net = base if base is not None else create_model(header["base"]["name"], **header["base"]["options"])
            model = rebuild(net, steps) if steps else copy.deepcopy(net)
    except (ValueError, PocketError) as error:
        raise BrokenFile(f"{path}: the net it describes cannot be rebuilt: {error}") from error
    if header["base"] is not None:
        remember(model, Provenance(header["base"], tuple(steps)))
    fill_(model, path)
    frozen = set(header["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.to(device).eval()


def fill_(model: nn.Module, path: Path) -> None:
    """Puts the numbers of a model file into a net of the same structure, in the dtype they were saved in.

    Raises:
        BrokenFile: names or shapes differ.
    """
    wanted = distinct_tensors(model)
    places = model.state_dict(keep_vars=True)
    with safe_open(path, framework="pt") as file:
        if keys := sorted(set(file.keys()) ^ wanted.keys()):
            raise BrokenFile(
                f"{path}: its tensors do not fit {type(model).__name__}: {keys[0]!r} and {len(keys) - 1} more are only "
                "in one of them; was the net changed after condense?"
            )
        for name, tensor in wanted.items():
            stored = file.get_tensor(name)
            if stored.shape != tensor.shape:
                raise BrokenFile(f"{path}: {name} is {list(stored.shape)} in the file, {list(tensor.shape)} in the net")
            # With the dtype it was saved in; a copy, because memory of another alignment would round differently.
            places[name].data = stored.clone()


def read_header(path: str | Path) -> dict[str, Any]:
    """What a model file says of itself: base, steps, notes, version.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged.
        ForeignFile: not a safetensors file, or one that `save` did not write.
        NewerFormat: written by a newer version.
    """
    path = Path(path)
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


def _looks_like_safetensors(path: Path) -> bool:
    """Whether the file begins as the format does: a length of 8 bytes, then a JSON object."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 0 or (len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 1 << 32)
