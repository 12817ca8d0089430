"""`python -m dmray.evaluate CHECKPOINT_OR_RUN`: closed-loop evaluation of a stored policy, as its sweep would do it."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from dmray.cli.shared import check_writable, err, new_app, out, report_errors
from dmray.errors import SpecError
from dmray.mlflow_mirror.models import download_checkpoint, upload_drawings
from dmray.records import EvaluationDone, TargetResult, TrialFolder, read_ledger, write_episode_table
from dmray.specs import parse_decode
from dmray.storage import fetch_from_store, is_url

if TYPE_CHECKING:
    from dmray.inference.stored_policy import StoredPolicy
    from dmray.rollout import EpisodeRecord, EvaluationRequest

app = new_app()
_RUN_ID = re.compile(r"^(?:runs:/)?([0-9a-f]{32})$")


@app.command()
def main(
    source: Annotated[
        str,
        typer.Argument(help="A checkpoint file or a trial's folder (s3://... too), or the id of a trial's MLflow run."),
    ],
    episodes: Annotated[int | None, typer.Option(min=1, help="Else as in the sweep, like all that follow.")] = None,
    decode: Annotated[str | None, typer.Option(help="The decode mode, for example window.")] = None,
    target: Annotated[list[float] | None, typer.Option(help="A target return; may be given several times.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the episodes' starts.")] = None,
    cohort_size: Annotated[int | None, typer.Option(min=1, help="Episodes in lockstep.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the result is the same for any number.")] = 1,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="As a sweep with resources.deterministic: true.")
    ] = False,
    records: Annotated[Path | None, typer.Option(help="Write one row an episode to this Parquet file.")] = None,
    video: Annotated[int, typer.Option(min=0, help="Film so many of the episodes, MP4.")] = 0,
    pictures: Annotated[int, typer.Option(min=0, help="Draw so many of the episodes, PNG.")] = 0,
    into: Annotated[
        Path | None,
        typer.Option(help="Where pictures/ and videos/ go: else the trial's folder, or this one and the MLflow run."),
    ] = None,
    which: Annotated[str | None, typer.Option(help="Of an MLflow run: final (if left out) or best.")] = None,
    mlflow_uri: Annotated[str | None, typer.Option(help="Where the MLflow run is; else $MLFLOW_TRACKING_URI.")] = None,
) -> None:
    """Roll a stored policy out and print its scores; with no options, exactly as its sweep evaluated it."""
    with report_errors():
        from dmray.inference.stored_policy import evaluate_stored
        from dmray.trial.evaluation import about, episode_rows, summarize  # loads torch

        if records is not None:
            check_writable(records, "--records")
        stored, place = _stored(source, which, mlflow_uri)
        changes = {"episodes": episodes, "decode": decode, "seed": seed, "cohort_size": cohort_size}
        request = _request(stored, {name: value for name, value in changes.items() if value is not None}, target)
        # Drawn first, from the first cohort alone: what cannot be drawn is told before the hours of an evaluation.
        drawn = (
            _drawn(stored, request, (pictures, video), _folder(into, place), deterministic) if pictures or video else []
        )
        rows = request.episodes * len(request.target_returns)
        done: list[EpisodeRecord] = []
        with Progress(console=err, transient=True) as progress:
            bar = progress.add_task(f"{rows} episodes of {request.task.name}", total=rows)
            for cohort in evaluate_stored(stored, request, workers, deterministic):
                done.extend(cohort)
                progress.advance(bar, len(cohort))
        results = summarize(request, done)
        run = _RUN_ID.match(source)
        if run is not None and drawn:
            upload_drawings(run.group(1), drawn, mlflow_uri)
        if records is not None:
            write_episode_table(records, episode_rows(request, done), about(request, stored.step))
    out.print(_title(stored, request), highlight=False, soft_wrap=True)
    out.print(_table(results))
    for path in drawn:
        out.print(f"written {path}", highlight=False, soft_wrap=True)
    out.print(_against_record(place, stored, request, results), highlight=False, soft_wrap=True)


def _stored(source: str, which: str | None, mlflow_uri: str | None) -> tuple[StoredPolicy, Path | None]:
    """The policy, and the trial's folder where there is one."""
    from dmray.inference.stored_policy import load_stored

    run = _RUN_ID.match(source)
    if run is None and which is not None:
        raise SpecError(
            f"--which {which}: chooses a model of an MLflow run; of a trial name the file, checkpoints/best.pt"
        )
    if run is None:
        path = fetch_from_store(source) if is_url(source) else Path(source).expanduser()
        return load_stored(path), path if path.is_dir() else path.parent.parent
    with tempfile.TemporaryDirectory() as folder:
        return load_stored(download_checkpoint(run.group(1), which or "final", Path(folder), mlflow_uri)), None


