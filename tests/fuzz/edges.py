"""The places where dmray reads what it did not write: for each, how to make an odd input, and the code that reads it.

A new parser of files, options or answers gets an edge here.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
from collections.abc import Collection
from contextlib import closing, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import torch
import yaml

import dmray
from dmray.coordination.commands import read_command
from dmray.coordination.sweep_lock import find_driver
from dmray.datasets import Episodes, read_minari
from dmray.downloads.fetching import FetchSettings, RemoteFile, fetch
from dmray.downloads.manifest import Manifest, verify
from dmray.errors import DmrayError
from dmray.planning.calibration import calibration_file, calibration_of, load_calibration
from dmray.planning.manifest import read_manifest
from dmray.planning.plan import Plan
from dmray.planning.trial_filter import TrialFilter, select_trials
from dmray.policies import from_authors
from dmray.progress.changes import changes
from dmray.progress.explanation import explain
from dmray.progress.explanation_view import lines
from dmray.progress.summary import follower_of, summarize
from dmray.progress.sweep_handle import find_sweep
from dmray.progress.trial_status import TrialStatus, trial_statuses
from dmray.records import SweepFolder
from dmray.reporting.references import read_published
from dmray.sources import open_dataset, open_file
from dmray.sources.opening import file_rules
from dmray.specs import DatasetSpec
from dmray.specs.loading import load_sweep
from dmray.tasks import TASKS
from tests.downloads.server import Handler, serving
from tests.fuzz import environment_edges, record_edges, store_edges
from tests.fuzz.harness import Edge
from tests.fuzz.mutators import (
    mutate_bytes,
    mutate_json,
    mutate_near,
    mutate_path,
    mutate_value,
    mutate_yaml,
    odd_text,
    write_hdf5,
)
from tests.fuzz.templates import MINARI_ID, SWEEPS, Templates
from tests.sweeps import tiny_sweep

_ODD_TENSORS = (
    lambda: torch.full((3,), torch.nan),
    lambda: torch.zeros(0),
    lambda: torch.zeros(2, 2, dtype=torch.bool),
    lambda: torch.zeros(1, dtype=torch.complex64),
    lambda: torch.zeros(1).expand(2**20, 2**10),
    lambda: torch.tensor(float("inf")),
)


# ---- sweep files, options, arguments


def _sweep_file(rng: Random, folder: Path, templates: Templates) -> Path:
    path = folder / "sweep.yaml"
    if rng.random() < 0.03:
        path.touch()
        mutate_path(rng, path)
    else:
        path.write_bytes(mutate_yaml(rng, rng.choice(sorted(SWEEPS.glob("*.yaml"))).read_text()))
    return path


def _overrides(rng: Random, folder: Path, templates: Templates) -> list[str]:
    valid = (
        "training.steps=10",
        "seeds=[0, 1]",
        "grid.0.methods=[dm]",
        "grid.0.models.0.d_model=16",
        "name=x",
        "storage=runs",
    )
    return [odd_text(rng, *valid) for _ in range(rng.randint(1, 3))]


def _mapping(rng: Random, folder: Path, templates: Templates) -> Any:
    return mutate_value(rng, _sweep_mapping(rng))


def _near_sweep(rng: Random, folder: Path, templates: Templates) -> Any:
    """Most are accepted, so the plan, its cost and its texts get odd numbers too."""
    return mutate_near(rng, _sweep_mapping(rng))


def _sweep_mapping(rng: Random) -> Any:
    """A valid sweep with every field; or a file's own mapping, with the fields that it names."""
    path = rng.choice(sorted(SWEEPS.glob("*.yaml")))
    sweep = json.loads(load_sweep(path).model_dump_json())
    named = yaml.safe_load(path.read_text())
    return sweep if rng.random() < 0.5 else {name: sweep[name] for name in named if name in sweep}


