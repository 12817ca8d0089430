from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from dmray.cli.data import app
from dmray.cli.entry import run_command
from dmray.errors import DatasetError
from dmray.tasks import DATASETS, find_names, tasks_with_sizes
from tests.sweeps import sweep_file


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DMRAY_DATASETS", str(tmp_path / "datasets"))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "made.hdf5"
    done = run("make", "--task", "maze2d-open", "--behaviour", "expert", "--transitions", "600", "--out", str(path))
    assert done.exit_code == 0, done.output
    return path


def test_list_names_every_data_set_with_its_protocol_and_scores() -> None:
    shown = run("list").output
    assert all(name in shown for name in DATASETS)
    hopper = next(line for line in shown.splitlines() if line.startswith("hopper-medium-v2"))
    assert all(word in hopper for word in ("d4rl-mujoco", "Hopper-v4", "1000", "-20.2723", "3234.3", "3600, 1800"))


def test_list_can_be_narrowed() -> None:
    lines = run("list", "*-medium-v*", "--protocol", "d4rl-bullet").output.splitlines()[1:]
    assert [line.split()[0] for line in lines] == [
        f"bullet-{robot}-medium-v0" for robot in ("hopper", "halfcheetah", "walker2d", "ant")
    ]


def test_list_takes_several_names_and_lists_each_once() -> None:
    lines = run("list", "hopper-medium-v2", "hopper-m*-v2", "kitchen-mixed-v0").output.splitlines()[1:]
    names = [line.split()[0] for line in lines if "data make" not in line]
    assert (names[0], names[-1], len(set(names))) == ("hopper-medium-v2", "kitchen-mixed-v0", len(names))


def test_list_and_the_help_of_make_say_what_can_be_recorded() -> None:
    words = "medium | expert | medium-expert | medium-replay"
    assert f"hopper, walker2d: data make --behaviour random | {words}" in run("list", "hopper", "walker2d").output
    assert "data make" not in run("list", "hopper", "--protocol", "minari").output
    shown = " ".join(run("make", "--help").output.replace("│", " ").split())
    said = "What acts: random (any task); expert, play (kitchen); medium, expert, medium-expert, medium-replay (hopper,"
    assert said in shown
    assert "halfcheetah, walker2d); play, expert, mixed (maze2d)." in shown


def test_made_locomotion_data_are_verified_and_their_statistics_shown(tmp_path: Path) -> None:
    path = str(tmp_path / "hopper.hdf5")
    options = ["--task", "hopper", "--behaviour", "medium-replay", "--transitions", "600", "--out", path]
    assert run("make", *options).exit_code == 0
    verified, shown = run("verify", path), run("stats", path)
    assert (verified.exit_code, "Hopper-v4 reproduces it" in verified.output) == (0, True), verified.output
    assert "recorded by dmray in this task" in shown.output


@pytest.mark.parametrize("command", ["fetch", "verify", "list"])
def test_an_unknown_name_is_told_with_the_nearest(command: str) -> None:
    done = run(command, "hoper-medium-v2")
    assert done.exit_code == 1
    assert "did you mean 'hopper-medium-v2'" in done.output


def test_what_was_made_is_verified_and_replayed(made: Path) -> None:
    done = run("verify", str(made), "--task", "maze2d-open")
    assert done.exit_code == 0, done.output
    assert "600 transitions" in done.output
    assert "open reproduces it: 4 of 4 replayed episodes" in done.output


def test_a_file_whose_actions_do_not_lead_where_it_says_fails_verification(made: Path) -> None:
    with h5py.File(made, "r+") as file:
        file["actions"][:] = -file["actions"][:]
    done = run("verify", str(made), "--task", "maze2d-open")
    assert done.exit_code == 1
    assert "does not reproduce it" in done.output
    assert run("verify", str(made), "--task", "maze2d-open", "--no-replay").exit_code == 0


def test_a_file_of_another_task_fails_verification(made: Path) -> None:
    done = run("verify", str(made), "--task", "hopper")
    assert done.exit_code == 1
    assert "is it the file of another task?" in done.output


def test_a_number_that_is_another_where_the_simulator_starts_fails_verification(made: Path) -> None:
    with h5py.File(made, "r+") as file:
        file["observations"][:, 1] = 0.7
    done = run("verify", str(made), "--task", "maze2d-open", "--no-replay")
    assert done.exit_code == 1
    assert "observation number 1 (from 0) is 0.7 ± 1e-06 in the file, but " in done.output.replace("\n", " ")


