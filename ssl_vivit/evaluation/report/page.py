"""Self-contained HTML page with embedded figures, style and a script that sorts tables."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

Cell = str | int | float | None

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem;
  margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid #ccc; }
nav { margin: 1rem 0; } nav a { margin-right: 1rem; }
a { color: #005a8e; }
figure { margin: 1rem 0; } figcaption { color: #444; font-size: .9rem; }
img { max-width: 100%; height: auto; }
p.note { border-left: 4px solid #E69F00; padding-left: .75rem; }
.wide { overflow-x: auto; } .tall { max-height: 32rem; overflow-y: auto; border: 1px solid #ddd; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; color: #444; font-size: .9rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th { background: #f2f2f2; } .tall th { position: sticky; top: 0; }
th:first-child, td:first-child, .text { text-align: left; }
th button { font: inherit; font-weight: bold; background: none; border: 0; padding: 0; cursor:
pointer; } th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending]
button::after { content: " ▼"; } pre { background: #f6f6f6; padding: .75rem; overflow-x: auto;
font-size: .85rem; } @media print {
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; } figure, tr {
  break-inside: avoid; } h2 { break-after: avoid; } thead { display: table-header-group; } .tall,
  .wide { max-height: none; overflow: visible; border: 0; } .tall th { position: static; } table {
  font-size: 8pt; } pre { white-space: pre-wrap; }
}
"""

_SCRIPT = """
for (const button of document.querySelectorAll("table.sortable th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, body = head.closest("table").tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const keyed = [...body.rows].map((row) => [row.cells[head.cellIndex].dataset.value, row]);
    keyed.sort(([a], [b]) => {
      if (a === "" || b === "") return (a === "") - (b === "");
      const numbers = [Number(a), Number(b)];
      if (numbers.some(Number.isNaN)) return sign * a.localeCompare(b);
      return sign * (numbers[0] - numbers[1]);
    });
    for (const [, row] of keyed) body.append(row);
  });
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
"""


class Section(NamedTuple):
    """A section of the page.

    Attributes:
        title: heading, which the table of contents links.
        body: HTML.
    """

    title: str
    body: str


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return an HTML document whose content security policy forbids loading other files."""
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(_STYLE)}'; "
        f"script-src '{_hash(_SCRIPT)}'; base-uri 'none'; form-action 'none'"
    )
    links = "".join(
        f'<a href="#part{n}">{escape(part.title)}</a>' for n, part in enumerate(sections)
    )
    parts = "".join(
        f'<section id="part{n}"><h2>{escape(part.title)}</h2>{part.body}</section>\n'
        for n, part in enumerate(sections)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><p>{escape(subtitle)}</p><nav>{links}</nav>\n"
        f"{parts}<script>{_SCRIPT}</script></body></html>\n"
    )


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    caption: str = "",
    sortable: bool = False,
) -> str:
    """Return a table; cells that are None or not finite are empty.

    Args:
        head: names of the columns.
        rows: rows with one cell per column.
        caption: caption above the table.
        sortable: whether the head has buttons that sort the rows by a column. Such a table scrolls.
    """
    heads = []
    for column, name in enumerate(head):
        told = f"<button>{escape(name)}</button>" if sortable else escape(name)
        kind = " class=text" if any(isinstance(row[column], str) for row in rows) else ""
        heads.append(f'<th scope="col"{kind}>{told}</th>')
    lines = ["".join(_cell(cell) for cell in row) for row in rows]
    return (
        f'<div class="{"tall" if sortable else "wide"}"><table{" class=sortable" if sortable else ""}>'
        + (f"<caption>{escape(caption)}</caption>" if caption else "")
        + "<thead><tr>"
        + "".join(heads)
        + "</tr></thead><tbody>"
        + "\n".join(f"<tr>{line}</tr>" for line in lines)
        + "</tbody></table></div>"
    )


def picture(path: Path, caption: str) -> str:
    """Return a PNG or GIF file as a figure; the caption is also the alternative text."""
    kind = "gif" if path.suffix == ".gif" else "png"
    content = base64.b64encode(path.read_bytes()).decode()
    told = escape(caption)
    return (
        f'<figure><img src="data:image/{kind};base64,{content}" alt="{told}">'
        f"<figcaption>{told}</figcaption></figure>"
    )


def paragraph(text: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """Return a highlighted paragraph, for a missing part or a limitation."""
    return f'<p class="note">{escape(text)}</p>'


def folded(title: str, text: str) -> str:
    """Return preformatted text that is shown after a click on its title."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _cell(cell: Cell) -> str:
    if isinstance(cell, float) and math.isfinite(cell):
        shown = f"{cell:.3f}" if cell == 0 or abs(cell) >= 0.001 else f"{cell:.2g}"
        return f'<td data-value="{cell!r}">{shown}</td>'
    if isinstance(cell, int):
        return f'<td data-value="{cell}">{cell}</td>'
    told = "" if cell is None or isinstance(cell, float) else escape(cell)
    return f'<td class="text" data-value="{told}">{told}</td>'


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
