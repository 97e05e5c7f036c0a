"""What modules hold besides parameters of their own: modules that several layers own, constants, and whole numbers.

A ring, a router and a puppeteer belong to every layer that reads them, so that each layer works alone, and in a state dict
they stand once. Places and signs belong to a net, but are nothing to train, to average, to cast or to leave empty. Codes are
set by a fit and travel with the weights, but are nothing to train or to cast.
"""

import abc
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.methods._call_value import tracing
from pocketcnn.methods._kept import is_plain, same_bits

# For each shared module the state dict that it was last written to, and the prefix of its names there.
_WRITTEN: weakref.WeakKeyDictionary[nn.Module, tuple[Callable[[], Any], str]] = weakref.WeakKeyDictionary()
# For each shared module the list of missing keys of the call that last loaded it, the prefixes under which the call came
# to it, and the names that it was given.
_LOADED: weakref.WeakKeyDictionary[nn.Module, tuple[list[str], list[str], set[str]]] = weakref.WeakKeyDictionary()


class AbstractShared(nn.Module):
    """A module that may have several owners: a state dict holds it once, under the name of the first one.

    Loading takes the names of any owner, and of all of them, as files of older versions have them.
    """

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Lists the module once in a net, also where duplicates are asked for.

        `torch.func.functional_call` swaps parameters under all their names, one after the other, and of a module with two
        names it puts back the wrong ones (https://github.com/pytorch/pytorch/issues/164759).
        """
        return super().named_modules(memo, prefix, True)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Adds the module to a state dict, unless it is there under the name of another owner."""
        destination, prefix = options.get("destination"), options.get("prefix", "")
        if destination is not None:
            known, first = _WRITTEN.get(self, (lambda: None, ""))
            if known() is destination and first != prefix and any(key.startswith(first) for key in destination):
                return destination
            _WRITTEN[self] = _reference(destination), prefix
        return super().state_dict(*arguments, **options)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Fills the module; where an owner before has filled it in the same call, names may be left out."""
        given = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        call, prefixes, filled = _LOADED.get(self, (None, [], set()))
        if call is not missing_keys:  # torch makes one list for each call of `load_state_dict`
            prefixes, filled = [], set()
            _LOADED[self] = missing_keys, prefixes, filled
        own = super().state_dict(keep_vars=True) if filled else {}
        for name in filled & own.keys():
            if name not in given:
                state_dict[prefix + name] = own[name]
            elif not _alike(state_dict[prefix + name], own[name]):
                error_msgs.append(
                    f"{prefixes[0]}{name} and {prefix}{name} are one tensor of this net, shared by its layers, but differ; "
                    "leave out all but one"
                )
        earlier = {first + name for first in prefixes for name in given}
        missing_keys[:] = [key for key in missing_keys if key not in earlier]
        prefixes.append(prefix)
        filled |= given
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _reference(destination: Any) -> Callable[[], Any]:
    """Refers to a state dict without keeping it alive; a plain `dict`, which cannot be referred to so, is kept."""
    try:
        return weakref.ref(destination)
    except TypeError:
        return lambda: destination


def _alike(given: Any, own: Tensor) -> bool:
    """Tells whether a tensor that is loaded has the values that another owner's has set; errors of shape are torch's."""
    if not (isinstance(given, Tensor) and given.shape == own.shape and is_plain([given, own])):
        return True
    return given.is_meta or own.is_meta or same_bits(given.detach().to(own), own)


class AbstractConstants(nn.Module):
    """A module with constants: tensors that its options determine.

    A constant is a plain attribute, so that nothing which walks over parameters, buffers or a state dict changes it. It
    follows the module to a device and keeps its type. It is made where the module first has real weights: not on the meta
    device, so that building a net there takes no room.
    """

    constants: tuple[str, ...] = ()
    """Names of the constants; each is on the meta device until it is made."""

    @abc.abstractmethod
    def where(self) -> torch.device:
        """Device of the weights that the constants belong to."""

    @abc.abstractmethod
    def make_constants(self) -> Mapping[str, Tensor]:
        """Makes all constants on the CPU, which is the default device meanwhile."""

    def rebuild_constants(self) -> None:
        """Makes all constants anew, unless the module is on the meta device."""
        if not self.constants or self.where().type == "meta":
            return
        with torch.device("cpu"), torch.no_grad():
            made = self.make_constants()
        for name, tensor in made.items():
            setattr(self, name, tensor.to(self.where()))

    def settle(self) -> None:
        """Makes the constants if they are missing, and moves them to where the weights are."""
        where = self.where()
        if where.type == "meta":
            return
        if any(getattr(self, name).is_meta for name in self.constants):
            self.rebuild_constants()
        for name in self.constants:
            if (tensor := getattr(self, name)).device != where:
                setattr(self, name, tensor.to(where))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.settle()
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.settle()  # assigned weights may be the first real ones, or on another device


class AbstractWhole(nn.Module):
    """A module with buffers of whole numbers: each holds them as float32, and is rounded where it is read.

    A buffer follows averages, broadcasts and copies as weights do. An average of equal floats gives the same number once
    rounded, where one of integers is cut off to the number below.
    """

    stored_types: Mapping[str, torch.dtype] = {}
    """Type of each such buffer in a model file."""
    uncast: tuple[str, ...] = ()
    """Names of the other buffers that keep their type, whatever the net is cast to."""

    def whole(self, name: str) -> Tensor:
        """Reads a buffer of whole numbers, in its type.

        Raises:
            ValueError: a number is not whole, as in an average of different ones. On a GPU, where the answer would have to
                be waited for, this is found on loading and saving only.
        """
        held, dtype = getattr(self, name), self.stored_types[name]
        found = _as_whole(held, dtype)
        if (
            held.device.type == "cpu"
            and not tracing()
            and is_plain([held])
            and not torch.equal(found.to(held.dtype), held)
        ):
            self._check_whole(name, held)
        return found

    def _check_whole(self, name: str, given: Tensor) -> None:
        dtype = self.stored_types[name]
        if dtype == torch.bool:
            return
        if (
            not ((given - given.round()).abs() < 0.25).all()
            or given.min() < -0.25
            or given.max() > torch.iinfo(dtype).max + 0.25
        ):
            raise ValueError(
                f"{name} holds values that are not of the type {dtype}, as an average of different ones would; load them "
                "from the net that was fitted"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves with the net, but these buffers keep their type."""
        before = {name: getattr(self, name) for name in (*self.stored_types, *self.uncast)}
        super()._apply(fn, recurse)
        for name, old in before.items():
            buffer = getattr(self, name)
            if buffer.dtype != old.dtype:
                self._buffers[name] = old.to(buffer.device) if not old.is_meta else buffer.to(old.dtype)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        errors: list[str] = arguments[-1]
        for name in self.stored_types:
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and not given.is_meta and given.shape == own.shape:
                try:
                    self._check_whole(name, given.detach().float())
                    state_dict[prefix + name] = _as_whole(given.detach().float(), self.stored_types[name]).float()
                except ValueError as error:
                    errors.append(f"{prefix}{error}")
                    state_dict[prefix + name] = own
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _as_whole(held: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds; a mark is set if any of the nets that were averaged had set it."""
    return held.to(dtype) if dtype == torch.bool else held.round().to(dtype)