def test_what_was_dropped_is_said_by_verify_and_stats(made: Path) -> None:
    with h5py.File(made, "r+") as file:
        file["timeouts"][-1] = False
    for command in ("verify", "stats"):
        done = run(command, str(made), "--task", "maze2d-open")
        assert done.exit_code == 0, done.output
        assert "warning: rows: the last 150 of 600 (25.0%) belong to no episode that ends" in done.output


def test_a_file_of_dmray_says_its_task_and_otherwise_the_tasks_of_its_sizes_are_listed(made: Path) -> None:
    done = run("verify", str(made))
    assert done.exit_code == 0, done.output
    assert "task maze2d-open: recorded by dmray in this task" in done.output
    with h5py.File(made, "r+") as file:
        del file.attrs["task"]
    for command in ("verify", "stats"):
        refused = run(command, str(made))
        assert refused.exit_code == 1
        listed = "as in 4 tasks; choose one with --task: maze2d-open, maze2d-umaze, maze2d-medium, maze2d-large"
        assert listed in refused.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("observation_dim", "action_dim", "tasks"),
    [
        (11, 3, ["hopper"]),
        (111, 8, ["ant"]),
        (27, 8, ["ant"]),
        (28, 8, ["bullet-ant"]),
        (17, 6, ["halfcheetah", "walker2d"]),
        (60, 9, ["kitchen-complete", "kitchen-partial", "kitchen-mixed"]),
        (11, 4, []),
    ],
)
def test_the_sizes_of_a_file_name_the_tasks_that_it_may_be_of(
    observation_dim: int, action_dim: int, tasks: list[str]
) -> None:
    assert [task.name for task in tasks_with_sizes(observation_dim, action_dim)] == tasks


def test_the_task_of_a_file_is_found_by_its_sizes(tmp_path: Path) -> None:
    path = tmp_path / "mine.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["actions"] = np.zeros((4, 11), np.float32), np.zeros((4, 3), np.float32)
        file["rewards"], file["terminals"] = np.zeros(4, np.float32), np.zeros(4, bool)
        file["timeouts"] = np.array([False, False, False, True])
    done = run("stats", str(path))
    assert done.exit_code == 0, done.output
    assert "task hopper: the only task with rows of 11 observed numbers and 3 of an action" in done.output
    with h5py.File(path, "r+") as file:
        file.attrs["task"] = "walker2d"
    wrong = run("stats", str(path))
    assert (wrong.exit_code, "the task has 17 numbers a row" in wrong.output.replace("\n", " ")) == (1, True)


def test_list_loads_nothing_that_reads_data_or_trains() -> None:
    heavy = ("torch", "ray", "mlflow", "mujoco", "numpy", "h5py", "fsspec", "envpool", "gymnasium")
    code = (
        "import sys; from dmray.__main__ import main\nsys.argv = ['dmray', 'data', 'list', 'maze2d']\n"
        f"try: main()\nexcept SystemExit: print([name for name in {heavy} if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert "maze2d-open-v0" in ran.stdout


@pytest.mark.parametrize(
    ("given", "protocol", "first", "count"),
    [
        ("hopper", "d4rl-mujoco", "hopper-random-v2", 11),
        ("hopper", None, "bullet-hopper-random-v0", 19),
        ("bullet-hopper", None, "bullet-hopper-random-v0", 5),
        ("maze2d", None, "maze2d-open-v0", 4),
        ("antmaze-umaze", None, "antmaze-umaze-v2", 2),
        ("hopper-medium-v2", None, "hopper-medium-v2", 1),
        ("hopper-*", "d4rl-mujoco", "hopper-random-v2", 11),
    ],
)
def test_a_name_a_pattern_a_task_and_a_family_stand_for_data_sets(
    given: str, protocol: str | None, first: str, count: int
) -> None:
    names, tasks = find_names(given, protocol)
    assert (names[0], len(names), tasks) == (first, count, [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "hoper"], "unknown data set 'hoper', did you mean 'hopper'?"),
        (["list", "kitchen", "--protocol", "minari"], "'kitchen' has no data set of protocol minari, only of"),
        (["fetch", "antmaze-umaze-v0"], "use 'antmaze-umaze-v2'"),
        (["verify", "maze2d"], "'maze2d': none of its 4 data sets is on this machine"),
    ],
)  # fmt: skip
def test_names_without_data_sets_are_errors(words: list[str], message: str) -> None:
    done = run(*words)
    assert (done.exit_code, message in done.output.replace("\n", " ")) == (1, True), done.output


