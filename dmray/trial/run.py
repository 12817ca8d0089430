"""One trial, from data to result: train, checkpoint, evaluate beside the training, record everything.

The same function runs in a Ray Train worker and in the calling process. Whatever ends it, the next attempt continues
from the last checkpoint: the same batches, the same weights, each evaluation recorded once (the first record of a step
counts; work done again after a crash gives the same record on a CPU).
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Literal, NoReturn

import torch

from dmray.coordination.commands import CommandWatcher, TrialPaused
from dmray.planning.disk_space import require_space
from dmray.policies import snapshot
from dmray.progress.trial_status import read_history
from dmray.records import (
    AttemptFailed,
    AttemptPaused,
    Ledger,
    RungDecision,
    TrainProgress,
    TrialDone,
    TrialStopped,
    read_ledger,
    write_json,
)
from dmray.records.system_usage import SystemUsage
from dmray.sources import open_dataset
from dmray.tasks import task_of
from dmray.training import Team, be_deterministic
from dmray.trial.build import attempt_started, build_trainer
from dmray.trial.checkpoints import resume_checkpoint, save_checkpoint, to_tensors
from dmray.trial.early_stopping import EarlyStopping
from dmray.trial.evaluation import EvaluationService, request_for
from dmray.trial.job import TrialJob
from dmray.trial.lock import trial_lock
from dmray.trial.log import TrialLog
from dmray.trial.meter import Meter
from dmray.trial.pending_evaluations import PendingEvaluations
from dmray.trial.publish import fetch_command, share_recording, sync_trial
from dmray.trial.watchdog import Watchdog, note_hang

Report = Callable[[int, float | None], None]  # optimizer steps done, headline score of the latest evaluation


def run_trial(
    job: TrialJob,
    service: EvaluationService,
    report: Report = lambda step, score: None,
    team: Team | None = None,
) -> TrialDone | TrialStopped:
    """Run `job` to its end, or continue it there where its last attempt was saved; as the leader of `team` if given.

    The end is a result, or early stopping's decision to stop, which may be taken back.

    Raises:
        DatasetError, CheckpointError, StorageError: as their names say; the ledger holds the failure too.
        TeamError: another worker of the team is gone.
        Left: the order that the job was made under stands no longer; all is saved.
    """
    fetch_command(job)
    if not CommandWatcher(job.sweep_folder, job.command_number).still_holds():
        raise TrialPaused
    log = TrialLog(job.folder.log)
    with trial_lock(job.folder), sync_trial(job, report) as report:
        history = read_history(job.folder, job.trial, job.early_stopping)
        if history.done is not None:
            return history.done
        note_hang(job.folder)
        ledger = Ledger(job.folder.ledger)
        if history.stopped is not None:
            return history.stopped
        attempt = 1 + history.attempts
        log.begin(attempt, socket.gethostname(), os.getpid(), job.device)
        run: _Attempt | None = None
        try:
            with log.listening():
                run = _Attempt(job, service, report, ledger, attempt, team)
                with run.watchdog.watching():
                    return run.run()
        except TrialPaused:
            raise
        except Exception as cause:
            step = run.trainer.steps_done if run else 0
            first_line = f"{type(cause).__name__}: {cause}".splitlines()[0]
            trace = "".join(traceback.format_exception(cause))
            ledger.append(
                AttemptFailed(time_s=time.time(), attempt=attempt, step=step, error=first_line, traceback=trace)
            )
            log.write(f"failed at step {step:,}\n{trace}")
            raise


class _Attempt:
    """One attempt: its state is the trainer, the meter and the open evaluations."""

    def __init__(
        self,
        job: TrialJob,
        service: EvaluationService,
        report: Report,
        ledger: Ledger,
        attempt: int,
        team: Team | None,
    ) -> None:
        self.job, self.report, self.ledger, self.attempt = job, report, ledger, attempt
        self.log = TrialLog(job.folder.log)
        self.order = CommandWatcher(job.sweep_folder, job.command_number)
        self.device = job.device
        torch.set_num_threads(job.torch_threads)
        be_deterministic(job.deterministic)
        dataset = job.trial.dataset
        share_recording(job)
        self.opened = open_dataset(dataset, task_of(dataset), job.sweep_folder.datasets)
        self.trainer, self.origin = build_trainer(job, self.opened.task, self.opened.episodes, team)
        request = request_for(job.trial, self.opened.task, self.trainer.policy.takes_target)
        self.meter = Meter(self.trainer.policy.stage_names, self.device)
        self.usage = SystemUsage(str(torch.cuda.get_device_properties(0).uuid) if self.device == "cuda" else None)
        self.watchdog = Watchdog(job.folder, job.no_progress_timeout_s)
        self.evaluations = PendingEvaluations(job, service, request, self.origin, self.watchdog)
        self.train_s, self.started = 0.0, time.perf_counter()
        records = read_ledger(job.folder.ledger)
        self.logged = {record.step for record in records if isinstance(record, TrainProgress)}
        self.early_stopping = EarlyStopping(job, records)
        if team is not None:
            team.meet()  # the trial's folder is ours: the others may read the checkpoint
        self._restore()
        self.ledger.append(attempt_started(job, attempt, self.trainer, self.origin, self.opened))
        self.log.write(f"from step {self.trainer.steps_done:,} of {job.trial.training.steps:,}")

    def run(self) -> TrialDone | TrialStopped:
        spec = self.job.trial
        self.started = time.perf_counter()
        while self.trainer.steps_done < spec.training.steps:
            if (decision := self.early_stopping.decide(self.evaluations.scores)) is not None:
                return self._stop(decision)
            self._train_until(self._next_stop())
            step = self.trainer.steps_done
            if self._due(step, self.job.log_every_steps) and not self._log_progress(step):
                return self._finish("diverged")
            if self._due(step, spec.evaluation.every_steps):
                if not self.meter.finite:
                    return self._finish("diverged")
                self.evaluations.offer(step, lambda: snapshot(self.trainer.policy))
            self._collect(self.job.max_pending_evaluations)
            if self._due(step, self.job.checkpoint_every_steps):
                self._save()
                self.report(step, self.evaluations.latest)
        return self._finish("finished")

    def _due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.job.trial.training.steps

    def _next_stop(self) -> int:
        cadences = (
            self.job.log_every_steps,
            self.job.trial.evaluation.every_steps,
            self.job.checkpoint_every_steps,
        )
        step = self.trainer.steps_done
        return min(self.job.trial.training.steps, *((step // every + 1) * every for every in cadences))

    def _train_until(self, step: int) -> None:
        while self.trainer.steps_done < step:
            self._pause_if_commanded()  # here nothing is due at the step that is done
            self.meter.add(self.trainer.step())
            self.watchdog.step()

    def _log_progress(self, step: int) -> bool:
        progress = self.meter.record(step, self.trainer.learning_rate)
        if progress is not None and step not in self.logged:
            self.ledger.append(progress.model_copy(update={"system": self.usage.sample()}))
        return progress is not None

    def _collect(self, most_open: int) -> None:
        """Where nothing but these evaluations is due at the step that is done."""
        self.evaluations.collect(most_open, meanwhile=self._pause_if_commanded)

    def _pause_if_commanded(self) -> None:
        if not self.order.still_holds():
            self._pause()

    def _pause(self) -> NoReturn:
        step = self.trainer.steps_done
        self._save()
        self.ledger.append(AttemptPaused(time_s=time.time(), attempt=self.attempt, step=step))
        self.log.write(f"saved and paused at step {step:,}: the sweep is paused or stopped")
        raise TrialPaused

    def _stop(self, decision: RungDecision) -> TrialStopped:
        step = self.trainer.steps_done
        self._save()
        stopped = TrialStopped(time_s=time.time(), attempt=self.attempt, step=step, decision=decision)
        self.ledger.append(stopped)
        self.log.write(f"saved and stopped early at step {step:,}")
        self.report(step, self.evaluations.latest)
        return stopped

    def _save(self) -> None:
        require_space(self.job.folder.path, self.job.min_free_gib)
        content = {
            "trainer": self.trainer.state_dict(),
            "meter": self.meter.state_dict(),
            "open_evaluations": self.evaluations.state_dict(),
            "train_s": self.train_s + time.perf_counter() - self.started,
        }
        save_checkpoint(self.job.folder.last_checkpoint, self.origin, content)
        self.log.write(f"checkpoint at step {self.trainer.steps_done:,}")

    def _restore(self) -> None:
        content = resume_checkpoint(self.job.folder.last_checkpoint, self.origin, self.device)
        if content is None:
            return
        self.trainer.load_state_dict(content["trainer"])
        self.meter.load_state_dict(content["meter"])
        self.train_s = content["train_s"]
        self.evaluations.load_state_dict(content["open_evaluations"])

    def _finish(self, status: Literal["finished", "diverged"]) -> TrialDone:
        train_s = self.train_s + time.perf_counter() - self.started
        if status == "finished":
            self._collect(most_open=0)
        else:  # a paused sweep would find this step done, and not see that it diverged
            self.evaluations.collect(most_open=0)
        self.early_stopping.post(self.evaluations.scores)
        final = {
            "step": self.trainer.steps_done,
            "score": self.evaluations.latest,
            "weights": to_tensors(snapshot(self.trainer.policy).weights),
        }
        save_checkpoint(self.job.folder.final_checkpoint, self.origin, final)
        done = TrialDone(
            time_s=time.time(),
            status=status,
            step=self.trainer.steps_done,
            best_step=self.evaluations.best[0] if self.evaluations.best else None,
            train_s=train_s,
        )
        self.ledger.append(done)
        write_json(self.job.folder.done, done.model_dump(mode="json"))
        self.log.write(f"{status} at step {done.step:,}")
        self.report(done.step, self.evaluations.latest)
        return done
