"""`dmray submit`: what is sent to a cluster, what is refused before, and Ray's answers in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import AuthenticationError
from typer.testing import CliRunner

from dmray.cli import submit, sweep
from dmray.errors import ClusterError
from dmray.on_ray import submission
from dmray.on_ray.submission import JobClient, Submission, explained
from dmray.specs import load_sweep
from tests.sweeps import sweep_file

runner = CliRunner()


class Cluster:
    """Stands in for the client of a cluster's dashboard; remembers the job that it is sent."""

    sent: dict[str, Any]
    version = ray.__version__
    jobs: list[Any]

    def __init__(self, address: str) -> None:
        pass

    def ray_version(self) -> str:
        return self.version

    def list_jobs(self) -> list[Any]:
        return type(self).jobs

    def submit_job(self, *, runtime_env: dict[str, Any], **job: Any) -> str:
        (file,) = Path(runtime_env["working_dir"]).iterdir()
        type(self).sent = job | {"file": file.name, "sweep": load_sweep(file), "variables": runtime_env["env_vars"]}
        return job["submission_id"]


class Job:
    """One of the cluster's jobs."""

    def __init__(self, number: int, ended: bool) -> None:
        self.submission_id, self.metadata, self.status = f"dmray-tiny-{number}", {"dmray.sweep": "tiny"}, self
        self.is_terminal = lambda: ended


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> type[Cluster]:
    monkeypatch.setattr(submission, "_Client", Cluster)
    monkeypatch.setattr(Cluster, "jobs", [], raising=False)
    monkeypatch.setattr(Cluster, "sent", {}, raising=False)
    return Cluster


def test_a_submission_names_what_cannot_be_on_the_cluster(tmp_path: Path) -> None:
    """Before anything is sent."""
    file = str(sweep_file(tmp_path))
    relative = runner.invoke(submit.app, [file, "--", "-o", "storage=runs"])
    assert "storage 'runs' is relative" in relative.output
    elsewhere = runner.invoke(submit.app, [file, "--", "-o", "datasets.0={name: x, task: hopper, path: x.hdf5}"])
    assert "path 'x.hdf5' is relative" in elsewhere.output
    misspelt = runner.invoke(submit.app, [file, "--", "-o", "training.stepps=1"])
    assert "did you mean 'steps'?" in misspelt.output
    for storage in ("/mnt/runs", "s3://bucket/runs"):
        nobody = runner.invoke(submit.app, [file, "--address", "http://127.0.0.1:1", "--", "--storage", storage])
        assert "no Ray dashboard" in nobody.output
    assert {ran.exit_code for ran in (relative, elsewhere, misspelt, nobody)} == {1}


def test_a_submitted_sweep_is_one_file_with_the_values_of_the_file_that_it_extends(
    tmp_path: Path, cluster: type[Cluster]
) -> None:
    sweep_file(tmp_path).rename(tmp_path / "base.yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: base.yaml\nname: mine\nseeds: [4]\nstorage: /mnt/runs")
    done = runner.invoke(submit.app, [str(mine), "--", "-o", "training.steps=9"])
    assert done.exit_code == 0, done.output
    sent = cluster.sent
    assert (sent["file"], sent["sweep"]) == ("mine.yaml", load_sweep(mine)), "-o is among the options of the job"
    assert sent["entrypoint"] == "python -m dmray.sweep mine.yaml --address auto --resume -o training.steps=9"
    assert runner.invoke(submit.app, ["quickstart", "--", "--storage", "/mnt/runs"]).exit_code == 0
    sent = cluster.sent
    assert (sent["file"], sent["sweep"]) == ("quickstart.yaml", load_sweep("quickstart"))


def test_a_submitted_sweep_goes_on_where_it_was() -> None:
    submission = Submission("tiny", "my sweep.yaml", "name: tiny", ["--storage", "/mnt/runs", "-o", "seeds=[0, 1]"])
    assert submission.entrypoint == (
        "python -m dmray.sweep 'my sweep.yaml' --address auto --resume --storage /mnt/runs -o 'seeds=[0, 1]'"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--storage", "s3://b/r", "--local"], "--local does not use the cluster"),
        (["--storage", "s3://b/r", "--plan"], "--plan runs nothing; give it to dmray.sweep here"),
        (["--storage", "s3://b/r", "--address", "auto"], "--address is given to the job by dmray submit"),
        (["--storage", "s3://b/r", "--onyl", "seed=0"], "No such option"),
        (["--storage", "s3://b/r", "--only"], "requires an argument"),
        (["--storage", "~/runs"], "storage '~/runs' is relative"),
        (["--storage=runs"], "storage 'runs' is relative"),
        (["--storage", "/mnt/r", "--mlflow-uri", "sqlite:///mlflow.db"], "'sqlite:///mlflow.db' is relative"),
        (["--storage", "/mnt/r", "-o", "tracking.mlflow_uri=./mlruns"], "'./mlruns' is relative"),
    ],
)
def test_what_means_nothing_on_the_cluster_is_refused_before_anything_is_sent(
    options: list[str], said: str, tmp_path: Path, cluster: type[Cluster]
) -> None:
    refused = runner.invoke(submit.app, [str(sweep_file(tmp_path)), "--", *options])
    assert (refused.exit_code, said in refused.output, cluster.sent) == (1, True, {}), refused.output


