"""Resolving `auto`: short trials of a real training step on the device; the fastest setting wins."""

import dataclasses
import logging
import time
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from pocketcnn.data import DataSet
from pocketcnn.support.copying import copied
from pocketcnn.support.layouts import in_layout, to_layout
from pocketcnn.support.modules import device_and_dtype
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.crashes import convolutions_of, crash_in
from pocketcnn.train.images import Normalize

_log = logging.getLogger(__name__)
Setting = tuple[str, str]  # precision and channels_last
LAYOUTS = {"on": torch.channels_last, "off": torch.contiguous_format}


def resolve(config: TrainConfig, net: nn.Module, data: DataSet, device: torch.device) -> TrainConfig:
    """Returns the configuration with each `auto` replaced by the fastest setting for this net on this device.

    All candidates train the same batch a few times, in turns. So that noise does not decide, a candidate replaces the
    first one (float32 in the plain layout, if both are `auto`) only if it is a tenth faster. On the CPU, candidates that
    would end the process are left out, see `pocketcnn.train.crashes`.
    """
    if "auto" not in (config.precision, config.channels_last):
        return config
    precisions = ("float32", "bfloat16") if config.precision == "auto" else (config.precision,)
    layouts = ("off", "on") if config.channels_last == "auto" else (config.channels_last,)
    candidates = _safe(
        [(precision, layout) for precision in precisions for layout in layouts], config, net, data, device
    )
    if len(candidates) == 1:
        return _with(config, candidates[0])
    images, labels = trial_batch(data, config.batch_size, device)
    runs = {}
    with torch.random.fork_rng():
        for candidate in candidates:
            layout = LAYOUTS[candidate[1]]
            trial = to_layout(copied(net).to(device), layout).train()
            runs[candidate] = (trial, in_layout(images, layout))
        times: dict[tuple[str, str], list[float]] = {candidate: [] for candidate in candidates}
        for _ in range(4):
            for candidate, (trial, batch) in runs.items():
                times[candidate].append(step_seconds(trial, batch, labels, candidate[0] == "bfloat16"))
    seconds = {candidate: median(rounds[1:]) for candidate, rounds in times.items()}  # the first one warms up
    best = min(candidates, key=seconds.__getitem__)
    if seconds[best] > 0.9 * seconds[candidates[0]]:
        best = candidates[0]
    return _with(config, best)


def _safe(
    candidates: list[Setting], config: TrainConfig, net: nn.Module, data: DataSet, device: torch.device
) -> list[Setting]:
    """Leaves out the candidates after the first that would end the process, and logs why."""
    if device.type != "cpu" or len(candidates) == 1:
        return candidates
    kept = candidates[:1]
    calls = convolutions_of(net, data.input_size)
    for precision, layout in candidates[1:]:
        dtype = torch.bfloat16 if precision == "bfloat16" else device_and_dtype(net)[1]
        if reason := crash_in(calls, dtype, LAYOUTS[layout], config.batch_size, always_try=True):
            _log.warning("auto leaves out %s with channels_last %s: %s", precision, layout, reason)
        else:
            kept.append((precision, layout))
    return kept


def _with(config: TrainConfig, setting: Setting) -> TrainConfig:
    return dataclasses.replace(config, precision=setting[0], channels_last=setting[1])  # type: ignore[arg-type]


def trial_batch(data: DataSet, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a batch of training images, normalised as a net receives them, and their labels."""
    size = min(size, len(data.train))  # a larger batch than there are images is never trained
    shown = data.train.sample(size)
    chosen = torch.arange(size) % len(shown)
    images = Normalize(data.mean, data.std)(shown.images[chosen])
    return images.to(device), shown.labels[chosen].to(device)


def step_seconds(net: nn.Module, images: torch.Tensor, labels: torch.Tensor, bfloat16: bool) -> float:
    """Times one forward and backward pass, in seconds."""
    start = time.perf_counter()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        loss = F.cross_entropy(net(images).float(), labels)
    loss.backward()
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)
    net.zero_grad()
    return time.perf_counter() - start
