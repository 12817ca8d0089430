"""Object stores that hold odd objects: what other programs, other versions of dmray and cut uploads leave there."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from random import Random
from uuid import uuid4

import fsspec

import dmray
from dmray.coordination.commands import next_command
from dmray.coordination.heartbeat import HEARTBEAT_NAME, Heartbeat
from dmray.coordination.sweep_lock import LockTiming, store_lock
from dmray.progress.explanation import explain
from dmray.progress.explanation_view import lines
from dmray.progress.summary import follower_of, summarize
from dmray.progress.summary_view import text
from dmray.progress.sweep_handle import find_sweep, find_trial
from dmray.records import SweepFolder
from dmray.storage import object_name, open_store
from dmray.storage.sweep_copy import fetch_from_store
from dmray.trial.job import TrialJob
from dmray.trial.rung_board import RungBoard
from tests.fuzz.mutators import mutate_bytes, mutate_json, mutate_path, odd_text
from tests.fuzz.templates import Templates

_RUNG, _RUNG_STEP = "0123456789abcdef", 5
_ODD_NAMES = (
    *("trials", "trials/ledger.jsonl", "trials/x", "trials//ledger.jsonl", "trials/x/ledger.jsonl/DONE.json"),
    *("trials/x/y/ledger.jsonl", "trials/x/ledger.jsonl/", "trials/.hidden/ledger.jsonl", "trials/ /DONE.json"),
    *("evaluations", "evaluations/x", "evaluations/x/y/z.parquet", "evaluations/x.parquet", "evaluations//x"),
    *("report", "report/x/y.md", "commands/x", "commands/999999.json", "commands", ".heartbeat.json", "rungs"),
    *(f"rungs/{_RUNG}/{_RUNG_STEP:09d}", f"rungs/{_RUNG}/{_RUNG_STEP:09d}/x.json", f"rungs/{_RUNG}/x/y.json"),
)
_ESCAPING_NAMES = (
    *("trials/../../outside/ledger.jsonl", "trials/x/../../../../outside/DONE.json", "report/../../../outside"),
    *("evaluations/../../../outside/x.parquet", "evaluations/../x", "trials/./ledger.jsonl", "trials/x/./DONE.json"),
)


def _objects(rng: Random, folder: Path, templates: Templates) -> dict[str, bytes]:
    """A sweep's objects; one or two of them are odd."""
    sweep = SweepFolder(templates.sweep.parent, templates.sweep.name)
    files = [path for path in sweep.path.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
    objects = {object_name(sweep, path): path.read_bytes() for path in files}
    objects["commands/000001.json"] = next_command(None, "run").model_dump_json().encode()
    objects[HEARTBEAT_NAME] = Heartbeat.now("fuzz", 1).model_copy(update={"machine": "x"}).model_dump_json().encode()
    for trial in templates.trials(sweep.path):
        objects[f"rungs/{_RUNG}/{_RUNG_STEP:09d}/{trial.name}.json"] = b'{"score": 1.0}'
    names = sorted(objects)
    small = [name for name in names if not name.endswith((".pt", ".csv", ".html", ".md", ".tex", ".pdf", ".png"))]
    for _ in range(rng.randint(1, 4)):
        name = rng.choice(small if rng.random() < 0.8 else names)
        content = objects[name]
        match rng.randrange(8):
            case 0 | 6 | 7:
                objects[rng.choice((*_ODD_NAMES, *_ESCAPING_NAMES))] = rng.choice((b"", b"{}", content))
            case 1:
                objects[name] = b""
            case 2:
                objects[name] = mutate_bytes(rng, content)
            case 3 if name.endswith(".json"):
                with suppress(ValueError):
                    objects[name] = mutate_json(rng, content.decode())
            case 4:
                objects[odd_text(rng, name)] = content
            case _:
                objects.pop(name)
                objects[f"{name.rpartition('/')[0]}/{rng.choice(names).rpartition('/')[2]}"] = content
    return objects


def in_memory(rng: Random, folder: Path, templates: Templates) -> str:
    """The address of a sweep in fsspec's memory, where names are free, as in S3."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    place = f"memory://{uuid4().hex[:8]}/runs/tiny"
    for name, content in _objects(rng, folder, templates).items():
        files.store[f"/{place.removeprefix('memory://')}/{name}"] = _memory_file(content)
    return place


def _memory_file(content: bytes) -> object:
    from fsspec.implementations.memory import MemoryFile

    return MemoryFile(data=content)


def in_folder(rng: Random, folder: Path, templates: Templates) -> str:
    """The address of a sweep in a folder as a store, where a name may also be a pipe, a device, or a link to itself."""
    root = folder / "store" / "runs" / "tiny"
    for name, content in _objects(rng, folder, templates).items():
        path = root / name
        with suppress(OSError, ValueError):  # a name that is a folder's too
            if ".." not in name.split("/"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    if rng.random() < 0.6:
        mutate_path(rng, rng.choice([path for path in sorted(root.rglob("*")) if path.is_file()]))
    return f"file://{root}"


def look_at(url: str) -> object:
    """What `dmray status`, `dmray logs` and a second look at both do."""
    with find_sweep(url) as found:
        found.read_progress()
        follower = follower_of(found.folder)
        shown = [text(summarize(follower))]
        found.read_progress()
        shown.append(text(summarize(follower)))
        for trial_id in found.trial_ids():
            found.read_log(find_trial(found, trial_id))
            shown += lines(explain(found, trial_id), 80)
    return shown


def copy_of(url: str) -> object:
    """What `dmray report` and an evaluation from a store do."""
    os.environ["DMRAY_CACHE"] = str(Path(os.environ["TMPDIR"]) / uuid4().hex)
    results = dmray.load_results(url)
    shown = results.trials, results.scores, results.episodes
    fetch_from_store(f"{url}/trials/{results.trials.trial_id.iloc[0]}")
    return shown


def scores_at_rung(url: str) -> object:
    """What early stopping reads, and the lock of a second driver."""
    storage, _, name = url.rpartition("/")
    job = TrialJob.model_construct(storage=storage, sweep_name=name)  # a board needs these two only
    scores = RungBoard(job).scores(_RUNG, _RUNG_STEP)
    assert all(map(math.isfinite, scores.values())), "a score that is not finite was taken"
    with store_lock(open_store(storage, name), LockTiming(heartbeat_s=0.05, stale_s=0.1, settle_s=0.0)):
        return scores
