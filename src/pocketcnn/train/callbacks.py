"""What happens around the steps: the log of epochs, checkpoints, and a clean stop on Ctrl-C."""

import csv
import io
import logging
import math
import signal
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pocketcnn._files import write_atomically
from pocketcnn.errors import BrokenFile, Interrupted, NonFiniteLoss
from pocketcnn.train.module import Classifier

_log = logging.getLogger(__name__)

COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
    "train_seconds", "train_images_per_second",
)  # fmt: skip


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints are whole or absent, and hold tensors and numbers only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # a damaged archive raises many kinds
            raise BrokenFile(f"{path}: damaged checkpoint ({error}); delete it to start this run afresh") from error


class EpochLog(pl.Callback):
    """Writes a row of `metrics.csv` and then `last.ckpt` after every epoch, and checks that both are worth keeping.

    The rows travel in the checkpoint, so that a resumed run's file holds each epoch once.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.rows: list[dict[str, float]] = []
        self._start = self._seconds = 0.0
        self._images = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start, self._images = time.perf_counter(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self._images += len(batch[1]) * trainer.world_size
        self._seconds = time.perf_counter() - self._start

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            **module.take("train"),
            **module.take("validation"),
            "train_seconds": self._seconds,
            "train_images_per_second": self._images / self._seconds,
        }
        if broken := next((n for n, t in module.net.state_dict().items() if not torch.isfinite(t).all()), None):
            raise NonFiniteLoss(
                f"epoch {row['epoch']}, step {row['step']}: {broken} holds NaN or infinite numbers; the checkpoint of the "
                "epoch before is kept; a lower lr or clip_norm=1 usually helps"
            )
        if not math.isfinite(row["validation_loss"]):
            _log.warning("%s: epoch %d: the validation loss is %s", self.name, row["epoch"], row["validation_loss"])
        self.rows.append(row)
        for logger in trainer.loggers:
            logger.log_metrics({key: value for key, value in row.items() if key != "step"}, step=trainer.global_step)
        if trainer.is_global_zero:
            self.write()
            _log.info(
                "%s: epoch %d/%d, train loss %.3f, validation accuracy %.2f %%, %.0f images/s",
                self.name, row["epoch"], trainer.max_epochs, row["train_loss"], 100 * row["validation_accuracy"],
                row["train_images_per_second"],
            )  # fmt: skip
        trainer.save_checkpoint(self.folder / "last.ckpt")

    def write(self) -> None:
        """Writes all rows to `metrics.csv`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in self.rows)
        write_atomically(self.folder / "metrics.csv", text.getvalue())

    def images_per_second(self) -> float:
        """Median over the epochs; the first one, which warms up, counts only when it is alone."""
        rates = [row["train_images_per_second"] for row in self.rows]
        return median(rates[1:] or rates)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


class GracefulStop(pl.Callback):
    """Ctrl-C lets the step finish, then stops with what to do next; a second Ctrl-C stops at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> "GracefulStop":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        _log.warning("stopping after this step; press Ctrl-C again to stop at once")

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.asked = trainer.strategy.reduce_boolean_decision(self.asked, all=False)  # all devices stop at one step
        self.stop_if_asked(trainer.current_epoch, f"in epoch {trainer.current_epoch + 1} after step {index + 1}")

    def stop_if_asked(self, done: int, where: str) -> None:
        """Stops a run of which `done` epochs are in the checkpoint.

        Raises:
            Interrupted: Ctrl-C was pressed.
        """
        if self.asked:
            kept = f"{self.folder / 'last.ckpt'} holds epoch {done}" if done else "no epoch was complete yet"
            raise Interrupted(f"stopped {where}; {kept}; the same command goes on from there")


def _short(value: float) -> float | str:
    return value if isinstance(value, int) else f"{value:.6g}"
