"""Sweeps from Python: planned, run with progress in any thread, and read as tables."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch

import dmray
from dmray.errors import SpecError, StorageError
from dmray.specs import DECODE_MODES, DecodeMode
from tests.sweeps import sweep_file, tiny_sweep


def test_importing_dmray_loads_nothing_until_a_function_is_used() -> None:
    code = (
        "import sys, dmray; heavy = {'torch', 'ray', 'mlflow', 'pandas', 'numpy', 'dmray.api'}\n"
        "print(sorted(heavy & set(sys.modules)), dmray.__version__)\n"
        "plan = dmray.plan_sweep(sys.argv[1]); str(plan)\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    quickstart = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"
    run = subprocess.run([sys.executable, "-c", code, str(quickstart)], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [f"[] {dmray.__version__}", "[]"]


def test_every_public_name_exists_and_no_other_does() -> None:
    for name in dmray.__all__:
        assert getattr(dmray, name) is not None
        assert name in dir(dmray)
    with pytest.raises(AttributeError, match="no attribute 'train_sweep'"):
        _ = dmray.train_sweep  # type: ignore[attr-defined]


def test_a_sweep_is_the_same_from_a_file_a_mapping_and_an_object(tmp_path: Path) -> None:
    sweep = tiny_sweep(tmp_path)
    content = json.loads(sweep.model_dump_json())
    sources = (sweep_file(tmp_path), content, sweep, dmray.plan_sweep(sweep))
    assert {dmray.plan_sweep(source).trial_ids for source in sources} == {dmray.plan_sweep(sweep).trial_ids}
    assert dmray.load_sweep(content, ["seeds=[0, 1]"]).seeds == (0, 1)
    assert len(dmray.plan_sweep(content, ["seeds=[0, 1]"]).trials) == 4
    in_tuples = {**content, "grid": tuple(content["grid"])}
    assert len(dmray.plan_sweep(in_tuples, ["grid.0.methods=[dm]"]).trials) == 1


def test_an_error_in_a_mapping_names_the_field(tmp_path: Path) -> None:
    content = json.loads(tiny_sweep(tmp_path).model_dump_json())
    with pytest.raises(SpecError, match=r"sweep: training.step: unknown field, did you mean 'steps'\?"):
        dmray.load_sweep({**content, "training": {"step": 5}})
    with pytest.raises(SpecError, match="sweep: a NoneType; give a file"):
        dmray.load_sweep(None)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"overrides 'seeds=.*': give a list"):
        dmray.load_sweep(content, "seeds=[0]")
    with pytest.raises(SpecError, match="give them to load_sweep"):
        dmray.plan_sweep(tiny_sweep(tmp_path), ["seeds=[0]"])


def test_an_address_that_path_has_shortened_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="storage s3:/bucket/x: did you mean s3://bucket/x\\?"):
        dmray.run_sweep(tiny_sweep(tmp_path), storage=Path("s3://bucket/x"), local=True)
    assert not list(tmp_path.iterdir())


def test_a_plan_prints_as_a_table(tmp_path: Path) -> None:
    plan = dmray.plan_sweep(tiny_sweep(tmp_path))
    assert "sweep 'tiny': 2 trials" in str(plan)
    assert "done" not in str(plan), "nobody looked what is done"
    assert plan.table.method.tolist() == ["dm", "dt"]
    assert plan.trial_ids[0] in plan._repr_html_()


def test_a_run_gives_its_results_as_tables(ran: dmray.SweepRun) -> None:
    assert ran.succeeded
    assert ran.errors == {}
    assert (ran.report / "report.html").is_file()
    assert ran.trials.status.tolist() == ["finished", "finished"]
    assert ran.curves.groupby("method").step.apply(list).to_dict() == {"dm": [20, 40], "dt": [20, 40]}
    assert ran.scores.method.tolist() == ["dm", "dt"]
    assert ran.scores.seeds.tolist() == [1, 1]
    assert len(ran.episodes) == 2 * 2 * 4, "trials x evaluations x episodes"
    means = ran.episodes.groupby(["trial_id", "step"]).episode_return.mean()
    curves = ran.curves.set_index(["trial_id", "step"]).return_mean
    assert means.sort_index().tolist() == pytest.approx(curves.sort_index().tolist())
    assert "dm" in ran._repr_html_()


def test_results_are_read_by_folder_and_by_file(ran: dmray.SweepRun, tmp_path: Path) -> None:
    results = dmray.load_results(ran.folders[0].path)
    assert results.trials.equals(ran.trials)
    assert [comparison.dataset.name for comparison in results.comparisons] == ["open-expert"]
    with pytest.raises(StorageError, match="no such file or folder"):
        dmray.load_results(tmp_path / "nowhere")
    with pytest.raises(SpecError, match="unknown protocol 'd4rl-mojoco', did you mean 'd4rl-mujoco'"):
        dmray.load_results(ran.folders[0].path, protocol="d4rl-mojoco")
    with pytest.raises(SpecError, match="no trial with this protocol"):
        dmray.load_results(ran.folders[0].path, protocol="minari")


def test_a_report_is_written_into_the_given_folder(ran: dmray.SweepRun, tmp_path: Path) -> None:
    paths = dmray.write_report(ran.folders[0].path, into=tmp_path / "report", baseline="dt")
    assert paths.html == tmp_path / "report" / "report.html"
    assert paths.html.is_file()
    with pytest.raises(SpecError, match="baseline hdt: these sweeps have no trial of this method, but of dm, dt"):
        dmray.write_report(ran.folders[0].path, into=tmp_path, baseline="hdt")


def test_a_second_run_needs_resume_and_keeps_what_is_finished(ran: dmray.SweepRun) -> None:
    again = dmray.run_sweep(ran.plan, local=True, resume=True, progress=False)
    assert again.trials.train_s.tolist() == ran.trials.train_s.tolist()


def test_progress_is_a_function_of_frozen_summaries_and_a_run_needs_no_main_thread(tmp_path: Path) -> None:
    seen: list[dmray.Summary] = []
    sweep = tiny_sweep("not used", resources={"torch_threads": 2, "deterministic": True})
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(
            dmray.run_sweep, sweep, storage=tmp_path, local=True, only="method=dt", progress=seen.append
        ).result(timeout=120)
    assert list(run.statuses.values()) == ["finished"]
    assert run.folders[0].storage == tmp_path
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, False), "the caller's own"
    assert seen[-1].statuses["finished"] == 1
    with pytest.raises(FrozenInstanceError):
        seen[-1].trials = 0  # type: ignore[misc]


def test_a_progress_function_that_raises_is_a_warning_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(summary: dmray.Summary) -> None:
        raise ZeroDivisionError("in the callback")

    with (
        caplog.at_level(logging.ERROR, logger="dmray"),
        pytest.warns(UserWarning, match="progress function failed and was not called again: ZeroDivisionError"),
    ):
        run = dmray.run_sweep(tiny_sweep(tmp_path), local=True, only="method=dm", progress=fail)
    assert run.succeeded
    assert caplog.text.count("ZeroDivisionError: in the callback") == 1


def test_a_decode_mode_that_cannot_be_imported_is_an_error_before_the_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DECODE_MODES._added, "far", DecodeMode("far", "no_such_module:Decoder", "far"))
    with pytest.raises(SpecError, match="decode mode 'far': cannot import 'no_such_module:Decoder'"):
        dmray.run_sweep(tiny_sweep(tmp_path, evaluation={"episodes": 2, "decode": "far"}), local=True, progress=False)
    assert not list(tmp_path.rglob("ledger.jsonl"))


def test_a_failed_trial_does_not_affect_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmray.driver import local_runner

    def run_trial(job: object, service: object, run: object = local_runner.run_trial) -> object:
        if job.trial.method == "dt":  # type: ignore[attr-defined]
            job = job.model_copy(update={"min_free_gib": 1e9})  # type: ignore[attr-defined]
        return run(job, service)  # type: ignore[operator]

    monkeypatch.setattr(local_runner, "run_trial", run_trial)
    run = dmray.run_sweep(tiny_sweep(tmp_path), local=True, progress=False)
    assert not run.succeeded
    assert [trial_id.split("-")[2] for trial_id in run.errors] == ["dt"]
    assert run.trials.status.tolist() == ["finished", "failed"]


def test_local_and_an_address_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="a local run does not use Ray"):
        dmray.run_sweep(tiny_sweep(tmp_path), local=True, address="auto")
