"""A report as a list of blocks of plain text, and its formats: Markdown, HTML, LaTeX."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from dmray.escaping import html as escape
from dmray.escaping import latex, markdown

_IN_AN_ADDRESS = "%:/?#[]@!$&'()*+,;=-._~"  # what else stands in one is written as %XX
_NOT_IN_A_LABEL = re.compile("[^a-z0-9]+")


@dataclass(frozen=True)
class TableCell:
    """A cell of a table. `strong`: print it bold; the table's note says what that means."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table. The first column has names, the others have numbers.

    `note`: a footnote, such as the rule for bold cells. `name`: what LaTeX refers to as `tab:<name>`; empty: made of
    the title.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    note: str = ""
    name: str = ""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Links:
    """Bullets that begin with a link; `items`: the link's text, its address (http or https), and what follows it."""

    items: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Image:
    """A PNG file inside the report's folder. `alt`: the text that describes it."""

    path: Path
    alt: str


Block = Table | Heading | Paragraph | Bullets | Links | Image


def to_markdown(blocks: Iterable[Block], folder: Path) -> str:
    """The report in GitHub's Markdown, with links to images relative to `folder`."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def to_html(blocks: Sequence[Block], title: str) -> str:
    """The report as one self-contained page that contains its style and its images."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def to_latex(blocks: Iterable[Block]) -> str:
    """The report's tables in LaTeX, each in a `table` environment with a label. The document must load `booktabs`."""
    tables = [block for block in blocks if isinstance(block, Table)]
    labels = [_NOT_IN_A_LABEL.sub("-", (table.name or table.title).lower()).strip("-") for table in tables]
    return "\n\n".join(_latex_table(*each) for each in zip(tables, _unique(labels), strict=True)) + "\n"


def _unique(labels: Iterable[str]) -> Iterable[str]:
    """The labels, those that were there before with a number; LaTeX takes each once."""
    seen: Counter[str] = Counter()
    for label in labels:
        seen[label] += 1
        yield label if seen[label] == 1 else f"{label}-{seen[label]}"


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {markdown(block.text)}"
        case Paragraph():
            return markdown(block.text)
        case Bullets():
            return "\n".join(f"- {markdown(item)}" for item in block.items)
        case Links():
            return "\n".join(
                f"- [{markdown(text)}](<{quote(url, _IN_AN_ADDRESS)}>){markdown(rest)}"
                for text, url, rest in block.items
            )
        case Image():
            return f"![{markdown(block.alt)}]({block.path.relative_to(folder).as_posix()})"
        case Table():
            rule = "|".join([":--", *["--:"] * (len(block.columns) - 1)])
            lines = [" | ".join(markdown(column) for column in block.columns), rule]
            lines += [" | ".join(_markdown_cell(cell) for cell in row) for row in block.rows]
            note = f"\n\n*{markdown(block.note)}*" if block.note else ""
            return f"**{markdown(block.title)}**\n\n" + "\n".join(f"| {line} |" for line in lines) + note


def _markdown_cell(cell: TableCell) -> str:
    text = markdown(cell.text)
    return f"**{text}**" if cell.strong else text


def _html(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{escape(block.text)}</p>"
        case Bullets():
            return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in block.items) + "</ul>"
        case Links():
            items = (
                f'<li><a href="{escape(url)}">{escape(text)}</a>{escape(rest)}</li>' for text, url, rest in block.items
            )
            return f"<ul>{''.join(items)}</ul>"
        case Image():
            data = base64.b64encode(block.path.read_bytes()).decode()
            return f'<img alt="{escape(block.alt)}" src="data:image/png;base64,{data}">'
        case Table():
            head = "".join(f"<th>{escape(column)}</th>" for column in block.columns)
            rows = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in block.rows)
            table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            note = f'<p class="note">{escape(block.note)}</p>' if block.note else ""
            return f"<figure><figcaption>{escape(block.title)}</figcaption>{table}{note}</figure>"


def _html_cell(cell: TableCell) -> str:
    text = escape(cell.text)
    return f"<td><strong>{text}</strong></td>" if cell.strong else f"<td>{text}</td>"


def _latex_table(table: Table, label: str) -> str:
    lines = [
        r"\begin{table}[ht]",
        r"\centering\small",
        rf"\caption{{{latex(table.title)}}}",
        rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        _latex_row(latex(column) for column in table.columns),
        r"\midrule",
        *(_latex_row(map(_latex_cell, row)) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        *([rf"\par\smallskip\footnotesize {latex(table.note)}"] if table.note else []),
        r"\end{table}",
    ]
    return "\n".join(lines)


def _latex_row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _latex_cell(cell: TableCell) -> str:
    return rf"\textbf{{{latex(cell.text)}}}" if cell.strong else latex(cell.text)


_STYLE = """
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --band: #f6f8fa; --mark: #e8f1fb; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 1.9rem; margin: 0 0 .3em; }
h2 { font-size: 1.35rem; margin: 2.4em 0 .6em; padding-top: .9em; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.6em 0 .4em; }
p, li { max-width: 75ch; }
li { margin: .2em 0; }
figure { margin: 1.2em 0; overflow-x: auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .5em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .45em .8em; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 6em; }
th { font-weight: 600; white-space: normal; color: var(--soft); vertical-align: bottom; }
thead th { border-bottom: 2px solid var(--line); }
td { border-bottom: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--band); }
.note { color: var(--soft); font-size: .85rem; margin: .5em 0 0; max-width: none; }
td strong { background: var(--mark); border-radius: 4px; padding: .1em .4em; margin-right: -.4em; }
img { display: block; width: 100%; max-width: 860px; margin: 1.2em 0; }
@media print { main { max-width: none; padding: 0; } h2 { break-before: auto; } figure, img { break-inside: avoid; } }
"""
