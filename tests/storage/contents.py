"""What a store has of a sweep."""

from __future__ import annotations

from dmray.planning.plan import Plan
from dmray.records import AttemptStarted, LedgerRecord, SweepFolder
from dmray.records.records import ledger_line
from dmray.storage import Store, SweepCopy
from dmray.trial.job import TrialJob


def read(plan: Plan) -> SweepFolder:
    copy = SweepCopy.for_reading(plan.sweep.storage, plan.sweep.name)
    copy.download()
    return copy.folder


def ledger_in_store(work: TrialJob) -> list[LedgerRecord]:
    content = Store(f"{work.storage}/tiny").read(f"trials/{work.trial.trial_id}/ledger.jsonl") or b""
    return [ledger_line.validate_json(line) for line in content.splitlines()]


def from_steps(work: TrialJob) -> list[int]:
    return [record.from_step for record in ledger_in_store(work) if isinstance(record, AttemptStarted)]
