"""Model files: one `.safetensors` with the distinct tensors and, in its metadata, the JSON that rebuilds the net.

Nothing in a file is ever unpickled. Shared tensors are written once. The places and signs of a ring are rebuilt from its
seed, so the file does not hold them. With a passphrase it does not hold the plain seed either: the seed is XORed with a
number that `hashlib.scrypt` derives from the passphrase and the file's salt. All weights are in the file and readable, but
without the seed nobody knows where each belongs.
"""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import nn

from pocketcnn.checkpoint.header import FORMAT, VERSION, file_in, read_header
from pocketcnn.checkpoint.lock import GUESSABLE, SCRYPT, hide_seeds
from pocketcnn.checkpoint.storage import Storage, pack, unpack
from pocketcnn.cost import distinct_tensors, separate
from pocketcnn.errors import (
    BrokenFile,
    CannotWrite,
    MissingBase,
    MissingPassphrase,
    NewerFormat,
    NotEnoughMemory,
    PocketError,
)
from pocketcnn.models.recipes import create_model
from pocketcnn.support.copying import copied
from pocketcnn.support.files import write_atomically
from pocketcnn.support.modules import uncompiled
from pocketcnn.support.version import __version__
from pocketcnn.surgery import Provenance, Step, check_step, provenance, rebuild, remember

_log = logging.getLogger(__name__)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    notes: dict[str, Any] | None = None,
    storage: Storage | None = None,
    passphrase: str | None = None,
) -> int:
    """Writes a net to one file, atomically: an old file of this name is kept until the new one is complete.

    Args:
        model: any net, condensed or not. If `create_model` did not make it, loading needs the plain net as `base`.
        path: the file, by convention ending in `.safetensors`.
        notes: anything JSON can hold that belongs to the net, for example the normalisation of its images.
        storage: type of the weights in the file: `"float32"`, `"float16"` or `"int8"`, see `pocketcnn.checkpoint.storage`.
            Weights load in their own type, rounded. None stores every tensor unchanged.
        passphrase: hides the seeds of the net's rings or puppets. It does not encrypt the weights: somebody with data
            can train them further. A seed below 2**32 can be found by trying, so draw one with `secrets.randbits(64)`.
    Returns:
        The length of the file in bytes.
    Raises:
        ValueError: no such storage; or the passphrase is empty, or the net has no seed to hide.
        CannotWrite: the folder does not exist or is not writable, the disk is full, or the net's batch norms are folded
            (`fold_norm`), which no file can describe. An old file stays intact.
    """
    path, model = Path(path), uncompiled(model)
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
        if any(0 <= step.options.get("seed", GUESSABLE) < GUESSABLE for step in made.steps):
            _log.warning("a seed below 2**32 can be found by trying; draw one with secrets.randbits(64)")
        header["key"] = {"salt": os.urandom(16).hex(), **SCRYPT}
        hide_seeds(header, passphrase)
    tensors = distinct_tensors(model)
    if storage is not None:
        tensors, header["storage"] = pack(tensors, model, storage)
    content = serialize(separate(tensors), metadata={FORMAT: json.dumps(header)})
    write_atomically(path, content)
    return len(content)


def load(
    path: str | Path,
    *,
    base: nn.Module | None = None,
    device: torch.device | str = "cpu",
    passphrase: str | None = None,
) -> nn.Module:
    """Rebuilds the net of a file, bit for bit, in evaluation mode.

    Args:
        path: a file written by `save`, or a folder that holds one: of a run, or written by `pocketcnn.hub`.
        base: a fresh plain net of the same architecture, if `create_model` did not make the saved one; it is not changed.
        device: where the net is put.
        passphrase: the one that the file was saved with. A wrong one is not noticed: the net then has other places and
            signs, and is right no more often than by chance.
    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged, or its tensors do not fit the net.
        ForeignFile: the file was not written by `save`.
        NewerFormat: a newer version wrote the file, or the file has an option that this version does not know.
        MissingPassphrase: the file was saved with a passphrase.
        ValueError: a passphrase was given for a file that was saved without one.
        MissingBase: the file describes changes to a net, which must be given as `base`.
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
            hide_seeds(header, passphrase)
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenFile(
                f"{path}: the entry about its passphrase is damaged ({error}); copy or train it again"
            ) from error
    steps = [Step(s["method"], s["options"], tuple(s["sites"])) for s in header["steps"]]
    if base is None and header["base"] is None:
        raise MissingBase(
            f"{path}: this net was not made by create_model; pass a fresh plain one as base=net, to which "
            f"{len(steps)} condensing steps will be applied"
        )
    for step in steps:
        try:
            check_step(step)
        except (ValueError, PocketError) as error:
            raise NewerFormat(
                f"{path}: this version, {__version__}, does not know how the net was condensed ({error}); upgrade pocketcnn"
            ) from error
    try:
        with torch.random.fork_rng():
            net = base if base is not None else create_model(header["base"]["name"], **header["base"]["options"])
            model = rebuild(net, steps) if steps else copied(net)
    except NotEnoughMemory:
        raise
    except (ValueError, PocketError) as error:
        raise BrokenFile(f"{path}: the net it describes cannot be rebuilt: {error}") from error
    if header["base"] is not None:
        remember(model, Provenance(header["base"], tuple(steps)))
    fill_from_(model, path, header.get("storage"))
    frozen = set(header["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model.to(device).eval()


def fill_from_(model: nn.Module, path: Path, storage: dict[str, Any] | None = None) -> None:
    """Copies the tensors of a model file into a net of the same structure, in the dtypes that the saved net had.

    Args:
        model: the net.
        path: the file.
        storage: the entry `storage` of the file's header.
    Raises:
        BrokenFile: names or shapes differ.
        NewerFormat: the storage is one that this version does not know.
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
            f"{path}: its tensors do not fit {type(model).__name__}: {keys[0]!r} and {len(keys) - 1} more are in only "
            "one of the two; was the net changed after condense?"
        )
    for name, tensor in wanted.items():
        if stored[name].shape != tensor.shape:
            shapes = f"{list(stored[name].shape)} in the file, {list(tensor.shape)} in the net"
            raise BrokenFile(f"{path}: {name} is {shapes}")
        # In the dtype of the saved net. A copy, because memory with another alignment would round differently.
        places[name].data = stored[name].clone()
