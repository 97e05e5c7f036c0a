"""Rows of cells as text: Markdown tables, aligned columns for a terminal, and HTML for a notebook."""

import html
from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], sides: str, *, gap: str = "") -> str:
    """A table in Markdown, without a newline at its end; a `|` inside a cell becomes `/`.

    Args:
        header: the columns' titles.
        rows: cells, as many as titles.
        sides: `l` or `r` for each column: aligned to the left or to the right.
        gap: stands on both sides of the dashes below the titles.
    """
    rule = "|".join(gap + {"l": "---", "r": "---:"}[side] + gap for side in sides)
    titles, *cells = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (header, *rows)]
    return "\n".join([titles, f"|{rule}|", *cells])


def columns(cells: Sequence[Sequence[str]], sides: str = "") -> str:
    """Rows of cells, one line each, columns aligned and two spaces apart.

    Args:
        cells: the rows, of one length.
        sides: `l` or `r` for each column: aligned to the left or to the right; by default the first to the left, the
            others to the right.
    """
    sides = sides or "l" + "r" * (len(cells[0]) - 1)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = {"l": str.ljust, "r": str.rjust}
    lines = [[padded[side](cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in cells]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def html_table(cells: Sequence[Sequence[str]], sides: str) -> str:
    """Rows of cells as a table in HTML, the titles first; it brings no colours, so it suits light and dark notebooks.

    Args:
        cells: the rows, of one length; what HTML would read is escaped.
        sides: `l` or `r` for each column: aligned to the left or to the right.
    Example:
        >>> html_table([("layer", "MACs"), ("a<b", "3")], "lr").count("a&lt;b")
        1
    """
    words = {"l": "left", "r": "right"}

    def row(entries: Sequence[str], tag: str) -> str:
        shown = (
            f'<{tag} style="text-align: {words[side]}">{html.escape(entry)}</{tag}>'
            for side, entry in zip(sides, entries, strict=True)
        )
        return f"<tr>{''.join(shown)}</tr>"

    titles, *rows = cells
    body = "".join(row(entries, "td") for entries in rows)
    return f"<table><thead>{row(titles, 'th')}</thead><tbody>{body}</tbody></table>"
