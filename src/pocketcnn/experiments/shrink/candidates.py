"""Candidates for a budget of bytes: ways to make a net's file small, each as large as the budget allows."""

import contextlib
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.storage import Norms, Storage, hold_zeros_, prune_
from pocketcnn.errors import NothingFits, NothingToCondense
from pocketcnn.methods import METHODS
from pocketcnn.models.spec import PLAIN_METHOD, parse_method, spell
from pocketcnn.numerics.ring_index import WINDOW, longest
from pocketcnn.support.copying import copied
from pocketcnn.surgery import condense, materialize, plan

_log = logging.getLogger(__name__)
_BYTES = {"float32": 4, "float16": 2, "int8": 1}
_STEPS = 9  # of a bisection
_FINE = 500  # a file that is shorter than the budget by less than this part of it is long enough
WINDOWS = "ring"
LENGTHS = (4, 6, WINDOW, 12, 18, 27)  # of windows, tried
MOST_PRUNED = 0.97
Notes = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A way to make a trained net small: a method that is fitted to its weights, or zeros in their places.

    `bytes` is the length of the model file. `pruned` is the share of each weight that is set to zero.
    """

    label: str
    storage: Storage
    bytes: int
    method: str = PLAIN_METHOD
    options: Mapping[str, Any] = field(default_factory=dict)
    pruned: float = 0.0

    def start(self, net: nn.Module, images: Tensor | None) -> nn.Module:
        """Makes the small net from the trained one; `images` are as in `condense`."""
        if self.method != PLAIN_METHOD:
            return condense(net, self.method, initialize="fit", images=images, **self.options)
        small = copied(net).requires_grad_(True)
        if self.pruned:
            prune_(small, self.pruned)
        return small

    def hold(self, small: nn.Module) -> None:
        """Keeps zeros at zero while the net is trained."""
        if self.pruned:
            hold_zeros_(small)


def file_bytes(net: nn.Module, storage: Storage | None, notes: Notes) -> int:
    """The length of the model file that a net would have."""
    with tempfile.TemporaryDirectory() as place:
        return write(net, Path(place) / checkpoint.FILE, storage, notes)


def _condensed_bytes(net: nn.Module, method: str, options: Mapping[str, Any], storage: Storage, notes: Notes) -> int:
    """The length of the file of a net that is condensed and not fitted: fresh numbers are less alike, and take no fewer bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return file_bytes(condense(net, method, **options), storage, notes)


def write(net: nn.Module, path: Path, storage: Storage | None, notes: Notes) -> int:
    """Writes a net as the smallest file of a storage: packed, with int8 also norms of two numbers. Returns its length."""
    norms: Norms = "folded" if storage == "int8" else "exact"
    own = None if storage == "float32" else storage  # as files have anyway
    return checkpoint.save(net, path, notes=dict(notes), storage=own, packed=True, norms=norms)


def plain(net: nn.Module, max_bytes: int, storages: Sequence[Storage], notes: Notes) -> Candidate | None:
    """The net as it is, in the most exact number type that fits; None if none does."""
    for storage in storages:
        if (length := file_bytes(net, storage, notes)) <= max_bytes:
            return Candidate(f"plain {storage}", storage, length)
    return None


def pruned(net: nn.Module, max_bytes: int, storage: Storage, notes: Notes) -> Candidate | None:
    """The net with as few zeros as fit, smallest weights first; None if too few weights would be left."""

    def length(share: float) -> int:
        small = copied(net)
        prune_(small, share)
        return file_bytes(small, storage, notes)

    share = _least(lambda share: length(share) <= max_bytes, 0.0, MOST_PRUNED)
    if share is None:
        return None
    return Candidate(f"plain, {100 * share:.0f} % zeros, {storage}", storage, length(share), pruned=share)


def windows(
    net: nn.Module,
    max_bytes: int,
    storage: Storage,
    notes: Notes,
    keep: Sequence[str] = (),
    lengths: Sequence[int] = LENGTHS,
) -> Candidate | None:
    """A ring read by windows, as long as fits, for all convolutions but those kept; None if none fits.

    Short windows need many codes, and long ones fit badly: of several lengths the one with the nearest fit is taken.

    Raises:
        NothingToCondense: there are no convolutions to replace.
    """
    found = [one for each in lengths if (one := _windows(net, max_bytes, storage, notes, keep, each)) is not None]
    if len(found) < 2:
        return found[0] if found else None
    errors = [_distance(net, one.start(net, None)) for one in found]
    for one, error in zip(found, errors, strict=True):
        _log.info("%s: %.1f %% of the weights' energy is lost by the fit", one.label, 100 * error)
    return found[errors.index(min(errors))]


