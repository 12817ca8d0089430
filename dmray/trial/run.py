"""Runs one trial: training, checkpoints, evaluations beside the training, and the records of all of it.

The same function runs in a Ray Train worker and in the calling process. However an attempt ends, the next one continues
from the last checkpoint with the same batches and weights. Steps that are repeated after a crash give the same records
on a CPU, and the first record of a step counts.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Literal, NoReturn

import torch

from dmray.coordination.commands import CommandWatcher, TrialPaused
from dmray.errors import CheckpointError, StorageError
from dmray.file_lock import file_lock
from dmray.packs.packed_trainer import PackedTrainer
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
    counting,
    read_ledger,
    write_done_marker,
)
from dmray.records.phase import PhaseName, PhaseWriter
from dmray.records.system_usage import SystemUsage
from dmray.rollout import Deviations
from dmray.sources import open_dataset, phase_of_locating
from dmray.tasks import task_of
from dmray.training import be_deterministic
from dmray.trial.build import attempt_started, build_trainer
from dmray.trial.checkpoints import is_finite, save_checkpoint, to_tensors
from dmray.trial.early_stopping import EarlyStopping
from dmray.trial.evaluation import EvaluationService, request_for
from dmray.trial.extension import begin_extended
from dmray.trial.job import TrialJob, fetch_command
from dmray.trial.log import TrialLog
from dmray.trial.meter import Meter
from dmray.trial.pending_evaluations import PendingEvaluations
from dmray.trial.publish import share_recording, sync_trial
from dmray.trial.start import Start, find_start, start_over
from dmray.trial.watchdog import Watchdog, note_hang

_log = logging.getLogger(__name__)
_COMPILED_AT_FIRST_STEP = ("numba", "triton")
_LOCK_TIMEOUT_S = 120.0  # a worker whose driver was killed lives on for some seconds
Report = Callable[[int, float | None], None]  # optimizer steps done, normalized score of the latest evaluation


def run_trial(
    job: TrialJob,
    service: EvaluationService,
    report: Report = lambda step, score: None,
) -> TrialDone | TrialStopped:
    """Run `job` to its end, from its last checkpoint if there is one; a result, or the decision of early stopping.

    Raises (all but the last are in the ledger too):
        DatasetError: the data set is missing or broken.
        CheckpointError: the checkpoint cannot be read, or belongs to other data.
        StorageError: the trial's folder cannot be written, or another worker holds it.
        TrialPaused: the sweep was paused or stopped; everything is saved.
    """
    fetch_command(job)
    if not CommandWatcher(job.sweep_folder, job.command_number).should_continue():
        raise TrialPaused
    job.require_sweep()
    log = TrialLog(job.folder.log)
    phases = PhaseWriter(job.folder.phase, job.command_number, log.write)
    lock = file_lock(job.folder.lock, _LOCK_TIMEOUT_S, "another worker still runs this trial: stop it first")
    with lock, sync_trial(job, report, phases) as report:
        job.folder.remove_parts()
        history = read_history(job.folder, job.trial, job.early_stopping)
        if history.damage is not None:
            raise StorageError(history.damage)
        if history.done is not None:
            return history.done
        note_hang(job.folder)
        ledger = Ledger(job.folder.ledger)
        if history.stopped is not None:
            return history.stopped
        attempt = 1 + history.attempts
        log.begin(attempt, socket.gethostname(), os.getpid(), job.device)
        run: _Attempt | None = None
        watchdog = Watchdog(job.folder, job.no_progress_timeout_s)
        try:
            with log.listening(), watchdog.watching(), ExitStack() as ends:
                if begin_extended(job):
                    attempt = 1 + read_history(job.folder, job.trial, job.early_stopping).attempts
                run = _Attempt(job, service, report, ledger, attempt, watchdog, phases, ends)
                return run.run()
        except TrialPaused:
            raise
        except Exception as cause:
            step = run.trainer.steps_done if run else 0
            first_line = f"{type(cause).__name__}: {cause}".splitlines()[0]
            trace = "".join(traceback.format_exception(cause))
            failed = AttemptFailed(time_s=time.time(), attempt=attempt, step=step, error=first_line, traceback=trace)
            try:
                ledger.append(failed)
            except (OSError, StorageError) as problem:  # the disk is full or gone, which is most likely the cause too
                _log.warning("%s; the failure of this attempt is not in the ledger: %s", problem, first_line)
            log.write(f"failed at step {step:,}\n{trace}")
            raise


def phase_of_first_step(captured: bool, scan_backend: str | None, compiled: bool = False) -> tuple[PhaseName, str]:
    """What the first steps of an attempt do beside training, and with what. `compiled`: by torch.compile."""
    if compiled:
        return "compiling", "torch.compile"
    if captured:
        return "capturing", ""
    compiles = scan_backend if scan_backend in _COMPILED_AT_FIRST_STEP else None
    return ("compiling", compiles) if compiles is not None else ("training", "")


class _Attempt:
    """One attempt; its state is the trainer, the meter and the pending evaluations."""

    def __init__(
        self,
        job: TrialJob,
        service: EvaluationService,
        report: Report,
        ledger: Ledger,
        attempt: int,
        watchdog: Watchdog,
        phases: PhaseWriter,
        ends: ExitStack,
    ) -> None:
        """`ends`: what is done when the attempt ends."""
        self.job, self.report, self.ledger, self.attempt, self.phases = job, report, ledger, attempt, phases
        self.log = TrialLog(job.folder.log)
        self.command = CommandWatcher(job.sweep_folder, job.command_number)
        torch.set_num_threads(job.torch_threads)
        be_deterministic(job.deterministic)
        dataset, recordings = job.trial.dataset, job.sweep_folder.datasets
        phases.enter(phase_of_locating(dataset, task_of(dataset), recordings), dataset.name)
        share_recording(job)
        self.opened = open_dataset(dataset, task_of(dataset), recordings)
        phases.enter("building")
        self.trainer, self.origin = build_trainer(job, self.opened.task, self.opened.episodes)
        ends.callback(self.trainer.close)
        policy = self.trainer.policy
        deviations = Deviations(self.origin.action_std, tuple(policy.state_std.tolist()))
        request = request_for(job.trial, self.opened.task, policy.takes_target, deviations)
        self.meter = Meter(self.trainer.policy.stage_names, self.trainer.device)
        self.usage = SystemUsage(self.trainer.gpu_uuid)
        self.watchdog = watchdog
        start = find_start(job.folder, self.origin, self.trainer.policy, self.trainer.device)
        if start.over is not None:
            start_over(job.folder, ledger, attempt, start.over)
        self.train_s, self.started = 0.0, time.perf_counter()
        self.evaluations = PendingEvaluations(job, service, request, self.origin, self.watchdog, phases)
        records = counting(read_ledger(job.folder.ledger))
        self.logged = {record.step for record in records if isinstance(record, TrainProgress)}
        self._restore(start)
        begun = attempt_started(job, attempt, self.trainer, self.origin, self.opened)
        self.ledger.append(begun)
        self.early_stopping = EarlyStopping(job, [*records, begun])
        self.log.write(f"from step {self.trainer.steps_done:,} of {job.trial.training.steps:,}")

    def run(self) -> TrialDone | TrialStopped:
        spec = self.job.trial
        self.started = time.perf_counter()
        if self.trainer.steps_done < spec.training.steps:
            trainer = self.trainer
            compiled = isinstance(trainer, PackedTrainer) and trainer.compiled
            self.phases.enter(*phase_of_first_step(trainer.captured, trainer.scan_backend, compiled))
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
            self._keep_weights(step)
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
            *([self.job.keep_every_steps] if self.job.keep_every_steps else []),
        )
        step = self.trainer.steps_done
        return min(self.job.trial.training.steps, *((step // every + 1) * every for every in cadences))

    def _train_until(self, step: int) -> None:
        while self.trainer.steps_done < step:
            self._pause_if_commanded()  # nothing is due at the step that is done
            self.meter.add(self.trainer.advance(step - self.trainer.steps_done))
            self.watchdog.step()
            if self.trainer.is_set_up:
                self.phases.enter("training")

    def _log_progress(self, step: int) -> bool:
        progress = self.meter.record(step, self.trainer.learning_rate)
        if progress is not None and step not in self.logged:
            self.ledger.append(progress.model_copy(update={"system": self.usage.sample()}))
        return progress is not None

    def _collect(self, most_open: int) -> None:
        """Record finished evaluations; called where nothing else is due at the step that is done."""
        self.evaluations.collect(most_open, meanwhile=self._pause_if_commanded)

    def _pause_if_commanded(self) -> None:
        if not self.command.should_continue():
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
        prefix = self.ledger.sync()  # on the disk before the checkpoint that relies on it
        require_space(self.job.folder.path, self.job.min_free_gib)
        state = self.trainer.state_dict()
        content = {
            "trainer": state,
            "meter": self.meter.state_dict(),
            "open_evaluations": self.evaluations.state_dict(),
            "train_s": self.train_s + time.perf_counter() - self.started,
            "ledger": tuple(prefix),
            "finite": is_finite(state["policy"]),
        }
        save_checkpoint(self.job.folder.last_checkpoint, self.origin, content)
        self.log.write(f"checkpoint at step {self.trainer.steps_done:,}")

    def _keep_weights(self, step: int) -> None:
        """Write the numbered checkpoint, if one is due; not of weights that diverged, which nobody can use."""
        every = self.job.keep_every_steps
        if every is None or step % every or not is_finite(self.trainer.policy.state_dict()):
            return
        self.ledger.require()
        require_space(self.job.folder.path, self.job.min_free_gib)
        kept = {"step": step, "score": None, "weights": to_tensors(snapshot(self.trainer.policy).weights)}
        save_checkpoint(self.job.folder.numbered_checkpoint(step), self.origin, kept)

    def _restore(self, start: Start) -> None:
        content = start.content
        if content is not None:
            try:
                self.trainer.load_state_dict(content["trainer"])
            except (RuntimeError, TypeError, ValueError, KeyError) as cause:  # of torch's generators and optimizer
                raise CheckpointError(
                    f"{self.job.folder.last_checkpoint}: not a state of this trial's training ({cause}); delete it and "
                    "the trial starts over"
                ) from cause
            self.meter.load_state_dict(content["meter"])
            self.train_s = content["train_s"]
        self.evaluations.expect(start.lost_best, start.unrecorded_best)
        self.evaluations.load_state_dict(content["open_evaluations"] if content else {})

    def _finish(self, status: Literal["finished", "diverged"]) -> TrialDone:
        train_s = self.train_s + time.perf_counter() - self.started
        if status == "finished":
            self._collect(most_open=0)
        else:  # not interrupted by a pause: the next attempt would not see that this step diverged
            self.evaluations.collect(most_open=0)
        self.early_stopping.post(self.evaluations.scores)
        final = {
            "step": self.trainer.steps_done,
            "score": self.evaluations.latest,
            "weights": to_tensors(snapshot(self.trainer.policy).weights),
        }
        self.ledger.sync()
        save_checkpoint(self.job.folder.final_checkpoint, self.origin, final)
        done = TrialDone(
            time_s=time.time(),
            status=status,
            step=self.trainer.steps_done,
            best_step=self.evaluations.best[0] if self.evaluations.best else None,
            train_s=train_s,
        )
        self.ledger.append(done)
        write_done_marker(self.job.folder, self.job.trial.trial_id, done)
        self.log.write(f"{status} at step {done.step:,}")
        self.report(done.step, self.evaluations.latest)
        return done
