"""Model files: one `.safetensors` with the distinct tensors and, in its metadata, the JSON that rebuilds the net.

Nothing in a file is ever unpickled. Shared tensors are written once. The places and signs of a ring are rebuilt from its
seed, so the file does not hold them. With a passphrase it does not hold the plain seed either: the seed is XORed with a
number that `hashlib.scrypt` derives from the passphrase and the file's salt. All weights are in the file and readable, but
without the seed nobody knows where each belongs.
"""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from pocketcnn.checkpoint import packed as packing
from pocketcnn.checkpoint.header import (
    FORMAT,
    VERSION,
    BaseEntry,
    Header,
    StorageEntry,
    check_header,
    file_in,
    parse_header,
)
from pocketcnn.checkpoint.lock import GUESSABLE, SCRYPT, hide_seeds
from pocketcnn.checkpoint.sealed import Head, read_head, seal, verify
from pocketcnn.checkpoint.storage import Norms, Storage, check_fit, lighten_, pack, unpack
from pocketcnn.cost import distinct_tensors, separate
from pocketcnn.errors import (
    BadFactory,
    BrokenFile,
    CannotWrite,
    MissingBase,
    MissingExtra,
    MissingPassphrase,
    NewerFormat,
    NotEnoughMemory,
    PocketError,
)
from pocketcnn.models.builders import BUILDERS, LIBRARIES, known, runs_code
from pocketcnn.models.recipes import check_name, create_model
from pocketcnn.models.spec import parse_model
from pocketcnn.support.copying import copied, skeleton
from pocketcnn.support.files import write_atomically
from pocketcnn.support.modules import bare, filled_later, unwrapped
from pocketcnn.support.version import __version__
from pocketcnn.surgery import (
    Step,
    check_describable,
    check_step,
    provenance,
    rebuild_,
    record_of,
    remember,
    undescribed,
)

