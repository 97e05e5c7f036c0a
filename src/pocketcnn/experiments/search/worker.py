"""One worker of a search: it proposes, measures and trains candidates, and stops poor ones early."""

import contextlib
import copy
import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pocketcnn.checkpoint.notes import ImageNotes
from pocketcnn.checkpoint.storage import weights_of
from pocketcnn.cost import measure, measure_latency
from pocketcnn.data import DataSet
from pocketcnn.errors import NonFiniteLoss, NothingToCondense
from pocketcnn.experiments.search.findings import accuracy_of, costs_in_words
from pocketcnn.experiments.search.space import Budgets, Candidate, Record, Space, rounded
from pocketcnn.experiments.search.study import (
    POLL,
    fail_dead_trials,
    fruitless_in_a_row,
    import_optuna,
    is_counted,
    occupies_place,
    origin_of,
    record_of,
    requeue,
)
from pocketcnn.models.spec import PLAIN_METHOD
from pocketcnn.support.runs import LAST, PREVIOUS, read_curve
from pocketcnn.surgery import as_served
from pocketcnn.train import TrainConfig, fit
from pocketcnn.train.rounding import Rounding

_log = logging.getLogger(__name__)
_STARTUP = 20  # proposals drawn at random before the sampler uses what it learned
_PATIENCE = 100  # proposals in a row without one that is trained, after which a search ends early
_SAMPLES = 4  # finished peers needed before a net is compared with them
_ROUNDS, _RUNS = 5, 10  # measurements of latency, and passes in each
_ALIKE = 1.1  # a peer is at most this many times as large and as slow


class _TakenOver(BaseException):
    """This worker was taken for dead, and another one resumed its trial.

    It is no `Exception`, so that Optuna records no end of the trial.
    """


