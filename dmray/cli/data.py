"""`python -m dmray.data list | fetch | verify | stats | make`: list, fetch, check, summarize and record data sets."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from dmray.arguments import MAX_COUNT, MAX_SEED
from dmray.cli.shared import check_writable, err, finite_number, new_app, out, report_errors
from dmray.datasets import WARNING
from dmray.downloads import progress_bar, verify
from dmray.errors import DatasetError, DmrayError, EngineError, SpecError, StorageError
from dmray.files import download_folders, is_regular_file, user_path
from dmray.registry import lookup, unknown
from dmray.rollout import furthest_number, record, replay_errors
from dmray.sources import (
    OpenedDataset,
    fetch_published,
    open_dataset,
    open_file,
    remote_file,
    require_room_to_record,
    write_recording,
)
from dmray.specs import DatasetSpec, Generation
from dmray.tasks import DATASETS, MINARI_SCHEME, PROTOCOLS, RANDOM, TASKS, Task, check_behaviour, entry_of
from dmray.terminal import FittingTable

app = new_app()
_REPLAYED_STEPS, _REPLAY_TOLERANCE = 20, 1e-3
_STARTS = 16


@app.command("list")
def list_datasets(
    pattern: Annotated[str, typer.Argument(help="Names, for example 'hopper-*'.")] = "*",
    protocol: Annotated[str | None, typer.Option(help="Only data sets of this protocol.")] = None,
) -> None:
    """List the published data sets, how they are evaluated and scored, and which are on this machine.

    Tasks without a published data set are listed by the name of the task; record their data with `make`.
    """
    with report_errors():
        if protocol is not None:
            lookup("protocol", protocol, PROTOCOLS, SpecError)
    table = FittingTable(box=None, pad_edge=False)
    for heading in ("data set", "protocol", "environment", "observation", "horizon", "score 0", "score 100", "targets"):
        table.add_column(heading, no_wrap=True)
    table.add_column("here")
    tasks = [name for name in _tasks_without_datasets() if fnmatchcase(name, pattern)]
    names = [name for name in DATASETS if fnmatchcase(name, pattern)] if tasks else _matching(pattern)
    rows = [(name, TASKS[DATASETS[name].task], "yes" if _here(name) else "") for name in names]
    for name, task, here in [*rows, *((name, TASKS[name], "make") for name in tasks)]:
        if protocol in (None, task.protocol):
            table.add_row(name, *_columns(task), here)
    out.print(table)


@app.command()
def fetch(names: Annotated[list[str], typer.Argument(help="Names or patterns: hopper-medium-v2 'antmaze-*'.")]) -> None:
    """Download data sets. A download that was interrupted continues."""
    with report_errors():
        for name in [name for pattern in names for name in _matching(pattern)]:
            with progress_bar(err) as progress:
                path = fetch_published(name, progress)
            out.print(f"{name}: {path}", highlight=False, soft_wrap=True)


@app.command("verify")
def verify_datasets(
    names: Annotated[list[str], typer.Argument(help="Names, patterns, or (with --task) files.")],
    task: Annotated[str | None, typer.Option(help="The task of a file, for example hopper.")] = None,
    replay: Annotated[bool, typer.Option(help="Also replay recorded actions in the simulator.")] = True,
) -> None:
    """Check files: checksums, all values, and whether the simulator reproduces the recorded episodes."""
    failed = False
    for name in [name for given in names for name in _to_verify(given, task)]:
        try:
            opened = _opened(name, task)
            _check_starts(opened)
            notes = [*_checksum(name, task), *opened.episodes.notes, *(_replayed(opened) if replay else [])]
            out.print(f"[green]ok[/green]  {name}: {opened.episodes.num_transitions:,} transitions", highlight=False)
            for note in notes:
                _print_note(note, indent="      ")
        except DmrayError as problem:
            failed = True
            message = str(problem).removeprefix(f"{name}: ")
            err.print(f"bad {name}: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


@app.command()
def stats(
    name: Annotated[str, typer.Argument(help="The name of a published data set, or (with --task) a file.")],
    task: Annotated[str | None, typer.Option(help="The task of a file, for example hopper.")] = None,
) -> None:
    """Print statistics of a data set: episodes, lengths, returns, normalized scores, ranges."""
    with report_errors():
        opened = _opened(name, task)
    table = FittingTable(box=None, pad_edge=False)
    for heading in ("", "mean", "std", "min", "median", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    episodes, returns = opened.episodes, opened.episodes.returns()
    rows = {
        "episode length": episodes.lengths,
        "return": returns,
        "normalized score": np.array([opened.task.reference.normalize(value) for value in returns]),
        "reward": episodes.rewards,
        "observation": episodes.observations,
        "action": episodes.actions,
    }
    for label, values in rows.items():
        table.add_row(label, *(f"{value:,.3f}" for value in _summary(values)))
    sizes = f"{episodes.num_episodes:,} episodes, {episodes.num_transitions:,} transitions"
    out.print(f"{name}: {sizes}, task {opened.task.name} ({opened.task.protocol})", highlight=False)
    out.print(table)
    targets = ", ".join(f"{target:g}" for target in opened.task.target_returns)
    out.print(f"target returns {targets}; the highest return in the data is {returns.max():,.1f}", highlight=False)
    out.print(f"fingerprint {episodes.fingerprint}", highlight=False, soft_wrap=True)
    for note in episodes.notes:
        _print_note(note)


@app.command()
def make(
    task: Annotated[str, typer.Option(help="The task, for example hopper or maze2d-umaze.")],
    out_file: Annotated[Path, typer.Option("--out", help="The file to write.")],
    behaviour: Annotated[str, typer.Option(help="'random', or a behaviour of the task's family.")] = RANDOM,
    transitions: Annotated[
        int, typer.Option(min=1, max=MAX_COUNT, help="Record whole episodes until there are so many.")
    ] = 10_000,
    checkpoint: Annotated[Path | None, typer.Option(help="Record this policy (best.pt, last.pt) instead.")] = None,
    target_return: Annotated[
        float | None,
        typer.Option(
            parser=finite_number, metavar="<float>", help="The policy's target return; by default the task's first."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the episodes.")] = 0,
) -> None:
    """Record a data set in D4RL's format: with random actions, a behaviour of the task, or a trained policy."""
    with report_errors():
        where = lookup("task", task, TASKS, SpecError)
        check_writable(out_file, "--out")
        if out_file.exists():
            raise StorageError(f"--out {out_file}: the file exists; remove it, or give another file")
        require_room_to_record(out_file, where, transitions)
        if checkpoint is None:
            check_behaviour(where, behaviour, f"--behaviour {behaviour}")
            made = Generation(behaviour=behaviour, transitions=transitions, seed=seed)
            if target_return is not None:
                raise SpecError(f"--target-return {target_return:g}: only a policy takes one; give a --checkpoint")
            recorded, by = record(where, made), made.model_dump_json()
        else:
            from dmray.inference import record_checkpoint  # loads torch

            recorded = record_checkpoint(checkpoint, where, transitions, seed, target_return)
            by = checkpoint.name if target_return is None else f"{checkpoint.name}, target return {target_return:g}"
        write_recording(out_file, recorded, where, by)
    out.print(f"{out_file}: {len(recorded.rewards):,} transitions of {task}", highlight=False, soft_wrap=True)