def _read_near_sweep(given: Any) -> object:
    plan = dmray.plan_sweep(given)
    again = dmray.load_sweep(json.loads(plan.sweep.model_dump_json()))
    assert again == plan.sweep, "a sweep that is written and read again is another"
    assert len({trial.trial_id for trial in plan.trials}) == len(plan.trials)
    return str(plan), plan._repr_html_()


def _filter(rng: Random, folder: Path, templates: Templates) -> TrialFilter:
    only = (
        odd_text(rng, "method=dm|dt,seed=0", "dataset=hopper-*", "d_model=16", "trial=*")
        if rng.random() < 0.7
        else None
    )
    shard = odd_text(rng, "1/4", "3/3") if rng.random() < 0.5 else None
    return TrialFilter(only, shard)


def _arguments(rng: Random, folder: Path, templates: Templates) -> tuple[str, list[str]]:
    sweep = str(templates.copy_sweep(folder))
    trial = str(templates.trials(Path(sweep))[0])
    plan_only, quickstart = ["--plan", "--storage", str(folder / "out")], str(SWEEPS / "quickstart.yaml")
    valid: dict[str, list[list[str]]] = {
        "sweep": [
            [quickstart, *plan_only, "-o", "seeds=[0]", "--only", "method=dm", "--shard", "2/2"],
            [quickstart, *plan_only, "--on", "cpu-2:4", "--cpus", "8", "--gpus", "1", "--price", "2.5"],
        ],
        "status": [[sweep, "--json"], [sweep], [quickstart, "--storage", str(folder)]],
        "logs": [[sweep, "--trial", Path(trial).name], [sweep, Path(trial).name]],
        "explain": [[sweep, Path(trial).name, "--json"], [trial]],
        "report": [[sweep, "--into", str(folder / "report")]],
        "evaluate": [[trial, "--episodes", "2", "--target", "50", "--decode", "window"]],
        "data": [
            ["list", "hopper*"],
            ["stats", "hopper", "--task", "hopper"],
            ["verify", str(folder / "x"), "--task", "hopper"],
        ],
        "track": [["champions", sweep, "--mlflow-uri", "off"], ["replay", sweep, "--mlflow-uri", "off"]],
        "doctor": [["--help"]],
    }
    command = rng.choice(sorted(valid))
    words = list(rng.choice(valid[command]))
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(words))
        if words[at] not in plan_only[:1]:  # a sweep that is not only planned would run
            place = f"{folder}/" if words[at].startswith(str(folder)) else ""  # what is named may be written to
            odd = odd_text(rng, words[at].removeprefix(place)).replace("\0", "")
            words[at] = place + odd.replace("..", "") if place else odd or "x"
    if command == "sweep" and "--plan" not in words:
        words.append("--plan")
    return command, words


def _run_command(call: tuple[str, list[str]]) -> None:
    command, words = call
    app = import_module(f"dmray.cli.{command}").app
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            app(words, prog_name=f"dmray {command}")
        except SystemExit as ended:
            if ended.code not in (0, None):
                raise
    assert "\x1b" not in printed.getvalue(), "an escape code reaches the terminal"


# ---- data sets


def _hdf5(rng: Random, folder: Path, templates: Templates) -> Path:
    count = rng.choice((1, 30, 100))
    draw = np.random.default_rng(rng.randrange(2**32))
    arrays = {
        "observations": draw.normal(size=(count, 11)).astype(np.float32),
        "actions": draw.uniform(-1, 1, (count, 3)).astype(np.float32),
        "rewards": draw.normal(size=count).astype(np.float32),
        "terminals": draw.random(count) < 0.05,
        "timeouts": np.arange(1, count + 1) % 25 == 0,
    }
    path = folder / "data.hdf5"
    write_hdf5(rng, path, arrays)
    return path


def _read_hdf5(path: Path) -> object:
    return _checked(open_file(path, TASKS["hopper"]).episodes)


def _checked(episodes: Episodes) -> Episodes:
    assert np.isfinite(episodes.observations).all(), "values that are not finite were accepted"
    assert np.isfinite(episodes.rewards).all(), "rewards that are not finite were accepted"
    assert episodes.starts[-1] == len(episodes.observations) == len(episodes.rewards) == len(episodes.actions)
    return episodes


