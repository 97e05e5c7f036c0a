"""The devices of a training: one frozen record, whose fields are also the command line's flags."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pocketcnn.support.ranges import Count, NotNegative, check_ranges

Logger = Literal["csv", "tensorboard", "wandb"]


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The devices of a run, how often it saves there, and where else its epochs are logged."""

    devices: int | Literal["auto"] = 1
    """Number of devices per machine, or auto for all; several train by distributed data parallel."""
    num_nodes: Count = 1
    """Number of machines; each needs to be told of the others, by torchrun, SLURM or MASTER_ADDR and NODE_RANK."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several devices train together: ddp is distributed data parallel; auto chooses it for more than one device."""
    sync_batchnorm: bool = False
    """Compute the statistics of batch norms over the images of all devices; on GPUs only."""
    save_minutes: NotNegative = 5.0
    """Minutes between checkpoints within an epoch; each epoch ends with one."""
    logger: Logger = "csv"
    """Tracker that each epoch is sent to; with csv only metrics.csv is written, as always."""

    def __post_init__(self) -> None:
        check_ranges(self)


ONE_DEVICE = Hardware()


def is_first_process() -> bool:
    """Tells whether this process is the one that writes, by its launcher's variables."""
    # torchrun sets RANK, which counts across machines; Lightning's own launcher and SLURM set the others.
    ranks = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def with_changes(hardware: Hardware, changes: Mapping[str, Any]) -> Hardware:
    """Returns the record with the given fields replaced.

    Args:
        hardware: the record.
        changes: new values by the names of fields; `save_every`, in seconds, stands for `save_minutes`.
    Raises:
        TypeError: no field has such a name.
    """
    changes = dict(changes)
    if "save_every" in changes:
        changes["save_minutes"] = changes.pop("save_every") / 60
    names = [field.name for field in dataclasses.fields(Hardware)]
    if unknown := [name for name in changes if name not in names]:
        raise TypeError(
            f"fit() got an unexpected keyword argument {unknown[0]!r}; those of the hardware are {', '.join(names)}, save_every"
        )
    return dataclasses.replace(hardware, **changes)
