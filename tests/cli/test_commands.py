"""The one command line, and the commands that look at a sweep from another shell."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmray import __version__ as dmray_version
from dmray.cli import explain, logs, status
from dmray.cli.control import pause_app, resume_app, stop_app
from dmray.cli.entry import COMMANDS
from dmray.cli.program import run_program
from dmray.coordination.commands import read_command, send_command
from dmray.coordination.sweep_lock import folder_lock
from dmray.records import SweepFolder
from dmray.terminal import LineFormatter
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.run import run_trial
from tests.progress.ledgers import begun, done, failed, started, trained
from tests.sweeps import sweep_file
from tests.trial.jobs import job

runner = CliRunner()


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return begun(tmp_path, [started(), trained(20)])[1]


def dmray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dmray", *arguments], capture_output=True, text=True, check=False)


def test_help_status_and_explain_load_neither_torch_nor_ray(folder: SweepFolder) -> None:
    code = (
        "import sys; from dmray.__main__ import main\n"
        "sweep, trial = sys.argv[1:]\n"
        "for sys.argv in (['dmray', '--help'], ['dmray', 'status', sweep], ['dmray', 'explain', sweep, trial]):\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    (trial,) = (path.name for path in (folder.path / "trials").iterdir())
    ran = subprocess.run(
        [sys.executable, "-c", code, str(folder.path), trial], capture_output=True, text=True, check=True
    )
    assert all(name in ran.stdout for name in COMMANDS)
    assert "0/2 trials done" in ran.stdout
    assert "What to do next" in ran.stdout
    assert ran.stdout.endswith("set()\n")


def test_a_damaged_manifest_is_one_clear_line(folder: SweepFolder) -> None:
    folder.manifest.write_text('{"sweep"')
    seen = runner.invoke(status.app, [str(folder.path)])
    assert seen.exit_code == 1
    assert "sweep.json: not the manifest of a sweep (" in seen.output.replace("\n", " ")


@pytest.mark.parametrize(
    "how", [">&- 2>&- <&-", ">/dev/full", "> >(true)", ""], ids=["closed", "full", "pipe", "ascii"]
)
def test_output_that_cannot_be_written_is_no_traceback(folder: SweepFolder, how: str) -> None:
    command = f"exec {sys.executable} -m dmray status {folder.path} {how}"
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ascii_only, check=False)
    assert ran.stderr == ""
    assert ran.returncode == (1 if how in (">/dev/full", "> >(true)") else 3), "3: trials are left"


def test_names_that_no_file_can_have_and_a_folder_that_is_gone_are_one_line(folder: SweepFolder) -> None:
    for name, problem in (
        ("x" * 300, "cannot be read ("),
        ("~nobody-of-this-name/runs", "that home folder is not known"),
    ):
        seen = runner.invoke(status.app, [name])
        assert (seen.exit_code, problem in seen.output) == (1, True), seen.output
    gone = f"cd {folder.path} && rm -r {folder.path} && exec {sys.executable} -m dmray.status runs"
    ran = subprocess.run(["bash", "-c", gone], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (
        1,
        "error: the current folder was removed, or may not be read; cd to another one\n",
    )


def test_a_misspelt_command_is_an_error_with_the_right_name() -> None:
    ran = dmray("statsu")
    assert (ran.returncode, "did you mean 'status'" in ran.stderr) == (2, True)


def test_a_command_names_itself_in_its_help() -> None:
    assert "Usage: dmray stop [OPTIONS]" in dmray("stop", "--help").stdout


def test_the_versions_are_shown_without_importing_the_packages() -> None:
    code = (
        "import sys; from dmray.__main__ import main\nsys.argv = ['dmray', '--version']; main()\n"
        "print({'torch', 'ray', 'mlflow', 'mujoco', 'envpool', 'numpy'} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, imported = ran.stdout.splitlines()
    assert imported == "set()"
    assert dict(line.split() for line in lines) == {
        "dmray": dmray_version,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "ray", "mlflow", "mujoco", "envpool")},
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("dmray st", ["status", "stop"]),
        ("dmray sweep q", ["quickstart"]),
        ("dmray data ve", ["verify"]),
        ("dmray init --f", ["--force"]),
        ("dmray nothing x", []),
    ],
)
def test_the_shell_completes_commands_options_and_sweep_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, expected: list[str]
) -> None:
    monkeypatch.setenv("_DMRAY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        run_program(words.split()[1:])
    assert capsys.readouterr().out.split() == expected


def test_the_completion_script_is_that_of_dmray(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))  # the tests may run under no shell
    with pytest.raises(SystemExit):
        run_program(["--show-completion", "bash"])
    assert "complete -o default -F _dmray_completion dmray" in capsys.readouterr().out


def test_status_by_file_and_by_folder(folder: SweepFolder, tmp_path: Path) -> None:
    file = sweep_file(tmp_path)
    by_folder, by_file = (
        json.loads(runner.invoke(status.app, [str(name), "--json"]).stdout) for name in (folder.path, file)
    )
    assert by_folder == by_file
    assert by_folder["statuses"]["interrupted"] == 1


def test_exit_statuses_of_status(tmp_path: Path) -> None:
    _, folder = begun(tmp_path / "open", [started()])
    assert runner.invoke(status.app, [str(folder.path)]).exit_code == 3
    with folder_lock(folder):
        assert runner.invoke(status.app, [str(folder.path)]).exit_code == 0
    _, ended = begun(tmp_path / "failed", [started(), failed(3)], [done(40)])
    assert runner.invoke(status.app, [str(ended.path)]).exit_code == 4
    _, good = begun(tmp_path / "good", [done(40)], [done(40)])
    assert runner.invoke(status.app, [str(good.path)]).exit_code == 0
    assert runner.invoke(status.app, [str(tmp_path)]).exit_code == 1
    nothing = runner.invoke(stop_app, [str(tmp_path / "misspelt")])
    assert (nothing.exit_code, "no such file or folder; name a sweep's file" in nothing.output) == (1, True)
    near = runner.invoke(status.app, [str(tmp_path / "faled")])
    assert (near.exit_code, f"did you mean {tmp_path / 'failed'}?" in near.output) == (1, True)


def test_watching_ends_with_the_driver(folder: SweepFolder) -> None:
    command = [sys.executable, "-m", "dmray", "status", str(folder.path), "--watch", "--every", "0.1"]
    with folder_lock(folder):
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert watcher.stdout is not None
        while ", 1 running" not in watcher.stdout.readline():
            assert watcher.poll() is None
    assert "1 interrupted" in watcher.communicate()[0]
    assert watcher.returncode == 3


def test_without_a_driver_each_command_says_so_and_how_to_continue(folder: SweepFolder) -> None:
    send_command(folder, "run", "python -m dmray.sweep some.yaml --only method=dm --resume")
    assert "without --only, all that are not done" in runner.invoke(status.app, [str(folder.path)]).output
    send_command(folder, "run", "python -m dmray.sweep some.yaml -o a=1 --resume")
    before = read_command(folder)
    seen = runner.invoke(status.app, [str(folder.path)])
    assert "continue with:\n  python -m dmray.sweep some.yaml -o a=1 --resume\n" in seen.output
    assert "without --only" not in seen.output
    assert "continue with" not in runner.invoke(status.app, [str(folder.path), "--json"]).output
    stopped, paused, resumed = (runner.invoke(app, [str(folder.path)]) for app in (stop_app, pause_app, resume_app))
    assert (stopped.exit_code, paused.exit_code, resumed.exit_code) == (0, 1, 1)
    assert "nothing to stop" in stopped.output
    assert "no driver is running" in paused.output
    assert "some.yaml -o a=1 --resume" in resumed.output
    assert read_command(folder) == before


def test_with_a_driver_commands_are_sent_once(folder: SweepFolder) -> None:
    send_command(folder, "run", "again")
    with folder_lock(folder):
        assert runner.invoke(resume_app, [str(folder.path)]).stdout == "the sweep is not paused\n"
        for _ in range(2):
            assert runner.invoke(pause_app, [str(folder.path)]).exit_code == 0
        assert (read_command(folder).kind, read_command(folder).number) == ("pause", 2)
        assert runner.invoke(resume_app, [str(folder.path)]).exit_code == 0
        assert (read_command(folder).kind, read_command(folder).number) == ("run", 3)
        assert str(os.getpid()) in runner.invoke(stop_app, [str(folder.path)]).stdout
        assert read_command(folder).kind == "stop"
        assert runner.invoke(pause_app, [str(folder.path)]).exit_code == 1
        runner.invoke(stop_app, [str(folder.path), "--now"])
        assert read_command(folder).kind == "kill"


def test_a_trials_log_by_its_key(tmp_path: Path) -> None:
    work = job(tmp_path)
    broken = work.model_copy(update={"min_free_gib": 1e9})
    with pytest.raises(Exception, match="GiB"):
        run_trial(broken, InlineEvaluation())
    run_trial(work, InlineEvaluation())
    sweep, key = str(tmp_path / "tiny"), work.trial.trial_id
    text = runner.invoke(logs.app, [sweep, key]).stdout
    for part in (
        f"process {os.getpid()}, cpu",
        "Traceback",
        "evaluation after step 20",
        "checkpoint at step 40",
        "finished",
    ):
        assert part in text, part
    second = runner.invoke(logs.app, [sweep, key[-6:], "--attempt", "2"]).stdout
    assert "finished at step 40" in second
    assert "Traceback" not in second
    assert runner.invoke(logs.app, [sweep, key[:12], "--follow"]).stdout == text
    assert "its log.txt has no lines of attempt 3" in runner.invoke(logs.app, [sweep, key, "--attempt", "3"]).output
    unknown = runner.invoke(logs.app, [sweep, "x" + key])
    assert (unknown.exit_code, key in unknown.output) == (1, True)
    log = tmp_path / "tiny" / "trials" / key / "log.txt"
    log.unlink()
    os.mkfifo(log)
    refused = runner.invoke(logs.app, [sweep, key])
    assert (refused.exit_code, "a pipe, not a file; remove it" in refused.output) == (1, True)


def test_an_ambiguous_key_lists_what_it_may_mean(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started()], [started()])
    said = runner.invoke(logs.app, [str(folder.path), "open-expert"])
    assert said.exit_code == 1
    assert all(trial_id in said.output for trial_id in plan.trial_ids)


def test_a_trial_is_explained_by_its_sweep_its_folder_its_url_and_in_its_folder(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trial,) = (path.name for path in (folder.path / "trials").iterdir())
    place = f"{folder.path}/trials/{trial}"
    monkeypatch.chdir(folder.path)
    ways = [[str(folder.path), trial[-10:]], [str(folder.path), trial], [place], [f"trials/{trial}"], [trial[-10:]]]
    for way in [*ways, [f"file://{place}"], [f"file://{folder.path}", trial[-10:]]]:
        seen = runner.invoke(explain.app, way)
        assert (seen.exit_code, seen.stdout.splitlines()[0]) == (0, f"{trial}: interrupted"), seen.output
        assert "What to do next\n" in seen.stdout


def test_an_explanation_is_one_json_object(folder: SweepFolder) -> None:
    (trial,) = (path.name for path in (folder.path / "trials").iterdir())
    told = json.loads(runner.invoke(explain.app, [str(folder.path), trial, "--json"]).stdout)
    assert (told["trial"], told["step"], told["steps"]) == (trial, 20, 40)
    assert told["next_steps"] == [{"what": "continue the sweep", "command": "python -m dmray.sweep FILE --resume"}]
    assert told["attempts"][0]["ended"] == "interrupted"


def test_what_names_no_trial_is_an_error_with_an_example(folder: SweepFolder, tmp_path: Path) -> None:
    nowhere = runner.invoke(explain.app, [str(tmp_path)])
    assert (nowhere.exit_code, "name the sweep and the trial: dmray explain" in nowhere.output) == (1, True)
    unknown = runner.invoke(explain.app, [str(folder.path), "nothing"])
    assert (unknown.exit_code, "there is no trial 'nothing'" in unknown.output) == (1, True)
    alone = runner.invoke(explain.app, [str(folder.path)])
    (trial,) = (path.name for path in (folder.path / "trials").iterdir())
    assert "a sweep, not a trial; add the trial's id" in alone.output
    assert alone.output.endswith(f":\n  {trial}\n")


def test_a_log_that_is_no_terminal_has_a_line_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("dmray.tests.lines")
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    log.addHandler(handler)
    log.propagate = False
    log.warning("a message\nof two lines, longer than %s", "a terminal is wide " * 9)
    (line,) = capsys.readouterr().err.splitlines()
    assert line[20:].startswith("warning: a message of two lines, longer than a terminal is wide a terminal")
