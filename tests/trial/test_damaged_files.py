"""Files of a trial that were cut, changed, removed or are no files: told in one sentence, and never a wrong number."""

from __future__ import annotations

import errno
import io
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dmray.errors import CheckpointError, StorageError
from dmray.files import write_json
from dmray.inference import load_policy
from dmray.planning.manifest import write_manifest
from dmray.progress.trial_status import TrialStatus, read_history, restore_done_markers, trial_statuses
from dmray.records import AttemptStarted, EvaluationDone, StartedOver, SweepFolder, counting, read_ledger
from dmray.reporting import collect
from dmray.trial import checkpoints
from dmray.trial.checkpoints import load_checkpoint, load_policy_snapshot
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.job import TrialJob
from dmray.trial.run import run_trial
from tests.sweeps import tiny_plan
from tests.trial.jobs import Killed, StopAt, job, records_of, science


@pytest.fixture(scope="module", autouse=True)
def no_power_cut() -> Iterator[None]:
    """Forcing files to a busy disk takes most of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def killed_at(work: TrialJob, step: int) -> None:
    with pytest.raises(Killed):
        run_trial(work, InlineEvaluation(), StopAt(step))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TrialJob:
    """A trial that has ended."""
    work = job(tmp_path_factory.mktemp("whole"))
    run_trial(work, InlineEvaluation())
    return work


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> TrialJob:
    """A trial killed after step 30."""
    work = job(tmp_path_factory.mktemp("half"))
    killed_at(work, 30)
    return work


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> TrialJob:
    """A trial killed after step 10."""
    work = job(tmp_path_factory.mktemp("begun"))
    killed_at(work, 10)
    return work


def copy_of(work: TrialJob, storage: Path) -> TrialJob:
    shutil.copytree(Path(work.storage), storage, dirs_exist_ok=True)
    return work.model_copy(update={"storage": str(storage)})


def counted(work: TrialJob) -> list[Any]:
    """`science` of the records that count."""
    timed = {"time_s", "wall_s", "steps_per_s", "train_s", "system"}
    kinds = ("train", "evaluation", "done")
    records = [each for each in counting(read_ledger(work.folder.ledger)) if each.kind in kinds]
    return [each.model_dump(exclude=timed) for each in sorted(records, key=lambda each: (each.kind, each.step))]


def cut_to_two_lines(work: TrialJob) -> None:
    lines = work.folder.ledger.read_bytes().splitlines(keepends=True)
    work.folder.ledger.write_bytes(b"".join(lines[:2]))


def change_a_digit(work: TrialJob) -> None:
    content = work.folder.ledger.read_bytes()
    place = content.index(b'"return_mean":') + len(b'"return_mean":')
    work.folder.ledger.write_bytes(content[:place] + b"9" + content[place:])


def lose_the_ledger(work: TrialJob) -> None:
    work.folder.ledger.unlink()


def lose_the_best_weights(work: TrialJob) -> None:
    work.folder.best_checkpoint.unlink()


@pytest.mark.parametrize("damage", [cut_to_two_lines, change_a_digit, lose_the_ledger, lose_the_best_weights])
def test_a_trial_whose_files_disagree_starts_over_and_says_so(
    tmp_path: Path,
    whole: TrialJob,
    halfway: TrialJob,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[TrialJob], None],
) -> None:
    work = copy_of(halfway, tmp_path)
    damage(work)
    done = run_trial(work, InlineEvaluation())
    [record] = records_of(work, StartedOver)
    assert "last.pt at step 30" in record.reason or "best.pt has not the weights" in record.reason
    assert record.reason in caplog.text
    assert counted(work) == science(whole)
    assert load_checkpoint(work.folder.best_checkpoint)["step"] == done.best_step
    [aside] = work.folder.path.glob("checkpoints.aside-*")
    assert (aside / "last.pt").exists(), "what was there is kept"


def test_a_kill_while_a_trial_starts_over_forgets_no_evaluation(
    tmp_path: Path, whole: TrialJob, halfway: TrialJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmray.trial import start

    def die(*_: object) -> None:
        raise Killed

    work = copy_of(halfway, tmp_path)
    lose_the_best_weights(work)
    with monkeypatch.context() as patch:
        patch.setattr(start, "_set_aside", die)  # after the record, before the checkpoint is gone
        with pytest.raises(Killed):
            run_trial(work, InlineEvaluation())
    run_trial(work, InlineEvaluation())
    assert counted(work) == science(whole)
    assert len(records_of(work, StartedOver)) == 1


def test_weights_of_the_best_score_that_a_kill_lost_are_saved_when_they_come_by_again(
    tmp_path: Path, whole: TrialJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dmray.trial.pending_evaluations import PendingEvaluations

    def die(*_: object) -> None:
        raise Killed

    work = job(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PendingEvaluations, "_save_best", die)  # after the record of the evaluation
        with pytest.raises(Killed):
            run_trial(work, InlineEvaluation())
    assert [record.step for record in records_of(work, EvaluationDone)] == [20]
    run_trial(work, InlineEvaluation())
    assert not records_of(work, StartedOver)
    assert science(work) == science(whole)
    ours, theirs = (load_checkpoint(one.folder.best_checkpoint) for one in (work, whole))
    assert (ours["step"], ours["score"]) == (theirs["step"], theirs["score"])
    assert all(torch.equal(ours["weights"][name], value) for name, value in theirs["weights"].items())


def test_an_end_that_the_ledger_lost_is_made_again(
    tmp_path: Path, whole: TrialJob, caplog: pytest.LogCaptureFixture
) -> None:
    work = copy_of(whole, tmp_path)
    cut_to_two_lines(work)
    run_trial(work, InlineEvaluation())
    assert counted(work) == science(whole)
    assert "DONE.json says that the trial finished at step 40, but its ledger has no end" in caplog.text


@pytest.mark.parametrize("what", ["trial", "sweep"])
def test_a_folder_that_is_removed_while_its_trial_runs_is_not_made_anew(tmp_path: Path, what: str) -> None:
    plan, folder = tiny_plan(tmp_path), SweepFolder(tmp_path, "tiny")
    write_manifest(plan, folder)
    work, after = (TrialJob.of(trial, plan.sweep, folder) for trial in plan.trials)

    def remove(step: int, score: float | None) -> None:
        if step == 20:
            shutil.rmtree(work.folder.path if what == "trial" else folder.path)

    with pytest.raises(StorageError, match=r"was removed while the trial runs.*put the folder back"):
        run_trial(work, InlineEvaluation(), remove)
    assert not work.folder.path.exists()
    if what == "sweep":
        with pytest.raises(StorageError, match="tiny: was removed while the trial runs"):
            run_trial(after, InlineEvaluation())
        assert not folder.path.exists()


@pytest.mark.parametrize("place", ["ledger", "last.pt", "best.pt", "parquet", "DONE.json"])
def test_a_full_disk_is_told_once_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, whole: TrialJob, begun: TrialJob
) -> None:
    work = copy_of(begun, tmp_path)
    before = work.folder.last_checkpoint.read_bytes()
    write_bytes, write = Path.write_bytes, io.FileIO.write

    def full(path: Path, content: bytes) -> int:
        if place in path.name:
            write_bytes(path, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        if place == "ledger":

            class Full(io.FileIO):
                def write(self, content: Any) -> int:
                    if b'"train"' in bytes(content) or b'"failure"' in bytes(content):
                        write(self, bytes(content)[:10])
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return write(self, content)

            patch.setattr("dmray.records.ledger.FileIO", Full)
        with pytest.raises(StorageError, match=r"No space left on device\); free some space and continue with"):
            run_trial(work, InlineEvaluation())
    if place in ("ledger", "last.pt"):
        assert work.folder.last_checkpoint.read_bytes() == before
    assert not list(work.folder.path.rglob("*.part"))
    (work.folder.last_checkpoint.parent / ".last.pt.12345678.part").write_bytes(b"of a killed attempt")
    run_trial(work, InlineEvaluation())
    assert science(work) == science(whole)
    assert not list(work.folder.path.rglob("*.part"))


def repacked(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write the checkpoint again with `change` applied, and a digest that is right."""
    content = load_checkpoint(path)
    changed = change(content)
    stream = io.BytesIO()
    torch.save(content if changed is None else changed, stream)
    write_body(path, stream.getvalue())


