"""Callbacks around the steps: the log of epochs, checkpoints, and a clean stop on Ctrl-C or a scheduler's signal."""

import contextlib
import csv
import io
import logging
import math
import signal
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pocketcnn.errors import Interrupted, NonFiniteLoss, Preempted
from pocketcnn.support.files import write_atomically
from pocketcnn.support.runs import LAST, METRICS, PREVIOUS
from pocketcnn.support.signals import STOP
from pocketcnn.train.engine import WeightAveraging, pl
from pocketcnn.train.module import Classifier

_log = logging.getLogger(__name__)
COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy",
    "train_seconds", "train_images_per_second",
)  # fmt: skip


class Averaging(WeightAveraging):
    """Keeps an exponential average of weights and statistics, which is evaluated and is the net at the end.

    Lightning's own average would include integers, such as the counters of batch norms.
    """

    def __init__(self, decay: float) -> None:
        def average(kept: torch.Tensor, current: torch.Tensor, count: Any) -> torch.Tensor:
            return torch.lerp(current, kept, decay) if current.is_floating_point() else current

        super().__init__(use_buffers=True, avg_fn=average)
        self._kept = False

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, module, stage)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_end(trainer, module)
        self._kept = True

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # A run that resumes after its last epoch trains no step, so Lightning does not call on_train_end.
        if not self._kept:
            super().on_train_end(trainer, module)


class EpochLog(pl.Callback):
    """Writes a row of `metrics.csv` after each epoch.

    Checkpoints hold the rows, so that the file of a resumed run has each epoch once.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.rows: list[dict[str, float]] = []
        self._start = self._seconds = 0.0
        self._images = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._start = time.perf_counter() - self._seconds  # a resumed run has spent part of the epoch
        if trainer.is_global_zero:
            done, of = trainer.current_epoch, trainer.max_epochs
            resumed = f", {done} of them done before" if done else ""
            _log.info("%s: training for %d epochs of %d steps%s", self.name, of, trainer.num_training_batches, resumed)

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

    def write(self) -> None:
        """Writes all rows to `metrics.csv`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in self.rows)
        write_atomically(self.folder / METRICS, text.getvalue())

    def summary(self) -> dict[str, float]:
        """Returns what a result says of the epochs.

        Images per second are the median over the epochs; the first one, which warms up, counts only when it is alone.
        """
        rates = [row["train_images_per_second"] for row in self.rows]
        return {
            "validation_accuracy": self.rows[-1]["validation_accuracy"],
            "epochs": len(self.rows),
            "train_images_per_second": median(rates[1:] or rates),
            "train_seconds": sum(row["train_seconds"] for row in self.rows),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self._seconds, "images": self._images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])
        self._seconds, self._images = state["seconds"], state["images"]


class Progress(pl.callbacks.TQDMProgressBar):
    """A bar with rate and time left on stderr, where messages go too; stdout may be a file."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=10)

    def init_train_tqdm(self) -> Any:
        with contextlib.redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Any:
        with contextlib.redirect_stdout(sys.stderr):
            return super().init_validation_tqdm()

    def init_test_tqdm(self) -> Any:
        with contextlib.redirect_stdout(sys.stderr):
            return super().init_test_tqdm()


class Safeguard(pl.Callback):
    """Saves checkpoints within and after each epoch, and on a signal saves and stops the run.

    Ctrl-C lets the step finish; a second Ctrl-C stops at once.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.folder = folder
        self._every = every  # seconds
        self._saved = time.monotonic()
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self.began = False  # True from the moment on when a checkpoint, if there is one, has been restored

    def __enter__(self) -> "Safeguard":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in STOP}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        hint = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        _log.warning("stopping after this step%s", hint)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began = True
        self._listen()
        if trainer.is_global_zero and str(trainer.ckpt_path).endswith(PREVIOUS):
            (self.folder / LAST).unlink(missing_ok=True)  # it is damaged, and must not replace the good one

    def on_test_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._listen()

    def _listen(self) -> None:
        # Lightning has set its own handler, which makes processes communicate in the middle of another exchange.
        for number in self._before:
            signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if index + 1 == trainer.num_training_batches:
            return  # saved at the end of the epoch, after evaluation
        due = time.monotonic() - self._saved >= self._every
        if _any_device(trainer, due or self._signal is not None):  # all devices save and stop at one step
            self._save(trainer, module)
            self._stop_if_asked(trainer, f"in epoch {trainer.current_epoch + 1} after step {index + 1}")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._save(trainer, module)
        self._stop_if_asked(trainer, f"after epoch {trainer.current_epoch + 1}")

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, Classifier)
        broken = next((n for n, t in module.net.state_dict().items() if not torch.isfinite(t).all()), None)
        if _any_device(trainer, broken is not None):
            raise NonFiniteLoss(
                f"epoch {trainer.current_epoch + 1}, step {trainer.global_step}: {broken or 'the net of another device'} "
                "holds NaN or infinite values; the checkpoint before is kept; a lower lr or clip_norm=1 usually helps"
            )
        trainer.save_checkpoint(self.folder / LAST)
        self._saved = time.monotonic()

    def _stop_if_asked(self, trainer: pl.Trainer, where: str) -> None:
        if not _any_device(trainer, self._signal is not None):
            return
        message = f"stopped {where}; {self.folder / LAST} is saved; repeat the command to resume"
        # A process knows only its own signal; if another process got one, a scheduler sent it.
        raise Interrupted(message) if self._signal == signal.SIGINT else Preempted(message)


def _any_device(trainer: pl.Trainer, answer: bool) -> bool:
    return trainer.strategy.reduce_boolean_decision(answer, all=False)


def _short(value: float) -> float | str:
    return value if isinstance(value, int) else f"{value:.6g}"
