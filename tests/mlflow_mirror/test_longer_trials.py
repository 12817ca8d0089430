"""In MLflow a trial that was extended is one trial: the run of the shorter one is in no view any more."""

from __future__ import annotations

from pathlib import Path

from dmray.mlflow_mirror.layout import CONTINUED, KEY, SEED_GROUP
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.records import SweepFolder, TrainingExtended
from tests.mlflow_mirror.examples import (
    T0,
    done,
    evaluated,
    example_sweep,
    started,
    trained,
    trials_of,
    whole_trial,
    write_ledger,
    write_manifest,
)
from tests.mlflow_mirror.fake_store import FakeStore

SHORT = example_sweep(grid=[{"methods": ["dm"]}], seeds=[0])
LONG = example_sweep(grid=[{"methods": ["dm"]}], seeds=[0], training={"steps": 80})


def test_the_longer_trial_has_all_records_and_the_shorter_one_leaves_the_views(tmp_path: Path) -> None:
    store, folder = FakeStore(), SweepFolder(tmp_path, "example")
    [short], [long] = trials_of(SHORT), trials_of(LONG)
    write_manifest(folder, SHORT)
    write_ledger(folder, short, whole_trial(50, 60))
    MlflowMirror(store, folder, SHORT, [short]).close()
    write_manifest(folder, LONG)
    mark = TrainingExtended(time_s=T0 + 41, trial_id=short.trial_id, step=40)
    again = [started(2, 40), trained(80), evaluated(80, 70, 65), done(80)]
    write_ledger(folder, long, [*whole_trial(50, 60)[:-1], mark, *again])
    MlflowMirror(store, folder, LONG, [long]).close()

    [run] = store.level("trial")
    assert run.tags["dmray.trial_key"] == long.trial_id
    assert run.tags["dmray.continues"] == short.trial_id
    assert run.history("eval/normalized_score") == [(20, 50.0), (40, 60.0), (80, 70.0)]
    [left, left_group] = sorted(store.level(CONTINUED), key=lambda each: "dmray.continued_as" not in each.tags)
    [group] = store.level("seed group")
    assert (left.tags[SEED_GROUP], run.tags[SEED_GROUP]) == (left_group.tags[KEY], group.tags[KEY])
    assert (left.tags["dmray.trial_key"], left.tags["dmray.continued_as"]) == (short.trial_id, long.trial_id)

    write_manifest(folder, SHORT)
    MlflowMirror(store, folder, SHORT, [short]).close()
    assert short.trial_id in {each.tags["dmray.trial_key"] for each in store.level("trial")}, "the file is as before"
    assert {left_group.tags[KEY], group.tags[KEY]} == {each.tags[KEY] for each in store.level("seed group")}