def test_a_family_is_fetched_and_one_failure_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(name: str, *_: object) -> str:
        if name != "maze2d-umaze-v1":
            raise DatasetError(f"{name}: no mirror has it")
        return "/a/file"

    monkeypatch.setattr("dmray.sources.fetch_published", fetched)
    done = run("fetch", "maze2d", "maze2d-umaze-v1")
    assert (done.exit_code, done.output.count("error:")) == (1, 3)
    assert done.stdout == "maze2d-umaze-v1: /a/file\n"


def test_what_a_sweep_file_names_is_fetched_or_said_to_be_made_or_read_elsewhere(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmray.sources.fetch_published", lambda name, *_: f"/a/{name}")
    monkeypatch.setattr("dmray.sources.put_published", lambda name, to, *_: f"{to}/{name}")
    datasets = [
        {"name": "maze2d-umaze-v1"},
        {"name": "half", "catalog": "maze2d-umaze-v1", "fraction": 0.5},
        {"name": "own", "task": "maze2d-open", "path": str(made)},
        {"name": "stored", "task": "maze2d-open", "path": "s3://b/stored.hdf5"},
        {"name": "other", "task": "hopper", "path": "minari://mujoco/hopper/expert-v0"},
        {"name": "random", "task": "hopper", "generate": {"behaviour": "random", "transitions": 100}},
    ]
    file = sweep_file(tmp_path, datasets=datasets)
    stored, random = "stored: is read from s3://b/stored.hdf5, which", "random: is recorded when the sweep starts\n"
    here = run("fetch", "--sweep", str(file))
    assert here.exit_code == 0, here.output
    assert [line.partition(" the sweep file")[0] for line in here.stdout.splitlines()] == [
        f"own: is read from {made}, which",
        stored,
        random.strip(),
        "maze2d-umaze-v1: /a/maze2d-umaze-v1",
        "minari://mujoco/hopper/expert-v0: /a/minari://mujoco/hopper/expert-v0",
    ]
    put = run("fetch", "--sweep", str(file), "--to", f"{tmp_path}/shared")
    assert (put.exit_code, stored in put.stdout, random in put.stdout) == (0, True, True), put.output
    assert f"maze2d-umaze-v1: {tmp_path}/shared/maze2d-umaze-v1\n{made}: {tmp_path}/shared/made.hdf5\n" in put.stdout
    assert (tmp_path / "shared" / "made.hdf5").read_bytes() == made.read_bytes()
    changed = run("fetch", "--sweep", str(file), "-o", "datasets=[hopper-medium-v2]")
    assert changed.stdout == "hopper-medium-v2: /a/hopper-medium-v2\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "nothing to fetch: give names of data sets, or a sweep file with --sweep"),
        (("--sweep", "quickstat"), "no such sweep file"),
        (("--sweep", "quickstart", "--protocol", "made"), "--protocol made: --sweep names data sets one by one"),
        (
            ("maze2d-umaze-v1", "-o", "seeds=[1]"),
            "-o seeds=[1]: replaces a value of a sweep file",
        ),
        (("--sweep", "quickstart", "-o", "stoarge=a"), "stoarge"),
    ],
)
def test_a_fetch_of_nothing_is_an_error(words: tuple[str, ...], message: str) -> None:
    done = run("fetch", *words)
    assert (done.exit_code, message in done.output.replace("\n", " ")) == (1, True), done.output


def test_stats_are_of_the_episodes(made: Path) -> None:
    shown = run("stats", str(made), "--task", "maze2d-open").output
    assert "4 episodes, 600 transitions" in shown
    with h5py.File(made) as file:
        mean = float(np.asarray(file["rewards"]).reshape(4, 150).sum(axis=1).mean())
    row = next(line for line in shown.splitlines() if line.startswith("return"))
    assert f"{mean:,.3f}" in row
    assert "target returns 100, 50; the highest return in the data is " in shown