def _print_note(note: str, indent: str = "") -> None:
    style = "yellow" if note.startswith(WARNING) else None
    out.print(f"{indent}{note}", style=style, highlight=False, markup=False, soft_wrap=True)


def _matching(pattern: str) -> list[str]:
    found = [name for name in DATASETS if fnmatchcase(name, pattern)]
    if not found:
        with report_errors():
            entry_of(pattern)
            raise SpecError(unknown("data set", pattern, DATASETS))
    return found


def _tasks_without_datasets() -> list[str]:
    published = {entry.task for entry in DATASETS.values()}
    return [name for name in TASKS if name not in published]


def _to_verify(given: str, task: str | None) -> list[str]:
    """The file or name itself; for a pattern, the matching data sets that are on this machine."""
    if task is not None or is_regular_file(Path(given)) or given in DATASETS:
        return [given]
    return [name for name in _matching(given) if _here(name)]


def _columns(task: Task) -> tuple[str, ...]:
    scale = (f"{task.reference.minimum:g}", f"{task.reference.maximum:g}")
    targets = ", ".join(f"{target:g}" for target in task.target_returns)
    return task.protocol, f"{task.engine}: {task.env_id}", str(task.observation_dim), str(task.horizon), *scale, targets


def _here(name: str) -> bool:
    if DATASETS[name].url.startswith(MINARI_SCHEME):
        return False
    return any(is_regular_file(folder / remote_file(name).name) for folder in download_folders())


def _opened(name: str, task: str | None) -> OpenedDataset:
    """Read a file as a data set of `task`, or a published data set that is on this machine; not what is cached."""
    if task is not None:
        return open_file(user_path(name), lookup("task", task, TASKS, SpecError), cached=False)
    if name not in DATASETS and is_regular_file(Path(name)):
        raise SpecError(f"{name}: a file needs a --task, for example --task hopper")
    entry = entry_of(name)
    if not entry.url.startswith(MINARI_SCHEME) and not _here(name):
        raise DatasetError(f"not on this machine: python -m dmray.data fetch {name}")
    return open_dataset(DatasetSpec(name=name), TASKS[entry.task], Path(), cached=False)


def _checksum(name: str, task: str | None) -> list[str]:
    """The note on the checksum of a published file, from the manifest in its folder."""
    if task is not None or DATASETS[name].url.startswith(MINARI_SCHEME):
        return []
    remote = remote_file(name)
    folder = next(folder for folder in download_folders() if (folder / remote.name).is_file())
    return [str(verify(remote.name, folder))]


def _summary(values: np.ndarray) -> tuple[float, ...]:
    return values.mean(dtype=np.float64), values.std(dtype=np.float64), values.min(), np.median(values), values.max()


def _check_starts(opened: OpenedDataset) -> None:
    """Compare the simulator's first observations with the mean and deviation of the file's observations.

    Raises:
        DatasetError: a number of an observation is far from its mean.
    """
    try:
        number = furthest_number(opened.task, opened.episodes, _STARTS)
    except EngineError:  # the replay reports it
        return
    if number.is_far:
        raise DatasetError(f"{number}. Is it the file of another task?")


def _replayed(opened: OpenedDataset) -> list[str]:
    """Replay recorded actions in the simulator. Returns a note on the result.

    Raises:
        DatasetError: the simulator reproduces less than half of the episodes.
    """
    try:
        errors = replay_errors(opened.task, opened.episodes, _REPLAYED_STEPS).max(axis=1)
    except EngineError as cannot:
        return [f"not replayed: {cannot}"]
    same = int((errors < _REPLAY_TOLERANCE).sum())
    result = (
        f"{same} of {len(errors)} replayed episodes stay within {_REPLAY_TOLERANCE:g} for {_REPLAYED_STEPS} steps "
        f"(median {np.median(errors):.1g})"
    )
    if same < len(errors) / 2:
        raise DatasetError(f"{opened.task.env_id} does not reproduce it: {result}. Is it the file of another task?")
    return [f"{opened.task.env_id} reproduces it: {result}"]


if __name__ == "__main__":
    app()
