from __future__ import annotations

import csv
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmray.cli.report import app
from dmray.errors import StorageError
from dmray.records import AttemptStarted, SweepFolder
from dmray.reporting import collect, write_report
from dmray.reporting.document import Bullets, Heading, Paragraph, Table, TableCell, to_html, to_markdown
from dmray.reporting.figures import curve_of
from tests.mlflow_mirror.examples import (
    evaluated,
    example_sweep,
    failed,
    started,
    trials_of,
    whole_trial,
    write_ledger,
    write_manifest,
)

SWEEP = example_sweep()
TRIALS = trials_of(SWEEP)  # dm s0, dt s0, dm s1, dt s1
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    folder = SweepFolder(tmp_path, "example")
    write_manifest(folder, SWEEP)
    write_ledger(folder, TRIALS[0], whole_trial(50, 60))
    write_ledger(folder, TRIALS[1], [started(), evaluated(20, 30, 20), failed(30)])
    write_ledger(folder, TRIALS[2], whole_trial(70, 64))
    return folder


@pytest.mark.figures
def test_all_files_of_a_report_are_written(folder: SweepFolder) -> None:
    paths = write_report(folder)
    markdown, html = paths.markdown.read_text(), paths.html.read_text()
    for text in (markdown, html):
        assert "62.0 ± 2.8" in text
        assert "2 finished, 1 failed, 1 waiting" in text
        assert "decode mode window" in text
        assert "Target return of the score: 3600, the first of the list" in text
        assert "OSError: disk full" in text
    assert [path.name for path in paths.figures] == ["hopper-medium-v2.png"], "no profiles: DT has not finished"
    assert [path.read_bytes()[:8] for path in paths.figures] == [PNG]
    assert all(path.with_suffix(".svg").read_text().startswith("<?xml") for path in paths.figures)
    assert paths.latex.read_text().count(r"\begin{table}") == text.count("<table>")
    assert "![learning curves of hopper-medium-v2](figures/hopper-medium-v2.png)" in markdown


@pytest.mark.figures
def test_the_page_is_self_contained(folder: SweepFolder) -> None:
    html = write_report(folder).html.read_text()
    assert 'src="data:image/png;base64,' in html
    assert not re.search(r'src="(?!data:)|<link|@import|url\(', html), "links lead out of it, but it loads nothing"


def test_the_csv_files_hold_every_trial_and_every_evaluation(folder: SweepFolder) -> None:
    paths = write_report(folder)
    trials = list(csv.DictReader(paths.trials.read_text().splitlines()))
    assert [(row["method"], row["seed"], row["status"], row["last_normalized_score"]) for row in trials] == [
        ("dm", "0", "finished", "60"),
        ("dt", "0", "failed", ""),
        ("dm", "1", "finished", "64"),
        ("dt", "1", "waiting", ""),
    ]
    curves = list(csv.DictReader(paths.curves.read_text().splitlines()))
    assert [(row["method"], row["step"], row["normalized_score"]) for row in curves][:2] == [
        ("dm", "20", "50"),
        ("dm", "40", "60"),
    ]
    assert len(curves) == 5


def test_a_sweep_that_has_not_started_has_a_report(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_manifest(folder, SWEEP)
    paths = write_report(folder)
    assert paths.figures == ()
    assert "4 waiting" in paths.markdown.read_text()


def test_the_report_says_if_dmray_recorded_the_data(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    maze = {"name": "mine", "task": "maze2d-umaze", "generate": {}}
    write_manifest(folder, example_sweep(datasets=[maze]))
    assert "these are not benchmark results" in write_report(folder).markdown.read_text()


def test_a_report_made_twice_is_the_same(folder: SweepFolder) -> None:
    paths = write_report(folder)
    files = [paths.markdown, paths.html, paths.trials, paths.curves, *paths.figures]
    before = [path.read_bytes() for path in files]
    write_report(folder)
    assert [path.read_bytes() for path in files] == before


def test_a_curve_is_over_the_finished_seeds_with_their_range(folder: SweepFolder) -> None:
    dm, dt = collect(folder).comparisons[0].seed_groups
    curve = curve_of(dm)
    assert curve is not None
    assert (curve.at, curve.mean, curve.low, curve.high) == ([20, 40], [60, 62], [50, 60], [70, 64])
    assert (curve.seeds, curve.end) == (2, "")
    unfinished = curve_of(dt)
    assert unfinished is not None
    assert (unfinished.at, unfinished.seeds, unfinished.end) == ([20], 1, ", unfinished")


def test_text_cannot_break_the_page_or_the_table() -> None:
    table = Table("<t>", ("a|b", "n"), ((TableCell("x|y\nz"), TableCell("<1>", strong=True)),))
    assert "| x\\|y z | **&lt;1&gt;** |" in to_markdown([table], Path())
    html = to_html([Heading("<h>", 1), Paragraph("a & b"), Bullets(("<i>",)), table], "<title>")
    assert "<strong>&lt;1&gt;</strong>" in html
    assert "<i>" not in html


def test_the_command_prints_the_table_and_where_the_report_is(folder: SweepFolder) -> None:
    ran = CliRunner().invoke(app, [str(folder.path)])
    assert ran.exit_code == 0, ran.output
    assert "62.0 ± 2.8" in ran.output
    assert str(folder.report / "report.html") in ran.output


def test_into_sets_the_reports_folder(folder: SweepFolder, tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, [str(folder.path), "--into", str(tmp_path / "there"), "--baseline", "dt"])
    assert ran.exit_code == 0, ran.output
    assert (tmp_path / "there" / "report.html").exists()
    assert not folder.report.exists()


def test_an_unknown_baseline_is_an_error(folder: SweepFolder) -> None:
    ran = CliRunner().invoke(app, [str(folder.path), "--baseline", "td3"])
    assert ran.exit_code == 1
    assert "unknown method 'td3', known: bc, dlstm, dm" in ran.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "d4rl-mujco"], "unknown protocol 'd4rl-mujco', did you mean 'd4rl-mujoco'?"),
        (["--protocol", "minari"], "protocol minari: these sweeps have no trial with this protocol"),
        (["--baseline", "hdt"], "baseline hdt: these sweeps have no trial of this method, but of dm, dt"),
    ],
)
def test_a_baseline_or_protocol_without_trials_is_an_error_and_changes_no_report(
    folder: SweepFolder, options: list[str], message: str
) -> None:
    page = write_report(folder).html
    before = page.read_bytes()
    done = CliRunner().invoke(app, [str(folder.path), *options])
    assert done.exit_code == 1
    assert message in done.output
    assert page.read_bytes() == before


