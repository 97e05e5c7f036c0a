"""Draws the picture of the README and prints its table of methods.

    python benchmarks/front.py

The picture shows the accuracy of files on CIFAR-10 against their size, from the cards of the nets in the package and from the
published figures that the page of `pocketcnn explore` shows too. The table is of the records that `make demo` leaves, kept in
results/demo.
"""

from pathlib import Path
from typing import Any

from pocketcnn import zoo
from pocketcnn.explore.published import published
from pocketcnn.report import read_results, summarize

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "hero.svg"
PAGES = {"light": ("#1f2328", "#6e7781", "#d8dee4", "#0969da"), "dark": ("#e6edf3", "#8b949e", "#30363d", "#58a6ff")}
"""Colours of the words, of published nets, of lines and of our nets."""
TICKS = {30e3: "30 kB", 100e3: "100 kB", 300e3: "300 kB", 1e6: "1 MB", 2e6: "2 MB"}


SITE = "https://github.com/pocketcnn/pocketcnn/blob/main"
"""Links of the README are whole, so that they work on other sites too."""
RECORDS = ROOT / "results" / "demo"
STORED = {
    "ring": "one ring of parameters that all kernels are read from",
    "puppet": "one state that an ODE turns into every kernel; entropy sets the depth",
    "pde": "small convolutions that feed a solver, in place of repeated blocks",
    "condconv": "a few kernels, mixed anew for every image",
    "involution": "two 1x1 convolutions that make a kernel for every pixel",
}
NEAR = {
    ("TTQ", 98900): (-6, -3, "right"), ("IR-Net", 38000): (-6, -3, "right"), ("TTQ", 58000): (-6, -3, "right"),
    ("resnet20", 565720): (-9, -4, "right"), ("speednet", 1623396): (-9, -4, "right"), ("speednet_50k", 49343): (-4, -17, "left"), ("resnet32_4stage", 1728584): (-9, -4, "right"),
}  # fmt: skip
"""Where a name stands if its usual place is taken: points to the right and up, and the end that is there."""


def label(axes: Any, words: str, size: int, accuracy: float, right: int, up: int, end: str, **look: Any) -> None:
    """Writes a name beside its mark."""
    axes.annotate(words, (size, accuracy), (right, up), textcoords="offset points", ha=end, **look)


def points() -> tuple[list[tuple[str, int, float]], list[tuple[str, int, float]]]:
    """Name, bytes and accuracy in per cent of our files and of the published ones."""
    ours = [(card.name, card.size_bytes, 100 * card.test_accuracy) for card in zoo.cards(data="cifar10")]
    return ours, [(row["name"], row["bytes"], 100 * row["accuracy"]) for row in published("cifar10")]


def picture(path: Path, page: str) -> None:
    """Draws the picture for a light or a dark page."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    ink, grey, line, mine = PAGES[page]
    look = {"text.color": ink, "axes.edgecolor": line, "xtick.color": ink, "ytick.color": ink, "axes.labelcolor": ink, "svg.hashsalt": path.name, "font.size": 11}  # fmt: skip
    ours, others = points()
    with pyplot.rc_context(look):
        figure, axes = pyplot.subplots(figsize=(9, 4.4))
        for name, size, accuracy in others:
            axes.plot(
                size, accuracy, "o", color=grey, markersize=5, label="published" if name == others[0][0] else None
            )
            short = name.rpartition("(")[2].rstrip(")")
            label(axes, short, size, accuracy, *NEAR.get((short, size), (6, -3, "left")), color=grey, fontsize=8)
        for name, size, accuracy in ours:
            axes.plot(size, accuracy, "o", color=mine, markersize=9, label="in this package" if name == ours[0][0] else None)  # fmt: skip
            label(axes, name, size, accuracy, *NEAR.get((name, size), (9, -4, "left")))
        axes.set(xscale="log", xlim=(20e3, 3e6), ylim=(86.3, 94.6), xlabel="bytes of the whole file", ylabel="CIFAR-10 test images, % right")  # fmt: skip
        axes.set_xticks(list(TICKS), list(TICKS.values()))
        axes.minorticks_off()
        axes.grid(color=line, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.62))
        figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)


def table(folder: Path = RECORDS) -> str:
    """The methods as Markdown: what each stores, and means over the seeds beside the plain net."""
    lines = ["| method | what is stored | digits right | file | multiply-adds |", "|---|---|---:|---:|---:|"]
    found = [row for row in summarize(read_results(folder)) if not row.rival_of]
    plain = next(row for row in found if row.method == "plain")
    found.remove(plain)
    for row in found:
        link = f"[`{row.method}`]({SITE}/docs/methods/{row.method}.md)"
        size, macs = (row.ratios.get(key, 1.0) for key in ("file_bytes", "macs"))
        accuracy = f"{100 * row.accuracy:.1f} ± {100 * row.spread:.1f} %"
        lines.append(f"| {link} | {STORED[row.method]} | {accuracy} | {size:.2f}x | {macs:.2f}x |")
    lines += ["", f"Means and spreads of {plain.seeds} seeds. The plain resnet20 has {100 * plain.accuracy:.1f} ± {100 * plain.spread:.1f} %; file and multiply-adds are ratios to it."]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    print(table())
    for page in PAGES:
        picture(PICTURE if page == "light" else PICTURE.with_stem(f"{PICTURE.stem}_{page}"), page)


if __name__ == "__main__":
    main()
