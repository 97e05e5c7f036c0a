"""`fit`: a Lightning run in a folder of plain files."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn import checkpoint
from pocketcnn.data import DataSet
from pocketcnn.errors import BrokenFile
from pocketcnn.support.files import make_folder, remove_partials
from pocketcnn.support.layouts import to_layout
from pocketcnn.support.memory import keep_memory
from pocketcnn.support.runs import MODEL, RESULT, RunResult, read_record
from pocketcnn.support.timing import first_line
from pocketcnn.train.callbacks import Averaging, EpochLog, Progress, Safeguard
from pocketcnn.train.checkpoints import AtomicCheckpointIO, newest_checkpoint
from pocketcnn.train.config import TrainConfig
from pocketcnn.train.crashes import refuse_crash, without_crash
from pocketcnn.train.devices import (
    check_machines,
    cluster,
    count_devices,
    device_of,
    norms_of,
    restore_norms,
)
from pocketcnn.train.engine import pl, quiet_lightning, tracker
from pocketcnn.train.folder import begin_run, earlier_config, finish_run, settings_of
from pocketcnn.train.hardware import ONE_DEVICE, Hardware, is_first_process, with_changes
from pocketcnn.train.images import calibrate
from pocketcnn.train.module import SMALL, Classifier
from pocketcnn.train.optimizers import turned_kernels
from pocketcnn.train.outputs import check_input
from pocketcnn.train.scores import Loss, Metric, Scores
from pocketcnn.train.teacher import Teacher

OnEpoch = Callable[[Sequence[Mapping[str, float]]], None]


def fit(
    model: nn.Module,
    data: DataSet,
    config: TrainConfig,
    folder: str | Path,
    *,
    name: str = "",
    identity: Mapping[str, Any] | None = None,
    teacher: Teacher | None = None,
    loss: Loss | None = None,
    metric: Metric | None = None,
    hardware: Hardware = ONE_DEVICE,
    progress: bool = False,
    test: bool = True,
    on_epoch: OnEpoch | None = None,
    **devices: Any,
) -> dict[str, Any]:
    """Trains a net, evaluates it once on the test split, and writes its records and files into a folder.

    The folder gets `config.json`, `environment.json`, `metrics.csv` (one row per epoch), `last.ckpt` and `previous.ckpt`,
    and at the end `model.safetensors` and `result.json`. If the folder already holds this run, a finished run is read, not
    repeated; an unfinished one resumes from its last checkpoint. With the same kind of processor and number of
    threads it ends bit-identical to an uninterrupted run.

    Several devices train as one device with a batch that many times larger, up to rounding. Batch norm is the exception:
    it takes its statistics from each device's own images. On Linux, `fit` sets the process to keep freed memory, which
    makes steps on the CPU faster; `MALLOC_` variables in the environment take precedence.

    Args:
        model: a net that fits the images and classes of the data. It is trained in place, and put in training mode if it
            is in evaluation mode, as after loading. In a net in training mode, parts in evaluation mode (frozen batch norms)
            stay so.
        data: as loaded by `pocketcnn.data.load`.
        config: how to train.
        folder: the folder of the run; created when missing.
        name: shown in log messages and kept in the result; the folder's name by default.
        identity: what tells this run from others (model, method, options); kept in the result.
        teacher: the trained net whose outputs are learnt; by default that of the file `config.teacher`, if any.
        loss: `loss(outputs, labels)` for a net that returns more than scores of classes, or is to learn something else; by
            default cross entropy. With a teacher it takes the place of the cross entropy.
        metric: `metric(outputs, labels)`, a score in [0, 1] for each image or their mean, which records call accuracy; by
            default the share of images whose class is the likeliest in the first output.
        hardware: devices, minutes between checkpoints, and where else epochs are logged.
        progress: show a bar with rate and time left.
        test: evaluate on the test images at the end; otherwise the result has no test scores.
        on_epoch: called with the rows of `metrics.csv` after each epoch is saved; an exception from it ends the run.
        **devices: fields of `hardware` to replace, such as `devices=2, accelerator="cpu"`. `save_every` gives the time
            between checkpoints in seconds.
    Returns:
        The content of `result.json`: accuracy and loss on test and validation, training images per second, cost, cost of
        the test images where it depends on the image, latency, file size, configuration.
    Raises:
        BadData: the net does not fit the images or the classes, or returns several outputs, if only in training; or it
            would end the process, see `pocketcnn.train.crashes`.
        NonFiniteLoss: training diverged; the last good checkpoint is in the folder.
        Interrupted: Ctrl-C was pressed; the run can be resumed.
        Preempted: a scheduler sent SIGTERM or SIGUSR1; the run can be resumed.
        BrokenFile: both checkpoints in the folder are damaged. If only the last one is, the previous one is used.
        CannotWrite: the folder is not writable or the disk is full; files written before are intact. Or no file could
            describe the net (see `checkpoint.check_savable`); this is found before the first step.
        ValueError: the folder holds a run with other settings (the message names them), or the data changed since the
            run began; more devices than the machine has; `sync_batchnorm` on the CPU; a `feature_weight` without a teacher.
        TypeError: a keyword that is no field of `hardware`.
    """
    hardware = with_changes(hardware, devices)
    hardware = dataclasses.replace(hardware, devices=count_devices(hardware))
    if config.all_images:
        data = data.with_all_images()
    keep_memory()
    folder = make_folder(Path(folder))
    scored = Scores(loss, metric)
    label: dict[str, Any] = {"name": name or folder.name, "identity": {**(identity or {}), **scored.described()}}
    _check(model, data, config, scored)
    teacher = _teacher_of(config, data, teacher, scored)
    settings = settings_of(model, data, hardware, teacher, label)
    device = device_of(hardware.accelerator)
    safe = without_crash(config, model, data, device)
    earlier = earlier_config(
        folder, settings, config if safe is config else dataclasses.replace(config, channels_last="auto")
    )
    if earlier is not None and (folder / RESULT).exists():
        return _finished(folder, model)
    with Safeguard(folder, 60 * hardware.save_minutes) as guard, quiet_lightning():
        if is_first_process():
            remove_partials(folder)
        calibrate(model, data)
        if earlier is None:
            config = begin_run(safe, model, data, hardware, folder, settings)
        else:
            config = without_crash(earlier, model, data, device)
        if not model.training:
            model.train()
        module = Classifier(model, data, config, teacher, scores=scored)
        refuse_crash(config, model, data, device)
        epochs = EpochLog(folder, label["name"])
        last, norms, start = newest_checkpoint(folder, module), norms_of(model), time.perf_counter()
        check_machines(hardware)
        trainer = _trainer(config, hardware, folder, _callbacks(config, epochs, guard, progress, on_epoch), progress)
        _train(trainer, module, last, guard)
        scores = _tested(trainer, module) if test else {}
        if not trainer.is_global_zero:
            return trainer.strategy.broadcast({}, src=0)
        restore_norms(to_layout(model.to("cpu"), torch.contiguous_format), norms)
        result = finish_run(model, data, config, folder, label, {**scores, **epochs.summary()}, start=start)
        return trainer.strategy.broadcast(result, src=0)


def _check(model: nn.Module, data: DataSet, config: TrainConfig, scores: Scores) -> None:
    """Checks before anything is written that the net takes the images, and that a file can describe it."""
    checkpoint.check_savable(model)
    check_input(model, data, training=True, scores=scores)
    if config.small_epochs:
        check_input(model, data, share=SMALL, training=True, scores=scores)
    if config.tta != "off" and not scores.usual:
        raise ValueError(
            f"tta {config.tta!r} averages scores of classes; turn it off with a loss or metric of your own"
        )


def _finished(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Reads a finished run: its weights into the net, and its result."""
    result = read_record(folder / RESULT, RunResult)
    checkpoint.read_header(folder / MODEL)  # its errors say what is wrong with a damaged file
    checkpoint.fill_from_(model, folder / MODEL, allow_nonfinite=True)
    return result


