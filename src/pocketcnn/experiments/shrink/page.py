"""The page of a shrinking: what was lost and gained, for each class too, where the bytes are, and what was tried."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from pocketcnn.support.files import write_atomically

_MOST = 12  # parts of the file that are listed
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.5rem }
th, td { padding: 0.25rem 0.5rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
td.bar { width: 38%; text-align: left } td.bar div { background: #0072B2; height: 0.8rem }
tr.chosen { font-weight: 600 } h2 { margin-top: 2rem }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd } th, td { border-color: #444 } }
"""


def write_page(result: Any, parts: Mapping[str, int], measure: str) -> None:
    """Writes `report.html` beside the files of a shrinking.

    Args:
        result: a `Shrunk`.
        parts: the bytes of the model file by module.
        measure: what the candidates' scores are.
    """
    before, after = result.before, result.after
    rows = [["bytes of the model file", f"{result.bytes_before:,}", f"{result.bytes_after:,}"]]
    if result.onnx_bytes is not None:
        rows.append(["bytes of the ONNX file", "", f"{result.onnx_bytes:,}"])
    if "accuracy" in after:
        rows.append(["test accuracy", _percent(before["accuracy"]), _percent(after["accuracy"])])
    if "error" in after:
        rows.append(["error of the outputs, share of their variance", "0", f"{after['error']:.3g}"])
    if "agreement" in after:
        rows.append(["same likeliest class", "100.0 %", _percent(after["agreement"])])
    body = [
        f"<h1>{result.bytes_before:,} → {result.bytes_after:,} bytes</h1>",
        f"<p>{html.escape(result.label)}</p>",
        _table(["", "before", "after"], rows),
    ]
    if by_class := after.get("by_class"):
        classes = [
            [
                name,
                _percent(before["by_class"][name]),
                _percent(value),
                f"{100 * (value - before['by_class'][name]):+.1f}",
            ]
            for name, value in by_class.items()
        ]
        body += ["<h2>Classes</h2>", _table(["class", "before", "after", "points"], classes)]
    body += ["<h2>Where the bytes are</h2>", _bars(parts)]
    kinds = ("at the start", "after a trial", "at the end")
    tried = [
        [one["label"], f"{one['bytes']:,}", *(f"{one[kind]:.4f}" if kind in one else "" for kind in kinds)]
        for one in result.candidates
    ]
    chosen = [one["label"] == result.label for one in result.candidates]
    body += ["<h2>What was tried</h2>", f"<p>Scores are {measure}.</p>", _table(["", "bytes", *kinds], tried, chosen)]
    body.append(f"<p>{result.seconds / 60:.1f} minutes in all.</p>")
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>Shrunk</title><style>{_STYLE}</style>"
    write_atomically(
        result.page, f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(body)}</body></html>\n"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    lines = [
        f"<tr{' class=chosen' if number < len(marked) and marked[number] else ''}>"
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
        + "</tr>"
        for number, row in enumerate(rows)
    ]
    return f"<table><tr>{titles}</tr>{''.join(lines)}</table>"


def _bars(parts: Mapping[str, int]) -> str:
    """A row for each part of the file with a bar as long as its share; small parts together."""
    order = sorted(parts.items(), key=lambda part: -part[1])
    shown = order[:_MOST] + ([("all others", sum(length for _, length in order[_MOST:]))] if len(order) > _MOST else [])
    whole, most = sum(parts.values()), max(length for _, length in shown)
    lines = [
        f"<tr><td>{html.escape(name)}</td><td>{length:,}</td><td>{_percent(length / whole)}</td>"
        f"<td class=bar><div style='width:{100 * length / most:.1f}%'></div></td></tr>"
        for name, length in shown
    ]
    return f"<table><tr><th>part</th><th>bytes</th><th>share</th><th></th></tr>{''.join(lines)}</table>"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
