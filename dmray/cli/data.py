"""`python -m dmray.data list | fetch | verify | stats | make`: list, fetch, check, summarize and record data sets.

What reads, downloads and records data is imported where it is used, so that `list` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from dmray.arguments import MAX_COUNT, MAX_SEED
from dmray.cli.shared import check_writable, err, finite_number, new_app, out, print_error, report_errors
from dmray.errors import DmrayError, SpecError, StorageError
from dmray.files import download_folders, is_regular_file, user_path
from dmray.registry import lookup
from dmray.tasks import (
    DATASETS,
    MINARI_SCHEME,
    RANDOM,
    TASKS,
    Task,
    check_behaviour,
    families_by_behaviours,
    find_names,
)
from dmray.tasks.registry import BUILT_IN
from dmray.terminal import FittingTable

app = new_app()


def _complete_name(incomplete: str) -> list[str]:
    return [name for name in DATASETS if name.startswith(incomplete)]


Protocol = Annotated[str | None, typer.Option(help="Only data sets of this protocol.")]
_RECORDABLE = families_by_behaviours(task for family in BUILT_IN for task in family.tasks)
_OF_FAMILIES = (f"{', '.join(words)} ({', '.join(families)})" for words, families in _RECORDABLE.items())
_BEHAVIOUR_HELP = "; ".join((f"{RANDOM} (any task)", *_OF_FAMILIES))
FileTask = Annotated[str | None, typer.Option(help="The task of a file; by default the one that fits its sizes.")]


@app.command("list")
def list_datasets(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names, patterns ('hopper-*'), tasks or families (hopper). Default: all.",
            autocompletion=_complete_name,
        ),
    ] = None,
    protocol: Protocol = None,
) -> None:
    """List the published data sets, how they are evaluated and scored, and which are on this machine.

    Tasks without a published data set are listed by the name of the task; record their data with `make`.
    """
    with report_errors():
        found = [find_names(given, protocol) for given in names or ["*"]]
    datasets, tasks = (dict.fromkeys(chain.from_iterable(part)) for part in zip(*found, strict=True))
    table = FittingTable(box=None, pad_edge=False)
    for heading in ("data set", "protocol", "environment", "observation", "horizon", "score 0", "score 100", "targets"):
        table.add_column(heading, no_wrap=True)
    table.add_column("here")
    for name in datasets:
        table.add_row(name, *_columns(TASKS[DATASETS[name].task]), "yes" if _here(name) else "")
    for name in tasks:
        table.add_row(name, *_columns(TASKS[name]), "make")
    out.print(table)
    shown = [TASKS[name] for name in (*(DATASETS[dataset].task for dataset in datasets), *tasks)]
    for words, families in families_by_behaviours(shown).items():
        can = f"{', '.join(families)}: data make --behaviour {' | '.join((RANDOM, *words))}"
        out.print(can, highlight=False, markup=False)


@app.command()
def fetch(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names, patterns or families: hopper-medium-v2 'antmaze-*' maze2d; with --to also files.",
            autocompletion=_complete_name,
        ),
    ] = None,
    protocol: Protocol = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="All data sets of this sweep file, or shipped sweep."),
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-o", help="KEY=VALUE replaces a value of the sweep file, as in dmray.sweep.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Put them where all machines of a cluster read them: a shared folder, or s3://bucket/prefix.",
        ),
    ] = None,
) -> None:
    """Download data sets. A download that was interrupted continues. If one fails, the others are still downloaded."""
    from dmray.downloads import progress_bar
    from dmray.sources import fetch_published, put_file, put_published

    with report_errors():
        if not names and sweep is None:
            raise SpecError("nothing to fetch: give names of data sets, or a sweep file with --sweep")
        if sweep is not None and protocol is not None and not names:
            raise SpecError(f"--protocol {protocol}: --sweep names data sets one by one; leave out one of the two")
        if override and sweep is None:
            raise SpecError(f"-o {override[0]}: replaces a value of a sweep file; name it with --sweep")
        wanted = [each for given in names or () for each in _to_fetch(given, protocol, to)]
        if sweep is not None:
            wanted += _of_sweep(sweep, override or (), to)
    place, failed = None if to is None else to.rstrip("/") or "/", 0
    for name in dict.fromkeys(wanted):
        try:
            with progress_bar(err) as progress:
                if isinstance(name, Path):
                    assert place is not None
                    path = put_file(name, place)
                else:
                    path = fetch_published(name, progress) if place is None else put_published(name, place, progress)
            out.print(f"{name}: {path}", highlight=False, soft_wrap=True)
        except DmrayError as problem:
            failed += 1
            print_error(problem)
    if failed:
        raise typer.Exit(1)


@app.command("verify")
def verify_datasets(
    names: Annotated[
        list[str], typer.Argument(help="Names, patterns, families, or files.", autocompletion=_complete_name)
    ],
    task: FileTask = None,
    replay: Annotated[bool, typer.Option(help="Also replay recorded actions in the simulator.")] = True,
) -> None:
    """Check files: checksums, all values, and whether the simulator reproduces the recorded episodes."""
    from dmray.cli.data_files import check_dataset

    with report_errors():
        wanted = [name for given in names for name in _to_verify(given, task)]
    failed = False
    for name in wanted:
        try:
            transitions, notes = check_dataset(name, task, replay)
            out.print(f"[green]ok[/green]  {name}: {transitions:,} transitions", highlight=False)
            for note in notes:
                _print_note(note, indent="      ")
        except DmrayError as problem:
            failed = True
            message = str(problem).removeprefix(f"{name}: ")
            err.print(f"bad {name}: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(1 if failed else 0)


@app.command()
def stats(
    name: Annotated[
        str, typer.Argument(help="The name of a published data set, or a file.", autocompletion=_complete_name)
    ],
    task: FileTask = None,
) -> None:
    """Print statistics of a data set: episodes, lengths, returns, normalized scores, ranges."""
    from dmray.cli.data_files import read_dataset, statistics

    with report_errors():
        opened, notes = read_dataset(name, task)
    table = FittingTable(box=None, pad_edge=False)
    for heading in ("", "mean", "std", "min", "median", "max"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, values in statistics(opened).items():
        table.add_row(label, *(f"{value:z,.3f}" for value in values))
    episodes = opened.episodes
    sizes = f"{episodes.num_episodes:,} episodes, {episodes.num_transitions:,} transitions"
    out.print(f"{name}: {sizes}, task {opened.task.name} ({opened.task.protocol})", highlight=False)
    out.print(table)
    targets = ", ".join(f"{target:g}" for target in opened.task.target_returns)
    highest = f"the highest return in the data is {episodes.returns().max():z,.1f}"
    out.print(f"target returns {targets}; {highest}", highlight=False)
    out.print(f"fingerprint {episodes.fingerprint}", highlight=False, soft_wrap=True)
    for note in (*notes, *episodes.notes):
        _print_note(note)


@app.command()
def make(
    task: Annotated[str, typer.Option(help="The task, for example hopper or maze2d-umaze.")],
    out_file: Annotated[Path, typer.Option("--out", help="The file to write.")],
    behaviour: Annotated[str, typer.Option(help=f"What acts: {_BEHAVIOUR_HELP}.")] = RANDOM,
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
    from dmray.rollout import record  # loads the simulators
    from dmray.sources import require_room_to_record, write_recording
    from dmray.specs import Generation

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
    from dmray.cli.data_files import needs_attention

    style = "yellow" if needs_attention(note) else None
    out.print(f"{indent}{note}", style=style, highlight=False, markup=False, soft_wrap=True)


def _published(given: str, protocol: str | None = None) -> list[str]:
    """The published data sets of a name, a pattern, a task or a family.

    Raises:
        SpecError: there is none.
    """
    names, tasks = find_names(given, protocol)
    if not names:
        raise SpecError(f"'{given}': no data set is published; record one: python -m dmray.data make --task {tasks[0]}")
    return names


def _to_fetch(given: str, protocol: str | None, to: str | None) -> list[str | Path]:
    """The published data sets of a name, a pattern, a task or a family; or the file itself.

    Raises:
        SpecError: there is none, or it is a file and no place for it is named.
    """
    if given in DATASETS or not is_regular_file(Path(given)):
        return list(_published(given, protocol))
    if to is None:
        raise SpecError(f"{given}: a file of this machine; name the place where it is to be put with --to")
    return [Path(given)]


def _of_sweep(file: str, overrides: Sequence[str], to: str | None) -> list[str | Path]:
    """What is fetched of a sweep's data sets; what is not, and why, is printed.

    Raises:
        SpecError: there is no such sweep, or an override does not fit it.
    """
    from dmray.specs import load_sweep

    wanted: list[str | Path] = []
    for dataset in load_sweep(file, overrides).datasets:
        if dataset.generate is not None:
            _print_note(f"{dataset.name}: is recorded when the sweep starts")
        elif dataset.path is None:
            wanted.append(dataset.catalog_name)
        elif dataset.path.startswith(MINARI_SCHEME) and to is None:
            wanted.append(dataset.path)
        elif "://" in dataset.path or to is None:
            _print_note(f"{dataset.name}: is read from {dataset.path}, which the sweep file names")
        else:
            wanted.append(user_path(dataset.path))
    return wanted


def _to_verify(given: str, task: str | None) -> list[str]:
    """The file or name itself; for a pattern or a family, the matching data sets that are on this machine."""
    if task is not None or is_regular_file(Path(given)) or given in DATASETS:
        return [given]
    names = _published(given)
    here = [name for name in names if _here(name)]
    if not here:
        raise SpecError(f"'{given}': none of its {len(names)} data sets is on this machine; fetch them first")
    return here


def _columns(task: Task) -> tuple[str, ...]:
    scale = (f"{task.reference.minimum:g}", f"{task.reference.maximum:g}")
    targets = ", ".join(f"{target:g}" for target in task.target_returns)
    return task.protocol, f"{task.engine}: {task.env_id}", str(task.observation_dim), str(task.horizon), *scale, targets


def _here(name: str) -> bool:
    file_name = DATASETS[name].file_name
    return file_name is not None and any(is_regular_file(folder / file_name) for folder in download_folders())


if __name__ == "__main__":
    app()