def _train(trainer: Any, module: Classifier, last: Path | None, guard: Safeguard) -> None:
    """Trains from a checkpoint on, if there is one; says so if it cannot be restored."""
    turned = turned_kernels(module.net) if module.config.optimizer == "muon" else contextlib.nullcontext()
    try:
        with turned:
            trainer.fit(module, ckpt_path=None if last is None else str(last), weights_only=True)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if last is None or guard.began:
            raise
        raise BrokenFile(
            f"{last}: the run cannot resume from it ({first_line(error)}); delete it to start this run afresh"
        ) from error


def _tested(trainer: Any, module: Classifier) -> dict[str, float]:
    """Evaluates a net on the test images."""
    trainer.test(module, verbose=False)
    return {**module.take("test"), **(module.take("test_tta") if module.config.tta != "off" else {})}


def _teacher_of(config: TrainConfig, data: DataSet, given: Teacher | None, scores: Scores) -> Teacher | None:
    if given is None and config.teacher:
        given = Teacher.read(config.teacher)
    if config.feature_weight and given is None:
        raise ValueError(
            f"feature_weight {config.feature_weight} needs a teacher whose maps are learnt; give one, or 0"
        )
    return None if given is None else given.fitting(data, scores)


def _callbacks(
    config: TrainConfig, epochs: EpochLog, guard: Safeguard, progress: bool, on_epoch: OnEpoch | None
) -> list[Any]:
    callbacks: list[Any] = [epochs, guard]
    if config.ema_decay:
        callbacks.insert(0, Averaging(config.ema_decay))  # before the step is saved
    if progress:
        callbacks.append(Progress())
    if on_epoch is not None:
        callbacks.append(pl.callbacks.LambdaCallback(on_train_epoch_end=lambda *_: on_epoch(epochs.rows)))
    return callbacks


def _trainer(config: TrainConfig, hardware: Hardware, folder: Path, callbacks: list[Any], progress: bool) -> Any:
    return pl.Trainer(
        max_epochs=config.epochs,
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=hardware.strategy,
        sync_batchnorm=hardware.sync_batchnorm,
        precision="bf16-mixed" if config.precision == "bfloat16" else "32-true",
        gradient_clip_val=config.clip_norm or None,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO(), *cluster()],
        logger=tracker(hardware.logger, folder),
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        use_distributed_sampler=False,  # the module's loaders divide the images among the devices
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
