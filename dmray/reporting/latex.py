"""Tables for a paper: LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Iterable

from dmray.reporting.document import Block, Table, TableCell

_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"} | {
    letter: f"\\{letter}" for letter in "&%$#_{}"
}


def to_latex(blocks: Iterable[Block]) -> str:
    """Every table among `blocks`, each a `table` environment of its own; the document needs `booktabs`."""
    return "\n\n".join(_table(block) for block in blocks if isinstance(block, Table)) + "\n"


def _table(table: Table) -> str:
    lines = [
        r"\begin{table}[ht]",
        r"\centering\small",
        rf"\caption{{{_escaped(table.title)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        _row(_escaped(column) for column in table.columns),
        r"\midrule",
        *(_row(map(_cell, row)) for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _row(texts: Iterable[str]) -> str:
    return " & ".join(texts) + r" \\"


def _cell(cell: TableCell) -> str:
    return rf"\textbf{{{_escaped(cell.text)}}}" if cell.strong else _escaped(cell.text)


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(letter, letter) for letter in text.replace("\n", " "))