def _minari(rng: Random, folder: Path, templates: Templates) -> Path:
    root = folder / "minari"
    shutil.copytree(templates.minari, root)
    data = root / MINARI_ID / "data"
    metadata, main = data / "metadata.json", data / "main_data.hdf5"
    match rng.randrange(5):
        case 0:
            metadata.write_bytes(mutate_json(rng, metadata.read_text()))
        case 1:
            mutate_path(rng, rng.choice((metadata, main)))
        case 2:
            main.write_bytes(mutate_bytes(rng, main.read_bytes()))
        case _:
            with h5py.File(main, "r") as file:
                group = rng.choice(sorted(file))
                arrays = {name: item[()] for name, item in file[group].items() if isinstance(item, h5py.Dataset)}
            odd = folder / "odd.hdf5"
            write_hdf5(rng, odd, arrays)
            try:
                with h5py.File(odd, "r") as source, h5py.File(main, "a") as file:
                    for name in arrays:
                        del file[group][name]
                    for name in source:
                        source.copy(name, file[group], expand_soft=False, expand_external=False)
            except (OSError, RuntimeError, KeyError, ValueError):
                main.write_bytes(odd.read_bytes())
    return root


def _read_minari(root: Path) -> object:
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    return read_minari(MINARI_ID, file_rules(TASKS["hopper"]))


def _read_minari_address(root: Path) -> object:
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    spec = DatasetSpec(name="x", task="minari-hopper", path=f"minari://{MINARI_ID}")
    return _checked(open_dataset(spec, TASKS["minari-hopper"], root).episodes)


def _checked_file(rng: Random, folder: Path, templates: Templates) -> list[str]:
    """`dmray data verify` or `stats` of a file."""
    path = _hdf5(rng, folder, templates)
    return [rng.choice(("verify", "stats")), str(path), "--task", "hopper"]


# ---- the folder of a sweep


def _trial_folder(rng: Random, folder: Path, templates: Templates) -> Path:
    sweep = templates.copy_sweep(folder)
    files = sorted(path for path in templates.trials(sweep)[0].rglob("*") if path.is_file())
    for _ in range(rng.randint(1, 2)):
        path = rng.choice([*files, *[file for file in files if file.suffix in (".jsonl", ".json")] * 2])
        if not path.is_file():
            continue
        if rng.random() < 0.15:
            mutate_path(rng, path)
        elif path.suffix == ".jsonl" and rng.random() < 0.7:
            lines = path.read_text().splitlines()
            at = rng.randrange(len(lines))
            lines[at] = mutate_json(rng, lines[at]).decode(errors="surrogateescape").replace("\n", " ")
            path.write_bytes("\n".join([*lines, ""]).encode(errors="surrogateescape"))
        elif path.suffix == ".json" and rng.random() < 0.7:
            path.write_bytes(mutate_json(rng, path.read_text()))
        else:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    return sweep


def _read_trial_folder(sweep: Path) -> object:
    folder = SweepFolder(sweep.parent, sweep.name)
    manifest = read_manifest(folder)
    assert manifest is not None
    plan = Plan(manifest.sweep, manifest.trials)
    damaged = sorted(path.name for path in (sweep / "trials").iterdir())[0]
    statuses = trial_statuses(plan, folder)
    others = {status for trial_id, status in statuses.items() if trial_id != damaged}
    assert others == {TrialStatus.FINISHED}, "a damaged trial changed the status of another"
    summarize(follower_of(folder))
    with find_sweep(str(sweep)) as found:
        assert list(lines(explain(found, damaged), 80))
    results = dmray.load_results(sweep)
    scored = results.trials.set_index("trial_id").status
    assert all(scored[trial_id] == "finished" for trial_id in statuses if trial_id != damaged)
    return results.scores, results.curves, results.episodes


def _write_report(sweep: Path) -> object:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return dmray.write_report(sweep, into=sweep.parent / "report")


