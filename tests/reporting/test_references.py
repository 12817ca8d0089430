"""Published results in a report: beside ours, with their protocol, in no number of ours; tables of users are strict."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dmray
from dmray.cli.report import app
from dmray.errors import SpecError
from dmray.records import SweepFolder
from dmray.reporting import collect
from dmray.reporting.document import Links, Table, to_html, to_latex, to_markdown
from dmray.reporting.references import (
    PublishedResult,
    read_published,
    reference_blocks,
    reference_table,
    references_of,
    shipped,
)
from dmray.reporting.render import write_results
from tests.reporting.examples import write

HEADER = "source,url,method,dataset,score,std,scale,selection,seeds,episodes,steps,note"
ROW = "Ours,https://example.org/t,DT,hopper-medium-v2,1.5,0.1,normalized,last,3,10,100,as there"
SCORES: dict[str, list[Any]] = {"dm 0": [50, 60], "dm 1": [70, 64], "dt 0": [50, 52], "dt 1": [51, 53]}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path, "example")
    write(folder, SCORES)
    return folder


def table(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def changed(**cells: str) -> str:
    return ",".join({**dict(zip(HEADER.split(","), ROW.split(","), strict=True)), **cells}.values())


def test_the_shipped_numbers_are_those_of_their_sources() -> None:
    found = {(row.source, row.dataset, row.selection): row.text for row in shipped()}
    assert len(shipped()) == len(found) == 36 + 18 + 9
    for key, text in {
        ("CORL", "hopper-medium-v2", "last"): "65.10 ± 1.61",
        ("CORL", "hopper-medium-v2", "best"): "69.42 ± 3.64",
        ("CORL", "walker2d-medium-replay-v2", "last"): "59.86 ± 2.73",
        ("CORL", "maze2d-large-v1", "best"): "50.25 ± 19.34",
        ("CORL", "antmaze-umaze-diverse-v2", "last"): "51.75 ± 0.43",
        ("d3rlpy", "hopper-medium-v2", "last"): "60.4 ± 2.3",
        ("d3rlpy", "walker2d-medium-expert-v2", "best"): "109.7 ± 0.3",
        ("Ota 2024", "hopper-medium-v2", "best"): "83.5 ± 12.5",
        ("Ota 2024", "walker2d-medium-expert-v2", "best"): "108.3 ± 0.5",
    }.items():
        assert found[key] == text
    for source, selection, family, average in (  # as the sources print them
        ("CORL", "last", "", "73.84"),
        ("CORL", "best", "", "77.49"),
        ("CORL", "last", "maze2d", "28.48"),
        ("CORL", "best", "maze2d", "60.74"),
        ("CORL", "last", "antmaze", "18.12"),
        ("CORL", "best", "antmaze", "21.04"),
        ("Ota 2024", "best", "", "78.8"),
    ):
        rows = [row for row in shipped() if (row.source, row.selection) == (source, selection)]
        mazes = {row: row.dataset.split("-")[0] if "maze" in row.dataset else "" for row in rows}
        scores = [row.score for row in rows if mazes[row] == family]
        digits = len(average.split(".")[1])
        assert abs(sum(scores, Decimal()) / len(scores) - Decimal(average)) <= Decimal("0.51").scaleb(-digits)
    assert sum(row.score for row in shipped() if row.source == "d3rlpy") == Decimal("1345.8")


def test_every_shipped_number_says_its_protocol() -> None:
    for row in shipped():
        assert row.scale == "normalized"
        assert row.seeds
        assert row.episodes
        assert row.steps
        assert row.selection in ("last", "best")
        assert row.url.startswith("https://")
        assert row.note
    assert {row.selection for row in shipped() if row.source == "Ota 2024"} == {"best"}


def test_a_report_shows_them_below_the_data_set_and_names_their_sources(folder: SweepFolder) -> None:
    paths = write_results(collect(folder), folder.report)
    text = paths.markdown.read_text(encoding="utf-8")
    ours, theirs = text.split("hopper-medium-v2: published by others, not run here")
    assert "62.0 ± 2.8" in ours
    assert "65.10 ± 1.61" not in ours
    rows = [line for line in theirs.splitlines() if line.startswith("| CORL: DT")]
    assert [[cell.strip() for cell in row.split("|")[2:-1]] for row in rows] == [
        ["65.10 ± 1.61", "last", "4", "100", "100,000"],
        ["69.42 ± 3.64", "best", "4", "100", "100,000"],
    ]
    sources = theirs.split("## Published results")[1].split("\n## ")[0]
    address = "https://github.com/corl-team/CORL/blob/eeeeef2671235fcce3a3eb255576a207d78840e6/README.md"
    assert f"- [CORL](<{address}>): " in sources
    assert f'<li><a href="{address}">CORL</a>: ' in paths.html.read_text(encoding="utf-8")
    assert "five target returns" in sources
    assert "published by others" in paths.html.read_text(encoding="utf-8")
    assert r"\label{tab:published-hopper-medium-v2}" in paths.latex.read_text(encoding="utf-8")


def test_no_published_number_is_in_a_mean_a_test_or_an_interval(folder: SweepFolder, tmp_path: Path) -> None:
    """A report with absurd published scores differs from one without only in the tables and the section for them."""
    file = table(tmp_path / "absurd.csv", changed(score="987654.3", method="DM"), changed(score="987654.3"))
    plain, absurd = write_results(collect(folder), tmp_path / "plain"), tmp_path / "absurd"
    write_results(collect(folder), absurd, references=[file])
    for name in ("trials.csv", "curves.csv", "differences.csv", "reevaluations.csv", "summary.md"):
        assert (absurd / name).read_bytes() == (plain.folder / name).read_bytes()
    with_them, without = (path.read_text(encoding="utf-8") for path in (absurd / "report.md", plain.markdown))
    added = [line for line in with_them.splitlines() if line not in without.splitlines()]
    assert len(added) == 3, "two rows and the source"
    assert all(line.startswith(("| Ours: D", "- [Ours](")) for line in added)
    assert [line for line in with_them.splitlines() if line not in added] == without.splitlines()
    assert "**987654.3" not in with_them
    assert dmray.load_results(folder.path).scores.to_csv().count("987654") == 0


def test_no_cell_of_a_published_table_is_bold(folder: SweepFolder) -> None:
    results = collect(folder)
    found = reference_table(results.comparisons[0], references_of(results))
    assert found is not None
    assert not any(cell.strong for row in found.rows for cell in row)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, True),
        ({"datasets": ["ant-medium-v2"]}, False),
        ({"datasets": ["bullet-hopper-medium-v0"]}, False),
        ({"datasets": [{"name": "hopper-medium-v2", "fraction": 0.5}]}, False),
        ({"datasets": [{"name": "hopper-medium-v2", "path": "mine.hdf5"}]}, False),
        ({"datasets": [{"name": "hopper-medium-v2", "task": "hopper", "generate": {}}]}, False),
        ({"datasets": [{"name": "again", "catalog": "hopper-medium-v2"}]}, True),
        ({"evaluation": {"episodes": 2, "every_steps": 20, "action_noise": 0.1}}, False),
        ({"evaluation": {"episodes": 2, "every_steps": 20, "decode": "recurrent"}}, True),
    ],
)
def test_they_are_shown_only_for_the_data_that_they_are_of(
    tmp_path: Path, changes: dict[str, Any], shown: bool
) -> None:
    folder = SweepFolder(tmp_path, "example")
    write(folder, SCORES, **changes)
    results = collect(folder)
    references = references_of(results)
    assert bool(references) == shown
    assert (reference_table(results.comparisons[0], references) is not None) == shown
    assert bool(list(reference_blocks(references))) == shown


def test_a_table_of_a_user_joins_the_shipped_ones(folder: SweepFolder, tmp_path: Path) -> None:
    file = table(tmp_path / "mine.csv", ROW, changed(scale="return", score="2100.0", std="", seeds="", note="<b>|&"))
    ran = CliRunner().invoke(app, [str(folder.path), "--reference", str(file)])
    assert ran.exit_code == 0, ran.output
    text = (folder.report / "report.md").read_text(encoding="utf-8")
    assert "| Ours: DT | 1.5 ± 0.1 | - | last | 3 | 10 | 100 |" in text
    assert "| Ours: DT | - | 2100.0 | last | - | 10 | 100 |" in text
    assert "65.10 ± 1.61" in text
    assert re.search(r"\[Ours\]\(.*not said.*as there; &lt;b&gt;", text)
    dmray.write_report(folder.path, into=tmp_path / "api", references=[file])
    assert (tmp_path / "api/report.md").read_text(encoding="utf-8").count("2100.0") == 1


def test_a_table_may_be_of_a_data_set_of_the_sweep_itself(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write(folder, SCORES, datasets=[{"name": "my-maze", "task": "maze2d-umaze", "generate": {}}])
    file = table(tmp_path / "mine.csv", changed(dataset="my-maze"))
    found = reference_table(collect(folder).comparisons[0], references_of(collect(folder), [file]))
    assert found is not None
    assert [row[1].text for row in found.rows] == ["1.5 ± 0.1"]


MISTAKES = {
    "line 2, column score: '42,5': must be a number such as 42.2": changed(score='"42,5"'),
    "line 2, column score: '': is empty; every row needs it": changed(score=""),
    "line 2, column score: 'nan': must be a number": changed(score="nan"),
    "line 2, column std: '-1': a standard deviation must be at least 0": changed(std="-1"),
    "line 2, column scale: 'normalised': unknown scale 'normalised', did you mean 'normalized'?": changed(
        scale="normalised"
    ),
    "line 2, column selection: 'final': unknown selection 'final', known: best, last": changed(selection="final"),
    "line 2, column seeds: '0': must be a whole number of at least 1": changed(seeds="0"),
    "line 2, column episodes: '1.5': must be a whole number": changed(episodes="1.5"),
    "line 2, column url: 'arxiv': must be an address such as https://": changed(url="arxiv"),
    "line 2, column dataset: unknown data set 'hopper-medum-v2', did you mean 'hopper-medium-v2'?": changed(
        dataset="hopper-medum-v2"
    ),
    "line 2: has 13 cells, the header has 12; put text with commas in quotes": ROW + ",more",
    "line 3: is the same number as line 2": f"{ROW}\n{changed(score='2')}",
    "line 2: is not CSV: ": '"Ours"x,1',
    "line 2, column note: '": changed(note="x" * 1001),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_is_named_with_its_line_column_value_and_cure(tmp_path: Path, said: str) -> None:
    file = table(tmp_path / "mine.csv", MISTAKES[said])
    with pytest.raises(SpecError) as refused:
        read_published(file)
    assert f"{file}, {said}" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (HEADER.replace("score", "scor"), "line 1: unknown column 'scor', did you mean 'score'?"),
        (HEADER.replace("url,", ""), "line 1: column 'url' is missing; the columns are source, url, method"),
        (HEADER + ",note", "line 1: column 'note' is there twice"),
        ("", "line 1: column 'source' is missing"),
        ("\n\n" + HEADER + ",", "line 3: a column has no name; name it, or delete it"),
        (HEADER.replace(",", ";"), "line 1: its cells are separated by semicolons; save the table as CSV with commas"),
        (HEADER.replace(",", "\t"), "line 1: its cells are separated by tabs; save the table as CSV with commas"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(SpecError, match=re.escape(f"mine.csv, {said}")):
        read_published(table(tmp_path / "mine.csv", header=header))


def test_a_file_that_cannot_be_used_is_one_sentence(folder: SweepFolder, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.csv: cannot be read: No such file"):
        read_published(tmp_path / "none.csv")
    latin = tmp_path / "latin.csv"
    latin.write_bytes(f"{HEADER}\n{changed(method='Müller')}\n".encode("latin-1"))
    with pytest.raises(SpecError, match=r"latin\.csv, line 2: is not UTF-8 text"):
        read_published(latin)
    other = table(tmp_path / "other.csv", changed(dataset="ant-medium-v2"))
    with pytest.raises(SpecError, match=r"other\.csv: no row belongs.* are for ant-medium-v2, .* has hopper-medium-v2"):
        references_of(collect(folder), [other])
    ran = CliRunner().invoke(app, [str(folder.path), "--reference", str(other)])
    assert (ran.exit_code, type(ran.exception)) == (1, SystemExit)
    with pytest.raises(SpecError, match=r"references 'x\.csv': give a list"):
        dmray.write_report(folder.path, references="x.csv")


def test_columns_may_be_in_any_order_and_what_is_not_known_may_be_missing(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    header = "dataset,method,score,scale,selection,source,url"
    row = "hopper-medium-v2,DT,42.50,normalized,last,Ours,https://example.org/"
    file.write_bytes(f"\ufeff{header}\r\n{row}\r\n\r\n".encode())
    (found,) = read_published(file)
    assert found == PublishedResult(
        *("Ours", "https://example.org/", "DT", "hopper-medium-v2", Decimal("42.50"), None, "normalized", "last"),
        *(None, None, None, ""),
    )
    assert found.text == "42.50"


def test_markup_in_a_table_is_text(folder: SweepFolder, tmp_path: Path) -> None:
    file = table(tmp_path / "mine.csv", changed(source="<script>", method="a_b & c"))
    found = reference_table(collect(folder).comparisons[0], read_published(file))
    assert isinstance(found, Table)
    assert "<script>" not in to_html([found], "x")
    assert r"a\_b \& c" in to_latex([found])


def test_an_address_cannot_break_out_of_its_link(tmp_path: Path) -> None:
    links = Links((("a](x", 'https://example.org/"><script>)', ": **b**"),))
    assert to_markdown([links], tmp_path) == "- [a\\](x](<https://example.org/%22%3E%3Cscript%3E)>): \\*\\*b\\*\\*\n"
    assert '<a href="https://example.org/&quot;&gt;&lt;script&gt;)">a](x</a>: **b**' in to_html([links], "x")
