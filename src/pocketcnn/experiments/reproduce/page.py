"""The page of results: records beside published figures, a table each."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from pocketcnn.experiments.reproduce import figures
from pocketcnn.experiments.reproduce.published import Preset, Row, Table, comparable_settings
from pocketcnn.experiments.reproduce.runs import Run, Size, is_of, latency_of, runs_of, size_of
from pocketcnn.experiments.reproduce.verdicts import order, rank_correlation, verdict
from pocketcnn.pictures import draw_law
from pocketcnn.report import markdown, read_speeds, summarize
from pocketcnn.support.files import make_folder, write_atomically
from pocketcnn.support.intervals import difference, interval
from pocketcnn.support.plots import svg
from pocketcnn.support.runs import ENVIRONMENT, Amount, read_curve, read_environment
from pocketcnn.support.tables import markdown_table

ByNet = dict[str, dict[str, Amount]]  # figures of nets, by preset and label of the net


@dataclass(frozen=True)
class Rates:
    """What training takes here: images a second, and the peak bytes of a step beside weights and optimizer."""

    images_per_second: ByNet
    memory_bytes: ByNet = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """A row, its runs under its own preset and under the quick one, and its size."""

    row: Row
    full: Sequence[Run]
    quick: Sequence[Run]
    size: Size


def find(table: Table, runs: Sequence[Run]) -> list[Found]:
    """Finds the runs of each row of a table, and the size of its net."""
    pairs = [(row, runs_of(row, row.preset, runs), runs_of(row, row.quick, runs)) for row in table.rows]
    return [Found(row, full, quick, size_of(row, full or quick)) for row, full, quick in pairs]


_SHRUNK = 0.6  # share of an epoch's time that an epoch takes with images of three quarters of their side


def hours(row: Row, preset: Preset, rates: Rates, epochs_done: int = 0) -> float | None:
    """Expected hours of a run, or of the rest of it; None if the net's rate was not measured."""
    rate = rates.images_per_second.get(preset.name, {}).get(row.spec().label)
    shrunk = max(0, preset.train.small_epochs - epochs_done)
    epochs = preset.train.epochs - epochs_done - (1 - _SHRUNK) * shrunk
    return epochs * preset.images(row.data) / rate / 3600 if rate else None


# --- a table ---------------------------------------------------------------------------------------------------------


def cells(table: Table, found: Sequence[Found], rates: Rates) -> list[list[str]]:
    """Makes the titles and a line for each row: size and work of the net, published accuracies, and ours."""
    published = [f"{source} %" for source in table.sources] or ["published %"]
    printed = ["printed"] if any(row.printed for row in table.rows) else []
    quick = [f"ours %, {table.quick.name}", "to first row"] if table.quick else []
    averaged = ["with tta %"] if any(run.averaged is not None for item in found for run in item.full) else []
    ours = [f"ours %, {table.preset.name}", *averaged, "difference", "verdict"]
    speeds, memory = (by_net.get(table.preset.name, {}) for by_net in (rates.images_per_second, rates.memory_bytes))
    taken = ["train img/s", "train MB"] if memory else []
    lines = [["net", "numbers", "bytes", "MACs", *printed, *published, *ours, *quick, "ms", *taken]]
    first = found[0]
    for item in found:
        row, size, ms = item.row, item.size, latency_of(item.full or item.quick)
        figures_of = [f"{row.published[s]:.2f}" if s in row.published else "-" for s in table.sources] or ["-"]
        quick = [_accuracy(row, row.quick, item.quick, rates), _gap(item, first, "quick")] if table.quick else []
        ratio = f"({size.numbers / first.size.numbers:.2f}x)"
        counts = [f"{size.numbers:,} {ratio}", f"{'' if size.written else '~'}{size.bytes:,}", f"{size.macs:,.0f}"]
        counts += [row.printed or "-"] if printed else []
        own = "" if row.preset is table.preset else f", {row.preset.name}"
        views = [a for run in item.full if (a := run.averaged) is not None]
        ours = [_accuracy(row, row.preset, item.full, rates, own), *([_percent(views)] if averaged else [])]
        ours += [_difference(item, first), judged(item, first)]
        line = [row.label, *counts, *figures_of, *ours, *quick, f"{ms:.2f}" if ms else "-"]
        if taken:
            rate, peak = (by_label.get(row.spec().label) for by_label in (speeds, memory))
            line += [f"{rate:,.0f}" if rate else "-", f"{peak / 1e6:,.0f}" if peak else "-"]
        lines.append(line)
    return lines


