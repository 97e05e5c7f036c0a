"""The `pocketcnn` command: one small function per verb, which parses, calls the library and prints.

Nothing here imports torch until a verb needs it, so `pocketcnn --help` answers at once.
"""

import contextlib
import copy
import dataclasses
import functools
import getpass
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pocketcnn.errors import (
    BadImage,
    BadUsage,
    MissingPassphrase,
    NonFiniteLoss,
    PocketError,
    UnknownModel,
    UnknownPretrained,
)
from pocketcnn.hub.card import record_of
from pocketcnn.support.tables import columns
from pocketcnn.support.version import __version__

if TYPE_CHECKING:
    from torch import nn

    from pocketcnn.data import DataSet


Arguments = TypeVar("Arguments")
_ORIENTATION = 0x0112  # the EXIF tag of how a camera was held
_DONE, _FAILED, _BAD_INPUT, _STOPPED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a command line and leaves with its exit code: 0 done, 1 failed on its way, 2 bad input, 130 stopped,
    75 asked to leave and to be started again."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    sys.exit(_run([word for word in words if word != "--debug"], debug))


def _run(words: list[str], debug: bool) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return _DONE
    if words[0] in ("-V", "--version"):
        print(f"pocketcnn {__version__}")
        return _DONE
    _log_to_stderr(debug)
    try:
        if words[0] not in VERBS:
            raise _unknown_verb(words[0])
        return VERBS[words[0]](words[1:]) or _DONE
    except KeyboardInterrupt:
        print("Interrupted: stopped at once; the last checkpoint is kept", file=sys.stderr)
        return _STOPPED
    except BrokenPipeError:
        sys.stderr.close()
        return _DONE
    except (PocketError, ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        message = " ".join(str(error).split())
        print(f"{type(error).__name__}: {message}", file=sys.stderr)
        return error.exit_code if isinstance(error, PocketError) else _BAD_INPUT
    except Exception as error:
        if debug:
            traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        print(f"{type(error).__name__}: {first}; this is a bug: --debug shows where", file=sys.stderr)
        return _FAILED


# --- compare ---------------------------------------------------------------------------------------------------------


def compare(words: Sequence[str]) -> int:
    """Train nets under one recipe, several seeds each, next to the plain net: table, figures, report.html."""
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass
    class Compare(DataArguments, ModelArguments, DeviceArguments):
        models: tuple[str, ...] = ("resnet20",)
        """Plain nets to start from; pocketcnn models lists them."""
        methods: tuple[str, ...] = ("plain", "ring", "condconv", "involution")
        """plain, and methods with their options: ring ring:size=0.1 condconv:num_experts=8"""
        equal_size: bool = False
        """Beside each small net, train the plain net of equal stored numbers."""
        seeds: int = 1
        """Runs of each net."""
        output: Path = Path("runs/compare")
        """Folder of the runs; the same command goes on where it stopped."""
        preset: str = "default"
        """Recipe to start from; the flags below change it."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = _parse(Compare, words, "compare", _method_help(), train=_preset(words, PRESETS))
    from pocketcnn.experiments.compare import compare, contestants
    from pocketcnn.report import summarize, write_report

    data = _load_data(given)
    options = _model_options(given, data)
    rows = contestants(given.models, given.methods, options, equal_size=given.equal_size)
    total = len(rows) * given.seeds
    with _live_table() as show:

        def on_result(results: list[dict[str, Any]]) -> None:
            show(summarize(results), f"{len(results)} of {total} runs")

        outcome = compare(
            data, rows, given.train, given.output, seeds=given.seeds, on_result=on_result, **_device_options(given)
        )
    if not outcome.results:
        raise NonFiniteLoss(f"every run diverged: {outcome.failures[0]}")
    page = write_report(given.output)
    _print_table(summarize(outcome.results, outcome.speeds))
    print(f"\nreport: {page}")
    for failure in outcome.failures:
        print(f"diverged: {failure}", file=sys.stderr)
    return _FAILED if outcome.failures else _DONE


# --- train -----------------------------------------------------------------------------------------------------------


def train(words: Sequence[str]) -> None:
    """Train one net on one data set; leaves a folder with records, checkpoint and model file."""
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass
    class Train(DataArguments, ModelArguments, DeviceArguments):
        model: str = "resnet20"
        """A plain net or a paper's net by name, with its options: mnist_net:feature=pde"""
        method: str = "plain"
        """plain, or a method with its options: ring:size=0.1"""
        output: Path = Path("runs/train")
        """Folder of the run; the same command goes on where it stopped."""
        preset: str = "default"
        """Recipe to start from; the flags below change it."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = _parse(Train, words, "train", _method_help(), train=_preset(words, PRESETS))
    from pocketcnn.models.spec import Contestant, parse_method, parse_options
    from pocketcnn.report import summarize
    from pocketcnn.train import fit

    method, options = parse_method(given.method)
    data = _load_data(given)
    model, model_options = parse_options(given.model)
    row = Contestant(model, method, options, {**_model_options(given, data), **model_options})
    result = fit(
        row.build(given.train.seed),
        data,
        given.train,
        given.output,
        name=row.label,
        identity={**dataclasses.asdict(row), "label": row.label},
        progress=sys.stderr.isatty(),
        **_device_options(given),
    )
    _print_table(summarize([result]))
    print(f"model file: {given.output / 'model.safetensors'}")


# --- distil ----------------------------------------------------------------------------------------------------------


def distil(words: Sequence[str]) -> None:
    """Train a small net on what a trained one gives, starting from its weights; leaves a folder as train does."""
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass
    class Distil(DataArguments, DeviceArguments):
        student: str = "ring:size=0.25,scheme=windows"
        """A method with its options, by which the teacher is condensed; a model file; or a net by name."""
        initialize: Literal["fit", "fresh"] = "fit"
        """Start a condensed student from the teacher's weights, or fresh."""
        unlabelled: Path | None = None
        """Learn from the images in this folder instead, by what the teacher takes them for; accuracy is agreement with it."""
        images: int = 2000
        """Training images that the start from trained weights looks at."""
        hold_zeros: bool = False
        """Weights that are zero in the student's file, as pruning leaves them, stay zero."""
        output: Path = Path("runs/distil")
        """Folder of the run; the same command goes on where it stopped."""
        preset: str = "distil"
        """Recipe to start from; the flags below change it."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = _parse(Distil, words, "distil", _method_help(), train=_preset(words, PRESETS, "distil"))
    if not given.train.teacher:
        raise BadUsage(
            "distil needs --teacher: the file of a trained net, the folder of its run, or DATA/NAME of models"
        )
    from pocketcnn.report import summarize
    from pocketcnn.train.distil import answered
    from pocketcnn.train.distil import distil as run

    teacher = _model_path(given.train.teacher)
    if given.unlabelled is None:
        data = _load_data(given)
    elif _value_of("--data", words) is not None:
        raise BadUsage("give --data, or --unlabelled with images that the teacher answers for, not both")
    else:
        data = answered(teacher, given.unlabelled, skip_bad_images=given.skip_bad_images)
    result = run(
        teacher,
        given.student,
        data,
        given.train,
        given.output,
        initialize=given.initialize,
        images=given.images,
        hold_zeros=given.hold_zeros,
        progress=sys.stderr.isatty(),
        **_device_options(given),
    )
    _print_table(summarize([result]))
    print(f"accuracy before the first step, on validation images: {100 * result['start']['validation_accuracy']:.2f} %")
    print(f"model file: {given.output / 'model.safetensors'}")


# --- search ----------------------------------------------------------------------------------------------------------


def search(words: Sequence[str]) -> None:
    """Search methods, sites, sizes and precisions for the most accurate nets within a budget; several workers may share it."""
    from pocketcnn.train.config import PRESETS, TrainConfig

    @dataclass
    class Search(DataArguments, ModelArguments):
        model: str = "resnet20"
        """The plain net that candidates are made of; they are between an eighth of its width and all of it."""
        methods: tuple[str, ...] | None = None
        """plain, and methods, in turn where joined: ring pde+ring; options given are not searched: ring:level=stage. All
        that find something to do in the net, by default."""
        max_bytes: str | None = None
        """Largest file: 100k, 0.1M, 100_000; k is 1000."""
        max_macs: str | None = None
        """Most multiply-adds of an image: 20M."""
        max_ms: float | None = None
        """Longest time for an image, on one thread of the CPU, in milliseconds."""
        trials: int = 30
        """How many candidates are trained, by all workers together; those over budget never are."""
        storage: str | None = None
        """Database that workers share: sqlite:///FILE, postgresql+psycopg://HOST/NAME; search.db in the output folder by
        default."""
        study: str = "pocketcnn"
        """Name of the search in the database."""
        output: Path = Path("runs/search")
        """Folder of the search, one for all workers; the same command joins in, or goes on where it stopped."""
        accelerator: Literal["auto", "cpu", "gpu"] = "auto"
        """Kind of device; a worker uses one."""
        preset: str = "default"
        """Recipe to start from; the flags below change it."""
        train: TrainConfig = field(default_factory=TrainConfig)

    given = _parse(Search, words, "search", _method_help(), train=_preset(words, PRESETS))
    from pocketcnn.experiments.search import search as run
    from pocketcnn.experiments.search.space import Budgets, Space, parse_size
    from pocketcnn.models.spec import parse_options

    sizes = (given.max_bytes, given.max_macs)
    max_bytes, max_macs = (None if text is None else parse_size(text) for text in sizes)
    budgets = Budgets(max_bytes, max_macs, given.max_ms)
    data = _load_data(given)
    model, model_options = parse_options(given.model)
    space = Space.of(model, {**_model_options(given, data), **model_options}, given.methods)
    found = run(
        data, given.train, given.output, trials=given.trials, space=space, budgets=budgets, storage=given.storage,
        study=given.study, accelerator=given.accelerator,
    )  # fmt: skip
    print(found.table)
    print(f"figure: {given.output / 'pareto.svg'}, nets: {given.output / 'front'}")


# --- measure ---------------------------------------------------------------------------------------------------------


def measure(words: Sequence[str]) -> None:
    """Count and time a net, by name or from a file: stored numbers, bytes, multiply-adds, depth, ms, memory."""
    from tyro.conf import Positional

    @dataclass
    class Measure(ModelArguments):
        model: Positional[str]
        """A net by name, with its options (mnist_net:width=8), a model file, or an exported one (.onnx)."""
        method: str = "plain"
        """Condense the net first: ring:size=0.1"""
        input_size: tuple[int, int, int] | None = None
        """Channels, height and width of an image; a trained file knows its own, else 3 32 32."""
        batch: int = 1
        """Images at once, for latency and memory."""
        threads: int | None = None
        """CPU threads; all by default."""
        runs: int = 50
        """How many passes are timed."""
        data: str | None = None
        """Also count the test images of a data set by what each costs, where that depends on the image."""

    given = _parse(Measure, words, "measure", _method_help())
    if given.model.endswith(".onnx"):
        print(_cost_of_onnx(given))
        return
    import pocketcnn as pc
    from pocketcnn.models.spec import PLAIN_METHOD, parse_method

    net, notes = _named_or_file(given.model, given)
    method, options = parse_method(given.method)
    if method != PLAIN_METHOD:
        net = pc.condense(net, method, **options)
    size = given.input_size or tuple(notes.get("input_size", ())) or (given.in_channels or 3, 32, 32)
    cost = pc.measure(net, size)
    latency = pc.measure_latency(net, size, batch=given.batch, threads=given.threads, runs=given.runs)
    rows = [(key, _number(value)) for key, value in dataclasses.asdict(cost).items() if isinstance(value, int)]
    rows[5:5] = [(f"  {operator}", f"{macs:,}") for operator, macs in cost.macs_by_operator.items()]
    rows += [
        ("median_ms", f"{latency.median_ms:.3f}"),
        ("p95_ms", f"{latency.p95_ms:.3f}"),
        ("peak_bytes forward", _number(pc.measure_memory(net, size, batch=given.batch))),
        ("peak_bytes training", _number(pc.measure_memory(net, size, batch=given.batch, training=True))),
    ]
    width = max(len(key) for key, _ in rows)
    print(f"{given.model}, images {'x'.join(map(str, size))}, batch {latency.batch}, {latency.threads} threads, "
          f"{latency.dtype} on {latency.device}, {latency.runs} runs")  # fmt: skip
    for key, value in rows:
        print(f"{key:<{width}}  {value:>16}")
    if given.data is not None:
        print(_costs_by_image(net, given.data, notes, given.runs))


def _cost_of_onnx(given: Any) -> str:
    """A table of what an exported file costs."""
    from pocketcnn.export import measure_onnx

    if given.method != "plain" or given.data is not None or given.input_size is not None or _model_options(given):
        raise BadUsage(f"{given.model}: an exported file is what it is; only --batch, --threads and --runs go with it")
    cost = measure_onnx(given.model, batch=given.batch, threads=given.threads, runs=given.runs)
    cells = [
        ("size_bytes", cost.size_bytes),
        ("stored_numbers", cost.stored_numbers),
        ("table_bytes", cost.table_bytes),
    ]
    cells += [("opset", cost.opset), ("macs", cost.macs)]
    cells += [(f"  {operator}", macs) for operator, macs in cost.macs_by_operator.items()]
    if cost.generating:
        cells.append(("macs once, at loading", cost.generating_macs))
    rows = [(name, f"{number:,}") for name, number in cells]
    rows += [("median_ms", f"{cost.latency.median_ms:.3f}"), ("p95_ms", f"{cost.latency.p95_ms:.3f}")]
    lines = [f"{given.model}, images {_size(cost.input_size)}, batch {cost.latency.batch}, {cost.latency.threads} threads, "
             f"{cost.latency.dtype} in {cost.latency.device}, {cost.latency.runs} runs", columns(rows)]  # fmt: skip
    if cost.generating:
        made = ", ".join(f"{count} {operator}" for operator, count in cost.generating.items())
        lines.append(f"nodes that depend on no image and make kernels when the file is loaded: {made}")
    return "\n".join(lines)


def _costs_by_image(net: Any, name: str, notes: dict[str, Any], runs: int) -> str:
    """A table of the test images of a data set by level; a net that was never trained is calibrated first."""
    import torch

    from pocketcnn.cost import measure_images
    from pocketcnn.data import load

    data = load(name)
    mean, std = (torch.tensor(notes.get(key, [number]))[:, None, None] for key, number in (("mean", 0.0), ("std", 1.0)))
    if "mean" not in notes:
        for module in net.modules():
            if hasattr(module, "calibrate_"):
                module.calibrate_(batch / 255 for batch in data.train.images[:10_000].split(500))
    costs = measure_images(net, (data.test.images.float() / 255 - mean) / std, runs=runs)
    cells = [("level", "images", "measure", "depth", "MACs", "ms")]
    for row in costs.levels:
        ends = "-" if row.lowest is None or row.highest is None else f"{row.lowest:.2f} to {row.highest:.2f}"
        cells.append(
            (f"{row.level}", f"{row.images:,}", ends, f"{row.depth}", f"{row.macs:,}", f"{row.latency_ms:.3f}")
        )
    for key in ("min", "mean", "p95", "max"):
        macs, ms = getattr(costs.macs, key), getattr(costs.latency_ms, key)
        cells.append((key, "", "", "", f"{round(macs):,}", f"{ms:.3f}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    energy = "no counter that can be read" if costs.joules is None else f"{costs.joules:.4g} J an image"
    return "\n".join([f"\n{costs.images:,} test images of {data.name}, one at a time", *lines, f"energy: {energy}"])


# --- bench -----------------------------------------------------------------------------------------------------------


def bench(words: Sequence[str]) -> None:
    """Time every method side by side: written out, compiled, ours, against the machine's limit and the plain nets."""

    @dataclass
    class Bench:
        only: tuple[Literal["layers", "nets", "goals"], ...] = ("layers", "nets", "goals")
        """Sections to measure; goals that need another one are left out."""
        quick: bool = False
        """Small shapes, few rounds and no compiler: a minute or two, to try it out."""
        output: Path = Path("runs/bench")
        """Folder for bench.json, table.md and bench.svg."""

    given = _parse(Bench, words, "bench")
    from pocketcnn.experiments import bench

    bench.run(bench.QUICK if given.quick else bench.FULL, given.output, only=given.only)
    print((given.output / "table.md").read_text(encoding="utf-8"))
    print(f"records: {given.output / 'bench.json'}")


# --- condense, plan --------------------------------------------------------------------------------------------------


def condense(words: Sequence[str]) -> None:
    """Replace layers of a net by condensed ones and write the small net to a file; the method's options are flags."""

    @dataclass
    class Condense(SurgeryArguments):
        output: Path = Path("small.safetensors")
        """The model file to write."""
        initialize: Literal["fresh", "fit"] = "fresh"
        """Draw the new layers' numbers anew, or bring them near to the trained weights that they replace."""
        data: str | None = None
        """Data set whose training images a fit looks at; accuracy on its validation images is shown."""
        images: int = 2000
        """How many training images a fit looks at."""

    import pocketcnn as pc

    given, options = _parse_surgery(Condense, words, "condense")
    net, notes = _named_or_file(given.model, given)
    small = _condensed(net, notes, given, {"include": given.include, "exclude": given.exclude, **options})
    before, after = pc.measure(net, _input_size(given, notes)), pc.measure(small, _input_size(given, notes))
    passphrase = _passphrase_of(Path(given.model)) if Path(given.model).is_file() else None
    size = pc.save(small, given.output, notes=notes, passphrase=passphrase)
    for key in ("trainable_params", "macs", "depth", "size_bytes"):
        old, new = getattr(before, key), getattr(after, key)
        print(f"{key:<16} {old:>14,} -> {new:>14,}  ({new / old:.3g}x)")
    print(f"{given.output}: {size:,} bytes")


def _condensed(net: "nn.Module", notes: dict[str, Any], given: Any, options: dict[str, Any]) -> "nn.Module":
    """The condensed net; with data, it is shown how accurate it is before any training, and from a fresh start."""
    import pocketcnn as pc

    if given.data is None:
        if given.initialize == "fit" and pc.METHODS[given.method].fit is None:
            raise BadUsage(
                f"{given.method} is fitted to what the trained layers give for images: name some with --data"
            )
        if given.initialize == "fit":
            print("without --data batch norms keep the statistics of the weights before")
        return pc.condense(net, given.method, initialize=given.initialize, **options)
    from pocketcnn.data import load
    from pocketcnn.train import evaluate
    from pocketcnn.train.distil import condensed

    data = load(given.data)
    if {"mean", "std"} <= notes.keys():
        data = dataclasses.replace(data, mean=tuple(notes["mean"]), std=tuple(notes["std"]))
    nets = {"before": net}
    for initialize in dict.fromkeys(("fresh", given.initialize)):
        nets[initialize] = condensed(net, given.method, data, initialize=initialize, images=given.images, **options)
    for title, made in nets.items():
        found = evaluate(made, data, split="validation")
        print(f"{title:<7} {100 * found['validation_accuracy']:6.2f} % of the validation images of {data.name}")
    return nets[given.initialize]


def plan(words: Sequence[str]) -> None:
    """Show what condensing would change, what it passes over and why, and what it saves; changes nothing."""

    @dataclass
    class PlanOnly(SurgeryArguments):
        pass

    import pocketcnn as pc

    given, options = _parse_surgery(PlanOnly, words, "plan")
    net, notes = _named_or_file(given.model, given)
    print(pc.plan(
        net, given.method, input_size=_input_size(given, notes), include=given.include, exclude=given.exclude, **options
    ))  # fmt: skip


# --- pack ------------------------------------------------------------------------------------------------------------


def pack(words: Sequence[str]) -> None:
    """Write a model file again, smaller or locked: int8 or float16 weights, small weights left out, a passphrase."""
    from tyro.conf import Positional

    @dataclass
    class Pack:
        model: Positional[Path]
        """A model file, or the folder of a run."""
        output: Path = Path("packed.safetensors")
        """The model file to write."""
        storage: Literal["float32", "float16", "int8"] = "float32"
        """Type of the weights in the file; they are rounded to it."""
        prune: float = 0.0
        """Share of each weight tensor that is set to zero, the smallest numbers first."""
        lock: Literal["keep", "new", "none"] = "keep"
        """What hides the seeds of rings and puppets: the passphrase that the file has, if any; a new one, of
        POCKETCNN_NEW_PASSPHRASE or asked for; or none."""
        data: str | None = None
        """Also measure the accuracy before and after on this data set's test images."""

    given = _parse(Pack, words, "pack")
    from pocketcnn import checkpoint
    from pocketcnn.checkpoint.storage import prune_

    (path,) = _model_files((given.model,), ("net",)).values()
    net, notes = _load(path), checkpoint.read_header(path)["notes"]
    nets = [("before", path.stat().st_size, net)]
    packed = copy.deepcopy(net)
    if given.prune:
        prune_(packed, given.prune)
    passphrase = None
    if given.lock != "none":
        passphrase = _passphrase_of(path) if given.lock == "keep" else _new_passphrase(given.output)
    size = checkpoint.save(packed, given.output, notes=notes, storage=given.storage, passphrase=passphrase)
    nets.append(("after", size, checkpoint.load(given.output, passphrase=passphrase)))
    data = None
    if given.data is not None:
        from pocketcnn.data import load

        data = load(given.data)
    for title, length, net in nets:
        accuracy = ""
        if data is not None:
            from pocketcnn.train import evaluate

            accuracy = f"  test accuracy {100 * evaluate(net, data)['test_accuracy']:.2f} %"
        print(f"{title:<6} {length:>14,} bytes  ({length / nets[0][1]:.3f}x){accuracy}")
    print(f"{given.output}: {size:,} bytes")


# --- publish ---------------------------------------------------------------------------------------------------------


def publish(words: Sequence[str]) -> None:
    """Write a net as a repository of the Hugging Face hub, with a card made of its run's record; upload it if asked."""
    from tyro.conf import Positional

    @dataclass
    class Publish:
        model: Positional[str]
        """A model file, the folder of a run, or a trained net of the package (cifar10/resnet20)."""
        output: Path | None = None
        """Folder for model file, configuration and card; a README.md that is there stays, and goes to the repository."""
        repo: str | None = None
        """Upload to this repository, owner/name, which is made when missing; without --output its README.md stays."""
        record: Path | None = None
        """Folder of the run that trained the net, where the file lies elsewhere."""
        data: str | None = None
        """Measure the file on this data set's test images, for the card: a packed file is not what its run measured."""
        license: str | None = None
        """Of the weights, as the hub spells it: apache-2.0. The card names none by default."""
        private: bool = False
        """A repository that is made now is private."""

    given = _parse(Publish, words, "publish")
    if given.output is None and given.repo is None:
        raise BadUsage("say where to: --output FOLDER, --repo OWNER/NAME, or both")
    from pocketcnn import hub
    from pocketcnn.support.files import read_json

    path = _model_path(given.model)
    if given.record is not None and not (given.record / "result.json").is_file():
        raise FileNotFoundError(f"{given.record}: not the folder of a finished run: there is no result.json")
    record = record_of(path) if given.record is None else read_json(given.record / "result.json")
    if given.data is not None:
        from pocketcnn.data import load
        from pocketcnn.train import evaluate

        notes = _trained_notes(given.model, path)
        data = _as_trained(load(given.data), notes)
        record["stored_accuracy"], record["stored_data"] = evaluate(_load(path), data)["test_accuracy"], data.name
    described: dict[str, Any] = {"record": record, "license": given.license}
    address = ""
    if given.repo is not None:
        private = given.private or None  # as the owner's settings say
        address = hub.push_to_hub(path, given.repo, folder=given.output, private=private, **described)
    elif given.output is not None:
        hub.save_pretrained(path, given.output, **described)
    if given.output is not None:
        print(f"folder: {given.output}")
    if address:
        print(address)


# --- export ----------------------------------------------------------------------------------------------------------


def export(words: Sequence[str]) -> None:
    """Write a net to a file that serves without this package, checked against the net: ONNX, ExecuTorch, torch.export."""
    from tyro.conf import Positional

    @dataclass
    class Export:
        model: Positional[str]
        """A trained net of the package (cifar10/resnet20), a model file, or the folder of a run."""
        format: Literal["onnx", "onnx_compact", "executorch", "torch_export"] = "onnx"
        """onnx: a kernel for each layer; onnx_compact: shared numbers once, their places computed in the graph;
        executorch: for small devices; torch_export: for torch."""
        output: Path | None = None
        """The file to write; by default model.onnx, model.pte or model.pt2 here."""
        opset: int | None = None
        """Version of ONNX; 20 by default."""
        entropy: float | None = None
        """Bits: a net whose depth depends on its images becomes the one that images of this entropy see."""
        batch: int | None = None
        """Images at once, always so many; any number by default, with executorch up to 32."""
        input_size: tuple[int, int, int] | None = None
        """Channels, height and width of an image; a trained file knows its own, else 3 32 32."""
        data: str | None = None
        """Also check with 170 test images of a data set."""

    given = _parse(Export, words, "export")
    from pocketcnn import checkpoint
    from pocketcnn.export import SUFFIXES
    from pocketcnn.export import export as write

    path = _model_path(given.model)
    net, notes = _load(path), checkpoint.read_header(path)["notes"]
    if given.data is not None:
        _trained_notes(given.model, path)
    found = write(
        net,
        given.output or Path(f"model{SUFFIXES[given.format]}"),
        format=given.format,
        input_size=given.input_size,
        batch=given.batch,
        opset=given.opset,
        entropy=given.entropy,
        notes=notes,
        images=None if given.data is None else _test_images(given.data, notes, 170)[1],
    )
    before = path.stat().st_size
    cells = [(str(path), f"{before:,} bytes", "")]
    if found.dense_bytes is not None:
        why = ", smaller than a compact one, so this was written" if found.dense else ""
        cells.append((f"dense ONNX{why}", f"{found.dense_bytes:,} bytes", f"({found.dense_bytes / before:.3f}x)"))
    cells.append((str(found.path), f"{found.size_bytes:,} bytes", f"({found.size_bytes / before:.3f}x)"))
    print(f"{found.format}{f', opset {found.opset}' if found.opset else ''}")
    print(columns(cells))
    print(f"largest difference from the net: {found.max_difference:.2g}; by what the images are: "
          + ", ".join(f"{name} {value:.2g}" for name, value in found.differences.items()))  # fmt: skip
    for speed in found.speeds:
        print(f"batch {speed.batch}: {speed.file_ms:.3f} ms, the net in PyTorch {speed.net_ms:.3f} ms ({speed.ratio:.3g}x), "
              f"{found.threads} threads each")  # fmt: skip


# --- classify, evaluate ----------------------------------------------------------------------------------------------


def classify(words: Sequence[str]) -> None:
    """Say what image files show, by a trained net: the likeliest classes of each, with their probabilities."""
    from tyro.conf import Positional

    @dataclass
    class Classify:
        images: Positional[tuple[Path, ...]]
        """Image files; those of another size or mode than the net's are converted."""
        model: str | None = None
        """A trained net of the package (cifar10/resnet20; models --pretrained lists them), the file of one, or the folder
        of a run; the package's most accurate one for cifar10 by default."""
        top: int = 3
        """How many classes of each image."""

    given = _parse(Classify, words, "classify")
    if not given.images:
        raise BadUsage("give at least one image file")
    if given.top < 1:
        raise BadUsage(f"--top must be at least 1, not {given.top}")
    import torch

    from pocketcnn import zoo
    from pocketcnn.support.modules import device_and_dtype

    if given.model is None:
        best = max(zoo.cards(data="cifar10"), key=lambda card: card.test_accuracy, default=None)
        if best is None:
            raise BadUsage("the package holds no net that was trained on cifar10; give one with --model")
        title, path = best.title, zoo.path_of(best)
    else:
        title, path = given.model, _model_path(given.model)
    notes, net = _trained_notes(title, path), _load(path)
    fitted = [_fitted_image(image, notes["input_size"]) for image in given.images]
    x = _normalised(torch.stack([pixels for pixels, _ in fitted]), notes).to(device_and_dtype(net)[1])
    with torch.no_grad():
        logits = torch.cat([net(batch) for batch in x.split(256)])
    classes = notes["classes"]
    shares, chosen = logits.float().softmax(dim=1)[:, : len(classes)].topk(min(given.top, len(classes)), dim=1)
    for _, converted in fitted:
        if converted:
            print(converted, file=sys.stderr)
    print(f"{title}: trained on {notes['data']}, images {_size(notes['input_size'])}, {len(classes)} classes")
    cells = [("image", *(f"{rank}." for rank in range(1, shares.shape[1] + 1)))]
    for image, row, indices in zip(given.images, shares.tolist(), chosen.tolist(), strict=True):
        found = (f"{classes[index]} {100 * share:5.1f}%" for index, share in zip(indices, row, strict=True))
        cells.append((str(image), *found))
    print(columns(cells))


def _fitted_image(path: Path, input_size: Sequence[int]) -> tuple[Any, str]:
    """An image as a net takes it, and in words how it was converted, if it was."""
    from pocketcnn.data import read_image
    from pocketcnn.support.optional import optional_import

    channels, height, width = input_size
    pixels = read_image(path, image_size=height if height == width else None, channels=channels)
    with optional_import("PIL.Image", extra="train", purpose="decoding images").open(path) as image:
        had = f"{image.width}x{image.height} {'grey' if image.mode == 'L' else image.mode}"
        turned = ", turned upright" if image.getexif().get(_ORIENTATION, 1) != 1 else ""
        cropped = ", cropped to a square" if image.width != image.height else ""
    wanted = f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"
    if list(pixels.shape) != list(input_size):
        raise BadImage(
            f"{path}: {had}, the net takes {wanted}, and only squares are made of other sizes; resize it first"
        )
    converted = had != wanted or turned
    return pixels, f"{path}: {had} converted to {wanted}{turned}{cropped}" if converted else ""


def evaluate(words: Sequence[str]) -> None:
    """Measure a trained net on the test images of a data set: accuracy and loss."""

    @dataclass
    class Evaluate:
        model: str
        """A trained net of the package (cifar10/resnet20; models --pretrained lists them), the file of one, or the folder
        of a run."""
        data: str | None = None
        """Built-in name, hub id, folder of parquet files or of class folders; what the net was trained on by default."""
        image_size: int | None = None
        """Bring all images to this side in pixels."""
        channels: Literal[1, 3] | None = None
        """Convert all images to grey (1) or RGB (3)."""
        skip_bad_images: bool = False
        """Leave out and count images that cannot be decoded, instead of stopping at the first."""

    given = _parse(Evaluate, words, "evaluate")
    from pocketcnn.data import load
    from pocketcnn.train import evaluate

    path = _model_path(given.model)
    notes, net = _trained_notes(given.model, path), _load(path)
    data = load(
        given.data or notes["data"],
        image_size=given.image_size,
        channels=given.channels,
        skip_bad_images=given.skip_bad_images,
    )
    data = _as_trained(data, notes, "; --image-size and --channels convert them")
    found = evaluate(net, data)
    print(f"{given.model}: {path.stat().st_size:,} bytes, on {len(data.test):,} test images of {data.name}")
    print(f"test accuracy {100 * found['test_accuracy']:.2f} %")
    print(f"test loss {found['test_loss']:.4f}")


# --- models, data, report --------------------------------------------------------------------------------------------


def models(words: Sequence[str]) -> None:
    """List the plain nets and the papers' nets, with their numbers; or the trained nets that the package holds."""
    from tyro.conf import Positional

    @dataclass
    class Models:
        pattern: Positional[str] = "*"
        """Shell pattern: "*ring*"."""
        pretrained: bool = False
        """List the trained nets of the package, with the test accuracy of each file."""

    given = _parse(Models, words, "models")
    if given.pretrained:
        print(_pretrained(given.pattern))
        return
    import torch

    from pocketcnn.cost import count_params
    from pocketcnn.models.recipes import RECIPES, create_model, list_models

    names = list_models(given.pattern)
    if not names:
        raise UnknownModel(given.pattern, list_models())
    width = max(24, *(len(name) + 2 for name in names))
    print(f"{'name':<{width}}{'trainable':>12}{'total':>12}  made of")
    for name in names:
        with torch.device("meta"):
            trainable, total = count_params(create_model(name))
        recipe = RECIPES.get(name)
        steps = " + ".join(_call(method, options) for method, options in recipe.steps) if recipe else ""
        made = f"{recipe.base} + {steps} ({recipe.source})" if recipe else "plain"
        print(f"{name:<{width}}{trainable:>12,}{total:>12,}  {made}")


def _pretrained(pattern: str) -> str:
    """A table of the trained nets of the package."""
    from pocketcnn import zoo

    found = zoo.cards(pattern)
    if not found:
        raise UnknownPretrained(pattern, [card.title for card in zoo.cards()])
    cells = [("data/name", "accuracy", "bytes", "storage", "trainable", "seed", "epochs")]
    for card in found:
        accuracy, size, trainable = (
            f"{100 * card.test_accuracy:.2f}%",
            f"{card.size_bytes:,}",
            f"{card.trainable_params:,}",
        )
        cells.append((card.title, accuracy, size, card.storage, trainable, f"{card.seed}", f"{card.epochs}"))
    return columns(cells)


def data(words: Sequence[str]) -> None:
    """Load a data set and say what is in it: splits, sizes, classes, normalisation, augmentation."""
    from tyro.conf import Positional

    @dataclass
    class Data(DataOptions):
        data: Positional[str]
        """Built-in name, hub id, folder of parquet files or of class folders."""

    given = _parse(Data, words, "data", _data_help())
    import torch

    found = _load_data(given)
    channels, height, width = found.input_size
    print(f"{found.name}: {len(found.classes)} classes, images {channels}x{height}x{width} (channels x height x width)")
    splits = {name: getattr(found, name) for name in ("train", "validation", "test")}
    print(f"{'class':<24}" + "".join(f"{name:>12}" for name in splits))
    counts = {name: torch.bincount(split.labels, minlength=len(found.classes)) for name, split in splits.items()}
    for index, name in enumerate(found.classes):
        print(f"{name:<24.24}" + "".join(f"{int(count[index]):>12,}" for count in counts.values()))
    print(f"{'all':<24}" + "".join(f"{len(split):>12,}" for split in splits.values()))
    print(f"mean {found.mean}, std {found.std} of values in [0, 1]")
    print(f"augmentation: {found.augmentation}")
    if found.skipped:
        print(f"skipped: {found.skipped} images that cannot be decoded")


def report(words: Sequence[str]) -> None:
    """Make table.md, figures and report.html again from the records in a folder of runs."""
    from tyro.conf import Positional

    @dataclass
    class Report:
        folder: Positional[Path]
        """Folder of runs, as compare or train left it."""

    given = _parse(Report, words, "report")
    from pocketcnn.report import read_results, read_speeds, summarize, write_report

    _print_table(summarize(read_results(given.folder), read_speeds(given.folder)))
    print(f"report: {write_report(given.folder)}")


def reproduce(words: Sequence[str]) -> int:
    """Set published figures beside ours, with a verdict: reads the records, runs what is missing, writes docs/results.md."""
    from tyro.conf import Positional

    @dataclass
    class Reproduce:
        table: Positional[str]
        """report_table1, report_table2, compare_table, ring_curve, puppet, or all."""
        budget: str = "0"
        """Minutes for runs, or full for all that are missing; 0 only reads the records and writes the page."""
        seeds: int = 1
        """Runs of each row."""
        recipe: Literal["table", "quick"] = "table"
        """Run rows by the recipe of the table, or by the quick one, which serves to compare them with each other."""
        rates: bool = False
        """First measure how fast each net trains on this machine, to say how long a run takes."""
        data_folder: Path | None = None
        """Folder with the folders cifar10 and mnist; from the hub by default."""
        results: Path = Path("results")
        """Folder of the records; runs go to reproduce in it."""
        docs: Path = Path("docs/results.md")
        """The page to write; figures go beside it."""

    given = _parse(Reproduce, words, "reproduce")
    if given.budget != "full" and not given.budget.isdecimal():
        raise BadUsage(f"budget is a whole number of minutes, or full, not {given.budget!r}")
    from pocketcnn.experiments.reproduce import reproduce as run

    minutes = float("inf") if given.budget == "full" else int(given.budget)
    found = run(
        given.table, minutes=minutes, seeds=given.seeds, recipe=given.recipe, rates=given.rates,
        data_folder=given.data_folder, results=given.results, docs=given.docs, progress=sys.stderr.isatty(),
    )  # fmt: skip
    for name, cells in found.cells.items():
        print("\n".join([name, columns(cells), *found.sentences[name], ""]))
    for failure in found.failures:
        print(f"diverged: {failure}", file=sys.stderr)
    print(f"page: {given.docs}")
    return _FAILED if found.failures else _DONE


def picture(words: Sequence[str]) -> None:
    """Draw what trained nets make of images: feature maps, and what is inside layers that make or share their kernels."""
    from tyro.conf import Positional

    @dataclass
    class Picture:
        models: Positional[tuple[Path, ...]]
        """Model files, or folders of runs."""
        data: str | None = None
        """Whose test images are shown; what the first net was trained on by default."""
        images: tuple[int, ...] = (0, 1, 2)
        """Numbers of the test images; fields and the kernels of pixels are drawn for the first."""
        image_file: Path | None = None
        """An image file instead."""
        layer: str | None = None
        """Dotted name of the module whose map is shown; all of one net, the last of several."""
        channel: int | None = None
        """Channel of the maps; their mean, and of fields the one that changes most, by default."""
        titles: tuple[str, ...] = ()
        """What the nets are called in the pictures; the names of their folders by default."""
        output: Path = Path("runs/pictures")
        """Folder for the PNG and SVG files."""

    given = _parse(Picture, words, "picture")
    from pocketcnn import checkpoint
    from pocketcnn.methods.condconv import CondConv2d
    from pocketcnn.methods.involution import Involution2d
    from pocketcnn.methods.pde import GlobalLayer
    from pocketcnn.methods.puppet import gauge_of, puppeteers_of
    from pocketcnn.methods.ring import RingConv2d
    from pocketcnn.pictures import (
        draw_fields,
        draw_kernels,
        draw_levels,
        draw_maps,
        draw_pixel_kernels,
        draw_ring,
        draw_routing,
        solver_fields,
        write_figure,
    )  # fmt: skip

    files = _model_files(given.models, given.titles)
    nets = {title: _load(path) for title, path in files.items()}
    notes = _common_notes({title: checkpoint.read_header(path)["notes"] for title, path in files.items()})
    pixels, x = _images_for(given, notes)
    written = write_figure(draw_maps(pixels, nets, x, layer=given.layer, channel=given.channel), given.output, "maps")

    def write(figure: Any, name: str) -> None:
        written.extend(write_figure(figure, given.output, _file_name(name)))

    for title, net in nets.items():
        for name, module in net.named_modules():
            if isinstance(module, GlobalLayer):
                fields = solver_fields(net, name, x[:1])
                shown = draw_fields(pixels[0], fields, title=f"{title}: {name}", channel=given.channel)
                write(shown, f"fields-{title}-{name}")
        gauge = gauge_of(net)
        if gauge is not None and gauge.measure != "features":  # which no reader could see
            write(draw_levels(*_test_images(given.data, notes, 10_000), net, title=title), f"levels-{title}")
        for number, puppeteer in enumerate(puppeteers_of(net)):
            write(draw_kernels(puppeteer, title=title), f"kernels-{title}-{number}")
        kinds = {type(module) for module in net.modules()}
        if CondConv2d in kinds:
            _, many, labels, classes = _test_images(given.data, notes, 1000)
            write(draw_routing(net, many, labels, classes, title=title), f"routing-{title}")
        if Involution2d in kinds:
            write(draw_pixel_kernels(net, pixels[0], x[:1], title=title), f"pixels-{title}")
        if RingConv2d in kinds:
            write(draw_ring(net, title=title), f"ring-{title}")
    for path in written:
        print(path)


def similarity(words: Sequence[str]) -> None:
    """Compare how trained nets see the same images (CKA), how alike the filters of a layer are, and the rings' law of size."""
    from tyro.conf import Positional

    @dataclass
    class Similarity:
        models: Positional[tuple[Path, ...]]
        """Model files, or folders of runs; the others are compared with the first."""
        data: str | None = None
        """Whose test images the nets see; what the first net was trained on by default."""
        images: int = 512
        """How many, spread over the test split; all of it where it has fewer."""
        threshold: float = 0.3
        """Filters of a layer count as correlated from this |r| on; filters too short to tell that from chance are not counted."""
        titles: tuple[str, ...] = ()
        """What the nets are called; the names of their folders by default."""
        output: Path = Path("runs/similarity")
        """Folder for the PNG and SVG files."""

    given = _parse(Similarity, words, "similarity")
    if given.images < 2:
        raise BadUsage(f"similarity needs at least 2 images, got {given.images}")
    from pocketcnn import checkpoint
    from pocketcnn.pictures import (
        alignments,
        draw_correlated,
        draw_law,
        draw_similarity,
        filter_similarity,
        ring_fraction,
        same_stations,
        station_grams,
        write_figure,
    )  # fmt: skip

    files = _model_files(given.models, given.titles)
    nets = {title: _load(path) for title, path in files.items()}
    notes = _common_notes({title: checkpoint.read_header(path)["notes"] for title, path in files.items()})
    filters = {title: filter_similarity(net, given.threshold) for title, net in nets.items()}
    x = _test_images(given.data, notes, given.images)[1]
    grams = {title: station_grams(net, x) for title, net in nets.items()}
    reference = next(iter(nets))
    cells = [("net", f"as {reference}", "own layers", f"filters |r|>={given.threshold:g}", "mean |r|")]
    for title, found in filters.items():
        shared = list(same_stations(grams[reference], grams[title]).values())
        own = alignments(grams[title], grams[title])
        others = own.numel() - len(own)
        cells.append((
            title,
            f"{sum(shared) / len(shared):.3f}" if shared else "-",
            f"{float(own.sum() - own.trace()) / others:.3f}" if others else "-",
            *((f"{100 * found[0]:.1f}%", f"{found[1]:.3f}") if found else ("-", "-")),
        ))  # fmt: skip
    print(f"linear CKA of {len(x):,} test images: mean over the same places, and over each net's pairs of other layers")
    print(columns(cells))
    written = write_figure(draw_similarity(grams), given.output, "cka")
    sizes = {title: ring_fraction(net) for title, net in nets.items()}
    points = [(size, found[0]) for title, found in filters.items() if found and (size := sizes[title])]
    if points:
        plain = filters[reference] if sizes[reference] is None else None
        shown = draw_correlated({"ring": points}, plain=plain and plain[0], threshold=given.threshold)
        written += write_figure(shown, given.output, "correlated")
    law = _accuracies(files, nets, sizes)
    if len(law.get("ring", [])) > 2:
        written += write_figure(draw_law(law, fitted=["ring"]), given.output, "law")
    for path in written:
        print(path)


def _accuracies(files: dict[str, Path], nets: dict[str, Any], rings: dict[str, float | None]) -> dict[str, Any]:
    """Stored numbers and test accuracies of nets whose run has left its record beside them, those with rings apart."""
    from pocketcnn.cost import count_params
    from pocketcnn.support.files import read_json

    found: dict[str, Any] = {}
    for title, path in files.items():
        if (record := path.with_name("result.json")).is_file():
            point = count_params(nets[title])[1], read_json(record)["test_accuracy"]
            found.setdefault("ring" if rings[title] else "others", []).append(point)
    return found


def _file_name(words: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", words)


def _test_images(name: str | None, notes: dict[str, Any], most: int) -> tuple[Any, Any, Any, Sequence[str]]:
    """Test images spread over the split as uint8 and normalised, their labels, and the names of the classes."""
    import torch

    from pocketcnn.data import load

    data = load(name or notes["data"])
    count = len(data.test)
    chosen = torch.arange(min(count, most)) * count // min(count, most)  # a split may be sorted by class
    pixels = data.test.images[chosen]
    return pixels, _normalised(pixels, notes), data.test.labels[chosen], data.classes


VERBS: dict[str, Callable[[Sequence[str]], int | None]] = {
    verb.__name__: verb
    for verb in (
        compare,
        train,
        distil,
        search,
        evaluate,
        classify,
        measure,
        bench,
        condense,
        plan,
        pack,
        publish,
        export,
        models,
        data,
        report,
        reproduce,
        picture,
        similarity,
    )
}


# --- arguments that verbs share --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class DataOptions:
    """How images are read."""

    image_size: int | None = None
    """Bring all images to this side in pixels."""
    channels: Literal[1, 3] | None = None
    """Convert all images to grey (1) or RGB (3)."""
    skip_bad_images: bool = False
    """Leave out and count images that cannot be decoded, instead of stopping at the first."""
    validation: float = 0.1
    """Share of the training images set aside for choices; the test split is used once, at the end."""
    limit: int | None = None
    """Use at most so many training images."""
    stream: bool = False
    """Decode the images of a folder of parquet files while training, instead of all of them before; needs image_size."""
    workers: int = 0
    """Processes that read a stream, for each device."""


@dataclass(kw_only=True)
class DataArguments(DataOptions):
    """What is trained on."""

    data: str = "digits"
    """Built-in name (digits, mnist, fashion-mnist, cifar10, cifar100), hub id, folder of parquet files or class folders."""


@dataclass(kw_only=True)
class ModelArguments:
    """How a net is made."""

    width: float = 1.0
    """Scales all channels."""
    stem: Literal["imagenet", "small", "deep"] | None = None
    """First layers of the net; the net's own by default."""
    in_channels: int | None = None
    """Channels of the images; the data's, or 3."""
    num_classes: int | None = None
    """Outputs; the data's, or the net's own."""


@dataclass(kw_only=True)
class DeviceArguments:
    """Where it runs; everything else that changes the result is in the recipe."""

    devices: int = 1
    """Devices per machine; more than one trains by distributed data parallel."""
    num_nodes: int = 1
    """Machines."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device."""
    strategy: Literal["auto", "ddp"] = "auto"
    """How several devices train: distributed data parallel, which auto takes for more than one."""
    sync_batchnorm: bool = False
    """Batch norm takes its statistics from the images of all devices; on GPUs only."""
    save_minutes: float = 5.0
    """Minutes between checkpoints inside an epoch; each epoch ends with one."""
    logger: Literal["csv", "tensorboard", "wandb"] = "csv"
    """Also send the epochs to a tracker."""


@dataclass(kw_only=True)
class SurgeryArguments(ModelArguments):
    """What is condensed."""

    model: str = "resnet20"
    """A net by name, or a model file."""
    method: str = "ring"
    """How; its options follow as flags."""
    include: tuple[str, ...] | None = None
    """Dotted-name patterns of the layers to condense: "layer3.*" "*.conv2"."""
    exclude: tuple[str, ...] | None = None
    """Patterns of layers to leave alone."""
    input_size: tuple[int, int, int] | None = None
    """Channels, height and width of an image, for multiply-adds and depth; 3 32 32 by default."""


def _parse(kind: type[Arguments], words: Sequence[str], verb: str, more: str = "", **defaults: Any) -> Arguments:
    """Reads a verb's arguments; what cannot be understood becomes one line."""
    import tyro

    described = f"{VERBS[verb].__doc__}\n\n{more}"
    settings: dict[str, Any] = {"default": kind(**defaults)} if defaults else {}
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(
                kind,
                args=list(words),
                prog=f"pocketcnn {verb}",
                description=described,
                config=(tyro.conf.OmitArgPrefixes,),
                **settings,
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise BadUsage(_one_line(captured.getvalue(), verb)) from None


def _one_line(box: str, verb: str) -> str:
    """The message inside the box that the parser draws, and the nearest flag that it suggests."""
    border = "│╭╮╰╯─|+- "  # drawn in ASCII where the terminal has no box characters
    rules = [number for number, line in enumerate(box.splitlines()) if re.search("[─-]{6}", line)]
    lines = [line.strip("│| ") for line in box.splitlines()]
    # The first rule is under or around the title; the message goes from there to the next one.
    first, last = rules[0] + 1 if rules else 0, rules[1] if len(rules) > 1 else len(lines)
    message = [line for line in lines[first:last] if line.strip(border)]
    near = re.search(r"Perhaps you meant:.*?(--[\w-]+)", " ".join(lines))
    guess = f"; did you mean {near[1]}" if near else ""
    message[:1] = [re.sub(r"^Error parsing [a-z_]+: ", "", line) for line in message[:1]]
    return f"{' '.join(message) or 'the command line cannot be understood'}{guess}; pocketcnn {verb} --help lists the flags"


def _parse_surgery(kind: type[Arguments], words: Sequence[str], verb: str) -> tuple[Arguments, dict[str, Any]]:
    """As `_parse`, with the options of the chosen method as further flags."""
    from pocketcnn.methods import get_method

    chosen = _value_of("--method", words)
    method = get_method(chosen or "ring")
    merged: Any = dataclasses.make_dataclass(
        kind.__name__,
        [(method.name, method.options, field(default_factory=method.options))],
        bases=(kind,),
        kw_only=True,
    )
    given: Any = _parse(merged, words, verb, _method_help())
    return given, dataclasses.asdict(getattr(given, method.name))


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    for number, word in enumerate(words):
        if word == flag and number + 1 < len(words):
            return words[number + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _preset(words: Sequence[str], presets: dict[str, Any], default: str = "default") -> Any:
    name = _value_of("--preset", words) or default
    if name not in presets:
        raise BadUsage(f"no preset {name!r}; known: {', '.join(presets)}")
    return presets[name]


def _method_help() -> str:
    from pocketcnn.methods import METHODS

    lines = ["Methods and their options:"]
    for method in METHODS.values():
        options = ", ".join(f"{f.name}={f.default}" for f in dataclasses.fields(method.options))
        lines.append(f"  {method.name}: {method.summary} ({options})")
    return "\n".join(lines)


def _data_help() -> str:
    from pocketcnn.data import BUILT_IN

    return "Built in: " + "; ".join(f"{name} ({what})" for name, what in BUILT_IN.items())


def _load_data(given: Any) -> "DataSet":
    from pocketcnn.data import load, open_stream

    if given.stream:
        if given.image_size is None or given.limit is not None:
            raise BadUsage("a stream needs --image-size, and takes no --limit")
        return open_stream(
            given.data,
            validation=given.validation,
            image_size=given.image_size,
            channels=given.channels or 3,
            workers=given.workers,
            skip_bad_images=given.skip_bad_images,
        )
    if given.workers:
        raise BadUsage("--workers read a stream; add --stream")
    return load(
        given.data,
        validation=given.validation,
        image_size=given.image_size,
        channels=given.channels,
        skip_bad_images=given.skip_bad_images,
        limit=given.limit,
    )


def _model_options(given: ModelArguments, data: "DataSet | None" = None) -> dict[str, Any]:
    """Options for `create_model`: those given, and what the data says."""
    options: dict[str, Any] = {}
    if data is not None:
        options = {"in_channels": data.input_size[0], "num_classes": len(data.classes)}
    for name in ("in_channels", "num_classes", "stem"):
        if getattr(given, name) is not None:
            options[name] = getattr(given, name)
    if given.width != 1.0:
        options["width"] = given.width
    return options


def _device_options(given: DeviceArguments) -> dict[str, Any]:
    names = ("devices", "num_nodes", "accelerator", "strategy", "sync_batchnorm", "logger")
    return {**{name: getattr(given, name) for name in names}, "save_every": 60 * given.save_minutes}


def _load(path: Path) -> "nn.Module":
    """The net of a model file, with its passphrase where it has one."""
    from pocketcnn import checkpoint

    return checkpoint.load(path, passphrase=_passphrase_of(path))


@functools.cache  # asked for once
def _passphrase_of(path: Path) -> str | None:
    """What opens a file; None where it is not locked."""
    from pocketcnn import checkpoint

    return _secret("POCKETCNN_PASSPHRASE", f"passphrase of {path}") if "key" in checkpoint.read_header(path) else None


def _new_passphrase(path: Path) -> str:
    """What is to open a file from now on; a slip of the finger would lock it for ever, so it is asked for twice."""
    words = f"new passphrase of {path}"
    given = _secret("POCKETCNN_NEW_PASSPHRASE", words)
    if given != _secret("POCKETCNN_NEW_PASSPHRASE", f"{words}, once more"):
        raise BadUsage("the two passphrases differ; nothing was written")
    return given


def _secret(variable: str, words: str) -> str:
    """From the environment, or asked for on a terminal; never from the command line, which others can read."""
    if given := os.environ.get(variable):
        return given
    if not sys.stdin.isatty():
        raise MissingPassphrase(f"{words} is needed; set {variable}, or start from a terminal")
    return getpass.getpass(f"{words}: ")


def _named_or_file(name: str, given: ModelArguments) -> tuple["nn.Module", dict[str, Any]]:
    """A net by name or from a file, and the notes in the file."""
    from pocketcnn import checkpoint
    from pocketcnn.models import recipes

    if Path(name).is_file() or name.endswith(".safetensors") or ("/" in name and not Path(name).is_dir()):
        path = _model_path(name)
        if options := _model_options(given):
            raise BadUsage(f"{name}: a model file is what it is; leave out {', '.join(options)}")
        return _load(path), checkpoint.read_header(path)["notes"]
    from pocketcnn.models.spec import parse_options

    name, options = parse_options(name)
    net = recipes.create_model(name, **{**_model_options(given), **options})
    return net, {"input_size": net.input_size} if hasattr(net, "input_size") else {}


def _model_path(name: str | Path) -> Path:
    """The model file that is meant: a file, that in the folder of a run, else the first there, or DATA/NAME of the
    package's nets."""
    path = Path(name)
    if path.is_dir():
        from pocketcnn import checkpoint

        if (usual := checkpoint.file_in(path)).is_file():
            return usual
        if found := sorted(path.glob("*.safetensors")):
            return found[0]
        raise FileNotFoundError(f"{path}: no model file (*.safetensors) in this folder")
    if path.is_file():
        return path
    data, _, own = path.as_posix().partition("/")
    if own and "/" not in own and path.suffix != ".safetensors":
        from pocketcnn import zoo

        try:
            return zoo.path_of(zoo.find(own, data))
        except UnknownPretrained:
            if not path.parent.is_dir():  # else a file was meant
                raise
    raise FileNotFoundError(f"{path}: no such model file")


def _trained_notes(title: str, path: Path) -> dict[str, Any]:
    """What the file of a trained net says about its images and classes."""
    from pocketcnn import checkpoint

    notes = checkpoint.read_header(path)["notes"]
    if not {"data", "classes", "input_size", "mean", "std"} <= notes.keys():
        raise BadUsage(f"{title}: not a trained net's file: it does not say what its images and classes are")
    return notes


def _as_trained(data: "DataSet", notes: dict[str, Any], hint: str = "") -> "DataSet":
    """A data set for a trained net: with images like those of its training, whose moments are taken for them too."""
    if list(data.input_size) != notes["input_size"]:
        raise BadUsage(
            f"{data.name}: images are {_size(data.input_size)}, the net was trained on {_size(notes['input_size'])} "
            f"(channels x height x width){hint}"
        )
    if list(data.classes) != notes["classes"]:
        names = f"{', '.join(data.classes[:3])}, ...; the net's are {', '.join(notes['classes'][:3])}, ..."
        print(f"{data.name}: its classes are {names}; they are compared by number", file=sys.stderr)
    # The net must see images as it did in training, whatever their own moments are.
    return dataclasses.replace(data, mean=tuple(notes["mean"]), std=tuple(notes["std"]))


def _model_files(paths: Sequence[Path], titles: Sequence[str]) -> dict[str, Path]:
    """Model files by a short title, see `_model_path`."""
    if not paths:
        raise BadUsage("give at least one model file or folder of a run")
    if titles and len(titles) != len(paths):
        raise BadUsage(f"{len(titles)} titles for {len(paths)} nets")
    files = {}
    for number, path in enumerate(paths):
        file = _model_path(path)
        names = [path.name] if path.is_dir() else [path.parent.name, path.stem]
        title = titles[number] if titles else " ".join(n for n in names if n not in ("", "model"))
        if title in files:
            raise BadUsage(f"two nets are called {title!r}; --titles gives them names")
        files[title] = file
    return files


def _common_notes(notes_of: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the files of trained nets, by their titles, say about the images that all of them were trained on."""
    names = ("input_size", "mean", "std")
    for title, notes in notes_of.items():
        if not {"data", *names} <= notes.keys():
            raise BadUsage(f"{title}: not a trained net's file: it does not say what its images look like")
    notes = next(iter(notes_of.values()))
    if other := next((t for t, n in notes_of.items() if any(n[name] != notes[name] for name in names)), None):
        raise BadUsage(f"{other} was trained on other images than {next(iter(notes_of))}; take them one by one")
    return notes


def _images_for(given: Any, notes: dict[str, Any]) -> tuple[Any, Any]:
    """The images of an image file, or the test images of some numbers, as uint8 and normalised."""
    from pocketcnn.data import load, read_image

    channels, height, _ = notes["input_size"]
    if given.image_file is not None:
        pixels = read_image(given.image_file, image_size=height, channels=channels)[None]
    else:
        test = load(given.data or notes["data"], image_size=None, channels=None).test
        if not given.images or not 0 <= min(given.images) <= max(given.images) < len(test):
            raise BadUsage(f"images are numbers from 0 to {len(test) - 1}, got {', '.join(map(str, given.images))}")
        pixels = test.images[list(given.images)]
    return pixels, _normalised(pixels, notes)


def _normalised(pixels: Any, notes: dict[str, Any]) -> Any:
    """Images as nets were trained to see them, by the notes in their files."""
    import torch

    if list(pixels.shape[1:]) != notes["input_size"]:
        raise BadUsage(f"the images are {list(pixels.shape[1:])}, the nets were trained on {notes['input_size']}")
    mean, std = (torch.tensor(notes[name])[:, None, None] for name in ("mean", "std"))
    return (pixels.float() / 255 - mean) / std


def _input_size(given: SurgeryArguments, notes: dict[str, Any]) -> tuple[int, int, int]:
    return given.input_size or tuple(notes.get("input_size", ())) or (given.in_channels or 3, 32, 32)


# --- printing --------------------------------------------------------------------------------------------------------


def _overview() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {name:<{width}}  {verb.__doc__}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "pocketcnn: convolutional nets that are small because their weights are generated, shared or solved for",
            "",
            "usage: pocketcnn VERB [flags]; pocketcnn VERB --help lists the flags",
            "",
            *lines,
            "",
            "Any verb takes --debug, which shows the traceback of an error. Start with: pocketcnn compare",
        ]
    )


def _call(method: str, options: Any) -> str:
    """A method with its options, as on a command line."""
    return ":".join(filter(None, (method, ",".join(f"{key}={value}" for key, value in options.items()))))


def _unknown_verb(word: str) -> PocketError:
    import difflib

    near = difflib.get_close_matches(word, VERBS, n=1)
    guess = f"; did you mean {near[0]!r}?" if near else "."
    return BadUsage(f"no verb {word!r}{guess} Known: {', '.join(VERBS)}.")


def _size(input_size: Sequence[int]) -> str:
    return "x".join(map(str, input_size))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


class _StderrHandler(logging.Handler):
    """Prints to whatever stderr is now, so that messages appear above a live table."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _log_to_stderr(debug: bool) -> None:
    logger = logging.getLogger("pocketcnn")
    if not logger.handlers:
        logger.addHandler(_StderrHandler())
    logger.setLevel(logging.DEBUG if debug else logging.INFO)


@contextlib.contextmanager
def _live_table() -> Iterator[Callable[[Any, str], None]]:
    """A table that is redrawn as rows arrive on a terminal, and a line a row elsewhere."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    if not console.is_terminal:
        seen: set[tuple[str, int]] = set()

        def line(summaries: Any, title: str) -> None:
            from pocketcnn.report.tables import cells

            latest = summaries[-1]
            if (latest.label, latest.seeds) not in seen:
                seen.add((latest.label, latest.seeds))
                print(f"[{title}] " + " | ".join(cells(latest)), flush=True)

        yield line
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda summaries, title: live.update(_rich_table(summaries, title), refresh=True)


def _print_table(summaries: Any) -> None:
    """The final table: drawn on a terminal, Markdown elsewhere."""
    from pocketcnn.report import markdown

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(_rich_table(summaries, ""))
    else:
        print(markdown(summaries))


def _rich_table(summaries: Any, title: str) -> Any:
    from rich.table import Table

    from pocketcnn.report.tables import cells, header

    table = Table(title=title, title_justify="left")
    for number, column in enumerate(header()):
        table.add_column(column.replace(" ", "\n", 1) if number else column, justify="right" if number else "left")
    for summary in summaries:
        row = [cell.replace(" (", "\n(") for cell in cells(summary)]
        table.add_row(*row, style="dim" if summary.rival_of else None)
    return table
