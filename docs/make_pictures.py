"""Make the pictures of the documents: python docs/make_pictures.py [--storage runs]

They show the sweep docs/pictures.yaml, which is run (or continued) first, and benchmarks/decode.json. Pages are
photographed by Chromium, which must be on the PATH. docs/pictures.json then says what each picture was made from;
tests/test_docs_pictures.py fails when that has changed since, or when a picture was changed by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
SWEEP, RECORD, SPEEDS = DOCS / "pictures.yaml", DOCS / "pictures.json", ROOT / "benchmarks" / "decode.json"
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

MAZE_METHOD, MAZE_EPISODES = "hdm", 6
REPORT_PAGE, MLFLOW_PAGE, MLFLOW_TABLE_PAGE = (1040, 1400), (1800, 900), (1800, 520)  # in pixels
MAIN_PANEL = (198, 8, 1334)  # left, top and right: without MLflow's menu and its assistant


def made_from() -> dict[str, str]:
    """For each picture a digest of what it shows apart from the results: words, colours, settings."""
    from dmray.methods import METHODS
    from dmray.reporting import document, figures
    from dmray.rollout import pictures

    sweep = SWEEP.read_text(encoding="utf-8")
    looks = [[METHODS[name].label, METHODS[name].colour, METHODS[name].marker] for name in ("dm", "dt", "hdm")]
    drawn = [value for name, value in sorted(vars(figures).items()) if name.startswith("_") and name.isupper()]
    maze = [value for name, value in sorted(vars(pictures).items()) if name.startswith("_") and name.isupper()]
    mlflow = _digest([sweep, looks, _words_of_mlflow()])
    return {
        "report.png": _digest([sweep, looks, drawn, document._STYLE, *_top_of_a_report()]),
        "mlflow.png": mlflow,
        "mlflow_table.png": mlflow,
        "maze_episodes.png": _digest([sweep, MAZE_METHOD, MAZE_EPISODES, maze, *_words_of_a_maze()]),
        "inference.png": _digest([SPEEDS.read_text(encoding="utf-8"), looks[:2]]),
    }


def digest_of(picture: Path) -> str:
    """Of the picture itself."""
    return hashlib.sha256(picture.read_bytes()).hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, default=repr).encode()).hexdigest()


def _top_of_a_report() -> Iterable[str]:
    """The report of an example down to its first figure."""
    from dmray.records import SweepFolder
    from dmray.reporting import collect
    from dmray.reporting.across import results_by_protocol
    from dmray.reporting.document import Image
    from dmray.reporting.render import ReportFigures, ReportParts, report_blocks
    from tests.reporting.examples import write

    with tempfile.TemporaryDirectory() as storage:
        folder = SweepFolder(Path(storage), "example")
        write(folder, {"dm 0": [80, 50], "dm 1": [56, 56], "dt 0": [10, 20], "dt 1": [40, 30]})
        results = collect(folder)
    figures = ReportFigures({0: Path("figure.png")})
    parts = ReportParts(results_by_protocol(results.comparisons), [], figures, [])
    for block in report_blocks(results, parts, None):
        yield repr(block)
        if isinstance(block, Image):
            return


def _words_of_mlflow() -> list[Any]:
    from dmray.mlflow_mirror.layout import group_curve, seed_group_name, trial_name, view_tags
    from dmray.specs.loading import load_sweep
    from tests.mlflow_mirror.examples import trials_of

    trial = trials_of(load_sweep(SWEEP))[0]
    return [view_tags("1"), group_curve(5), seed_group_name(trial), trial_name(trial)]


def _words_of_a_maze() -> list[str]:
    from dmray.rollout import EpisodeRecord
    from dmray.rollout.pictures import Acting, _result
    from dmray.tasks import TASKS

    record = EpisodeRecord(0, 1, 2.0, 3.0, 4)
    return [Acting("DM", "data", 0).caption(record), _result(TASKS["maze2d-umaze"], record)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, default=ROOT / "runs")
    storage = parser.parse_args().storage
    import dmray
    from tests.mlflow_mirror import browser

    if problem := browser.missing():
        sys.exit(problem)
    run = dmray.run_sweep(SWEEP, storage=storage, local=True, resume=(storage / "pictures").exists())
    report = run.write_report()
    with tempfile.TemporaryDirectory() as scratch:
        _photograph(report.html.as_uri(), Path(scratch), "report.png", REPORT_PAGE)
        _photograph_mlflow(run.folders[0], Path(scratch))
        _draw_maze(run.folders[0], Path(scratch))
    _draw_speeds()
    record = {name: {"made_from": made, "picture": digest_of(DOCS / name)} for name, made in made_from().items()}
    RECORD.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _photograph(
    url: str, scratch: Path, name: str, size: tuple[int, int], panel: tuple[int, int, int] | None = None
) -> None:
    from PIL import Image

    from tests.mlflow_mirror import browser

    path = scratch / name
    browser.photograph(url, scratch / "profile", path, *size)
    picture = Image.open(path).convert("RGB")
    if panel is not None:
        left, top, right = panel
        picture = picture.crop((left, top, right, picture.height - top))
    picture.save(DOCS / name, optimize=True)
    print(f"written {DOCS / name}")


def _photograph_mlflow(folder: Any, scratch: Path) -> None:
    """Copy the sweep to a server of its own, so that the experiment has nothing else."""
    import mlflow

    from dmray.mlflow_mirror.layout import experiment_name, view_link
    from dmray.mlflow_mirror.mirror import MlflowMirror
    from dmray.planning.manifest import read_manifest
    from tests.mlflow_mirror.mlflow_server import Server

    server, plan = Server(scratch), read_manifest(folder)
    server.start()
    try:
        MlflowMirror.open(server.uri, folder, plan.sweep, plan.trials).close(folder.report)
        found = mlflow.MlflowClient(server.uri).get_experiment_by_name(experiment_name(folder.name))
        for name, mode, size in (
            ("mlflow.png", "CHART", MLFLOW_PAGE),
            ("mlflow_table.png", "TABLE", MLFLOW_TABLE_PAGE),
        ):
            _photograph(view_link(server.uri, found.experiment_id, mode=mode), scratch, name, size, MAIN_PANEL)
    finally:
        server.stop()


def _draw_maze(folder: Any, scratch: Path) -> None:
    import dmray
    from dmray.planning.manifest import read_manifest

    trial = next(each for each in read_manifest(folder).trials if each.method == MAZE_METHOD)
    drawn = dmray.draw_episodes(folder.trial(trial.trial_id).path, MAZE_EPISODES, into=scratch)
    shutil.copyfile(next(path for path in drawn if path.stem.endswith("-episodes")), DOCS / "maze_episodes.png")
    print(f"written {DOCS / 'maze_episodes.png'}")


def _draw_speeds() -> None:
    import decode

    decode.plot(json.loads(SPEEDS.read_text(encoding="utf-8"))["results"], DOCS / "inference.png")
    print(f"written {DOCS / 'inference.png'}")


if __name__ == "__main__":
    main()