def records(table: Table, found: Sequence[Found]) -> list[dict[str, Any]]:
    """The lines of a table for programs: each net with the accuracies of its runs, in per cent, by seed."""
    return [
        {
            "table": table.name,
            "row": item.row.key,
            "net": item.row.label,
            "trainable_params": item.size.numbers,
            "file_bytes" if item.size.written else "tensor_bytes": item.size.bytes,
            "macs": item.size.macs,
            "published_percent": item.row.published,
            "test_percent": {run.seed: run.accuracy for run in item.full},
            "quick_test_percent": {run.seed: run.accuracy for run in item.quick},
            "verdicts": verdicts(item),
            "latency_ms": latency_of(item.full or item.quick),
        }
        for item in found
    ]


def _accuracy(row: Row, preset: Preset | None, runs: Sequence[Run], rates: Rates, more: str = "") -> str:
    if preset is None:
        return "-"
    if runs:
        counts = f"({_counted(len(runs), 'seed')}, {_counted(runs[0].epochs, 'epoch')}{more})"
        low, high = interval(accuracies := [run.accuracy for run in runs], row.data.test_images)
        return f"{_percent(accuracies)} [{low:.2f}, {high:.2f}] {counts}"
    if row.command:
        return "not run"
    expected = hours(row, preset, rates)
    return f"not run, {'hours unknown' if expected is None else f'{expected:.1f} h'}{more}"


def _mean(runs: Iterable[Run]) -> float:
    return mean(run.accuracy for run in runs)