def _published(rng: Random, folder: Path, templates: Templates) -> Path:
    table = folder / "published.csv"
    content = (SWEEPS.parent / "dmray/reporting/published/corl.csv").read_bytes()
    cells = content.decode().split("\n", 3)[1].split(",")
    cells[rng.randrange(len(cells))] = rng.choice(("1e9", "-5", "", '"', "\x00", "9" * 40, odd_text(rng, "12.5")))
    row = ",".join(cells).encode(errors="surrogatepass")
    table.write_bytes(rng.choice((content, mutate_bytes(rng, content), content.split(b"\n")[0] + b"\n" + row + b"\n")))
    return table


def _sweep_files(rng: Random, folder: Path, templates: Templates) -> Path:
    sweep = templates.copy_sweep(folder)
    files = sorted(path for path in sweep.iterdir() if path.is_file() and not path.name.endswith(".lock"))
    driver = sweep / ".driver.json"
    if not driver.exists():
        driver.write_text(json.dumps({"host": "here", "pid": 1, "started_s": 0.0, "time_s": 0.0, "token": "x"}))
        files.append(driver)
    path = rng.choice(files)
    if rng.random() < 0.2:
        mutate_path(rng, path)
    else:
        text = path.read_bytes()
        try:
            path.write_bytes(mutate_json(rng, text.decode()))
        except ValueError:
            path.write_bytes(mutate_bytes(rng, text))
    return sweep


def _read_sweep_files(sweep: Path) -> object:
    folder = SweepFolder(sweep.parent, sweep.name)
    find_driver(folder)
    read_command(folder)
    plan = dmray.plan_sweep(tiny_sweep(sweep.parent, training={"steps": 10, "batch_size": 4}))
    changes(plan, folder, trial_statuses(plan, folder))
    read_manifest(folder)
    return summarize(follower_of(folder))


# ---- policies


def _checkpoint_bytes(rng: Random, folder: Path, templates: Templates) -> Path:
    stored = templates.trials(templates.sweep)[rng.randrange(2)] / "checkpoints"
    path = folder / rng.choice(("final.pt", "last.pt", "best.pt"))
    path.write_bytes(mutate_bytes(rng, (stored / path.name).read_bytes()))
    if rng.random() < 0.1:
        mutate_path(rng, path)
    return path


def _authors_weights(rng: Random, folder: Path, templates: Templates) -> tuple[str, Any]:
    method = rng.choice(("dt", "hdm", "hdt", "dm"))
    with np.load(Path(__file__).parents[1] / "golden" / f"{method}.npz", allow_pickle=False) as golden:
        weights: dict[str, dict[str, Any]] = {}
        for key in (key for key in golden.files if key.startswith("weights/")):
            _, stage, name = key.split("/")
            weights.setdefault(stage, {})[name] = torch.from_numpy(golden[key].astype(np.float32))
    odd = [*_ODD_TENSORS, lambda: None, lambda: 1.0, lambda: "x", list]
    return method, mutate_value(rng, weights, odd=lambda r: r.choice(odd)())


# ---- downloads and other files


def _pins(rng: Random, folder: Path, templates: Templates) -> Path:
    data = folder / "data"
    data.mkdir()
    (data / "a.hdf5").write_bytes(b"content")
    verify("a.hdf5", data)
    path = Manifest(data).path
    path.write_bytes(mutate_json(rng, path.read_text()))
    if rng.random() < 0.1:
        mutate_path(rng, path)
    return data


def _read_pins(data: Path) -> object:
    fetch(RemoteFile("a.hdf5", "http://127.0.0.1:9/a.hdf5"), data, FetchSettings(offline=True))
    return verify("a.hdf5", data)


def _mirrors(rng: Random, folder: Path, templates: Templates) -> tuple[Path, list[str], Random]:
    mirrors = [
        odd_text(rng, "http://127.0.0.1:9", "file:///nowhere", "https://localhost:1/x")
        for _ in range(rng.randint(0, 2))
    ]
    return folder, mirrors, rng


