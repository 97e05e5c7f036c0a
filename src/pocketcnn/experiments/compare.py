"""Training many nets with the same settings, each with several seeds, beside plain nets of full and of equal size."""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pocketcnn.cost import count_params
from pocketcnn.data import DataSet
from pocketcnn.errors import NonFiniteLoss
from pocketcnn.experiments.speeds import measure_speeds
from pocketcnn.models.recipes import RECIPES, check_name, create_model, options_for
from pocketcnn.models.spec import PLAIN_METHOD, NetSpec, parse_method, parse_model
from pocketcnn.support.copying import copied
from pocketcnn.support.files import make_folder, write_json
from pocketcnn.support.runs import COMPARISON
from pocketcnn.train import TrainConfig, fit
from pocketcnn.train.distil import condensed
from pocketcnn.train.teacher import digest_of

_log = logging.getLogger(__name__)
_OF_DATA = ("in_channels", "num_classes")
_SIZES: dict[str, int] = {}  # of plain nets by width, as the nets of a comparison share most steps of their searches


@dataclass(frozen=True)
class Outcome:
    """The outcome of a comparison: the results in the order of the table, and a message for each run that diverged."""

    results: list[dict[str, Any]]
    failures: list[str]
    speeds: dict[str, dict[str, float]]  # by label, as `measure_speeds` returns them


def net_specs(
    models: Sequence[str], methods: Sequence[str], model_options: Mapping[str, Any], *, equal_size: bool
) -> list[NetSpec]:
    """Makes the rows of a comparison, each small net followed by its rival: the plain net of equal size.

    Every net is built once, so that mistakes show before anything is trained.

    Args:
        models: plain nets in words, as `parse_model` takes them.
        methods: `plain` and methods with options, as `parse_method` takes them.
        model_options: for `create_model`; of the channels and classes of the data those that a net takes. Options in a net's
            words come before.
        equal_size: add for each small net its rival, the plain net narrowed to as many stored parameters.
    Raises:
        ValueError: no models or no methods, or a recipe among the models.
        UnknownModel: no net of that name; likewise any other error of `create_model` and `condense`.
    """
    rows: list[NetSpec] = []
    if not models or not methods:
        raise ValueError("give at least one model and one method to compare")
    for text in models:
        model, own = parse_model(text)
        check_name(model)
        taken = options_for(model, {key: model_options[key] for key in _OF_DATA if key in model_options})
        given = {**{key: value for key, value in model_options.items() if key not in _OF_DATA}, **taken, **own}
        if model in RECIPES:
            recipe = RECIPES[model]
            raise ValueError(
                f"{model} is a recipe, {recipe.base} condensed by {recipe.steps[0][0]}; a comparison takes plain nets as "
                "models, and methods separately"
            )
        for text in methods:
            method, options = parse_method(text)
            spec = NetSpec(model, method, options, given)
            if spec in rows:
                continue
            net = spec.build(seed=0)
            rows.append(spec)
            if equal_size and method != PLAIN_METHOD:
                width = width_of_size(model, count_params(net)[1], given)
                rival = NetSpec(model, PLAIN_METHOD, {}, {**given, "width": width}, rival_of=spec.label)
                if rival.label not in {row.label for row in rows}:  # nets of the same size share their rival
                    rows.append(rival)
    return rows


def trained_specs(nets: Sequence[str], methods: Sequence[str]) -> list[NetSpec]:
    """Makes the rows of a comparison of nets that start from trained ones.

    Args:
        nets: names of the trained nets.
        methods: as in `net_specs`; `plain` is the trained net, trained further.
    Raises:
        UnknownMethod: no method of that name.
    """
    return [NetSpec(name, *parse_method(text)) for name in nets for text in dict.fromkeys(methods)]


def _started(trained: nn.Module, row: NetSpec, data: DataSet, seed: int) -> nn.Module:
    """A copy of a trained net, condensed by fitting the row's method to it."""
    torch.manual_seed(seed)
    if row.method == PLAIN_METHOD:
        return copied(trained)
    return condensed(trained, row.method, data, **row.options)


