"""Trains nets for files of few bytes from one teacher, packs them, and makes the table and the picture of docs/small_files.md.

    python benchmarks/small_files.py --list --data ../shared/data/cifar10    # the commands that train what is not trained yet
    python benchmarks/small_files.py --measure --data cifar10                # packs every net and classifies the test images
    python benchmarks/small_files.py                                         # the table and the picture, from the records

Every net learns the outputs of the same teacher, a plain `speednet` trained on all training images, with the same settings, for 24
epochs. Some then go on: sparse ones for 8 epochs to become sparser, and narrow ones for 24 to become ternary. The nets of the package
have another teacher. Each file is packed, with its norms folded to two numbers a channel.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pocketcnn.explore.published import published

ROOT = Path(__file__).parents[1]
PLACE = "results/small-files"
RESULTS, PICTURE = ROOT / PLACE, ROOT / "docs" / "small_files.svg"
TEACHER = "cifar10/speednet"
"""The packaged file of the teacher. Records of earlier runs name the run that it was packed from."""
TITLE = "| file | made by | bytes | seeds | test % |\n|---|---|---:|---:|---:|"
FAMILIES = {
    "sparse": "ternary, most weights zero",
    "after": "the same in two steps",
    "narrow4": "narrower, 4 bits",
    "narrow2": "narrower, 2 bits",
    "narrowternary": "narrower, ternary",
    "pruned": "pruned, 8 bits",
    "narrow8": "narrower, 8 bits",
    "ring": "ring",
    "windows": "ring of windows",
    "ringbits": "ring, few bits",
    "puppet": "puppet",
}
PAGES = {"light": ("#1f2328", "#8b949e", "#d0d7de"), "dark": ("#e6edf3", "#8b949e", "#30363d")}


@dataclass(frozen=True)
class Trial:
    """A file to make: what it belongs to, how the table calls it, its student and the settings that are its own.

    `after` is the trial whose net is the student.
    """

    name: str
    family: str
    label: str
    settings: str
    student: str = "plain"
    after: str = ""
    seeds: int = 1

    def command(self, data: str, seed: int) -> str:
        """The command that trains it."""
        student = f"{PLACE}/{self.after}/seed{seed}" if self.after else self.student
        words = (
            f"pocketcnn distil --preset few_bits --all-images --teacher {TEACHER} --student {student} {self.settings}"
        )
        return f"{words} --seed {seed} --data {data} --output {PLACE}/{self.name}/seed{seed}"


def _sparse(share: float, seeds: int = 1, after: str = "") -> Trial:
    """Ternary weights, that share of them zero; those of another net are trained for a third as long again."""
    name, label = f"ternary-{share:g}", f"ternary, {100 * share:g} % zero"
    if not after:
        return Trial(name, "sparse", label, f"--sparsity {share:g}", seeds=seeds)
    short = f"--sparsity {share:g} --epochs 8 --small-epochs 3"
    return Trial(
        f"{name}-after",
        "after",
        f"{label}, from {100 * float(after.rpartition('-')[2]):g} %",
        short,
        after=after,
        seeds=seeds,
    )


def _narrow(width: float, bits: str, after: str = "", seeds: int = 1) -> Trial:
    words = bits if bits == "ternary" else f"{bits} bits"
    settings = f"--bits {bits} --sparsity 0"
    return Trial(
        f"width-{width:g}-{bits}",
        f"narrow{bits}",
        f"{width:g} of the channels, {words}",
        settings,
        f"speednet:width={width:g}",
        after,
        seeds,
    )


TRIALS = (
    _sparse(0.94, 2),
    _sparse(0.9775, 2),
    _sparse(0.9922),
    _sparse(0.9775, after="ternary-0.94"),
    Trial(
        "width-0.47-ternary-0.94",
        "sparse",
        "0.47 of the channels, ternary, 94 % zero",
        "--sparsity 0.94",
        "",
        "width-0.47-8",
        2,
    ),
    _narrow(0.47, "8", seeds=2),
    _narrow(0.47, "2", "width-0.47-8"),  # from a fresh start few bits collapse to zeros
    _narrow(0.47, "ternary", "width-0.47-8"),
    _narrow(0.225, "8"),
    Trial("ring-0.05", "ring", "ring of 5 %, 8 bits", "--bits 8 --sparsity 0", "ring:size=0.05"),
    Trial("ring-0.25-ternary", "ringbits", "ring of 25 %, ternary", "--sparsity 0", "ring:size=0.25"),
    Trial("pruned-0.97", "pruned", "97 % zero, 8 bits", "--bits 8 --sparsity 0.97"),
    Trial("puppet-0.05", "puppet", "puppet of 5 %, 8 bits", "--bits 8 --sparsity 0", "puppet:size=0.05,depth=fixed"),
    _narrow(0.325, "8"),
    _narrow(0.325, "4", "width-0.325-8"),
    _narrow(0.325, "2", "width-0.325-8"),
    _narrow(0.325, "ternary", "width-0.325-8"),
    _narrow(0.157, "8"),
    Trial("ring-0.023", "ring", "ring of 2.3 %, 8 bits", "--bits 8 --sparsity 0", "ring:size=0.023"),
    Trial("ring-0.115-ternary", "ringbits", "ring of 11.5 %, ternary", "--sparsity 0", "ring:size=0.115"),
    Trial("pruned-0.9875", "pruned", "98.75 % zero, 8 bits", "--bits 8 --sparsity 0.9875", after="pruned-0.97"),
)
PACKAGED = {
    "cifar10/resnet20_windows": Trial("resnet20-windows", "windows", "resnet20, windows fitted to it, 8 bits", ""),
    "cifar10/resnet20_ring28": Trial("resnet20-ring", "ring", "resnet20, ring of 28 % fitted to it, 8 bits", ""),
}
"""Nets of the package, whose teacher is a plain resnet20 of 90.2 %."""
PUBLISHED: Sequence[tuple[str, int, float, str]] = [
    (row["name"], row["bytes"], 100 * row["accuracy"], row["counted"]) for row in published("cifar10")
]


def measure(data: Any, runs: Path, results: Path) -> dict[str, Any]:
    """Packs every trained net, and measures length and test accuracy of the file; what is in files.json is kept."""
    import pocketcnn as pc
    from pocketcnn import checkpoint, zoo
    from pocketcnn.checkpoint.notes import ImageNotes
    from pocketcnn.support.files import read_json, write_json
    from pocketcnn.train import evaluate

    path = results / "files.json"
    found: dict[str, Any] = read_json(path) if path.exists() else {}
    files = [
        (trial.name, str(seed), runs / trial.name / f"seed{seed}" / "model.safetensors") for trial, seed in _each()
    ]
    files += [(trial.name, "0", zoo.path_of(zoo.find(*title.split("/")[::-1]))) for title, trial in PACKAGED.items()]
    with tempfile.TemporaryDirectory() as folder:
        for name, seed, file in files:
            if not file.exists() or seed in found.get(name, {}):
                continue
            net, packed = pc.load(file), Path(folder) / "packed.safetensors"
            notes = checkpoint.read_header(file)["notes"]
            size = pc.save(net, packed, notes=notes, storage="int8", packed=True, norms="folded")
            seen = ImageNotes.read(packed).applied_to(data)
            accuracy = evaluate(pc.load(packed), seen)["test_accuracy"]
            found.setdefault(name, {})[seed] = {"bytes": size, "test_accuracy": accuracy}
            write_json(path, found)
    return found


def _each() -> Iterator[tuple[Trial, int]]:
    return ((trial, seed) for trial in TRIALS for seed in range(trial.seeds))


@dataclass(frozen=True)
class Row:
    """A measured file: means over its seeds."""

    trial: Trial
    seeds: int
    size: float
    accuracy: float


def rows(found: Mapping[str, Any]) -> list[Row]:
    """The measured files, the largest first."""
    known = [
        Row(
            trial,
            len(seeds),
            mean(seed["bytes"] for seed in seeds.values()),
            100 * mean(seed["test_accuracy"] for seed in seeds.values()),
        )
        for trial in (*TRIALS, *PACKAGED.values())
        if (seeds := found.get(trial.name))
    ]
    return sorted(known, key=lambda row: -row.size)


def table(measured: Sequence[Row]) -> str:
    """Table as Markdown: our files, and the published ones among them by their bytes."""
    ours = [(row.size, f"| **{row.trial.label}** | {FAMILIES[row.trial.family]} | {row.size:,.0f} | {row.seeds} | **{row.accuracy:.2f}** |") for row in measured]  # fmt: skip
    others = [
        (size, f"| {number}: {name} | published, bytes {how} | {size:,} | | {accuracy:.2f} |")
        for number, (name, size, accuracy, how) in enumerate(PUBLISHED, 1)
    ]
    return "\n".join([TITLE, *(line for _, line in sorted([*ours, *others], key=lambda line: -line[0]))])


def picture(measured: Sequence[Row], path: Path, page: str) -> None:
    """Draws accuracy against bytes: a line for each family of ours, the published files in grey."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    ink, grey, line = PAGES[page]
    look = {"text.color": ink, "axes.edgecolor": line, "xtick.color": ink, "ytick.color": ink, "axes.labelcolor": ink, "svg.hashsalt": path.name, "font.size": 10}  # fmt: skip
    with pyplot.rc_context(look):
        figure, axes = pyplot.subplots(figsize=(8, 4.6))
        for number, (_, size, accuracy, _) in enumerate(PUBLISHED, 1):
            axes.plot(
                size / 1000,
                accuracy,
                "o",
                color=grey,
                markersize=5,
                label="published, by number" if number == 1 else None,
            )
            axes.annotate(
                f"{number}", (size / 1000, accuracy), (4, 3), textcoords="offset points", color=grey, fontsize=9
            )
        colours = [colour for name, colour in matplotlib.colors.TABLEAU_COLORS.items() if name != "tab:gray"]
        for (family, label), colour in zip(FAMILIES.items(), itertools.cycle(colours)):
            mine = [row for row in measured if row.trial.family == family]
            if mine:
                axes.plot(
                    [row.size / 1000 for row in mine], [row.accuracy for row in mine], "o-", color=colour, label=label
                )
        axes.set(xscale="log", xlabel="bytes of the file, in thousands", ylabel="CIFAR-10 test images, % right")
        axes.set_xticks([25, 50, 100, 200], ["25", "50", "100", "200"])
        axes.minorticks_off()
        axes.grid(color=line, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="data set whose images are learnt and classified")
    parser.add_argument("--list", action="store_true", help="print the commands that train what is not trained yet")
    parser.add_argument(
        "--measure", action="store_true", help="first pack the trained nets and classify the test images"
    )
    parser.add_argument("--runs", type=Path, default=RESULTS, help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    given = parser.parse_args()
    if given.list:
        for trial, seed in _each():
            if not (given.runs / trial.name / f"seed{seed}" / "result.json").exists():
                print(trial.command(given.data, seed))
        return
    from pocketcnn.support.files import read_json

    if given.measure:
        from pocketcnn.data import load

        found = measure(load(given.data), given.runs, given.results)
    else:
        found = read_json(given.results / "files.json")
    print(table(rows(found)))
    for page in PAGES:
        picture(rows(found), PICTURE if page == "light" else PICTURE.with_stem(f"{PICTURE.stem}_dark"), page)


if __name__ == "__main__":
    main()