class _OddServer(Handler):
    rng: Random

    def _answer(self) -> None:
        rng, body = self.rng, self.rng.randbytes(self.rng.choice((0, 10, 5000)))
        self.send_response(rng.choice((200, 200, 206, 204, 301, 302, 304, 400, 401, 403, 404, 416, 429, 500, 503)))
        for name, values in (
            ("Content-Length", ("0", "10", "99999999999", "-1", "x", "")),
            ("Content-Range", ("bytes 0-9/10", "bytes */*", "bytes 5-1/3", "x")),
            ("Location", ("/", "http://127.0.0.1:9/", "file:///etc/passwd", "x")),
            ("Content-Encoding", ("gzip", "br", "x")),
            ("ETag", ("a", "")),
            ("Accept-Ranges", ("bytes", "none")),
        ):
            if rng.random() < 0.5:
                self.send_header(name, rng.choice(values))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
        self.close_connection = True

    do_GET = do_HEAD = _answer


def _fetch(given: tuple[Path, list[str], Random]) -> object:
    folder, mirrors, rng = given
    with serving() as server:
        server.RequestHandlerClass = type("_Odd", (_OddServer,), {"rng": rng})
        settings = FetchSettings(tuple(mirrors), attempts=2, first_pause_s=0.0)
        return fetch(RemoteFile("a.hdf5", f"{server.address}/a.hdf5"), folder, settings)


def _calibration(rng: Random, folder: Path, templates: Templates) -> Path:
    point = {"what": "x", "flops": 1e6, "layers": 1, "seconds": 0.1}
    given = {
        "version": 2,
        "hardware": "fuzz",
        "made": "today",
        "cpus": 2,
        "gpus": 0,
        "training": {"cpu": {"mamba": [point, point]}},
        "decisions": {"cpu": {"window": {"mamba": [point]}}},
        "env_step_s": {"mujoco": 1e-5},
    }
    path = calibration_file("fuzz")
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    path.write_bytes(mutate_json(rng, json.dumps(given)))
    if rng.random() < 0.1:
        mutate_path(rng, path)
    return path


# ---- MLflow


def _mlflow_database(rng: Random, folder: Path, templates: Templates) -> tuple[Path, str]:
    sweep = templates.copy_sweep(folder)
    database = folder / "mlflow.db"
    shutil.copyfile(templates.folder / "mlflow.db", database)
    match rng.randrange(4):
        case 0:
            mutate_path(rng, database)
        case 1:
            database.write_bytes(mutate_bytes(rng, database.read_bytes()))
        case _:
            with closing(sqlite3.connect(database)) as connection:
                tables = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
                statement = rng.choice(
                    (
                        "update alembic_version set version_num = 'ffffffffffff'",
                        "delete from alembic_version",
                        "drop table alembic_version",
                        f"drop table {rng.choice(tables)}",
                        f"alter table {rng.choice(tables)} rename to odd",
                        "update experiments set artifact_location = 'odd://x'",
                        "update experiments set lifecycle_stage = 'deleted'",
                        "create table foreign_table (x int)",
                    )
                )
                connection.execute("pragma foreign_keys = off")
                connection.execute(statement)
                connection.commit()
    return sweep, f"sqlite:///{database}"


def _mlflow_answers(rng: Random, folder: Path, templates: Templates) -> tuple[Path, Random]:
    return templates.copy_sweep(folder), rng


class _OddTracking(_OddServer):
    def _answer(self) -> None:
        rng = self.rng
        run = {"info": {"run_id": "a" * 32, "experiment_id": "1", "status": "RUNNING"}, "data": {"tags": []}}
        answers = {"experiment": {"experiment_id": "1", "name": "x"}, "run": run, "runs": [run], "experiment_id": "1"}
        odd = (
            b"",
            b"null",
            b"<html>",
            b"[]",
            b"{",
            json.dumps(answers).encode(),
            mutate_json(rng, json.dumps(answers)),
        )
        body = rng.choice(odd)
        if self.headers.get("Content-Length", "0").isdecimal():
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(rng.choice((200, 200, 200, 400, 401, 403, 404, 500, 503)))
        self.send_header("Content-Type", rng.choice(("application/json", "text/html", "x")))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = _answer


