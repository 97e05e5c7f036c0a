"""`pocketcnn measure`: counts parameters and multiply-adds of a net, and times it on this machine."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketcnn.cli.arguments import AnswerOptions, ForeignArguments, ModelArguments, TableOptions, model_options_of
from pocketcnn.cli.images import load_for
from pocketcnn.cli.nets import input_size_of, open_net
from pocketcnn.cli.parsing import method_help, parse
from pocketcnn.cli.printing import answer, size_in_words, with_commas
from pocketcnn.errors import BadUsage
from pocketcnn.support.ranges import Count, InputSize, Threads
from pocketcnn.support.tables import columns

if TYPE_CHECKING:
    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.cost import ImageCosts


def measure(words: Sequence[str]) -> None:
    from tyro.conf import Positional

    @dataclass(frozen=True)
    class Measure(AnswerOptions, ModelArguments, ForeignArguments, TableOptions):
        model: Positional[str]
        """A net by name, with its options (mnist_net:width=8), a model file, the folder of a run, a trained net of the package
        (cifar10/resnet20), or an exported file (.onnx)."""
        method: str = "plain"
        """Method that condenses the net first: ring:size=0.1"""
        input_size: InputSize | None = None
        """Channels, height and width of an image; by default the file's, or 3 32 32."""
        batch: Count = 1
        """Images in a batch, for latency and memory, 1 or more."""
        threads: Threads | None = None
        """CPU threads, 1 to 1,024; by default all."""
        runs: Count = 50
        """Number of passes that are timed, 1 or more."""
        bytes: bool = False
        """Show what each part of the model file takes, and nothing else."""
        data: str | None = None
        """Also show what the test images of this data set cost, where the cost depends on the image."""

    given = parse(Measure, words, "measure", method_help)
    if given.model.endswith(".onnx"):
        if given.bytes:
            raise BadUsage(f"{given.model}: --bytes shows the parts of a model file; an exported file has none of them")
        _answer_for_onnx(given)
        return
    import pocketcnn as pc
    from pocketcnn.models.spec import PLAIN_METHOD, parse_method

    opened = open_net(given.model, given)
    net, known = opened.net, opened.notes
    method, options = parse_method(given.method)
    if method != PLAIN_METHOD:
        net = pc.condense(net, method, **options)
    if given.bytes:
        _answer_bytes(net, opened if method == PLAIN_METHOD else None)
        return
    size = input_size_of(given, opened, batch=given.batch)
    _answer_costs(net, known, size, given)


def _answer_costs(net: Any, known: "ImageNotes", size: tuple[int, int, int], given: Any) -> None:
    """Counts and times a net, and answers with a table of its costs."""
    import pocketcnn as pc

    cost = pc.measure(net, size)
    latency = pc.measure_latency(net, size, batch=given.batch, threads=given.threads, runs=given.runs)
    rows = [(key, with_commas(value)) for key, value in dataclasses.asdict(cost).items() if isinstance(value, int)]
    rows[5:5] = [(f"  {operator}", f"{macs:,}") for operator, macs in cost.macs_by_operator.items()]
    forward, training = (pc.measure_memory(net, size, batch=given.batch, training=t) for t in (False, True))
    rows += [
        ("median_ms", f"{latency.median_ms:.3f}"),
        ("p95_ms", f"{latency.p95_ms:.3f}"),
        ("peak_bytes forward", with_commas(forward)),
        ("peak_bytes training", with_commas(training)),
    ]
    width = max(len(key) for key, _ in rows)
    lines = [f"{given.model}, images {size_in_words(size)}, batch {latency.batch}, {latency.threads} threads, "
             f"{latency.dtype} on {latency.device}, {latency.runs} runs"]  # fmt: skip
    lines += [f"{key:<{width}}  {value:>16}" for key, value in rows]
    costs = None
    if given.data is not None:
        costs, table = _costs_by_image(net, known, given)
        lines.append(table)
    peaks = {"peak_bytes_forward": forward, "peak_bytes_training": training}
    row = {"net": given.model, **dataclasses.asdict(cost), **dataclasses.asdict(latency), **peaks}
    answer("\n".join(lines), [row], input_size=size, method=given.method, costs_by_image=costs)


def _answer_bytes(net: Any, opened: Any) -> None:
    """Answers with the byte ledger of a net's file; of the file that it would have if it was not opened as one."""
    import tempfile
    from pathlib import Path

    from pocketcnn import checkpoint

    if opened is not None and opened.path is not None:
        found = checkpoint.ledger(opened.path, net)
    else:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / checkpoint.FILE
            checkpoint.save(net, path)
            found = checkpoint.ledger(path, net)
    rows = [{"part": kind, "bytes": length, "share": length / found.total} for kind, length in found.by_kind().items()]
    answer(str(found), rows, file_bytes=found.total)


def _answer_for_onnx(given: Any) -> None:
    """Measures an exported file, and answers with a table of its costs."""
    from pocketcnn.export import measure_onnx

    if given.method != "plain" or given.data is not None or given.input_size is not None or model_options_of(given):
        raise BadUsage(
            f"{given.model}: an exported file cannot be changed; use only --batch, --threads and --runs with it"
        )
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
    lines = [f"{given.model}, images {size_in_words(cost.input_size)}, batch {cost.latency.batch}, {cost.latency.threads} threads, "
             f"{cost.latency.dtype} in {cost.latency.device}, {cost.latency.runs} runs", columns(rows)]  # fmt: skip
    if cost.generating:
        made = ", ".join(f"{count} {operator}" for operator, count in cost.generating.items())
        lines.append(f"nodes that depend on no image and generate kernels when the file is loaded: {made}")
    costs = dataclasses.asdict(cost)
    size, latency = costs.pop("input_size"), costs.pop("latency")
    answer("\n".join(lines), [{"net": given.model, **costs, **latency}], input_size=size)


def _costs_by_image(net: Any, notes: "ImageNotes", given: Any) -> tuple["ImageCosts", str]:
    """Measures test images one by one, and makes a table by level; a net that was never trained is calibrated first."""
    from pocketcnn.cost import measure_images
    from pocketcnn.support.protocols import LearnsFromImages

    data = load_for(notes, given.data, given.model, tables=given)
    if notes.lacks("mean"):
        for module in net.modules():
            if isinstance(module, LearnsFromImages):
                module.calibrate_(batch / 255 for batch in data.train.images[:10_000].split(500))
    costs = measure_images(net, notes.normalise(data.test.images), runs=given.runs)
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
    energy = "no energy counter can be read" if costs.joules is None else f"{costs.joules:.4g} J an image"
    return costs, "\n".join(
        [f"\n{costs.images:,} test images of {data.name}, one at a time", *lines, f"energy: {energy}"]
    )