_CHUNK = 1 << 22  # values that are looked at in one go, so that this takes little memory
_log = logging.getLogger(__name__)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    notes: dict[str, Any] | None = None,
    storage: Storage | None = None,
    passphrase: str | None = None,
    packed: bool = False,
    norms: Norms = "exact",
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
        packed: codes header and tensors together in as few bytes as is known here, see `pocketcnn.checkpoint.packed`. The
            net that loads is the same, bit for bit. Packing takes about a second for each million float32 numbers.
        norms: `"float16"` rounds norms and biases, `"folded"` also leaves of each batch norm a factor and a summand: fewer bytes
            in a packed file, see `pocketcnn.checkpoint.storage.lighten_`. The given net is left alone.
    Returns:
        The length of the file in bytes.
    Raises:
        ValueError: no such storage or norms; or the passphrase is empty, or the net has no seed to hide.
        CannotWrite: the folder does not exist or is not writable, the disk is full, or no file can describe the net, see
            `check_savable`. An old file stays intact.
    Example:
        >>> import tempfile, pocketcnn as pc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pc.save(pc.create_model("resnet20"), f"{folder}/net.safetensors", storage="int8") < 310_000
        True
    """
    path = Path(path)
    check_savable(model, f"{path}: ")
    if not path.parent.is_dir():
        raise CannotWrite(f"{path}: there is no folder {path.parent}; make it first")
    made = provenance(model)
    if norms != "exact":
        model = copied(unwrapped(model))
        lighten_(model, norms)
    with bare(model) as net:
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "base": made.base,
            "steps": [step.as_dict() for step in made.steps],
            "frozen": [name for name, parameter in net.named_parameters() if not parameter.requires_grad],
            "notes": notes or {},
            "layers": [layer.as_dict() for layer in undescribed(net)],
        }
        if passphrase is not None:
            options = [(entry["method"], entry["options"]) for entry in (*header["steps"], *header["layers"])]
            if any(0 <= known.get("seed", GUESSABLE) < GUESSABLE for _, known in options):
                _log.warning("a seed below 2**32 can be found by trying; draw one with secrets.randbits(64)")
            header["key"] = {"salt": os.urandom(16).hex(), **SCRYPT}
            hide_seeds(options, header["key"], passphrase)
        tensors = distinct_tensors(net)
        if (odd := next((name for name, tensor in tensors.items() if not _is_finite(tensor)), None)) is not None:
            _log.warning(
                "%s: %s is not finite; load will refuse it, unless a fresh net has the same values there or "
                "allow_nonfinite=True is given", path, odd,
            )  # fmt: skip
        if storage is not None:
            tensors, header["storage"] = pack(tensors, net, storage, coded=packed)
        text = json.dumps(header)
        try:
            check_header(text, path)  # so that no file is written that cannot be read
            content = packing.pack_file(json.loads(text), tensors, net) if packed else serialize(separate(tensors))
        except BrokenFile as error:
            raise CannotWrite(f"{error}; nothing was written") from error
    content = seal(content, {FORMAT: packing.outer() if packed else text})
    write_atomically(path, content)
    return len(content)


def check_savable(model: nn.Module, where: str = "") -> None:
    """Checks that a file can describe a net; `where` begins the message.

    Raises:
        CannotWrite: the net's batch norms are folded (`fold_norm`); or a condensed layer was taken out of the net that was
            condensed, where the record of its seed stayed; or something was put in the place of a condensed layer.
    """
    if provenance(model).folded:
        raise CannotWrite(
            f"{where}this {type(unwrapped(model)).__name__} has batch norms folded into its convolutions, and could not be "
            "rebuilt from a file; save the net it was made of, and fold what load gives, by fold_norm or "
            "materialize(..., fold_norm=True)"
        )
    try:
        check_describable(model)
    except CannotWrite as error:
        raise CannotWrite(f"{where}{error}") from error


def load(
    path: str | Path,
    *,
    base: nn.Module | str | None = None,
    device: torch.device | str = "cpu",
    passphrase: str | None = None,
    allow_nonfinite: bool = False,
) -> nn.Module:
    """Rebuilds the net of a file, bit for bit, in evaluation mode.

    Args:
        path: a file written by `save`, or a folder that holds one: of a run, or written by `pocketcnn.hub`.
        base: if `create_model` did not make the saved net: a fresh net of the same form, with plain layers in the place of
            condensed ones; it is not changed. Parts that are condensed already must be condensed as in the file. Wrappers
            of `torch.compile` and of activation checkpointing make no difference, and the loaded net has none. Or the net
            in words, `"nets/mine.py:build"`, if a function of yours makes it; options that the words leave out are as in
            the file. A file names that function, but it is imported only when you do so.
        device: where the net is put.
        passphrase: the one that the file was saved with. A wrong one is not noticed: the net then has other places and
            signs, and is right no more often than by chance.
        allow_nonfinite: also loads weights that are NaN or infinite. Constants that the fresh net has too, such as the
            -inf of a mask, are always allowed.
    Raises:
        FileNotFoundError: there is no such file.
        BrokenFile: the file is cut short or damaged, its checksum differs, its tensors do not fit the net, or a weight is
            not finite. Files of older versions have no checksum; damage to their weights is not noticed.
        ForeignFile: the file was not written by `save`.
        NewerFormat: a newer version wrote the file, or the file has an option that this version does not know.
        MissingPassphrase: the file was saved with a passphrase.
        ValueError: a passphrase was given for a file that was saved without one; or `base` is condensed in another way or
            with another seed than the net in the file.
        MissingBase: the file describes changes to a net, which must be given as `base`; or a function made the net that you
            have not named in this process.
        BadFactory: the function named as `base` cannot be imported, or raises an error.
        ExportedFile: the file was exported for serving.
    Example:
        >>> import tempfile, torch, pocketcnn as pc
        >>> net = pc.create_model("resnet20").eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pc.save(net, f"{folder}/net.safetensors")
        ...     again = pc.load(f"{folder}/net.safetensors")
        >>> torch.equal(again(torch.ones(1, 3, 32, 32)), net(torch.ones(1, 3, 32, 32)))
        True
    """
    path = file_in(Path(path))
    head = read_head(path)
    _, header = parse_header(head, path)
    verify(path, head)
    _unlock(header, path, passphrase)
    if not isinstance(base, nn.Module):
        header = dataclasses.replace(header, base=_named_base(header, base, path))
        base = None
    steps = [entry.step() for entry in header.steps]
    for step in steps:
        try:
            check_step(step)
        except (ValueError, PocketError) as error:
            raise NewerFormat(
                f"{path}: this version, {__version__}, does not know how the net was condensed ({error}); upgrade pocketcnn"
            ) from error
    with torch.random.fork_rng(), filled_later():
        model = _built(header, base, steps, head, path)
    _check_layers(model, header, base, path)
    _fill(model, path, head, header.storage, allow_nonfinite)
    parameters = dict(model.named_parameters())
    if unknown := [name for name in header.frozen if name not in parameters]:
        raise BrokenFile(
            f"{path}: {unknown[0]!r} is frozen in the file, but {type(model).__name__} has no such parameter"
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in header.frozen)
    return model.to(device).eval()


def _unlock(header: Header, path: Path, passphrase: str | None) -> None:
    """Restores the seeds of a header that a passphrase hides."""
    if header.key is None:
        if passphrase is not None:
            raise ValueError(f"{path}: saved without a passphrase; leave it out")
        return
    if not passphrase:
        raise MissingPassphrase(f"{path}: saved with a passphrase; pass it as load(path, passphrase=...)")
    try:
        options = [(entry.method, entry.options) for entry in (*header.steps, *(header.layers or ()))]
        hide_seeds(options, dataclasses.asdict(header.key), passphrase)
    except ValueError as error:
        raise BrokenFile(
            f"{path}: the entry about its passphrase is damaged ({error}); copy or train it again"
        ) from error


def _named_base(header: Header, base: str | None, path: Path) -> BaseEntry:
    """The plain net that a file names, as far as the file may: code of the user's own only if the user has named it.

    Raises:
        MissingBase: it has none, or nobody has named the code.
    """
    entry = header.base
    if base is not None:
        name, options = parse_model(base)
        check_name(name)
        return BaseEntry(name, {**(entry.options if entry else {}), **options})
    if entry is None:
        raise MissingBase(
            f"{path}: this net was not made by create_model; pass a fresh plain one as base=net, to which "
            f"{len(header.steps)} condensing steps will be applied"
        )
    if entry.name.partition(":")[0] in LIBRARIES and (odd := [key for key in entry.options if "pretrained" in key]):
        raise BrokenFile(f"{path}: asks for {odd[0]} of {entry.name}, which would be fetched; no file of ours does")
    if runs_code(entry.name) and known(entry.name) is None:
        raise MissingBase(
            f"{path}: this net is made by {entry.name}, code that no file may start by itself; if you trust it, pass "
            f'base="{entry.name}"'
        )
    return entry


def _built(header: Header, base: nn.Module | None, steps: Sequence[Step], head: Head, path: Path) -> nn.Module:
    """Builds the net that a header describes, after a try without memory has shown that it is no larger than the file."""

    def build(light: bool) -> nn.Module:
        if base is None:
            assert header.base is not None
            net = create_model(header.base.name, **header.base.options)
        else:
            with bare(base) as plain:
                net = copied(plain)
        todo = _steps_after(net, steps, header, path)
        return rebuild_(
            skeleton(net)[0] if light and base is not None else net, todo
        )  # which keeps weights that are tied

    foreign = base is not None or header.base is None or header.base.name not in BUILDERS
    for light in (True, False):
        try:
            with torch.device("meta" if light else "cpu"):
                model = build(light)
        except NotEnoughMemory:
            raise
        except Exception as error:  # a file may ask for anything
            if light and foreign:
                continue  # foreign nets may need values
            if isinstance(error, BadFactory | MissingExtra) or (base is not None and isinstance(error, ValueError)):
                raise
            words = " ".join(str(error).split()) if isinstance(error, ValueError | PocketError) else repr(error)
            raise BrokenFile(f"{path}: the net it describes cannot be rebuilt: {words[:500]}") from error
        if light:
            check_fit(path, laid_out(head, model, path), model, header.storage)
    if header.base is not None:
        made = record_of(model)
        remember(model, dataclasses.replace(made, base=dataclasses.asdict(header.base)))
    return model


def _steps_after(base: nn.Module, steps: Sequence[Step], header: Header, path: Path) -> list[Step]:
    """The steps of a file that its base has not taken yet.

    Raises:
        ValueError: the base is condensed in another way than the net in the file.
    """
    wanted = {_essence(step) for step in steps}
    taken = {_essence(step): step for step in provenance(base).steps}
    for essence, step in taken.items():
        if essence in wanted:
            continue
        other = next((one for one in steps if set(one.sites) & set(step.sites)), None)
        if other is None and header.layers is None:
            _say_unknown(path, step.sites[0], step.method)
            continue
        raise ValueError(
            f"{path}: base is condensed otherwise than the net in the file: {step.sites[0]} {_difference(step, other)}; "
            "pass a plain net as base, or one condensed as in the file"
        )
    return [step for step in steps if _essence(step) not in taken]


def _essence(step: Step) -> str:
    return json.dumps(step.as_dict(), sort_keys=True)


def _difference(ours: Step, other: Step | None) -> str:
    """Says how a step of the base differs from one in the file."""
    if other is None:
        return f"by {ours.method!r}, and there is no such step in the file"
    if ours.method != other.method:
        return f"by {ours.method!r}, in the file by {other.method!r}"
    mine, theirs = (json.loads(json.dumps(dict(step.options))) for step in (ours, other))
    for name in {**mine, **theirs}:
        if mine.get(name) != theirs.get(name):
            return f"with {name} {mine.get(name)!r}, in the file with {theirs.get(name)!r}"
    return f"together with {len(ours.sites)} layers in all, in the file with {len(other.sites)}"


def _check_layers(model: nn.Module, header: Header, base: nn.Module | None, path: Path) -> None:
    """Checks that the condensed layers which no step made, but the net's own class, are those of the file.

    Raises:
        ValueError: the base has other such layers than the net in the file, or they have another seed or other options.
        BrokenFile: likewise, and the net was made by name.
    """
    found = {layer.sites[0]: layer for layer in undescribed(model)}
    if header.layers is None:
        for site, layer in found.items() if base is not None else ():
            _say_unknown(path, site, layer.method)
        return
    stored = {entry.sites[0]: entry.step() for entry in header.layers}
    for site in {**stored, **found}:
        here, there = found.get(site), stored.get(site)
        if here is None or there is None:
            words = (
                f"is a condensed layer only in {f'the file, not in {type(model).__name__}' if here is None else 'base'}"
            )
        elif here.method != there.method or any(
            here.options.get(name) != there.options[name] for name in there.options
        ):
            words = f"was made otherwise: {_difference(here, there)}"
        else:
            continue
        error = BrokenFile if base is None else ValueError
        raise error(f"{path}: {site} {words}; pass a net of the same form as base=net")


def _say_unknown(path: Path, site: str, method: str) -> None:
    _log.warning(
        "%s: an older version wrote this file without the options and the seed of %s (%s); those of base are used, right or "
        "wrong: compare its outputs, and save it again", path, site, method,
    )  # fmt: skip


def fill_from_(
    model: nn.Module, path: Path, storage: Mapping[str, Any] | None = None, *, allow_nonfinite: bool = False
) -> None:
    """Copies the tensors of a model file into a net of the same structure, in the dtypes that the saved net had.

    Args:
        model: the net.
        path: the file.
        storage: the entry `storage` of the file's header.
        allow_nonfinite: as in `load`.
    Raises:
        BrokenFile: names or shapes differ, the checksum differs, or a weight is not finite.
        NewerFormat: the storage is one that this version does not know.
    """
    head = read_head(path)
    verify(path, head)
    with bare(model) as net:
        _fill(net, path, head, None if storage is None else StorageEntry(**storage), allow_nonfinite)


def _fill(model: nn.Module, path: Path, head: Head, storage: StorageEntry | None, allow_nonfinite: bool) -> None:
    """Copies the tensors of a file, whose head was checked, into a net."""
    check_fit(path, laid_out(head, model, path), model, storage)
    wanted = distinct_tensors(model)
    places = model.state_dict(keep_vars=True)
    with _reader(path, head, model) as (names, read):
        if storage is not None:
            stored = {name: read(name) for name in names}
            try:
                read = unpack(stored, wanted, model, dataclasses.asdict(storage)).pop
            except (ValueError, IndexError, RuntimeError) as error:
                raise BrokenFile(f"{path}: its weights do not fit {type(model).__name__}: {error}") from error
        for name in list(wanted):
            fresh = wanted.pop(name)  # so that its memory is free once it is replaced
            # In the dtype of the saved net. A copy, because memory with another alignment would round differently.
            new = read(name).clone()
            if not (allow_nonfinite or _is_finite(new, fresh)):
                raise BrokenFile(
                    f"{path}: {name} is not finite: it was saved after training diverged, or the file is damaged; train it "
                    "again, or pass allow_nonfinite=True to look at it"
                )
            whole = fresh.dtype != places[name].dtype  # whole numbers, which the net holds as floats
            places[name].data = new.to(places[name].dtype) if whole else new


def laid_out(head: Head, model: nn.Module, path: Path) -> Head:
    """The head of a file with its tensors by name; those of a packed file follow from the net."""
    return packing.open_packed(path, head).laid_out(model, head) if packing.is_packed(head.metadata[FORMAT]) else head


@contextlib.contextmanager
def _reader(path: Path, head: Head, model: nn.Module) -> Iterator[tuple[Collection[str], Callable[[str], Tensor]]]:
    """Opens a file to read its tensors one by one; gives their names and a function that reads one."""
    if packing.is_packed(head.metadata[FORMAT]):
        tensors = packing.open_packed(path, head).tensors(model)
        yield tuple(tensors), tensors.pop
    else:
        with safe_open(path, framework="pt") as file:
            yield tuple(head.tensors), file.get_tensor


def _is_finite(tensor: Tensor, constants: Tensor | None = None) -> bool:
    """Tells whether all values are finite, except for those that equal the constants at their places."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    flat = tensor.flatten()[: 0 if tensor.is_meta else None]
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        odd = ~torch.isfinite(part)
        if constants is not None and odd.any():
            same = constants.flatten()[start : start + _CHUNK].to(part)
            odd &= ~((part == same) | (part.isnan() & same.isnan()))
        if odd.any():
            return False
    return True
