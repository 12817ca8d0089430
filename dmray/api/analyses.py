"""Analyses of stored policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from dmray.api.progress import check_progress, episode_bar
from dmray.arguments import (
    MAX_EPISODES,
    MAX_SEED,
    MAX_WINDOWS,
    MAX_WORKERS,
    finite_number,
    line,
    place,
    whole_number,
    writable_folder,
)
from dmray.errors import SpecError
from dmray.registry import short_repr

if TYPE_CHECKING:
    from dmray.analysis.decay import DecayAnalysis
    from dmray.analysis.subgoals import SubgoalAnalysis

_MOST_STEPS = 10_000


def analyze_decay(
    runs: str | Path | Sequence[str | Path],
    *,
    checkpoint: str = "final",
    windows: int = 16,
    cut: Sequence[int] = (),
    episodes: int | None = None,
    workers: int | None = None,
    into: str | Path | None = None,
    mlflow_uri: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> DecayAnalysis:
    """Measure how long the states of stored policies with Mamba last, in timesteps (docs/questions/evolution.md).

    `runs`: checkpoint files, trials' folders, ids of MLflow runs, or sweeps; those of other backbones are left out.
    `checkpoint`: "final", "best" or for example "step:10000". `windows`: how many windows of each data set to measure
    in. `cut`: also evaluate each policy with states that are cut off after so many timesteps, in `episodes` episodes
    (None: 20) and so many processes (`workers`). `into`: a folder for tables (CSV) and figures. `progress`: if True,
    show a bar; a function is called with the numbers of finished and of all policies.

        analysis = dmray.analyze_decay("runs/quickstart", cut=[1, 2], episodes=2, into="analysis/decay")
        analysis.lengths_by_setting

    Raises:
        SpecError: no policy has Mamba, a cut is as long as an episode, or an argument is wrong.
        StorageError: a run does not exist, none has such a checkpoint, or nothing can be written to `into`.
        TrackingError: MLflow does not answer, or has no such model.
        CheckpointError, DatasetError: no policy, or no data set, can be read. (If some can, `failed` names the others.)
        EngineError: a cut is to be evaluated, and the task has no simulator here.
    """
    sources = _sources(runs)
    if isinstance(cut, str) or not isinstance(cut, Sequence):
        raise SpecError(f"cut {short_repr(cut)}: give a list of whole numbers, for example [1, 5]")
    cuts = tuple(whole_number("cut", each, 1) for each in cut)
    if not cuts and (episodes is not None or workers is not None):
        raise SpecError("episodes, workers: only with cut, for example cut=[1, 5]")
    check_progress(progress)
    measured = whole_number("windows", windows, 1, MAX_WINDOWS)
    into = None if into is None else writable_folder("into", into)
    from dmray.analysis import decay, decay_files, stored  # loads torch

    cut_off = decay.CutOff(
        cuts,
        whole_number("episodes", 20 if episodes is None else episodes, 1, MAX_EPISODES),
        whole_number("workers", 1 if workers is None else workers, 1, MAX_WORKERS),
    )
    found = stored.find_policies(sources, line("checkpoint", checkpoint), mlflow_uri)
    with episode_bar(progress, "the runs", "policies") as on_policy:
        made = decay.analyze_decay(found, windows=measured, cut_off=cut_off if cuts else None, on_policy=on_policy)
    if into is not None:
        decay_files.write_decay(made, into)
    return made


def analyze_subgoals(
    runs: str | Path | Sequence[str | Path],
    *,
    checkpoint: str = "final",
    within: int = 20,
    radius: float | None = None,
    stretches: int = 20,
    length: int = 100,
    episodes: int = 0,
    workers: int | None = None,
    seed: int = 0,
    into: str | Path | None = None,
    mlflow_uri: str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> SubgoalAnalysis:
    """Measure what the subgoals of stored policies of HDM and HDT are (docs/questions/subgoals.md).

    `runs`: checkpoint files, trials' folders, ids of MLflow runs, or sweeps; methods without subgoals are left out.
    `checkpoint`: "final", "best" or for example "step:10000". Subgoals are predicted in `stretches` stretches of up to
    `length` timesteps of the data set, and are compared with the states of the next `within` timesteps. `radius`: the
    z-scored distance at which one is reached; None: half of the median distance of two states of an episode that are
    `within` timesteps apart. `episodes`: also evaluate each policy in so many episodes for each source of subgoals, in
    so many processes (`workers`; one for each of the four sources at most). `seed`: of what is drawn. `into`: a folder
    for tables (CSV) and figures. `progress`: if True, show a bar; a function is called with the numbers of finished and
    of all policies. The result's `tables` are pandas tables.

    Raises:
        SpecError: no policy predicts subgoals, or an argument is wrong.
        StorageError: a run does not exist, none has such a checkpoint, or nothing can be written to `into`.
        TrackingError: MLflow does not answer, or has no such model.
        CheckpointError, DatasetError: no policy, or no data set, can be read. (If some can, `failed` names the others.)
        EngineError: there are to be episodes, and the task has no simulator here.
    """
    sources = _sources(runs)
    check_progress(progress)
    if radius is not None and finite_number("radius", radius) <= 0:
        raise SpecError(f"radius {short_repr(radius)}: must be above 0")
    counts = {"within": within, "stretches": stretches, "length": length}
    whole = {name: whole_number(name, value, 1, _MOST_STEPS) for name, value in counts.items()}
    whole |= {"episodes": whole_number("episodes", episodes, 0, MAX_EPISODES)}
    if workers is not None and not episodes:
        raise SpecError("workers: only with episodes, for example episodes=20")
    at_once = whole_number("workers", 1 if workers is None else workers, 1, MAX_WORKERS)
    whole |= {"seed": whole_number("seed", seed, 0, MAX_SEED)}
    folder = None if into is None else writable_folder("into", into)
    from dmray.analysis import stored, subgoals  # loads torch

    found = stored.find_policies(sources, line("checkpoint", checkpoint), mlflow_uri)
    options = subgoals.SubgoalOptions(radius=radius, **whole)
    with episode_bar(progress, "the runs", "policies") as on_policy:
        made = subgoals.analyze_subgoals(found, options, on_policy or (lambda done, total: None), at_once)
    if folder is not None:
        subgoals.write_subgoals(made, folder)
    return made


def _sources(runs: str | Path | Sequence[str | Path]) -> list[str]:
    """The runs of an analysis as texts."""
    named = [runs] if isinstance(runs, str | PathLike) else runs
    if not isinstance(named, Sequence) or not named:
        raise SpecError(f"runs {short_repr(runs)}: give a path, a run's id, or a list of them")
    return [place("runs", source) for source in named]
