"""Text of other people made harmless for the place where it is shown: terminals, Markdown, HTML, LaTeX, CSV files.

Error texts, notes of data sets, logs and labels come from ledgers, files and packages. They may hold escape codes that
change a terminal, markup that a page would obey, or a formula that a spreadsheet would compute. There is one function
for each place; all of them also remove control characters (`plain`).
"""

from __future__ import annotations

import codecs
import html as _html
import re
import unicodedata

_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)"  # OSC, DCS: titles, links
    r"|\x1b[ -/]*[0-~]"
)
_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Control characters; marks that reverse the direction of text; zero-width characters; halves of surrogate pairs.
_HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_MARKDOWN = re.compile(r"([\\`*\[\]~|#$@]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")  # an underscore in a word is text
_MARKDOWN_LIST = re.compile(r"^(?:([-+])|(\d+)([.)]))(?= )")
_MARKDOWN_LINK = re.compile(r"(?i)\b(https?|ftp|mailto|www)([:.])")
_NO_FILE_PART = re.compile(r"[^A-Za-z0-9._-]")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"} | {
    letter: f"\\{letter}" for letter in "&%$#_{}"
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_ASCII = {
    "±": "+/-",
    "→": "->",
    "←": "<-",
    "…": "...",
    "\u2013": "-",
    "—": "-",
    "\xd7": "x",
    "≤": "<=",
    "≥": ">=",
    "•": "*",
}
ASCII_ERRORS = "dmray-ascii"  # for a stream whose encoding lacks letters: `errors=`


def plain(text: str) -> str:
    """`text` without escape codes and control characters; line breaks and tabs stay. For terminals and logs."""
    return _HIDDEN.sub("", _LINE_ENDS.sub("\n", _SEQUENCES.sub("", text)))


def printable(text: str) -> str:
    """`text` on one line, with what does not show (control characters, line breaks, marks of direction) as in Python.

    For messages that quote a name or a value: the reader sees what is there, and the terminal obeys none of it.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """As `plain`, with all white space as single spaces."""
    return " ".join(plain(text).split())


def html(text: str) -> str:
    """`text` as the text of an HTML element, or of an attribute in quotes."""
    return _html.escape(plain(text), quote=True)


def markdown(text: str) -> str:
    """`text` as one line of GitHub's Markdown, also in a cell of a table: no markup, no HTML, no link."""
    line = one_line(text)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKDOWN.sub(r"\\\1", line)
    line = _MARKDOWN_LIST.sub(lambda found: f"{found[2] or ''}\\{found[1] or found[3]}", line)
    return _MARKDOWN_LINK.sub(r"\1&#8203;\2", line)  # else GitHub makes a link of it


def latex(text: str) -> str:
    """`text` as one line of LaTeX's text mode."""
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text))


def csv_text(text: str) -> str:
    """`text` as a cell of a CSV file that no spreadsheet takes for a formula: such a text gets a quote in front."""
    clean = plain(text)
    return f"'{clean}" if clean.lstrip(" \n").startswith(_FORMULA) else clean


def file_part(text: str) -> str:
    """`text` as a part of a file's name."""
    return _NO_FILE_PART.sub("_", text)


def ascii_text(text: str) -> str:
    """`text` in ASCII: known signs in other words, letters without accents, "?" for the rest."""
    return text.encode("ascii", ASCII_ERRORS).decode("ascii")


def _in_ascii(problem: UnicodeError) -> tuple[str, int]:
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    letters = problem.object[problem.start : problem.end]
    return "".join(map(_letter_in_ascii, letters)), problem.end


def _letter_in_ascii(letter: str) -> str:
    simple = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return _ASCII.get(letter) or simple or "?"


codecs.register_error(ASCII_ERRORS, _in_ascii)
