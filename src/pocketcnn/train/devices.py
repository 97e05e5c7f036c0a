"""The devices of a run and the rank of this process, known before Lightning starts the others; and batch norms."""

import logging
import os
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pocketcnn.train.engine import environments
from pocketcnn.train.hardware import Hardware

_log = logging.getLogger(__name__)


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


def check_machines(hardware: Hardware) -> None:
    """Checks that a run on several machines knows the others, and says for whom it waits.

    Raises:
        ValueError: neither torchrun nor SLURM nor the environment tells which machine this is, and where the first one is.
    """
    if hardware.num_nodes == 1:
        return
    told = {name: os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")}
    if _started() is None and not (told["MASTER_ADDR"] and (told["NODE_RANK"] or os.environ.get("GROUP_RANK"))):
        raise ValueError(
            f"num_nodes={hardware.num_nodes}: nothing says where the other machines are; start by torchrun or srun, or set "
            "MASTER_ADDR and MASTER_PORT to the first machine's on all, and NODE_RANK to each one's number, from 0 on"
        )
    first = f"{told['MASTER_ADDR'] or 'the first machine'}:{told['MASTER_PORT'] or 'its port'}"
    rank = told["NODE_RANK"] or os.environ.get("GROUP_RANK") or os.environ.get("SLURM_NODEID") or "?"
    _log.info(
        "this is machine %s of 0 to %d; waiting at %s for %d processes in all", rank, hardware.num_nodes - 1, first,
        hardware.num_nodes * int(hardware.devices),
    )  # fmt: skip


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
