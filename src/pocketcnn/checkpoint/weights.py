"""Trained weights from elsewhere: files of tensors by name, as PyTorch, Lightning and safetensors write them.

Nothing in a file is run: PyTorch's own format is read with `weights_only=True`, which builds tensors and plain containers.
"""

import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pocketcnn.checkpoint.header import FORMAT
from pocketcnn.checkpoint.sealed import read_head
from pocketcnn.errors import BrokenFile, ForeignFile, WrongWeights
from pocketcnn.support.files import refuse_exported
from pocketcnn.support.modules import bare
from pocketcnn.support.timing import first_line

_HOLDERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
"""Names under which checkpoints of trainings hold the weights, the likeliest first."""
_ALONE = "save the weights alone: torch.save(net.state_dict(), FILE)"
_CULPRIT = re.compile(r"GLOBAL ([\w.]+)")  # an object that only code could make, as PyTorch's message names it
_SHOWN = 3  # names in a message
_TRIED = 8  # names of the net by which prefixes are looked for
_log = logging.getLogger(__name__)


def load_weights_(model: nn.Module, path: str | Path) -> nn.Module:
    """Fills a net with trained weights from a file, in place.

    The file holds tensors by name, directly or inside a training's checkpoint, as `"state_dict"` or the like. Prefixes that
    wrappers add to the names, such as `module.` and `model.`, are taken off. Weights are converted to the net's types.

    Args:
        model: the net that the weights were trained in, made afresh.
        path: `.safetensors`, or a file of `torch.save` (`.pth`, `.pt`, `.ckpt`).
    Returns:
        The net.
    Raises:
        FileNotFoundError: there is no such file.
        ForeignFile: the file holds no tensors by name, or code that would have to run to read it.
        BrokenFile: the file is cut short or damaged, or a weight is not finite.
        WrongWeights: weights of the net are missing in the file or have another shape there; the message names them.
    """
    path = Path(path)
    with bare(model) as net:
        wanted = net.state_dict(keep_vars=True)
        choices = [(some, *_prefix_of(some, wanted)) for some in read_weights(path)]
        found, prefix, _ = max(choices, key=lambda choice: choice[2])
        given = {name[len(prefix) :]: tensor for name, tensor in found.items() if name.startswith(prefix)}
        _check(given, wanted, path, type(net).__name__)
        if left := [*(name for name in given if name not in wanted), *(n for n in found if not n.startswith(prefix))]:
            _log.warning("%s: %s in the file, but not in the net: %s; left out", path, _counted(left), _some(left))
        with torch.no_grad():
            for name, tensor in wanted.items():
                if name in given:
                    tensor.copy_(given[name])
    return model


def read_weights(path: Path) -> list[dict[str, Tensor]]:
    """Reads the tensors of a file, by name: one dictionary, or each that may be the weights, the likeliest first.

    The errors are those of `load_weights_`, but for `WrongWeights`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    refuse_exported(path.with_suffix("" if path.suffix in (".pt", ".pth") else path.suffix))
    if path.suffix == ".safetensors":
        if FORMAT in read_head(path).metadata:
            raise ForeignFile(f"{path}: a model file of pocketcnn, which holds a whole net; give it as the net itself")
        try:
            return [load_file(path)]
        except (SafetensorError, OSError) as error:
            raise BrokenFile(f"{path}: cannot be read ({first_line(error)}); copy it again") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old formats; they are read, or refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        said = str(error)
        if "TorchScript" in said:
            raise ForeignFile(f"{path}: a TorchScript program, not weights; {_ALONE}") from error
        if not isinstance(error, pickle.UnpicklingError) or ("pickle" not in said and "GLOBAL" not in said):
            raise BrokenFile(f"{path}: not a file of torch.save, or damaged; copy it again") from error
        culprit = _CULPRIT.search(said)
        what = culprit[1] if culprit else "pickled objects"
        raise ForeignFile(
            f"{path}: holds more than weights ({what}), and reading that could run any code; where you trust it, {_ALONE}"
        ) from error
    found = [some for some in _tensors_in(content) if some]
    if not found:
        kind = (
            f"a dictionary of {_some(list(map(str, content)))}"
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise ForeignFile(f"{path}: holds no tensors by name, but {kind}; {_ALONE}")
    return found


def _tensors_in(content: Any, depth: int = 0) -> list[dict[str, Tensor]]:
    """Finds dictionaries of tensors in what a file holds: itself, and those under the usual names."""
    if not isinstance(content, Mapping) or depth > 3:
        return []
    own = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    inside = [some for name in _HOLDERS for some in _tensors_in(content.get(name), depth + 1)]
    return [own, *inside] if own and len(own) == len(content) else [*inside, own]


def _prefix_of(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[str, int]:
    """The prefix of the names in a file under which most of the net's own lie, and how many."""
    ends = {name: [key for key in found if key == name or key.endswith(f".{name}")] for name in list(wanted)[:_TRIED]}
    prefixes = dict.fromkeys(key[: len(key) - len(name)] for name, keys in ends.items() for key in keys)
    hits = {prefix: sum(prefix + name in found for name in wanted) for prefix in ("", *prefixes)}
    best = max(hits, key=hits.__getitem__)  # of equals the first, which is none
    return best, hits[best]


def _check(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, kind: str) -> None:
    """Checks that a file has all weights of a net, in their shapes, and that they are finite."""
    # Older versions of PyTorch did not count the batches of a norm.
    there = {
        wanted[name].data_ptr() for name in given if name in wanted
    }  # a shared tensor may stand under one of its names
    missing = [
        name
        for name in wanted
        if name not in given and not name.endswith("num_batches_tracked") and wanted[name].data_ptr() not in there
    ]
    odd = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    left = [name for name in given if name not in wanted]
    if missing or odd:
        words = []
        if missing:
            words.append(f"{len(missing)} of {len(wanted)} weights of {kind} are missing ({_some(missing)})")
        if odd:
            name = odd[0]
            shapes = f"{name} is {list(given[name].shape)} there and {list(wanted[name].shape)} in the net"
            words.append(f"{_counted(odd)} {'has' if len(odd) == 1 else 'have'} another shape ({shapes})")
        if left:
            words.append(f"{len(left)} are not the net's ({_some(left)})")
        raise WrongWeights(
            f"{path}: weights of another net: {'; '.join(words)}; give the options that the net was made with"
        )
    for name, tensor in given.items():
        if name not in wanted:
            continue
        if tensor.is_quantized or tensor.is_complex() or tensor.is_floating_point() != wanted[name].is_floating_point():
            raise WrongWeights(
                f"{path}: {name} is {tensor.dtype} there and {wanted[name].dtype} in the net; save plain weights"
            )
        own = wanted[name].detach()
        if tensor.is_floating_point() and not (torch.isfinite(tensor) | (tensor == own.to(tensor))).all():
            raise BrokenFile(f"{path}: {name} is not finite: its training diverged, or the file is damaged")


def _counted(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