def _percent(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not accuracies:
        return "-"
    return f"{mean(accuracies):.2f}" + (f" ± {stdev(accuracies):.2f}" if len(accuracies) > 1 else "")


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _gap(item: Found, first: Found, column: Literal["full", "quick"]) -> str:
    """Difference to the first row, with its interval."""
    ours, theirs = ({run.seed: run.accuracy for run in getattr(side, column)} for side in (item, first))
    if item is first or not (ours and theirs):
        return "-"
    return str(difference(ours, theirs))


def _difference(item: Found, first: Found) -> str:
    """Differences to each published figure, or to the first row if nothing was published."""
    if item.row.published and item.full:
        return " / ".join(f"{_mean(item.full) - figure:+.2f}" for figure in item.row.published.values())
    gap = _gap(item, first, "full")
    return gap if gap == "-" else f"{gap} to first row"


def verdicts(item: Found) -> dict[str, str]:
    """The verdict for each source, judging only runs under the row's own preset."""
    accuracies, images = [run.accuracy for run in item.full], item.row.data.test_images
    return {s: verdict(accuracies, figure, images) for s, figure in item.row.published.items() if accuracies}


def judged(item: Found, first: Found) -> str:
    """The verdicts, and by how much a goal was met or missed."""
    found, goal = verdicts(item), item.row.goal
    words = [f"{word} ({source})" if len(found) > 1 else word for source, word in found.items()]
    if item.full and goal and ("percent" in goal or first.full):
        gap = _mean(item.full) - (goal["percent"] if "percent" in goal else _mean(first.full) + goal["of_first"])
        words.append(f"goal {'met' if gap >= 0 else 'missed'} by {abs(gap):.2f}")
    return ", ".join(words) or "-"


def orders(table: Table, found: Sequence[Found]) -> list[str]:
    """Sentences on the order of the rows, from best to worst: ours, and the published one if two rows or more have both."""
    sentences = []
    full, quick = ({i.row.key: _mean(r) for i in found if (r := getattr(i, kind))} for kind in ("full", "quick"))
    for name, ours in ((table.preset.name, full), (table.quick.name if table.quick else "", quick)):
        if len(ours) < 2:
            continue
        sentences.append(f"Order under `{name}`: {order(ours)}.")
        for source in table.sources:
            all_figures = {item.row.key: item.row.published.get(source) for item in found if item.row.key in ours}
            theirs = {key: figure for key, figure in all_figures.items() if figure is not None}
            if len(theirs) > 1:
                agreement = rank_correlation(list(theirs.values()), [ours[key] for key in theirs])
                sentences.append(f"The {source}'s: {order(theirs)}; rank correlation with ours {agreement:+.2f}.")
    return sentences


# --- the page --------------------------------------------------------------------------------------------------------


_HOW = """\
## How to read this page

- *numbers*: trainable parameters, exact, with the ratio to those of the first row.
- *bytes*: size of the model file; with a ~ that of the tensors alone, because nothing has run.
- *MACs*: multiply-adds for one image; if they depend on the image, the mean over the test images.
- *printed*: the size as the source prints it.
- *ms*: latency of one image on the machine of the run, which may not have been idle.
- *train img/s*, *train MB*: images a second in training steps, and the largest sum of what a step makes (maps, gradients, kernels),
  beside weights and optimizer; measured apart from the runs, by `--rates`.

Accuracies are of the {images:,} test images, which are used once, after the last epoch: mean ± standard deviation over the seeds, and
in brackets the 95 % interval: that of the test images for one seed, widened by Student's t over the seeds for several. *with tta* is
another accuracy, of outputs averaged over views of an image. *reproduced* means that the published figure lies in our interval.
*above* and *below* tell on which side of the published figure ours lies. Quick runs are not judged; they are compared with each other.

Differences between two nets with two or more seeds stand with half of their 95 % interval, and `≈` marks those that are not told
apart from 0. It is the interval of the differences of a seed, by Student's t: what more seeds would give on the same images. A
difference of single seeds stands without one: nothing tells how far other seeds would move it.

## How to reproduce this page

    pocketcnn reproduce all                                      # reads the records, writes this page, runs nothing
    pocketcnn reproduce ring_curve --recipe quick --budget 60    # runs what is missing, for about an hour
    pocketcnn reproduce report_table2 --budget full --seeds 3    # with the table's preset, however long it takes
    pocketcnn reproduce all --rates                              # measures how fast each net trains on this machine

A run is kept in `{results}/reproduce/PRESET/NET/seedN`. A run that was stopped resumes from its last checkpoint; a finished one is read.
`--data-folder FOLDER` reads the images from `FOLDER/cifar10` instead of the hub. Commit only the records of a run: `config.json
environment.json metrics.csv result.json`. A record counts anywhere in `{results}/` if its net, data and preset are those of a row; seed,
precision, layout and compiler may differ.
"""


def write_page(
    tables: Sequence[Table], runs: Sequence[Run], rates: Rates, page: Path, results: Path
) -> dict[str, list[Found]]:
    """Writes the page of all tables and its figures beside it; returns the rows found, by table.

    Raises:
        CannotWrite: the folder of the page is not writable.
    """
    make_folder(page.parent)
    found = {table.name: find(table, runs) for table in tables}
    used = {id(run): run for items in found.values() for item in items for run in (*item.full, *item.quick)}
    parts = []
    for data, preset in {(t.data.name, t.quick.name): (t.data, t.quick) for t in tables if t.quick}.values():
        ran = {(repr(run.net or run.label), run.seed): run for run in reversed(runs) if is_of(run, data, preset)}
        used |= {id(run): run for run in ran.values()}
        summary = (
            _summary(list(ran.values())[::-1], read_speeds(results / "reproduce" / preset.name))
            or "Nothing has run yet.\n"
        )
        parts.append(f"## All methods on {data.name} under `{preset.name}`\n\n{_spelled(preset)}\n\n{summary}")
    curves = {table.title: _curves(found[table.name]) for table in tables}
    if curves := {title: nets for title, nets in curves.items() if len(nets) > 1}:
        parts.append(_picture(page, "learning", figures.learning(curves), "Validation accuracy after each epoch"))
    parts += [_section(table, found[table.name], rates, page) for table in tables]
    parts.append(_HOW.format(results=results.name, images=tables[0].data.test_images))
    listed = sorted(used.values(), key=lambda run: (run.folder, run.seed))
    folders = [f"{results.name}/{Path(os.path.relpath(run.folder, results)).as_posix()}" for run in listed]
    lines = [[f"`{folder}`", *_run_cells(run)] for folder, run in zip(folders, listed, strict=True)]
    titles = ["folder", "seed", "epochs", "test %", "with tta %", "train img/s", "trained in"]
    parts.append(f"## Every run\n\n{_table([titles, *lines])}")
    write_atomically(page, "\n".join([_opening(found, listed), *parts]))
    return found


def _run_cells(run: Run) -> list[str]:
    """What one run found, how fast it trained, and the number type and layout it had."""
    train = run.result["train"]
    rate = run.result.get("train_images_per_second")
    averaged = "-" if run.averaged is None else f"{run.averaged:.2f}"
    layout = ", channels last" if train.get("channels_last") == "on" else ""
    return [
        f"{run.seed}",
        f"{run.epochs}",
        f"{run.accuracy:.2f}",
        averaged,
        f"{rate:,.0f}" if rate else "-",
        f"{train.get('precision', 'float32')}{layout}",
    ]


def _opening(found: Mapping[str, Sequence[Found]], used: Iterable[Run]) -> str:
    items = [item for column in found.values() for item in column]
    counts = Counter(word for item in items for word in verdicts(item).values())
    total = sum(len(item.row.published) for item in items)
    counts["not run"] = total - sum(counts.values())
    judged_as = ", ".join(
        f"{counts[word]} {word}" for word in ("reproduced", "above", "below", "not run") if counts[word]
    )
    machines = set()
    for folder in {run.folder for run in used}:
        if (folder / ENVIRONMENT).exists():
            e = read_environment(folder)
            machines.add(
                f"{e['gpu'] or e['processor']}, {_counted(e['threads'], 'thread')}, torch {e['packages'].get('torch', 'unknown')}"
            )
    made_on = f"\nThe runs were made on: {'; '.join(sorted(machines))}.\n" if machines else ""
    return (
        "# Results\n\nPublished figures, each beside the figure that this library reaches. `pocketcnn reproduce all` writes this "
        f"page from the records of runs and from nothing else. Of {total} published accuracies: {judged_as}.\n{made_on}"
    )


def _section(table: Table, found: Sequence[Found], rates: Rates, page: Path) -> str:
    presets = {item.row.preset.name: item.row.preset for item in found}
    parts = [f"## {table.title}\n", f"`{table.name}`. {table.about}\nSource: {table.source}.\n"]
    parts += ["\n".join(map(_spelled, presets.values())) + "\n", _table(cells(table, found, rates))]
    goals = [f"{item.row.label}: {item.row.goal['text']}" for item in found if item.row.goal]
    if sentences := [*orders(table, found), *([f"Goals: {'; '.join(goals)}."] if goals else [])]:
        parts.append("".join(f"- {sentence}\n" for sentence in sentences))
    commands = [item.row.command for item in found if item.row.command and not item.full]
    if any(not item.full and not item.row.command for item in found):
        commands.append(f"pocketcnn reproduce {table.name} --budget full")
    if any(item.row.quick and not item.quick for item in found):
        commands.append(f"pocketcnn reproduce {table.name} --recipe quick --budget full")
    if commands:
        parts.append("To run what is missing:\n\n" + "".join(f"    {command}\n" for command in commands))
    if drawn := _figure(table, found):
        parts.append(_picture(page, table.name, drawn, table.title))
    return "\n".join(parts)


def _spelled(preset: Preset) -> str:
    """Spells a preset by the settings that differ from the defaults of `TrainConfig`."""
    default = comparable_settings({})
    return f"`{preset.name}`: {', '.join(f'{k} {v}' for k, v in comparable_settings(preset.train).items() if v != default[k])}."


def _figure(table: Table, found: Sequence[Found]) -> str:
    """Draws our accuracies over the size of the net, by preset, and the published ones; empty if nothing has run."""
    axis = "numbers" if table.figure == "law" else "macs"
    kinds = {"full": f"ours by {table.preset.name}", "quick": f"ours by {table.quick.name}" if table.quick else ""}
    columns = {
        title: {i.row.key: (getattr(i.size, axis), _mean(runs)) for i in found if (runs := getattr(i, kind))}
        for kind, title in kinds.items()
    }
    columns = {title: points for title, points in columns.items() if points}
    if not (columns and table.figure):
        return ""
    if table.figure == "law":
        series = {title: [(x, y / 100) for x, y in points.values()] for title, points in columns.items()}
        fitted = [title for title, points in series.items() if len(points) > 2]
        return svg(draw_law(series, fitted=fitted, unit="trainable numbers"))
    for source in table.sources:
        known = [item for item in found if source in item.row.published]
        columns[f"published, {source}"] = {i.row.key: (i.size.macs, i.row.published[source]) for i in known}
    return figures.scatter(columns, [item.row.key for item in found], "multiply-adds an image")


def _curves(found: Sequence[Found]) -> dict[str, list[list[float]]]:
    """Returns the validation accuracies after each epoch of the runs under the quick preset, in per cent, by row."""
    curves = {item.row.key: [curve for run in item.quick if (curve := read_curve(run.folder))] for item in found}
    return {name: [[100 * accuracy for accuracy in line] for line in lines] for name, lines in curves.items() if lines}


def _summary(runs: Sequence[Run], speeds: Mapping[str, Mapping[str, float]]) -> str:
    """Makes a table of the nets, each beside the plain net of its model; equal nets with different names share a line."""
    labels: dict[str, str] = {}
    results = []
    for run in runs:
        model, options, steps = run.net or [run.label, {}, []]
        rival = run.result["identity"].get("rival_of", "")
        shown = [f"{key}={value}" for key, value in options.items() if not (rival and key == "width")]
        identity = {
            "label": labels.setdefault(repr(run.net) if run.net else run.label, run.label),
            "model": " ".join([model, *shown]), "method": steps[-1][0] if steps else "plain", "rival_of": rival,
        }  # fmt: skip
        results.append({**run.result, "identity": identity})
    ranked = sorted(
        summarize(results, speeds), key=lambda s: (s.model, s.method != "plain" or bool(s.rival_of), -s.accuracy)
    )
    return markdown(ranked) if ranked else ""


def _picture(page: Path, name: str, svg: str, title: str) -> str:
    """Writes a figure beside the page; returns the Markdown that shows it."""
    path = page.with_name(f"{page.stem}-{name}.svg")
    write_atomically(path, svg)
    return f"![{title}]({path.name})\n"


def _table(lines: Sequence[Sequence[str]]) -> str:
    return markdown_table(lines[0], lines[1:], "l" + "r" * (len(lines[0]) - 1), gap=" ") + "\n"