def width_of_size(model: str, numbers: int, model_options: Mapping[str, Any]) -> float:
    """Finds the width at which a plain net stores about as many numbers as asked for, running statistics included.

    Widths are multiples of 1/256, up to 8; the closer of the two nearest sizes wins.
    """

    def size(step: int) -> int:
        key = repr((model, step, sorted(model_options.items())))
        if key not in _SIZES:
            with torch.device("meta"):
                _SIZES[key] = count_params(create_model(model, **{**model_options, "width": step / 256}))[1]
        return _SIZES[key]

    low, high = 1, 8 * 256
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= numbers else (low, middle)
    # Of equal sizes the first wins: the plain net itself.
    return min((256, low, high), key=lambda step: abs(size(step) - numbers)) / 256


def compare(
    data: DataSet,
    rows: Sequence[NetSpec],
    config: TrainConfig,
    output: str | Path,
    *,
    seeds: int = 1,
    trained: Mapping[str, nn.Module] | None = None,
    on_result: Callable[[list[dict[str, Any]]], None] = lambda results: None,
    **run: Any,
) -> Outcome:
    """Trains every row with every seed and the same settings; finished runs are read, not repeated.

    If precision is `auto`, it is measured for the first run and kept for all, because it changes results. The memory layout
    does not change results; it is measured for the first seed of each row.

    Args:
        data: the images to train and test on.
        rows: nets, as `net_specs` makes them.
        config: how every net is trained; its seed is the first one.
        output: folder of `comparison.json`, which lists the rows, and of a folder for each run.
        seeds: how many seeds each row gets.
        trained: trained nets by the names in the rows, as `trained_specs` makes them: each row starts from its net, to whose
            weights its method is fitted. By default all start afresh.
        on_result: called with all results so far after each run.
        **run: further arguments of `fit`: devices, progress, ...
    Returns:
        The results, a message for each run that diverged, and speeds measured in turns at the end.
    Raises:
        ValueError: fewer than one seed, or two rows that would share a folder.
    """
    output = make_folder(Path(output))
    if seeds < 1:
        raise ValueError(f"seeds is how many runs each row gets, at least 1, not {seeds}")
    listed = [{**dataclasses.asdict(row), "label": row.label} for row in rows]
    folders = {row.label: folder_of(output, row.label) for row in rows}
    if len(set(folders.values())) < len(rows):
        raise ValueError(f"two rows would share a folder: {', '.join(folders)}; compare them in two output folders")
    plan = {"data": data.name, "seeds": list(range(config.seed, config.seed + seeds)), "rows": listed, "diverged": []}
    write_json(output / COMPARISON, plan)
    results: list[dict[str, Any]] = []
    failures: list[str] = []
    finished: dict[str, Path] = {}
    for row in rows:
        settled = config
        for seed in range(config.seed, config.seed + seeds):
            folder = folders[row.label] / f"seed{seed}"
            identity = {**dataclasses.asdict(row), "label": row.label}
            if trained is not None:
                identity["start"] = digest_of(trained[row.model])
            try:
                result = fit(
                    row.build(seed) if trained is None else _started(trained[row.model], row, data, seed),
                    data,
                    dataclasses.replace(settled, seed=seed),
                    folder,
                    name=f"{row.label} seed {seed}",
                    identity=identity,
                    **run,
                )
            except NonFiniteLoss as error:
                failures.append(f"{row.label} seed {seed}: {error}")
                _log.error("%s", failures[-1])
                continue
            config = dataclasses.replace(config, precision=result["train"]["precision"])
            settled = dataclasses.replace(config, channels_last=result["train"]["channels_last"])
            results.append(result)
            finished.setdefault(row.label, folder)
            on_result(results)
    write_json(output / COMPARISON, {**plan, "diverged": failures})
    return Outcome(results, failures, measure_speeds(finished, data, output))


def folder_of(output: Path, label: str) -> Path:
    """The folder of a row inside that of its comparison; it holds a folder for each seed."""
    return output / re.sub(r"[^\w.=,+-]+", "-", label)
