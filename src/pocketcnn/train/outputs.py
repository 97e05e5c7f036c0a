"""The check before a net meets a data set: what it takes, and what it returns, in the modes in which it will be used."""

import contextlib
import dataclasses
import logging
import random
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pocketcnn.data import DataSet, shrink
from pocketcnn.errors import BadData, PocketError, UnsupportedNet
from pocketcnn.support.copying import copied
from pocketcnn.support.modules import device_and_dtype, evaluating
from pocketcnn.train.scores import USUAL, Scores

_log = logging.getLogger(__name__)
_IMAGES = 2  # batch norms in training need more than one


def check_input(
    model: nn.Module,
    data: DataSet,
    *,
    share: float = 1.0,
    training: bool = False,
    who: str = "the net",
    scores: Scores = USUAL,
) -> None:
    """Checks that a net accepts the images of a data set and returns one tensor of outputs, with one for each class.

    The net is shown two random images; in training mode a copy of it is, so that nothing is left of them. Random states
    stay as they were. A net that cannot be copied is checked in evaluation mode only.

    Args:
        model: any net.
        data: the data set.
        share: factor by which the sides of the images are shrunk.
        training: check the net in training mode too, where some nets return more.
        who: name of the net in the message.
        scores: loss and metric; with those of the user's own, the net may return whatever they take.
    Raises:
        BadData: the net does not fit, or returns several outputs.
    """
    device, dtype = device_and_dtype(model)
    x = torch.rand(_IMAGES, *data.input_size, generator=torch.Generator().manual_seed(0))
    x = shrink(x, share).to(device=device, dtype=dtype)
    with _unchanged(model):
        with evaluating(model):
            _check(model, x, data, who, scores)
        if not training:
            return
        try:
            trial = copied(model)
        except UnsupportedNet as error:
            _log.info("%s is not checked in training mode: %s", who, error)
            return
        if not trial.training:
            trial.train()
        with torch.enable_grad(), _quiet():
            # Hooks that others put on the net may count its steps; they are called only if it does not fit without them.
            try:
                with _only_hooks_of_ours(trial):
                    _check(trial, x, data, who, scores)
            except BadData:
                _check(trial, x, data, who, scores)


def _check(call: Any, x: Tensor, data: DataSet, who: str, scores: Scores) -> None:
    """Calls a net, and checks its output."""
    mode = "in training mode" if torch.is_grad_enabled() else "in evaluation mode"
    channels, height, width = x.shape[1:]
    try:
        output = call(x)
    except PocketError:
        raise
    except Exception as error:  # other people's nets raise errors of all kinds
        said = " ".join(str(error).split())[:300]
        raise BadData(
            f"{data.name}: images are {channels} x {height} x {width} (channels x height x width) and {who} cannot take "
            f"them ({said or type(error).__name__}); make the net with in_channels={channels}, or load the data with "
            "channels= or image_size="
        ) from error
    if not scores.usual:
        return _check_own(output, x, data, who, scores)
    if not isinstance(output, Tensor):
        what, entry = _described(output)
        raise BadData(
            f"{data.name}: {who} returns {what} {mode}, but one tensor of outputs, [batch, classes], is needed; in Python, "
            "give loss= and metric= that take what it returns; or wrap it in an nn.Module whose forward is: y = self.net(x); "
            f"return y if isinstance(y, torch.Tensor) else y{entry}"
        )
    classes = len(data.classes)
    if output.dim() != 2 or output.shape[1] < classes:
        raise BadData(
            f"{data.name}: has {classes} classes, {_whose(who)} output for an image is {list(output.shape[1:])}; make the "
            f"net with num_classes={classes}"
        )
    if len(output) != len(x):
        raise BadData(
            f"{data.name}: {_whose(who)} output for {len(x)} images is {list(output.shape)}; it must have a row for each image"
        )
    if not output.is_floating_point():
        raise BadData(
            f"{data.name}: {_whose(who)} output is of {output.dtype} {mode}; return the scores of the classes, not their numbers"
        )
    if torch.is_grad_enabled() and not output.requires_grad:
        raise BadData(
            f"{data.name}: {_whose(who)} output depends on no weight that learns; unfreeze some (requires_grad_), and "
            "detach nothing in forward"
        )


def _check_own(output: Any, x: Tensor, data: DataSet, who: str, scores: Scores) -> None:
    """Checks that the user's loss and metric take what a net returns."""
    labels = torch.arange(len(x), device=x.device) % len(data.classes)
    for name, compute in (("loss", scores.loss_of), ("metric", scores.metric_of)):
        try:
            found = compute(output, labels)
        except Exception as error:  # the user's own code
            said = " ".join(str(error).split())[:300]
            raise BadData(
                f"{data.name}: the {name} cannot take what {who} returns, {_described(output)[0]} "
                f"({type(error).__name__}: {said}); give another {name}"
            ) from error
        if not isinstance(found, Tensor) or found.numel() not in ({1} if name == "loss" else {1, len(x)}):
            raise BadData(f"{data.name}: the {name} returns {_described(found)[0]}, not a tensor of one number")


def _whose(who: str) -> str:
    return f"{who}'s"


def _described(output: Any) -> tuple[str, str]:
    """Describes what a net returned in place of a tensor, and how its logits are probably reached."""
    name = type(output).__name__
    if isinstance(output, Mapping):
        keys = list(output)
        key = "logits" if "logits" in keys else keys[0] if keys else "logits"
        return f"a {name} of {', '.join(map(repr, keys[:4])) or 'nothing'}", f"[{key!r}]"
    fields = list(getattr(output, "_fields", ())) or (
        [field.name for field in dataclasses.fields(output)] if dataclasses.is_dataclass(output) else []
    )
    if "logits" in fields or hasattr(output, "logits"):
        return f"an object {name} with .logits", ".logits"
    if fields:
        return f"an object {name} with {', '.join(f'.{field}' for field in fields[:4])}", f".{fields[0]}"
    if isinstance(output, list | tuple):
        return f"a {name} of {len(output)}", "[0]"
    return f"a {name}", ".logits"


@contextlib.contextmanager
def _only_hooks_of_ours(net: nn.Module) -> Iterator[None]:
    """Takes all hooks from a net but those of this library, and gives them back."""
    kept = [(hooks, dict(hooks)) for hooks in (net._forward_pre_hooks, net._forward_hooks)]
    try:
        for hooks, before in kept:
            for key, hook in before.items():
                if not str(getattr(hook, "__module__", "")).startswith("pocketcnn."):
                    del hooks[key]
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()  # and all in the order they had
            hooks.update(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what a net says about random images."""
    log = logging.getLogger("pocketcnn")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Puts back buffers, and the states of random generators, as they were; a copy of the net may share them with it."""
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not is_lazy(buffer)
    ]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        with torch.no_grad():
            for module, name, buffer, value in kept:
                module._buffers[name] = buffer
                if not buffer.is_meta and not torch.equal(buffer, value):
                    buffer.copy_(value)