@dataclass(frozen=True)
class Worker:
    """One of the processes that share a search."""

    study: Any
    data: DataSet
    config: TrainConfig
    output: Path
    space: Space
    budgets: Budgets
    trials: int
    accelerator: str

    def enqueue_plain(self) -> None:
        """Queues the widest plain net that fits, in int8, as the first trial: the one that others must beat."""
        low, high = self.space.widths or (0, 0)
        widest: Record | None = None
        with contextlib.suppress(ValueError):  # the net cannot be made this narrow
            while low <= high:  # bisection
                width = (low + high) // 2
                params = {"method": PLAIN_METHOD, "width": width, "storage": "int8"}
                candidate = self.space.propose(import_optuna().trial.FixedTrial(params))
                if any(miss > 0 for miss in self.budgets.misses(self._costs(candidate)).values()):
                    high = width - 1
                else:
                    low, widest = width + 1, params
        if widest is not None:
            self.study.enqueue_trial(widest, skip_if_exists=True)

    def run(self) -> None:
        """Proposes and trains until all workers together have trained enough, or nothing new that fits is found."""
        optuna = import_optuna()
        running = optuna.trial.TrialState.RUNNING
        while True:
            fail_dead_trials(self.study)
            found = self.study.get_trials(deepcopy=False)
            done, busy = sum(map(is_counted, found)), sum(trial.state == running for trial in found)
            if done >= self.trials:
                return
            if done + busy >= self.trials:
                time.sleep(POLL)
                continue
            if fruitless_in_a_row(found) >= _PATIENCE:
                _log.warning("%d proposals in a row do not fit or were trained before; the search ends after %d of %d trials",
                             _PATIENCE, done, self.trials)  # fmt: skip
                return
            try:
                self.study.optimize(self._try, n_trials=1)
            except _TakenOver:
                _log.warning("this worker gave no sign of life for so long that another one took its trial over")

    def _try(self, trial: Any) -> tuple[float, float, float]:
        """Proposes a candidate, checks its cost and trains it; returns accuracy, bytes and milliseconds to Optuna."""
        optuna = import_optuna()
        self.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=_STARTUP, seed=(100_003 * self.config.seed + trial.number) % 2**32
        )
        candidate = self.space.propose(trial)
        record = {**dataclasses.asdict(candidate), "outcome": "running", "folder": f"trials/{origin_of(trial)}"}

        def note(**more: Any) -> None:
            record.update(more)
            try:
                trial.set_user_attr("record", record)
            except optuna.exceptions.UpdateFinishedTrialError as error:
                raise _TakenOver from error

        def end(outcome: str) -> Exception:
            note(outcome=outcome)
            self._tidy(trial)
            _log.info("trial %d: %s: %s", trial.number, candidate.label, outcome)
            return optuna.TrialPruned(outcome)

        note()
        try:
            costs = self._costs(candidate)
        except (NothingToCondense, ValueError) as error:
            trial.set_constraint("built", 1.0)
            note(reason=str(error))
            raise end("impossible") from error
        note(**costs)
        misses = self.budgets.misses(costs)
        for name, miss in misses.items():
            trial.set_constraint(name, miss)
        if any(miss > 0 for miss in misses.values()):
            raise end("over budget")
        earlier = [other for other in self.study.get_trials(deepcopy=False) if other.number < trial.number]
        if any(occupies_place(other) and record_of(other).get("label") == candidate.label for other in earlier):
            raise end("repeated")
        # If several workers propose the last trial at the same time, the one with the lowest number trains it.
        if sum(map(occupies_place, earlier)) >= self.trials:
            raise end("surplus")
        try:
            return self._train(trial, candidate, costs, note)
        except optuna.TrialPruned:
            raise end("stopped early") from None
        except NonFiniteLoss as error:
            note(reason=str(error))
            raise end("diverged") from error
        except _TakenOver:
            raise
        except BaseException:
            requeue(self.study, self.study.get_trials(deepcopy=False)[trial.number])
            raise

    def _costs(self, candidate: Candidate) -> Record:
        """Measures bytes of the file, multiply-adds and milliseconds of a candidate before it is trained."""
        net = candidate.build(self.config.seed)
        like_trained = copy.deepcopy(net)
        fill_(like_trained)
        if candidate.bits != "off":
            Rounding(like_trained, candidate.bits)
        with tempfile.TemporaryDirectory() as folder:
            size = candidate.save(like_trained, Path(folder) / "net.safetensors", ImageNotes.of(self.data).as_dict())
        cost = measure(net, self.data.input_size)
        served = as_served(net)
        # The least of several medians: time that other processes take is not the net's.
        rounds = [measure_latency(served, self.data.input_size, threads=1, runs=_RUNS) for _ in range(_ROUNDS)]
        return {
            "file_bytes": size,
            "macs": cost.macs,
            "latency_ms": rounded(min(latency.median_ms for latency in rounds)),  # further digits are noise
            "trainable_params": cost.trainable_params,
        }

    def _config(self, candidate: Candidate) -> TrainConfig:
        """The settings of the search, for the bits in which a candidate is stored; few bits take no average of weights."""
        if candidate.bits == "off":
            return self.config
        return dataclasses.replace(self.config, bits=candidate.bits, ema_decay=0.0)

    def _train(
        self, trial: Any, candidate: Candidate, costs: Mapping[str, float], note: Callable[..., None]
    ) -> tuple[float, float, float]:
        pruned = import_optuna().TrialPruned

        def watch(rows: Sequence[Mapping[str, float]]) -> None:
            curve = [round(row["validation_accuracy"], 6) for row in rows]  # as metrics.csv has it
            note(curve=curve)
            if stops(curve, self._peers(costs), self.config.epochs):
                raise pruned

        folder = self.output / f"trials/{origin_of(trial)}"
        _log.info("trial %d: %s: %s", trial.number, candidate.label, costs_in_words(costs))
        net = candidate.build(self.config.seed)
        fit(
            net, self.data, self._config(candidate), folder, name=f"trial {trial.number}",
            identity={"model": candidate.model, "label": candidate.label}, accelerator=self.accelerator,
            test=False, on_epoch=watch,
        )  # fmt: skip
        file = folder / "stored.safetensors"
        size = candidate.save(net, file, ImageNotes.of(self.data).as_dict())
        for name, miss in self.budgets.misses({**costs, "file_bytes": size}).items():
            trial.set_constraint(f"trained {name}", miss)  # a packed file is as long as its numbers are various
        accuracy = accuracy_of(file, self.data, "validation")
        note(outcome="trained", file_bytes=size, validation_accuracy=accuracy, curve=read_curve(folder))
        self._tidy(trial)
        _log.info("trial %d: validation accuracy %.2f %% in %s bytes", trial.number, 100 * accuracy, f"{size:,}")
        return accuracy, size, costs["latency_ms"]

    def _tidy(self, trial: Any) -> None:
        """Removes the checkpoints of a run that will not be resumed."""
        for name in (LAST, PREVIOUS):
            (self.output / f"trials/{origin_of(trial)}" / name).unlink(missing_ok=True)

    def _peers(self, costs: Mapping[str, float]) -> list[list[float]]:
        """The curves of trained nets that are neither much larger nor much slower."""
        done = (record_of(trial) for trial in self.study.get_trials(deepcopy=False))
        return [
            record["curve"]
            for record in done
            if record.get("outcome") == "trained"
            and all(record[cost] <= _ALIKE * costs[cost] for cost in ("file_bytes", "latency_ms"))
        ]


@torch.no_grad()
def fill_(net: nn.Module) -> None:
    """Makes constants random, so that a packed file is about as long as that of the trained net: they take few bytes."""
    weights = set(weights_of(net).values())
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for weight in weights:
        weight[weight == 0] = 1.0  # some weights start at 0
    for number in (*(p for p in net.parameters() if p not in weights), *(b for norm in norms for b in norm.buffers())):
        if number.is_floating_point():
            number.copy_(torch.rand(number.shape))


def stops(curve: Sequence[float], peers: Sequence[Sequence[float]], epochs: int) -> bool:
    """Tells whether to stop training a net: its best accuracy so far is below the median of its peers' best after as many
    epochs.

    Peers are nets that are neither larger nor slower, so a net behind most of them would hardly reach the front. Small nets
    are never compared with larger ones. Optuna's own rules do not serve: they are for one objective.

    Args:
        curve: validation accuracy after each epoch so far.
        peers: the curves of the peers, trained to the end. With fewer than four, nothing is stopped.
        epochs: number of epochs of a whole training; nothing is stopped in the first quarter, nor after the last.
    Example:
        >>> peers = [[0.3, 0.6], [0.3, 0.7], [0.4, 0.8], [0.5, 0.9]]
        >>> stops([0.2, 0.74], peers, epochs=4), stops([0.2, 0.76], peers, epochs=4)
        (True, False)
    """
    epoch = len(curve)
    if len(peers) < _SAMPLES or not epochs / 4 < epoch < epochs:
        return False
    return max(curve) < median(max(peer[:epoch]) for peer in peers)
