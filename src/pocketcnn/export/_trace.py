"""Tracing a net to the operations it runs, and finding the layer that cannot be traced."""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from pocketcnn.errors import CannotExport


def trace(model: nn.Module, inputs: tuple[Tensor, ...], most: int | None, *, fixed: bool) -> ExportedProgram:
    """Traces a net to a program, for batches of any size or of one size.

    Args:
        model: in evaluation mode.
        inputs: what it is called with, at least two examples where the batch is not fixed.
        most: the largest batch; None for no limit.
        fixed: makes a program that takes only batches of this size.
    Raises:
        CannotExport: it cannot be traced; the message names the innermost layer that cannot be traced by itself.
    """
    try:
        return _traced(model, inputs, None if fixed else Dim("batch", min=1, max=most))
    except Exception as error:  # whatever the code of a foreign net raises when it is traced
        name, found = _culprit(model, inputs, fixed, error)
        layer = type(model.get_submodule(name)).__name__
        raise CannotExport(
            f"{name or 'the net'} ({layer}): torch.export cannot trace it ({summary(found)}); a net may depend on the "
            "values and the number of its images only through tensor operations"
        ) from error


def summary(error: BaseException) -> str:
    """The message of an error in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}{'...' if len(words) > 200 else ''}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings on which nobody can act: of the exporters about themselves, of nets about inputs that are no images."""
    names = ("torch.onnx", "torch.export", "torch.fx", "torch.utils._pytree", "onnxscript", "pocketcnn.methods")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch|onnx|executorch")
        warnings.filterwarnings("ignore", message="with mean and std undone")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _traced(module: nn.Module, arguments: tuple[Any, ...], batch: Any) -> ExportedProgram:
    """Traces a module to a program; the first axis of every tensor among its arguments is the batch."""
    shapes: Any = None if batch is None else tuple({0: batch} if isinstance(a, Tensor) else None for a in arguments)
    kinds = [one.kind for one in inspect.signature(module.forward).parameters.values()]
    if shapes and inspect.Parameter.VAR_POSITIONAL in kinds:
        named = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        shapes = (*shapes[:named], shapes[named:])
    with quiet(), torch.no_grad():
        return torch.export.export(module, arguments, dynamic_shapes=shapes)


def _culprit(model: nn.Module, arguments: tuple[Any, ...], fixed: bool, error: Exception) -> tuple[str, Exception]:
    """Finds the innermost module that runs but cannot be traced by itself, and the error."""
    name, module = "", model
    while True:
        for own, child in module.named_children():
            given = _given(module, child, arguments)
            if given is None:
                continue
            try:
                _traced(child, given, None if fixed else Dim("batch"))
            except Exception as found:
                name, module, arguments, error = f"{name}.{own}".lstrip("."), child, given, found
                break
        else:
            return name, error


def _given(module: nn.Module, child: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The arguments of a child's first call when its parent runs; None if it is never called or does not run by itself."""
    calls: list[tuple[Any, ...]] = []
    hook = child.register_forward_pre_hook(lambda _, given: calls.append(given))
    try:
        with torch.no_grad():
            module(*arguments)
            hook.remove()
            if calls:
                child(*calls[0])
    except Exception:  # it needs a value that its parent provides
        return None
    finally:
        hook.remove()
    return calls[0] if calls else None