def test_a_published_file_is_verified_against_its_first_checksum(tmp_path: Path) -> None:
    path = tmp_path / "datasets" / "maze2d-open-sparse.hdf5"
    run("make", "--task", "maze2d-open", "--behaviour", "play", "--transitions", "600", "--out", str(path))
    assert run("verify", "maze2d-open-v0").exit_code == 0
    with h5py.File(path, "r+") as file:
        file["rewards"][0] = 1.0
    done = run("verify", "maze2d-open-v0")
    assert done.exit_code == 1
    assert "bad maze2d-open-v0" in done.output


def test_a_missing_file_is_an_error_that_says_how_to_fetch_it(tmp_path: Path) -> None:
    done = run("verify", "maze2d-umaze-v1")
    assert done.exit_code == 1
    assert "python -m dmray.data fetch maze2d-umaze-v1" in done.output


def test_random_episodes_of_any_task_can_be_made(tmp_path: Path) -> None:
    path = tmp_path / "hopper.hdf5"
    assert run("make", "--task", "hopper", "--transitions", "200", "--out", str(path)).exit_code == 0
    with h5py.File(path) as file:
        assert len(file["rewards"]) >= 200
        assert "not D4RL's data" in file.attrs["note"]


def test_a_behaviour_that_a_task_has_not_is_told() -> None:
    done = run("make", "--task", "hopper", "--behaviour", "exprt", "--out", "x.hdf5")
    assert done.exit_code == 1
    assert "unknown behaviour 'exprt', did you mean 'expert'?" in done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["list", "--protocol", "d4rl-mujco"], "unknown protocol 'd4rl-mujco', did you mean 'd4rl-mujoco'?"),
        (
            ["make", "--task", "hopper", "--out", "/proc/nowhere/x.hdf5"],
            "--out /proc/nowhere/x.hdf5: cannot be written",
        ),
        (["make", "--task", "hopper", "--out", ".", "--target-return", "5"], "--out .: is a folder; give a file in it"),
        (["make", "--task", "hopper", "--out", "x.hdf5", "--checkpoint", "none.pt"], "none.pt: no such file"),
        (["make", "--task", "hopper", "--out", "x.hdf5", "--target-return", "5"], "give a --checkpoint"),
    ],
)
def test_mistakes_are_errors_before_anything_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*options)
    assert (done.exit_code, list(tmp_path.glob("**/*.hdf5"))) == (1, [])
    assert message in done.output.replace("\n", " ")


def test_an_existing_file_is_not_overwritten(made: Path) -> None:
    before = made.read_bytes()
    done = run("make", "--task", "hopper", "--transitions", "10", "--out", str(made))
    assert done.exit_code == 1
    assert "the file exists; remove it" in done.output.replace("\n", " ")
    assert made.read_bytes() == before


def test_a_data_set_comes_from_a_mirror_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror"
    made = mirror / "hopper_medium-v2.hdf5"
    assert run("make", "--task", "hopper", "--transitions", "400", "--out", str(made)).exit_code == 0
    monkeypatch.setenv("DMRAY_MIRRORS", mirror.as_uri())
    monkeypatch.setenv("DMRAY_OFFLINE", "0")
    done = run("fetch", "hopper-medium-v2")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "datasets" / made.name).read_bytes() == made.read_bytes()
    verified = run("verify", "hopper-medium-*")  # of the pattern, only what is here
    assert verified.exit_code == 0, verified.output
    assert "as it was first seen" in verified.output
    assert "Hopper-v4 reproduces it" in verified.output


def test_a_place_that_cannot_be_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, argv, said in (
        ("~nobody-of-that-name/x", ["dmray", "list", "hopper*"], "that home folder is not known"),
        ("/" + "x" * 300, ["dmray", "list", "hopper*"], "cannot be read (File name too long); correct the path"),
        ("/nowhere", ["dmray", "verify", "x" * 300, "--task", "hopper"], "cannot be read (File name too long)"),
    ):
        monkeypatch.setenv("DMRAY_DATASETS", variable)
        monkeypatch.setattr("sys.argv", argv)
        monkeypatch.setattr("dmray.cli.entry.guard_standard_streams", lambda only_prints: None)
        with pytest.raises(SystemExit) as ended:
            run_command("data")
        assert ended.value.code == 1
        assert said in capsys.readouterr().err.replace("\n", " ")