def test_a_wrong_folder_is_a_one_line_error(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, [str(tmp_path)])
    assert ran.exit_code == 1
    assert "no sweep here" in ran.output
    assert "Traceback" not in ran.output


def test_a_damaged_ledger_is_named_and_the_other_trials_are_results(folder: SweepFolder) -> None:
    folder.trial(TRIALS[1].trial_id).ledger.write_text('{"kind": "nonsense"}\n', encoding="utf-8")
    top = write_report(folder).markdown.read_text(encoding="utf-8").split("##")[0]
    assert "1 of 4 trials have records that cannot be read, and are in no number" in top
    assert "ledger.jsonl:1: not a ledger record" in top
    assert "62.0 ± 2.8" in write_report(folder).html.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1e308", "-1e200"])
def test_a_score_that_is_no_number_is_said_and_in_no_mean(folder: SweepFolder, number: str) -> None:
    ledger = folder.trial(TRIALS[2].trial_id).ledger
    text = ledger.read_text(encoding="utf-8")
    ledger.write_text(text.replace('"normalized_mean":64.0', f'"normalized_mean":{number}'), encoding="utf-8")
    results = collect(folder)
    spread = results.comparisons[0].seed_groups[0].spread("last", lambda score: score.normalized)
    assert spread is not None
    assert (spread.mean, spread.n) == (60.0, 1)
    assert "records that cannot be read" in write_report(folder).markdown.read_text(encoding="utf-8")


def test_notes_on_the_data_are_there_once_with_warnings_first(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "example")
    write_manifest(folder, SWEEP)
    notes = ["observation 3 is constant <b>", "warning: 342 of 5,000 rows were dropped"]
    for trial in TRIALS:
        begun, *rest = whole_trial(50, 60)
        assert isinstance(begun, AttemptStarted)
        made = {**begun.provenance, "dataset_notes": notes}
        write_ledger(folder, trial, [begun.model_copy(update={"provenance": made}), *rest])
    paths = write_report(folder)
    markdown, html = paths.markdown.read_text(encoding="utf-8"), paths.html.read_text(encoding="utf-8")
    section = markdown.split("## Notes on the data")[1].split("##")[0]
    assert section.splitlines()[4:6] == [f"- {notes[1]}", "- observation 3 is constant &lt;b&gt;"]
    assert html.count("342 of 5,000 rows") == 1
    printed = CliRunner().invoke(app, [str(folder.path)]).output
    assert printed.count("342 of 5,000 rows") == 1


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_report_that_cannot_be_written_is_one_sentence(folder: SweepFolder, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    ran = CliRunner().invoke(app, [str(folder.path), "--into", str(tmp_path / place)])
    assert (ran.exit_code, type(ran.exception)) == (1, SystemExit)
    problem = "is a file; give a folder" if place == "file" else "the report cannot be written: "
    assert f"{place}: {problem}" in ran.output.replace("\n", "")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "x"


def test_a_report_on_a_full_disk_is_an_error_and_leaves_the_old_one(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = write_report(folder).html
    before = page.read_bytes()

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dmray.reporting.render.write_atomic", full)
    with pytest.raises(StorageError, match=r"report: the report cannot be written: No space left on device; free"):
        write_report(folder)
    assert page.read_bytes() == before


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_a_narrow_terminal_without_letters_beyond_ascii_gets_every_number(
    folder: SweepFolder, environment: dict[str, str]
) -> None:
    write_ledger(folder, TRIALS[3], [started(), failed(1).model_copy(update={"error": "é \x1b]0;evil\x07<b>|x"})])
    plainly = {**os.environ, **environment, "COLUMNS": "20", "TERM": "dumb", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "dmray.report", str(folder.path)]
    ran = subprocess.run(command, capture_output=True, env=plainly, check=True)
    text = " ".join(ran.stdout.decode("ascii").split())
    for shown in ("last normalized: 62.0 +/- 2.8", "best normalized: 65.0 +/- 7.1", "last raw return: 620.0 +/- 28.3"):
        assert shown in text
    assert "\x1b" not in text