def _folder(into: Path | None, place: Path | None) -> TrialFolder:
    """Where pictures and videos go: a sweep's trial keeps its own, and MLflow shows them with it."""
    if into is None and place is not None and TrialFolder(place).ledger.exists():
        return TrialFolder(place)
    return TrialFolder(into or Path())


def _drawn(
    stored: StoredPolicy, request: EvaluationRequest, counts: tuple[int, int], folder: TrialFolder, deterministic: bool
) -> list[Path]:
    """Files with the first `counts` (pictures, films) episodes."""
    from dmray.inference.stored_policy import watch_stored
    from dmray.rollout.film import write_films
    from dmray.rollout.pictures import write_pictures

    name = f"{stored.trial.trial_id}-step{stored.step}"
    pictures, films = counts
    watched = watch_stored(stored, request, max(counts), deterministic)
    paths = write_pictures(request.task, watched[:pictures], folder.pictures / name) if pictures else []
    if films:
        videos = [folder.videos / f"{name}-episode{number}.mp4" for number in range(films)]
        write_films(request.task, [episode.observations for episode in watched[:films]], videos)
        paths += videos
    return paths


def _request(stored: StoredPolicy, changes: dict[str, object], target: list[float] | None) -> EvaluationRequest:
    from dmray.trial.evaluation import request_for

    if "decode" in changes:
        try:
            parse_decode(str(changes["decode"]))
        except ValueError as unknown:
            raise SpecError(f"--decode: {unknown}") from None
    changes["quick_episodes"] = None  # of evaluations along the way; fewer episodes than those may be asked for
    evaluation = stored.trial.evaluation.model_validate({**stored.trial.evaluation.model_dump(), **changes})
    trial = stored.trial.model_copy(update={"evaluation": evaluation})
    takes_target = stored.snapshot.build().takes_target
    if target and not takes_target:
        raise SpecError(f"--target {target[0]:g}: {stored.trial.method.upper()} takes no target return")
    request = request_for(trial, stored.task, takes_target)
    return replace(request, target_returns=tuple(target)) if target else request


def _title(stored: StoredPolicy, request: EvaluationRequest) -> str:
    task, trial = request.task, stored.trial
    return (
        f"{trial.method.upper()} of {trial.dataset.name}, seed {trial.seed}, after {stored.step:,} steps; {task.name} "
        f"({task.protocol}, {task.env_id}), decode {request.decode}, {request.episodes} episodes, seed {request.seed}"
    )


def _table(results: list[TargetResult]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("target return", "normalized score", "raw return", "length"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            "-" if result.target_return is None else f"{result.target_return:g}",
            f"{result.normalized_mean:.2f} ± {result.normalized_std:.2f}",
            f"{result.return_mean:.2f} ± {result.return_std:.2f}",
            f"{result.length_mean:.0f}",
        )
    return table


def _against_record(
    place: Path | None, stored: StoredPolicy, request: EvaluationRequest, results: list[TargetResult]
) -> str:
    """Whether the sweep recorded the same, where it evaluated the same weights in the same way."""
    spread = "± is the standard deviation over episodes."
    if place is None:
        return spread
    evaluations = [each for each in read_ledger(TrialFolder(place).ledger) if isinstance(each, EvaluationDone)]
    for record in evaluations:
        if (record.step, record.decode, record.seed) == (stored.step, request.decode, request.seed):
            recorded = {each.target_return: each.returns for each in record.targets}
            if all(recorded.get(each.target_return) == each.returns for each in results):
                return f"{spread} The sweep recorded the same returns, to the last digit."
            if len(record.headline.returns) == request.episodes:
                return f"{spread} The sweep recorded {record.headline.normalized_mean:.2f} for the first target."
    return spread


if __name__ == "__main__":
    app()
