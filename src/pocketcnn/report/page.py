"""One self-contained HTML page from a folder of runs: it opens offline and reads well on a phone."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketcnn.errors import BadData, BrokenFile
from pocketcnn.report import figures, tables
from pocketcnn.support.files import write_atomically
from pocketcnn.support.intervals import Difference, difference
from pocketcnn.support.optional import optional_import
from pocketcnn.support.runs import METRICS, planned, read_curve, read_environment, read_results, read_speeds

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_report(folder: str | Path) -> Path:
    """Writes `report.html`, `table.md` and the figures as SVG files into a folder of runs.

    Returns:
        The path of the page.
    Raises:
        BadData: the folder holds no finished run, or a run without its `metrics.csv` or `environment.json`.
        BrokenFile: a record is damaged, or records of one run contradict each other.
        ForeignFile: a record was not written by a run.
        MissingExtra: matplotlib or jinja2 is missing.
    """
    jinja2 = optional_import("jinja2", extra="train", purpose="the report")
    folder = Path(folder)
    results = read_results(folder)
    summaries = tables.summarize(results, read_speeds(folder))
    curves: dict[str, list[list[float]]] = {}
    for label, result in zip(tables.row_labels(results), results, strict=True):
        if not (curve := read_curve(result["folder"])):
            raise BadData(
                f"{result['folder']}: no {METRICS}, which a finished run has; restore it or move the run away"
            )
        if len(curve) != result["epochs"]:
            raise BrokenFile(
                f"{result['folder'] / METRICS}: {len(curve)} epochs, but the run had {result['epochs']}; restore it or move "
                "the run away"
            )
        curves.setdefault(label, []).append(curve)
    drawn = dict(zip(("bytes", "macs", "latency"), figures.tradeoffs(summaries), strict=True))
    drawn["learning"] = figures.learning_curves(summaries, curves)
    for name, svg in drawn.items():
        write_atomically(folder / f"{name}.svg", svg)
    environment = read_environment(results[0]["folder"])
    first = results[0]
    titles, rows = tables.rows_of(summaries)
    environments = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environments.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        data=Path(first["data"]).name,
        seeds=len({result["seed"] for result in results}),
        epochs=_spoken({result["epochs"] for result in results}),
        diverged=(planned(folder) or {}).get("diverged", []),
        header=titles,
        rows=[(row, bool(summary.rival_of)) for summary, row in zip(summaries, rows, strict=True)],
        figures={name: _embedded(svg, name) for name, svg in drawn.items()},
        findings=findings(summaries),
        training={
            key: _spoken({str(result["train"].get(key)) for result in results})
            for key in first["train"]
            if key not in ("seed", "precision", "channels_last")
        },
        settings=sorted({_arithmetic(result["train"]) for result in results}),
        environment={key: value for key, value in environment.items() if key != "packages" and value is not None},
        packages=environment["packages"],
        records=json.dumps([{k: v for k, v in result.items() if k != "folder"} for result in results]),
    )
    write_atomically(folder / "table.md", tables.markdown(summaries))
    write_atomically(folder / "report.html", page)
    return folder / "report.html"


def findings(summaries: Sequence[tables.Summary]) -> list[str]:
    """Compares each small net in a sentence: with the plain net, and with the plain net of equal size."""
    sentences = []
    plain = {s.model: s for s in summaries if s.method == "plain" and not s.rival_of}
    rivals = {s.rival_of: s for s in summaries if s.rival_of}
    for small in summaries:
        reference = plain.get(small.model)
        if small.method == "plain" or reference is None:
            continue
        ratio = small.ratios
        sentence = (
            f"{small.label}: {_points(_gap(small, reference).mean / 100)} against the plain net, with "
            f"{ratio['file_bytes']:.2f}x its bytes, {ratio['macs']:.2f}x its multiply-adds and "
            f"{ratio['latency_ms']:.2f}x its latency"
        )
        if rival := rivals.get(small.label):
            gap = _gap(small, rival)
            sentence += f"; {_points(gap.mean / 100)} against the plain net of equal size{_doubt(gap)}"
        sentences.append(sentence + ".")
    return sentences


def _arithmetic(train: Mapping[str, Any]) -> str:
    return f"{train.get('precision', 'unknown')}, channels_last {train.get('channels_last', 'unknown')}"


def _spoken(values: set[Any]) -> str:
    """The value that all runs share, or all values: "3 or 50"."""
    return " or ".join(map(str, sorted(values, key=str)))


def _points(gap: float) -> str:
    return f"{100 * gap:+.2f} points"


def _gap(one: tables.Summary, other: tables.Summary) -> Difference:
    return difference(one.by_seed, other.by_seed)


def _doubt(gap: Difference) -> str:
    """A remark on a gap whose 95 % interval holds 0, or on nets of one seed, which give no interval."""
    if gap.half is None:
        return " (one seed: no spread known)"
    return "" if gap.told_apart else f" (± {gap.half:.2f}: within the noise of these seeds)"


def _embedded(svg: str, prefix: str) -> str:
    """Prepares an SVG for a page: no XML header, ids that differ between figures, a size that follows the page."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