def _windows(
    net: nn.Module, max_bytes: int, storage: Storage, notes: Notes, keep: Sequence[str], window: int
) -> Candidate | None:
    """A ring read by windows of one length, as long as fits."""
    options: dict[str, Any] = {"scheme": "windows", "window": window, "gain": True}
    options |= {"exclude": tuple(keep)} if keep else {}
    weights = replaced_by_windows(net, keep)
    if not weights:
        condense(net, WINDOWS, **options)  # raises an error that says why

    def made(length: int) -> dict[str, Any]:
        return {**options, "size": length, **({} if length <= longest(window) else {"level": "stage"})}

    length, tried = window, dict[int, int]()
    while length not in tried and len(tried) < _STEPS:  # packed, a parameter takes less than its number type
        tried[length] = _condensed_bytes(net, WINDOWS, made(length), storage, notes)
        room = max_bytes - tried[length]
        step = room // _BYTES[storage] if room > max_bytes // _FINE else min(0, room) - (room < 0)
        length = min(max(window, length + step), weights)
    fitting = [length for length, found in tried.items() if found <= max_bytes]
    if not fitting:
        return None
    length = max(fitting)
    kept = f" but {len(keep)} plain" if keep else ""
    label = f"ring of {length:,} parameters, windows of {window}{kept}, {storage}"
    return Candidate(label, storage, tried[length], WINDOWS, made(length))


@torch.no_grad()
def _distance(net: nn.Module, small: nn.Module) -> float:
    """How much of the energy of a net's kernels a fit loses: the mean over layers, each by its number of weights."""
    made = dict(materialize(small).named_parameters())
    lost = total = 0.0
    for name, weight in net.named_parameters():
        if weight.dim() > 1 and name in made and made[name].shape == weight.shape:
            energy = max(float(weight.square().sum()), torch.finfo(weight.dtype).tiny)
            lost += weight.numel() * float((weight - made[name]).square().sum()) / energy
            total += weight.numel()
    return lost / total


def replaced_by_windows(net: nn.Module, keep: Sequence[str] = ()) -> int:
    """The number of weights that a ring replaces in a net, but for the places kept."""
    rows = plan(net, WINDOWS, size=WINDOW, scheme="windows", exclude=tuple(keep) or None).rows
    return sum(row.numbers_before for row in rows if row.becomes)


def of_method(
    net: nn.Module, method: str, options: Mapping[str, Any], max_bytes: int, storage: Storage, notes: Notes
) -> Candidate | None:
    """A method that was asked for, with the largest `size` that fits if it has one and none was given."""

    def made(**more: Any) -> Candidate:
        own = {**METHODS[method].match_options, **options, **more}
        length = _condensed_bytes(net, method, own, storage, notes)
        return Candidate(f"{spell(method, {**options, **more})}, {storage}", storage, length, method, own)

    if method == WINDOWS and options.get("scheme") == "windows" and not {"size", "level"} & options.keys():
        keep = options.get("exclude") or ()
        lengths = (int(options["window"]),) if "window" in options else LENGTHS
        return windows(net, max_bytes, storage, notes, (keep,) if isinstance(keep, str) else keep, lengths)
    searched = METHODS[method].searched
    if "size" not in searched or "size" in options:
        found = made()
        return found if found.bytes <= max_bytes else None
    low, high = getattr(searched["size"], "low", 0.001), 1.0
    share = _least(lambda share: made(size=_size(share)).bytes <= max_bytes, 1 - high, 1 - low)
    return None if share is None else made(size=_size(share))


def _size(share: float) -> float:
    """The size that is the rest of a share, rounded down to a few digits."""
    return max(1e-6, math.floor((1 - share) * 1e6) / 1e6)


def _least(fits: Callable[[float], bool], low: float, high: float) -> float | None:
    """The least number of a range for which something holds that holds for all above; None if it does not for the highest."""
    if not fits(high):
        return None
    if fits(low):
        return low
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def nothing_fits(
    net: nn.Module, max_bytes: int, storage: Storage, notes: Notes, method: str | None = None
) -> NothingFits:
    """The error for a budget that nothing meets; it says what the rest of the net takes, and names its largest parts."""
    least, how = copied(net), "as it is"
    if method is None:
        with contextlib.suppress(NothingToCondense):
            least, how = (
                condense(net, WINDOWS, size=1, scheme="windows", window=LENGTHS[-1], gain=True),
                "with the shortest ring",
            )
    elif method != PLAIN_METHOD:
        name, options = parse_method(method)
        shortest = {"size": 0.001} if "size" in METHODS[name].searched and "size" not in options else {}
        least, how = condense(net, name, **{**METHODS[name].match_options, **options, **shortest}), f"with {method}"
    with torch.no_grad():
        least_bytes = file_bytes(least, storage, notes)
    parts = sorted(parts_of(least, storage).items(), key=lambda part: -part[1])
    named = ", ".join(f"{name} {length:,}" for name, length in parts[:4])
    return NothingFits(
        f"{max_bytes:,} bytes are too few for {type(net).__name__}: {how} its file takes {least_bytes:,}, the "
        f"most in {named}; allow {least_bytes:,} or more, or take a smaller net"
    )


def parts_of(net: nn.Module, storage: Storage) -> dict[str, int]:
    """The bytes that each module's own tensors take in a file, and those of the file's header as `header`."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / checkpoint.FILE
        write(net, path, storage, {})
        return checkpoint.ledger(path, net).by_module()


def storages_of(storage: str | None) -> tuple[Storage, ...]:
    """The number types that may be used, the most exact first; all of them unless one was asked for."""
    return get_args(Storage) if storage is None else (storage,)