def write_body(path: Path, body: bytes) -> None:
    header = checkpoints._HEADER.pack(b"DMRAY.PT", checkpoints.FORMAT_VERSION, len(body), checkpoints._digest(body))
    path.write_bytes(header + body)


def bomb(path: Path) -> None:
    """A small file that unpacks to a large one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 2**20)
    write_body(path, stream.getvalue())


def first_weight(content: dict[str, Any]) -> tuple[dict[str, Any], str]:
    weights = content["weights"] if "weights" in content else content["trainer"]["policy"]
    return weights, next(name for name in weights if name.endswith("weight"))


def with_weight(new: Callable[[torch.Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        weights, name = first_weight(content)
        weights[name] = new(weights[name])

    return change


def without(key: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        del content[key]

    return change


def without_a_weight(content: dict[str, Any]) -> None:
    weights, name = first_weight(content)
    del weights[name]


def with_another_weight(content: dict[str, Any]) -> None:
    first_weight(content)[0]["more"] = torch.zeros(1)


def with_shape(**sizes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["origin"]["shape"].update(sizes)


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "nan": (with_weight(lambda value: value.fill_(float("nan"))), "numbers that are not finite"),
    "infinite": (with_weight(lambda value: value.fill_(float("inf"))), "numbers that are not finite"),
    "shape": (with_weight(lambda value: value[:1]), "that of its spec's policy is float32"),
    "type": (with_weight(lambda value: value.double()), "is float64"),
    "expanded": (with_weight(lambda value: torch.zeros(1).expand(2**40)), "not all of its numbers are in the file"),
    "sparse": (with_weight(lambda value: value.to_sparse()), "not all of its numbers are in the file"),
    "meta": (with_weight(lambda value: torch.empty(2**40, device="meta")), "not all of its numbers are in the file"),
    "no tensor": (with_weight(lambda value: "a text"), r"instance of Tensor"),
    "missing": (without_a_weight, r"weights lack '"),
    "more": (with_another_weight, r"weights have 'more'"),
    "no origin": (without("origin"), "origin: Field required"),
    "a list": (lambda content: [1, 2], "holds list"),
    "none": (lambda content: {}, "origin: Field required"),
    "deep": (lambda content: {"origin": content["origin"], "weights": [[[]]]}, "not a dmray checkpoint"),
    "huge": (with_shape(max_timesteps=10**15), "are not those of a policy"),
    "negative": (with_shape(action_dim=-3), "are not those of a policy"),
    "no limit": (with_shape(action_limit=-1.0), "is no limit"),
    "reference": (lambda content: content["origin"]["reference"].update(maximum=-1e9), "scores cannot be computed"),
}


@pytest.mark.parametrize("name", ["last.pt", "final.pt"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_is_none_of_a_policy_is_refused_in_one_sentence(
    tmp_path: Path, whole: TrialJob, name: str, change: str
) -> None:
    path = tmp_path / name
    shutil.copy(whole.folder.path / "checkpoints" / name, path)
    repacked(path, CHANGES[change][0])
    with pytest.raises(CheckpointError, match=f"{path}: .*{CHANGES[change][1]}") as refused:
        load_policy_snapshot(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_weight(lambda value: value.fill_(float("nan"))), "numbers that are not finite"),
        (lambda content: content["trainer"]["optimizer"][0].update(exp_avg=torch.zeros(3)), "not of the shape"),
        (lambda content: content["trainer"]["optimizer"].update({9999: {"step": torch.zeros(1)}}), "AdamW"),
        (lambda content: content["trainer"].update(torch_rng=torch.zeros(3)), "not a state of this trial's training"),
        (lambda content: content["meter"].update(sums=torch.zeros(1)), "meter.sums"),
        (lambda content: content["trainer"].update(step=-1), "trainer.step"),
        (without("ledger"), "ledger: Field required"),
    ],
)
def test_a_state_that_training_cannot_continue_from_is_refused(
    tmp_path: Path, halfway: TrialJob, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    work = copy_of(halfway, tmp_path)
    repacked(work.folder.last_checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        run_trial(work, InlineEvaluation())


def test_every_flipped_bit_is_found(tmp_path: Path, whole: TrialJob) -> None:
    path = tmp_path / "final.pt"
    content = whole.folder.final_checkpoint.read_bytes()
    for place in [*range(0, 60, 3), *range(60, len(content), len(content) // 40)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_an_older_format_and_other_files_are_told_apart(tmp_path: Path, whole: TrialJob) -> None:
    path = tmp_path / "final.pt"
    torch.save({"origin": {"version": 3}}, path)
    with pytest.raises(CheckpointError, match="written by an older dmray"):
        load_checkpoint(path)
    bomb(path)
    with pytest.raises(CheckpointError, match="unpacks to 1,048,576 bytes"):
        load_checkpoint(path)
    write_body(path, b"")
    with pytest.raises(CheckpointError, match="not a dmray checkpoint"):
        load_checkpoint(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="a pipe, not a file"):
        load_checkpoint(path)


def test_the_ledger_of_an_attempt_that_failed_before_still_fits_its_checkpoint(tmp_path: Path, begun: TrialJob) -> None:
    work = copy_of(begun, tmp_path)
    killed_at(work, 20)
    run_trial(work, InlineEvaluation())
    assert len(records_of(work, AttemptStarted)) == 3
    assert not records_of(work, StartedOver)


def test_a_marker_that_is_no_file_does_not_stop_its_trial(
    tmp_path: Path, halfway: TrialJob, caplog: pytest.LogCaptureFixture
) -> None:
    work = copy_of(halfway, tmp_path)
    os.mkfifo(work.folder.done)
    with caplog.at_level(logging.WARNING):
        assert run_trial(work, InlineEvaluation()).step == 40
    assert work.folder.done.is_file()


def test_a_ledger_that_is_cut_while_its_trial_runs_ends_the_trial(tmp_path: Path, begun: TrialJob) -> None:
    work = copy_of(begun, tmp_path)

    def cut(step: int, score: float | None) -> None:
        if step == 20:
            cut_to_two_lines(work)

    with pytest.raises(StorageError, match=r"was cut to .* while the trial runs"):
        run_trial(work, InlineEvaluation(), cut)
    run_trial(work, InlineEvaluation())
    assert len(records_of(work, StartedOver)) == 1


def test_markers_written_by_hand_change_nothing(tmp_path: Path, halfway: TrialJob) -> None:
    work = copy_of(halfway, tmp_path)
    write_json(work.folder.done, {"time_s": 1.0, "kind": "done", "status": "finished", "step": 40, "train_s": 1.0})
    run_trial(work, InlineEvaluation())
    assert [record.step for record in records_of(work, EvaluationDone)] == [20, 40]


def test_a_ledger_that_was_edited_after_the_end_is_in_no_number(tmp_path: Path, whole: TrialJob) -> None:
    """Each line is still a record."""
    work = copy_of(whole, tmp_path)
    write_manifest(tiny_plan(tmp_path), work.sweep_folder)
    change_a_digit(work)
    history = read_history(work.folder, work.trial)
    assert history.status is TrialStatus.FAILED
    assert "ledger.jsonl: was changed after the trial finished" in str(history.damage)
    result = next(each for each in collect(work.sweep_folder).trials if each.trial.trial_id == work.trial.trial_id)
    assert (result.status, result.last) == (TrialStatus.FAILED, None)
    with pytest.raises(StorageError, match="was changed after the trial finished"):
        run_trial(work, InlineEvaluation())
    work.folder.done.unlink()  # the change was meant
    restore_done_markers(tiny_plan(tmp_path), work.sweep_folder)
    assert read_history(work.folder, work.trial).status is TrialStatus.FINISHED


@pytest.mark.parametrize("what", ["folder", "ledger"])
def test_the_records_of_another_trial_are_not_taken_for_those_of_this_one(
    tmp_path: Path, whole: TrialJob, what: str
) -> None:
    work, other = copy_of(whole, tmp_path), job(tmp_path, "dt")
    if what == "folder":
        shutil.copytree(work.folder.path, other.folder.path)
    else:
        other.folder.path.mkdir(parents=True)
        shutil.copy(work.folder.ledger, other.folder.ledger)
    plan = tiny_plan(tmp_path)
    restore_done_markers(plan, other.sweep_folder)
    assert trial_statuses(plan, other.sweep_folder)[other.trial.trial_id] is TrialStatus.FAILED
    with pytest.raises(StorageError, match=f"has records of another trial, '{work.trial.trial_id}'"):
        run_trial(other, InlineEvaluation())


def test_best_weights_of_another_trial_are_not_taken_for_those_of_this_one(
    tmp_path: Path, whole: TrialJob, halfway: TrialJob
) -> None:
    """They are of the same step."""
    work = copy_of(halfway, tmp_path)
    content = load_checkpoint(work.folder.best_checkpoint)
    origin = content.pop("origin")
    other = job(tmp_path, seeds=[1]).trial

    class Theirs:
        def as_dict(self) -> dict[str, Any]:
            return origin | {"trial_id": other.trial_id, "spec": other.model_dump_json()}

    checkpoints.save_checkpoint(work.folder.best_checkpoint, Theirs(), content)  # type: ignore[arg-type]
    run_trial(work, InlineEvaluation())
    assert load_checkpoint(work.folder.best_checkpoint)["origin"]["trial_id"] == work.trial.trial_id
    assert counted(work) == science(whole)


def test_a_trials_folder_with_weights_of_another_trial_is_refused(tmp_path: Path, whole: TrialJob) -> None:
    work, other = copy_of(whole, tmp_path), job(tmp_path, "dt")
    shutil.copytree(work.folder.path, other.folder.path)
    with pytest.raises(CheckpointError, match=f"is of another trial, {work.trial.trial_id}"):
        load_policy(other.folder.path)