@pytest.mark.parametrize(
    "uri", ["off", "http://127.0.0.1:5000", "sqlite:////mnt/r/mlflow.db", "postgresql://u@h/db", "databricks"]
)
def test_an_mlflow_that_the_cluster_can_reach_is_sent(uri: str, tmp_path: Path, cluster: type[Cluster]) -> None:
    options = ["--storage", "/mnt/r", "--mlflow-uri", uri]
    done = runner.invoke(submit.app, [str(sweep_file(tmp_path)), "--", *options])
    assert done.exit_code == 0, done.output
    assert cluster.sent["entrypoint"].endswith(f"--mlflow-uri {uri}")


def test_a_submitted_sweep_is_continued_by_submitting_it_again(
    tmp_path: Path, cluster: type[Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of its driver names a file in the job's folder, which is gone."""
    file = str(sweep_file(tmp_path))
    runner.invoke(submit.app, [file, "--address", "http://h:1", "--", "--storage", "/mnt/my runs"])
    (variable, command), *_ = cluster.sent["variables"].items()
    assert command == f"dmray submit {file} --address http://h:1 -- --storage '/mnt/my runs'"
    monkeypatch.setenv(variable, command)
    assert sweep._continue_command() == command


def test_a_sweep_has_one_job_at_a_time_and_a_number_for_each(tmp_path: Path, cluster: type[Cluster]) -> None:
    arguments = [str(sweep_file(tmp_path)), "--", "--storage", "/mnt/runs"]
    cluster.jobs = [Job(1, ended=True), Job(4, ended=True)]
    assert runner.invoke(submit.app, arguments).exit_code == 0
    assert cluster.sent["submission_id"] == "dmray-tiny-5", "a job may have been deleted"
    cluster.jobs = [Job(5, ended=False)]
    assert "job dmray-tiny-5 runs sweep 'tiny' already" in runner.invoke(submit.app, arguments).output


def test_a_cluster_that_is_still_starting_is_asked_again(
    tmp_path: Path, cluster: type[Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [RuntimeError(FAILED.format(500, "No available agent to submit job, please try again later"))] * 2
    submit_job = cluster.submit_job

    def not_yet(client: Cluster, **job: Any) -> str:
        if answers:
            raise answers.pop()
        return submit_job(client, **job)

    monkeypatch.setattr(cluster, "submit_job", not_yet)
    monkeypatch.setattr(submission, "_NOT_YET_EVERY_S", 0.0)
    arguments = [str(sweep_file(tmp_path)), "--", "--storage", "/mnt/runs"]
    assert runner.invoke(submit.app, arguments).exit_code == 0
    answers += [RuntimeError(FAILED.format(500, "No available agent to submit job, please try again later"))]
    monkeypatch.setattr(submission, "_NOT_YET_TIMEOUT_S", -1.0)
    assert "the cluster refuses: No available agent" in runner.invoke(submit.app, arguments).output


def test_packages_that_extend_dmray_are_said_not_to_be_sent(
    tmp_path: Path, cluster: type[Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(sweep_file(tmp_path)), "--", "--storage", "/mnt/runs"]
    assert "not sent" not in runner.invoke(submit.app, arguments).output
    monkeypatch.setattr(submit, "installed_plugins", lambda: {"dmray-toy": "1.2"})
    assert "not sent: dmray-toy 1.2, which extend dmray here" in runner.invoke(submit.app, arguments).output


def test_a_cluster_with_another_ray_is_refused(cluster: type[Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "version", "2.9.3")
    with pytest.raises(ClusterError, match=rf"the cluster runs Ray 2.9.3, but this dmray needs Ray {ray.__version__}"):
        JobClient("http://h:1")


FAILED = "Request failed with status code {}: {}."
REFUSED = "no Ray dashboard: Failed to connect to Ray at address: http://h:1; keep `ray dashboard CLUSTER.yaml` open"
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: the disk is full\n'


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (ConnectionError("Failed to connect to Ray at address: http://h:1."), REFUSED),
        (OSError(), "no Ray dashboard: OSError; keep"),
        (AuthenticationError("Authentication required: Unauthorized\n\nmany lines"), "asks for its token"),
        (AuthenticationError("Authentication failed: Forbidden\n\nmany lines"), "the cluster has another token"),
        (RuntimeError(FAILED.format(404, "Job dmray-tiny-1 does not exist")), "there is no job dmray-tiny-1"),
        (RuntimeError(FAILED.format(500, TRACEBACK)), "the cluster refuses: ValueError: the disk is full; its logs"),
    ],
)
def test_rays_errors_are_one_line_with_the_cure(problem: Exception, said: str) -> None:
    line = explained(problem, job_id="dmray-tiny-1")
    assert said in line
    assert "\n" not in line
