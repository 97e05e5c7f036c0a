"""Lightning checkpoints: written atomically, checked by a digest, the previous one kept."""

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.cost import tensors_by_all_names
from pocketcnn.errors import BrokenFile, ForeignFile
from pocketcnn.support.files import write_atomically
from pocketcnn.support.runs import LAST, PREVIOUS, Count
from pocketcnn.support.schema import shaped
from pocketcnn.train.engine import TorchCheckpointIO

_log = logging.getLogger(__name__)
_DIGEST = hashlib.sha256().digest_size
_REMEDY = "delete it to start this run afresh"


@dataclass(frozen=True)
class _Position:
    epoch: Count
    step: Count


@dataclass(frozen=True)
class _Log:
    rows: list[dict[str, float]]
    seconds: float
    images: Count


@dataclass(frozen=True)
class _Callbacks:
    EpochLog: _Log


@dataclass(frozen=True)
class _Checkpoint:
    """The entries of a checkpoint that a run needs to resume; tensors may be anywhere among the values."""

    epoch: Count
    global_step: Count
    state_dict: dict[str, Any]
    loops: dict[str, dict[str, Any]]
    callbacks: _Callbacks
    optimizer_states: list[dict[str, Any]]
    lr_schedulers: list[dict[str, Any]]
    counted: dict[str, dict[str, Any]]
    position: _Position


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints that are whole or absent, hold only tensors and numbers, and end with a hash of their content.

    The last checkpoint but one is kept as `previous.ckpt`. `torch.load` reads these files too: it ignores the hash.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getvalue()
        path = Path(path)
        write_atomically(path, content + hashlib.sha256(content).digest(), keep=path.with_name(PREVIOUS))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        try:
            written = Path(path).read_bytes()
            content, digest = written[:-_DIGEST], written[-_DIGEST:]
            if hashlib.sha256(content).digest() != digest:
                raise ValueError("cut short or changed since it was written")
            found = torch.load(io.BytesIO(content), map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises errors of many kinds
            said = " ".join(str(error).split())[:200]  # torch's own advice would be to load any code in it
            raise BrokenFile(f"{path}: damaged checkpoint ({said}); {_REMEDY}") from error
        shaped(found, _Checkpoint, f"{path}: damaged checkpoint", remedy=_REMEDY)
        return found


def _check_fits(path: Path, found: Mapping[str, Any], module: nn.Module) -> None:
    """Checks that a checkpoint is of this module: names and shapes of its tensors, whose values are finite."""
    required, stored = module.state_dict(keep_vars=True), found["state_dict"]
    # Checkpoints of older versions hold a shared tensor under the names of all its owners.
    wanted = {**tensors_by_all_names(module), **required}
    given = {id(wanted[name]) for name in stored if name in wanted}
    problem = ""
    if keys := sorted([*(stored.keys() - wanted.keys()), *(n for n, t in required.items() if id(t) not in given)]):
        problem = f"{keys[0]!r} and {len(keys) - 1} more entries are only in the checkpoint or only in the net"
    for name, tensor in stored.items():
        if problem:
            break
        if not isinstance(wanted[name], Tensor):
            continue  # extra state of a module, which the module checks
        if not isinstance(tensor, Tensor) or tensor.shape != wanted[name].shape:
            had = list(tensor.shape) if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            problem = f"{name} is {had}, but {list(wanted[name].shape)} in the net"
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            problem = f"{name} holds NaN or infinite values"
    if not problem and any(_is_expanded(tensor) for tensor in _tensors(found)):
        problem = "a tensor in it is larger than its values"
    if problem:
        raise BrokenFile(f"{path}: damaged checkpoint, or that of another net ({problem}); {_REMEDY}")


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for part in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(part)


def _is_expanded(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def newest_checkpoint(folder: Path, module: nn.Module | None = None) -> Path | None:
    """Finds the last undamaged checkpoint of a run; None if there is none.

    If the last checkpoint is damaged, a warning is logged and the previous one is used.

    Args:
        folder: of the run.
        module: the module that is trained; its tensors must have the names and shapes of those in the checkpoint.
    Raises:
        BrokenFile: all checkpoints there are damaged.
        ForeignFile: something else than a file has the name of a checkpoint.
    """
    found = [path for name in (LAST, PREVIOUS) if (path := folder / name).exists()]
    errors = []
    if other := next((path for path in found if not path.is_file()), None):
        raise ForeignFile(f"{other}: not a plain file, as checkpoints are; move it away")
    for path in found:
        try:
            kept = AtomicCheckpointIO().load_checkpoint(path)
            if module is not None:
                _check_fits(path, kept, module)
        except BrokenFile as error:
            errors.append(error)
            continue
        if errors:
            _log.warning("%s; resuming from %s, epoch %d", errors[0], path.name, kept["epoch"] + 1)
        return path
    if errors:
        raise errors[0]
    return None
