"""`fit` and `evaluate`: a Lightning run in a folder of plain files."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.checkpoint.notes import image_notes
from pocketcnn.cost import gauge_of, measure, measure_images, measure_latency
from pocketcnn.data import DataSet
from pocketcnn.support.files import make_folder, read_json, remove_partials, write_json
from pocketcnn.support.memory import keep_memory
from pocketcnn.support.runs import MODEL, RESULT
from pocketcnn.surgery import as_served
from pocketcnn.train.auto import to_layout
from pocketcnn.train.callbacks import Averaging, EpochLog, Safeguard
from pocketcnn.train.checkpoints import AtomicCheckpointIO, newest_checkpoint
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.devices import cluster, count_devices, is_first_process, norms_of, restore_norms
from pocketcnn.train.engine import Logger, pl, quiet_lightning, tracker
from pocketcnn.train.evaluation import check_input
from pocketcnn.train.folder import as_read, begin_run, earlier_config
from pocketcnn.train.images import calibrate, normalized
from pocketcnn.train.module import SMALL, Classifier
from pocketcnn.train.teacher import Teacher


def fit(
    model: nn.Module,
    data: DataSet,
    config: TrainConfig,
    folder: str | Path,
    *,
    name: str = "",
    identity: Mapping[str, Any] | None = None,
    devices: int | str = 1,
    num_nodes: int = 1,
    accelerator: str = "auto",
    strategy: str = "auto",
    sync_batchnorm: bool = False,
    save_every: float = 300.0,
    logger: Logger = "csv",
    progress: bool = False,
    test: bool = True,
    on_epoch: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
) -> dict[str, Any]:
    """Trains a net, evaluates it once on the test split, and leaves everything about it in a folder.

    The folder gets `config.json`, `environment.json`, `metrics.csv` (a row an epoch), `last.ckpt` with `previous.ckpt`
    before it, and at the end `model.safetensors` and `result.json`. Called again on the same folder with the same arguments
    it returns the result that is there, or goes on from the last checkpoint: on the same kind of processor and with as many
    threads, to the same bits as a run that was never stopped. Several devices train as one with a batch as many times
    larger, up to rounding, but for batch norm, which takes its statistics from each device's own images. On Linux the process keeps freed memory from then on, unless
    `MALLOC_` variables in the environment say otherwise: that makes steps on the CPU faster.

    Args:
        model: any net for the images and classes of the data; it is trained in place. One in evaluation mode, as loading
            leaves it, is put in training mode; parts that alone are in evaluation mode, like frozen batch norms, stay so.
        data: as loaded by `pocketcnn.data.load`.
        config: the recipe.
        folder: of the run; made when missing.
        name: shown in progress messages and kept in the result.
        identity: what tells this run from others (model, method, options); kept in the result.
        devices: how many, or `"auto"` for all; more than one trains by distributed data parallel.
        num_nodes: how many machines.
        accelerator: as in Lightning: `"auto"`, `"cpu"`, `"gpu"`.
        strategy: as in Lightning: `"auto"`, or `"ddp"` also for one device.
        sync_batchnorm: whether batch norm takes its statistics from the images of all devices; on GPUs only.
        save_every: seconds between checkpoints inside an epoch; each epoch ends with one.
        logger: also send the epochs to `"tensorboard"` or `"wandb"`; `"csv"` is only the file above.
        progress: show a bar with rate and time left.
        test: whether the test images are looked at, at the end; else the result says nothing of them.
        on_epoch: called with the rows of `metrics.csv` once an epoch is saved; what it raises ends the run there.
    Returns:
        The content of `result.json`: accuracy and loss on test and validation, images per second in training, cost, what
        the test images cost where that depends on the image, latency, file size, configuration.
    Raises:
        BadData: the net does not fit the images or the classes.
        NonFiniteLoss: training diverged; the last good checkpoint is in the folder.
        Interrupted: Ctrl-C; the folder can be continued.
        Preempted: SIGTERM or SIGUSR1, from a scheduler; likewise.
        BrokenFile: both checkpoints of the folder are damaged; if only the last one is, the one before is taken.
        CannotWrite: the folder is not writable or the disk is full; files written before are intact.
        ValueError: the folder holds a run with another configuration (the fields that differ are named), or the data
            changed since it began; more devices than there are; `sync_batchnorm` on the CPU; a `feature_weight` without a teacher.
    """
    devices = count_devices(accelerator, devices, num_nodes, sync_batchnorm=sync_batchnorm)
    keep_memory()
    folder = make_folder(Path(folder))
    name = name or folder.name
    check_input(model, data)
    if config.small_epochs:
        check_input(model, data, share=SMALL)
    settings: dict[str, Any] = {
        "name": name,
        "identity": dict(identity or {}),
        "data": data.name,
        "fingerprint": data.fingerprint,
    }
    shapes = [[key, list(value.shape)] for key, value in model.state_dict().items()]
    settings |= {
        "train_images": len(data.train),
        "net": hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16],
        "world": [devices, num_nodes],
    }
    if config.feature_weight and not config.teacher:
        raise ValueError(
            f"feature_weight {config.feature_weight} needs a teacher whose maps are learnt; give one, or 0"
        )
    teacher = Teacher.open(config.teacher, data) if config.teacher else None
    unusual = {
        "sync_batchnorm": sync_batchnorm,
        "teacher_hash": teacher.digest if teacher is not None else "",
        "workers": getattr(data.train, "workers", 0),  # of a stream, whose order they set
    }
    settings |= {key: value for key, value in unusual.items() if value}
    settings = as_read(settings)
    earlier = earlier_config(folder, settings, config)
    if earlier is not None and (folder / RESULT).exists():
        checkpoint.fill_from_(model, folder / MODEL)
        return read_json(folder / RESULT)
    guard = Safeguard(folder, save_every)
    with guard, quiet_lightning():
        if is_first_process():
            remove_partials(folder)
        calibrate(model, data)
        config = earlier or begin_run(config, model, data, accelerator, folder, settings)
        if not model.training:  # as loading leaves it
            model.train()
        module = Classifier(model, data, config, teacher)
        epochs = EpochLog(folder, name)
        callbacks: list[Any] = [epochs, guard]
        if config.ema_decay:
            callbacks.insert(0, Averaging(config.ema_decay))  # before the step is saved
        if progress:
            callbacks.append(pl.callbacks.TQDMProgressBar(refresh_rate=10))
        if on_epoch is not None:
            callbacks.append(pl.callbacks.LambdaCallback(on_train_epoch_end=lambda *_: on_epoch(epochs.rows)))
        last = newest_checkpoint(folder)
        norms = norms_of(model)
        start = time.perf_counter()
        trainer = pl.Trainer(
            max_epochs=config.epochs,
            accelerator=accelerator,
            devices=devices,
            num_nodes=num_nodes,
            strategy=strategy,
            sync_batchnorm=sync_batchnorm,
            precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
            gradient_clip_val=config.clip_norm or None,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *cluster()],
            logger=tracker(logger, folder),
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=progress,
            use_distributed_sampler=False,  # the module's loaders share out the images themselves
            num_sanity_val_steps=0,
            log_every_n_steps=1,
        )
        trainer.fit(module, ckpt_path=None if last is None else str(last), weights_only=True)
        found: dict[str, float] = {}
        if test:
            trainer.test(module, verbose=False)
            found = module.take("test")
        if not trainer.is_global_zero:
            return trainer.strategy.broadcast({}, src=0)
        restore_norms(to_layout(model.to("cpu"), torch.contiguous_format), norms)
        size = checkpoint.save(model, folder / MODEL, notes=image_notes(data))
        result = {
            "name": name,
            "identity": dict(identity or {}),
            "data": data.name,
            "seed": config.seed,
            **found,
            "validation_accuracy": epochs.rows[-1]["validation_accuracy"],
            "epochs": len(epochs.rows),
            "train_images_per_second": epochs.images_per_second(),
            "train_seconds": sum(row["train_seconds"] for row in epochs.rows),
            "wall_seconds": time.perf_counter() - start,
            "file_bytes": size,
            "cost": dataclasses.asdict(measure(model, data.input_size)),
            "image_costs": _image_costs(model, data) if test else None,
            "latency": dataclasses.asdict(measure_latency(as_served(model), data.input_size)),
            "train": as_read(dataclasses.asdict(config)),
        }
        write_json(folder / RESULT, result)
        return trainer.strategy.broadcast(result, src=0)


def _image_costs(model: nn.Module, data: DataSet) -> dict[str, Any] | None:
    """What the test images cost, where that depends on the image."""
    if gauge_of(model) is None:
        return None
    return dataclasses.asdict(measure_images(model, normalized(data.test.in_order(500), data), runs=10, rounds=3))
