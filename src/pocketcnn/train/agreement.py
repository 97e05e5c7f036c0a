"""Learning the outputs of a trained net on examples without labels, whatever the net takes and returns.

For nets that `fit` cannot train: with several inputs, or outputs that are no scores of classes. The loss is the mean squared
distance of the outputs from the trained net's, as a share of their variance.
"""

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketcnn.support.calls import Inputs, as_inputs, batches_of, distance, tensors_in
from pocketcnn.support.modules import device_and_dtype, evaluating, in_mode

BATCH = 64
_LR = 2e-3
_SAVE_EVERY = 60.0  # seconds
_log = logging.getLogger(__name__)


def learn_outputs(
    student: nn.Module,
    teacher: nn.Module,
    inputs: Inputs,
    *,
    seconds: float,
    batch_size: int = BATCH,
    lr: float = _LR,
    seed: int = 0,
    state: Path | None = None,
) -> dict[str, Any]:
    """Trains a student to return what its teacher returns, by Adam for some time; the rate falls as half a cosine.

    Args:
        student: the net to train, in place; in evaluation mode afterwards.
        teacher: the trained net; it is left alone.
        inputs: a tensor, or a tuple of as many as the nets take; the first axis counts the examples.
        seconds: of training in all, those before an interruption included.
        batch_size: examples a step, at most.
        lr: the rate at the start.
        seed: of the order of the examples.
        state: file that the training is saved to every minute, and resumed from.
    Returns:
        The number of steps, the seconds they took and the mean loss of the last tenth.
    Raises:
        ValueError: inputs that cannot be used, or nets that do not return the same tensors.
    """
    examples = as_inputs(inputs)
    device, _ = device_and_dtype(student)
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr)
    steps, spent = 0, 0.0
    losses: list[float] = []
    if state is not None and state.is_file():
        held = torch.load(state, map_location=device, weights_only=True)
        student.load_state_dict(held["student"])
        optimizer.load_state_dict(held["optimizer"])
        steps, spent, losses = held["steps"], held["seconds"], held["losses"]
    began, saved = time.monotonic() - spent, time.monotonic()
    with in_mode(student, training=True):
        while (spent := time.monotonic() - began) < seconds or not steps:
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 + math.cos(math.pi * min(1.0, spent / seconds))) / 2
            generator = torch.Generator().manual_seed((seed << 32) + steps)
            chosen = torch.randperm(len(examples[0]), generator=generator)[:batch_size]
            batch = [one[chosen].to(device) for one in examples]
            with evaluating(teacher):
                wanted = tensors_in(teacher(*batch))
            loss = distance(tensors_in(student(*batch)), wanted)
            if not torch.isfinite(loss):
                raise ValueError(f"step {steps + 1}: the loss is {loss.item()}; a lower lr usually helps")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses, steps = [*losses[-999:], loss.item()], steps + 1
            if state is not None and time.monotonic() - saved > _SAVE_EVERY:
                saved = time.monotonic()
                _save(state, student, optimizer, steps, spent, losses)
                _log.info("step %d, loss %.4g, %.0f s left", steps, losses[-1], max(0.0, seconds - spent))
    student.eval()
    if state is not None:
        _save(state, student, optimizer, steps, spent, losses)
    last = losses[-max(1, len(losses) // 10) :]
    return {"steps": steps, "seconds": spent, "loss": sum(last) / len(last)}


def _save(
    path: Path, student: nn.Module, optimizer: torch.optim.Optimizer, steps: int, spent: float, losses: list[float]
) -> None:
    held: dict[str, Any] = {"student": student.state_dict(), "optimizer": optimizer.state_dict()}
    partial = path.with_name(f".{path.name}.partial")
    torch.save({**held, "steps": steps, "seconds": spent, "losses": losses}, partial)
    partial.replace(path)


@torch.no_grad()
def outputs_of(net: nn.Module, inputs: tuple[Tensor, ...], batch_size: int = BATCH) -> list[Tensor]:
    """What a net in evaluation mode returns for all examples: one tensor for each output."""
    with evaluating(net):
        parts = [tensors_in(net(*batch)) for batch in batches_of(inputs, batch_size, net)]
    return [torch.cat([part[None] if part.dim() == 0 else part for part in one]) for one in zip(*parts, strict=True)]
