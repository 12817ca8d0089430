"""What a log says of a trial's new records."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from dmray.progress.news import News, Seen, news_of
from dmray.progress.progress import Follower
from dmray.progress.summary import summarize
from dmray.progress.summary_view import ProgressView
from dmray.progress.trial_status import TrialHistory
from dmray.records import (
    AttemptPaused,
    Ledger,
    LedgerRecord,
    StartedOver,
    TrainingExtended,
    TrialStopped,
)
from dmray.specs import EarlyStoppingSpec
from tests.mlflow_mirror.examples import of_trial
from tests.progress.ledgers import OUT, again, begun, done, evaluated, failed, scored, started, trained
from tests.sweeps import tiny_plan
from tests.waiting import wait_until

RULE = EarlyStoppingSpec(grace_steps=20, reduction_factor=2)


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ([], [started()], ["started"]),
        ([started()], [trained(10)], []),
        ([started()], [scored(20, 5.0)], ["evaluation at step 20: normalized score 5.0 (the best so far)"]),
        (
            [started(), scored(20, 5.0)],
            [scored(40, 4.0)],
            ["evaluation at step 40: normalized score 4.0 (best 5.0 at step 20)"],
        ),
        (
            [started(), scored(20, 5.0)],
            [scored(30, 9.0, quick=True)],
            ["evaluation at step 30: normalized score 9.0 (over fewer episodes)"],
        ),
        (
            [started(), scored(20, 5.0)],
            [scored(40, 6.0), done(40)],
            [
                "evaluation at step 40: normalized score 6.0 (the best so far)",
                "finished at step 40; last score 6.0, best 6.0 at step 40",
            ],
        ),
        ([started()], [AttemptPaused(time_s=1.0, attempt=1, step=17)], ["paused at step 17"]),
        ([], [TrainingExtended(time_s=1.0, trial_id="shorter", step=17)], []),
        ([started()], [failed(5)], ["failed at step 5: OSError: disk [full]"]),
        (
            [started()],
            [failed(5), again(2, 5)],
            ["attempt 1 failed at step 5: OSError: disk [full]", "attempt 2 started on far (cuda) at step 5 of 40"],
        ),
        ([started(), failed(5)], [again(2, 5)], ["attempt 2 started on far (cuda) at step 5 of 40"]),
        (
            [started(), scored(20, 3.0)],
            [OUT, TrialStopped(time_s=2.0, attempt=1, step=20, decision=OUT)],
            [
                "stopped early at step 20: its score at step 20 was 3.0; it needed 5.0, and 2 of 3 other trials had a "
                "higher one"
            ],
        ),
        (
            [started(), scored(20, 5.0), scored(40, 6.0)],
            [StartedOver(time_s=1.0, attempt=2, reason="lost"), again(2, 0), scored(20, 4.0)],
            [
                "attempt 2 started on far (cuda) at step 0 of 40",
                "evaluation at step 20: normalized score 4.0 (the best so far)",
            ],
        ),
    ],
)
def test_each_change_of_a_trial_is_a_line(
    tmp_path: Path, before: list[LedgerRecord], after: list[LedgerRecord], lines: list[str]
) -> None:
    trial = tiny_plan(tmp_path).trials[0]
    history = TrialHistory(trial, RULE)
    for record in before:
        history.take(of_trial(record, trial))  # type: ignore[arg-type]
    seen = Seen.of(history)
    for record in after:
        history.take(of_trial(record, trial))  # type: ignore[arg-type]
    assert list(news_of(seen, history)) == lines
    assert list(news_of(Seen.of(history), history)) == [], "nothing is told twice"


def test_what_was_there_at_the_first_look_is_no_news(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started(), evaluated(20)])
    follower, news = Follower(folder, plan.trials, whole=True), News()
    assert news.since(follower.update(), summarize(follower)) == []
    Ledger(folder.trial(plan.trial_ids[0]).ledger).append(of_trial(scored(40, 0.5), plan.trials[0]))
    (told,) = news.since(follower.update(), summarize(follower))
    assert told == f"{plan.trial_ids[0]}: evaluation at step 40: normalized score 0.5 (best 1.0 at step 20)"


def test_damage_is_told_once(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started()])
    follower, news = Follower(folder, plan.trials, whole=True), News()
    news.since(follower.update(), summarize(follower))
    with folder.trial(plan.trial_ids[0]).ledger.open("ab") as ledger:
        ledger.write(b"no record\n")
    told = [news.since(follower.update(), summarize(follower)) for _ in range(3)]
    assert ["not a ledger record" in line for line in told[0]] == [True]
    assert told[1:] == [[], []]


def test_a_log_gets_the_summary_rarely_and_at_the_end(tmp_path: Path) -> None:
    plan, folder = begun(tmp_path, [started()])
    file = io.StringIO()
    with ProgressView(Follower(folder, plan.trials, whole=True), Console(file=file, width=60), summary_every_s=3600.0):
        Ledger(folder.trial(plan.trial_ids[0]).ledger).append(of_trial(failed(5), plan.trials[0]))
        wait_until(lambda: "failed" in file.getvalue())
    first, last = (line[20:] for line in file.getvalue().splitlines())
    assert first == f"{plan.trial_ids[0]}: failed at step 5: OSError: disk [full]"
    assert last.startswith("0/2 trials done")
