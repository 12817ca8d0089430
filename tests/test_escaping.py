"""No text of other people reaches a terminal, a page or a spreadsheet as anything but text."""

from __future__ import annotations

import ast
import csv
import html.parser
import io
import logging
import re
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from dmray import escaping
from dmray.reporting.columns import write_csv
from dmray.reporting.document import Bullets, Heading, Paragraph, Table, TableCell, to_html, to_latex, to_markdown
from dmray.terminal import FittingTable, PlainFormatter, SafeConsole, safe_console

NASTY = (
    *("\x1b[31m", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\", "\x9b2J", "\x1bc", "\r", "\x08", "\x00"),
    *("\u202e", "\ud800", "[red]", "[/]", "[link=file:///x]", "<script>alert(1)</script>", "<img onerror=x>", "&lt;"),
    *("\"'", "|", "\n", "\n\n# x", "```", "`", "**", "__", "[a](javascript:x)", "![](http://x)", "http://x.y"),
    *("www.x.y", "~~", "\\", "$x$", "@me", "#1", "- ", "1. ", "+ ", "> ", "---", "\\input{x}", "%", "_", "^", "{", "}"),
    *("=cmd|' /C calc'!A0", "+1", "@SUM(1)", "±", "é", "漢"),
)
texts = st.lists(st.sampled_from(NASTY) | st.text(max_size=8), max_size=8).map("".join)


def settled(text: str) -> str:
    """What of `text` a reader should see."""
    return escaping.one_line(text)


@given(texts)
@example("\x1b[31mred\x1b]0;t\x07\x9b1m\x90q\x9c")
def test_a_terminal_gets_no_control_character_but_line_breaks_and_tabs(text: str) -> None:
    shown = escaping.plain(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)
    shown.encode("utf-8")
    assert escaping.plain(shown) == shown


def test_text_without_escape_codes_stays_as_it_is() -> None:
    text = "Traceback:\n\tFile 'é.py', ± 漢 [red]"
    assert escaping.plain(text) == text


class _Reader(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _page(text: str) -> list[Heading | Paragraph | Bullets | Table]:
    return [
        Heading(text, 2),
        Paragraph(text),
        Bullets((text,)),
        Table(text, (text, "n"), ((TableCell(text), TableCell(text, strong=True)),)),
    ]


@given(texts)
def test_a_page_has_the_tags_of_the_report_only(text: str) -> None:
    reader, harmless = _Reader(), _Reader()
    reader.feed(to_html(_page(text), text))
    harmless.feed(to_html(_page("x"), "x"))
    assert reader.tags == harmless.tags
    assert escaping.plain(text) in "".join(reader.words) or not text


@given(texts)
def test_markdown_has_no_markup_of_a_text(text: str) -> None:
    shown = escaping.markdown(text)
    assert "\n" not in shown
    assert not re.search(r"[<>]", shown)
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`\[\]*~$]", shown)
    assert not re.search(r"(?i)\b(https?|ftp|mailto|www)[:.]", shown)
    table = to_markdown([Table("t", ("a", "b"), ((TableCell(text), TableCell("1")),))], Path())
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", table.splitlines()[-1])) == 3


@given(texts)
def test_markdown_keeps_what_the_text_says(text: str) -> None:
    import html

    shown = html.unescape(re.sub(r"\\([^A-Za-z0-9\s])", r"\1", escaping.markdown(text).replace("&#8203;", "")))
    assert shown == html.unescape(settled(text)) or "\\" in text or "&" in text


@given(texts)
def test_latex_has_no_command_of_a_text(text: str) -> None:
    shown = to_latex([Table("t", ("a", "b"), ((TableCell(text), TableCell("1")),))])
    row = shown.splitlines()[-4]
    assert row.endswith(r"& 1 \\")
    cell = row.removesuffix(r" & 1 \\")
    cell = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\$\\pm\$|\\[&%$#_{}]", "", cell)
    assert not re.search(r"[\\{}%$#&_^~]", cell)


@given(texts)
def test_no_cell_of_a_csv_file_is_a_formula(text: str) -> None:
    shown = escaping.csv_text(text)
    assert not re.match(r"\s*[=+\-@]", shown)
    assert shown.removeprefix("'") == escaping.plain(text).removeprefix("'")


def test_numbers_of_a_csv_file_stay_numbers_and_texts_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_csv(path, pa.table({"n": [-1.5], "t": ["=cmd|x\x1b[31m"], "none": pa.array([None], pa.string())}))
    assert list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) == [
        {"n": "-1.5", "t": "'=cmd|x", "none": ""}
    ]


@settings(deadline=None)
@given(texts, st.sampled_from([20, 40, 200]), st.sampled_from(["utf-8", "ascii", "latin-1"]))
def test_a_console_of_any_width_and_encoding_shows_every_column(text: str, width: int, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=escaping.ASCII_ERRORS)
    console = SafeConsole(file=stream, width=width, force_terminal=False)
    table = FittingTable(box=None)
    for name in ("first", "second", "third"):
        table.add_column(name, no_wrap=True)
    table.add_row("one ± 1", Text(text), "three")
    console.print(table)
    console.print(Text(text))
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    for word in ("first", "third", "one", "three"):
        assert word in shown
    assert max(map(cell_len, shown.splitlines())) <= width  # an emoji and its skin tone share a place


def test_a_word_between_colons_stays_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    safe_console().print("--on h200:x: trial=:x:")
    assert capsys.readouterr().out == "--on h200:x: trial=:x:\n"


def test_a_log_line_has_no_escape_codes() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "bad \x1b]0;evil\x07 %s", ("\x1b[2J",), None)
    assert PlainFormatter("%(message)s").format(record) == "bad  "


def test_signs_have_words_in_ascii() -> None:
    assert escaping.ascii_text("53.0 ± 4.2 → é 漢") == "53.0 +/- 4.2 -> e ?"


def _opens_text(call: ast.Call) -> bool:
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr in ("read_text", "write_text"):
        return True
    modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    return call.func.attr == "open" and modes in (["r"], ["w"], ["a"], ["x"])


def test_every_file_is_opened_with_an_encoding() -> None:
    """The default is the machine's, so a report would not be readable on another one."""
    package = Path(escaping.__file__).parent
    found = [
        f"{path.relative_to(package)}:{call.lineno}"
        for path in sorted(package.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _opens_text(call) and "encoding" not in {word.arg for word in call.keywords}
    ]
    assert found == []


def test_rich_markup_of_a_text_is_shown_as_text() -> None:
    stream = io.StringIO()
    SafeConsole(file=stream, width=80).print(Text("[red]x[/] \x1b[31m"))
    assert stream.getvalue() == "[red]x[/] \n"
    assert isinstance(SafeConsole(), Console)


@pytest.mark.parametrize("text", ["", "-", "1 of 2", "53.0 ± 4.2", "learning_rate 0.1", "DM (d_model 64)"])
def test_ordinary_labels_are_as_they_were(text: str) -> None:
    assert escaping.markdown(text) == escaping.plain(text) == text
