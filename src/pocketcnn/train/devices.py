"""The devices of a run and the rank of this process, known before Lightning starts the others; and batch norms."""

import os
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pocketcnn.train.engine import environments
from pocketcnn.train.hardware import Hardware


def device_of(accelerator: str) -> torch.device:
    """Returns the kind of device that an accelerator means on this machine."""
    return torch.device("cuda" if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available() else "cpu")


def count_devices(hardware: Hardware) -> int:
    """Counts the devices of this machine that a run uses; `"auto"` is all GPUs, or one process on the CPU.

    Raises:
        ValueError: the machine has fewer devices, an option needs GPUs, or torchrun or SLURM has started another number of
            processes.
    """
    gpus, accelerator, devices = torch.cuda.device_count(), hardware.accelerator, hardware.devices
    if accelerator in ("gpu", "cuda") and not gpus:
        raise ValueError(f"accelerator {accelerator!r}: this machine has no GPU that torch can use; give 'cpu'")
    on_gpu = device_of(accelerator).type == "cuda"
    if devices == "auto":
        devices = gpus if on_gpu else 1
    there = gpus if on_gpu else os.cpu_count() or 1
    if not isinstance(devices, int) or not 1 <= devices <= there:
        kind = "GPUs" if on_gpu else "CPU cores, one per process"
        raise ValueError(f"devices={devices!r}: this machine has {there} {kind}; give a number up to that, or 'auto'")
    if hardware.sync_batchnorm and not on_gpu:
        raise ValueError(
            "sync_batchnorm needs GPUs: on the CPU each process normalises its own images; leave it out, or use a net with "
            "group norm"
        )
    started = _started()
    if started is not None and started != devices * hardware.num_nodes:
        raise ValueError(
            f"{started} processes were started for {devices} devices on {hardware.num_nodes} machines; each would train alone; "
            f"give devices (--devices) and num_nodes (--num-nodes) whose product is {started}"
        )
    return devices


def _started() -> int | None:
    """Counts the processes that torchrun or SLURM has started; None if neither did."""
    if environments.TorchElasticEnvironment.detect():
        return int(os.environ["WORLD_SIZE"])
    return int(os.environ["SLURM_NTASKS"]) if environments.SLURMEnvironment.detect() else None


def cluster() -> list[Any]:
    """Returns plugins that keep Lightning from requeueing under SLURM; the exit code of a preempted run tells SLURM."""
    if environments.TorchElasticEnvironment.detect() or not environments.SLURMEnvironment.detect():
        return []
    return [environments.SLURMEnvironment(auto_requeue=False)]


def is_first_process() -> bool:
    """Tells whether this process is the one that writes, by its launcher's variables."""
    # torchrun sets RANK, which counts across machines; Lightning's own launcher and SLURM set the others.
    ranks = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def norms_of(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the batch norms of a net by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm) and name}


def restore_norms(model: nn.Module, norms: dict[str, nn.Module]) -> None:
    """Puts batch norms back where synchronised ones replaced them, with the parameters and statistics of these."""
    for name, norm in norms.items():
        found = model.get_submodule(name)
        if found is not norm:
            norm.load_state_dict(found.state_dict())
            norm.train(found.training)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, norm)