def _mirror_to_answers(given: tuple[Path, Random]) -> object:
    sweep, rng = given
    with serving() as server:
        server.RequestHandlerClass = type("_Odd", (_OddTracking,), {"rng": rng})
        return _mirror_to((sweep, server.address))


def _mirror_to(given: tuple[Path, str]) -> object:
    """Bring a finished sweep into the MLflow at an address."""
    from dmray.mlflow_mirror.mirror import MlflowMirror

    sweep, uri = given
    folder = SweepFolder(sweep.parent, sweep.name)
    manifest = read_manifest(folder)
    assert manifest is not None
    return MlflowMirror.open(uri, folder, manifest.sweep, manifest.trials).close()


def prepare(folder: Path, edges: Collection[str]) -> Templates:
    """What the inputs of `edges` are made from."""
    return Templates.make(folder, mlflow="mlflow-database" in edges)


EDGES = {
    edge.name: edge
    for edge in (
        Edge("sweep-file", _sweep_file, lambda path: dmray.plan_sweep(path).trials),
        Edge("sweep-mapping", _mapping, lambda given: dmray.plan_sweep(given).trials),
        Edge("near-sweep", _near_sweep, _read_near_sweep),
        Edge("override", _overrides, lambda given: load_sweep(SWEEPS / "quickstart.yaml", given)),
        Edge("filter", _filter, lambda given: select_trials(dmray.plan_sweep(SWEEPS / "quickstart.yaml"), given)),
        Edge("command-line", _arguments, _run_command, (DmrayError, SystemExit), slow=4),
        Edge("hdf5", _hdf5, _read_hdf5),
        Edge("minari", _minari, _read_minari, slow=2),
        Edge("minari-address", _minari, _read_minari_address, slow=2),
        Edge("data-commands", _checked_file, lambda words: _run_command(("data", words)), (SystemExit,), slow=4),
        Edge("trial-folder", _trial_folder, _read_trial_folder, slow=2),
        Edge("report", _trial_folder, _write_report, slow=20),
        Edge("published-results", _published, read_published),
        Edge("reports", record_edges.copied, record_edges.report_several, slow=20),
        Edge("several-sweeps", record_edges.copied, record_edges.read_several, slow=4),
        Edge("ledger", record_edges.ledger, record_edges.read_ledgers, slow=2),
        Edge("episode-table", record_edges.episode_tables, record_edges.read_tables, slow=2),
        Edge("sweep-folder", _sweep_files, _read_sweep_files, slow=2),
        Edge("checkpoint", _checkpoint_bytes, dmray.load_policy),
        Edge("checkpoint-content", record_edges.checkpoint_content, record_edges.load_and_act),
        Edge("authors-weights", _authors_weights, lambda given: from_authors(*given)),
        Edge("pinned-checksums", _pins, _read_pins),
        Edge("mirror", _mirrors, _fetch, slow=4, keeps_parts=True),
        Edge("mlflow-database", _mlflow_database, _mirror_to, slow=60),
        Edge("mlflow-answers", _mlflow_answers, _mirror_to_answers, slow=60),
        Edge("store-view", store_edges.in_memory, store_edges.look_at, slow=4),
        Edge("store-folder-view", store_edges.in_folder, store_edges.look_at, slow=4),
        Edge("store-copy", store_edges.in_memory, store_edges.copy_of, slow=4),
        Edge("store-folder-copy", store_edges.in_folder, store_edges.copy_of, slow=4),
        Edge("store-rungs", store_edges.in_memory, store_edges.scores_at_rung, slow=4),
        Edge("environment", environment_edges.variables, environment_edges.read_variables, slow=60),
        Edge("package", environment_edges.package, environment_edges.use_package, slow=4),
        Edge("calibration", _calibration, lambda path: (load_calibration("fuzz"), calibration_of(str(path)))),
    )
}
