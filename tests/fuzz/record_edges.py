"""Records of sweeps that are odd as a whole, not in their bytes: lines in another order, tables of other columns.

Most of these inputs are one step from valid ones, so that many are accepted and read to the end.
"""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet

import dmray
from dmray.files import write_atomic
from dmray.planning.manifest import read_manifest
from dmray.progress.summary import follower_of, summarize
from dmray.progress.summary_view import text
from dmray.records import SweepFolder, read_episode_table, read_ledger
from dmray.records.records import ledger_line
from dmray.trial import checkpoints
from tests.fuzz.mutators import mutate_bytes, mutate_near, mutate_path, mutate_value, odd_text
from tests.fuzz.templates import Templates

_ODD_TENSORS = (
    lambda: torch.full((3,), torch.nan),
    lambda: torch.zeros(0),
    lambda: torch.zeros(()),
    lambda: torch.zeros(2, 2, dtype=torch.bool),
    lambda: torch.zeros(1, dtype=torch.complex64),
    lambda: torch.zeros(3, dtype=torch.float16),
    lambda: torch.zeros(1).expand(2**20, 2**10),
    lambda: torch.tensor(float("inf")),
    lambda: torch.eye(3).to_sparse(),
    lambda: torch.zeros(3, requires_grad=True),
    lambda: torch.nn.Parameter(torch.zeros(3)),
)


# ---- ledgers


def ledger(rng: Random, folder: Path, templates: Templates) -> Path:
    """A sweep whose first trial has a ledger of whole lines, in another order, number or with near values."""
    sweep = templates.copy_sweep(folder)
    trial = SweepFolder(sweep.parent, sweep.name).trial(templates.trials(sweep)[0].name)
    lines = trial.ledger.read_text().splitlines()
    for _ in range(rng.randint(1, 3)):
        _change_lines(rng, lines)
    trial.ledger.write_text("\n".join(lines) + rng.choice(("\n", "\n", "\n", "", "\n\n", "\r\n")), newline="")
    if rng.random() < 0.4:
        trial.done.unlink()
    return sweep


def _change_lines(rng: Random, lines: list[str]) -> None:
    if not lines:
        return
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            lines.insert(to, lines[at])
        case 1:
            lines[at], lines[to] = lines[to], lines[at]
        case 2:
            del lines[at]
        case 3:
            del lines[at:]
        case 4:
            lines.extend(lines[at:])
        case 5:
            rng.shuffle(lines)
        case _:
            with suppress(ValueError):
                lines[at] = json.dumps(mutate_near(rng, json.loads(lines[at])))


def read_ledgers(sweep: Path) -> object:
    """Every reader of a ledger; what is accepted must be written again as it was read."""
    folder = SweepFolder(sweep.parent, sweep.name)
    shown = text(summarize(follower_of(folder)))
    results = dmray.load_results(sweep)
    tables = results.trials, results.curves, results.scores, str(results), results._repr_html_()
    manifest = read_manifest(folder)
    for record in read_ledger(folder.trial(manifest.trials[0].trial_id).ledger):
        assert ledger_line.validate_json(ledger_line.dump_json(record)) == record
    return shown, tables


def copied(rng: Random, folder: Path, templates: Templates) -> list[Path]:
    """Several sweeps for one report, one of them with a manifest of near values or an odd trial."""
    first = templates.copy_sweep(folder)
    second = folder / "runs" / rng.choice(("other", "tiny-2", "é", "<b>"))
    first.rename(second)
    first = templates.copy_sweep(folder / "again")
    manifest = second / "sweep.json"
    if rng.random() < 0.7:
        manifest.write_text(json.dumps(mutate_near(rng, json.loads(manifest.read_text()))))
    trials = templates.trials(second)
    match rng.randrange(4):
        case 0:
            trials[0].rename(trials[0].with_name(odd_text(rng, trials[0].name).replace("/", "_") or "x"))
        case 1:
            (second / "trials" / "x").write_text("x")
        case 2:
            mutate_path(rng, rng.choice([path for path in trials[0].rglob("*") if path.is_file()]))
        case _:
            pass
    return [first, second] if rng.random() < 0.5 else [second, first, second]


def read_several(sweeps: list[Path]) -> object:
    """The results of several sweeps, as tables, text and HTML."""
    results = dmray.load_results(*sweeps)
    html = results._repr_html_() + results.trials.to_html()
    assert "<b>" not in html, "the name of a sweep is markup in a notebook"
    return results.episodes, str(results), html


def report_several(sweeps: list[Path]) -> object:
    """The report of several sweeps."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return dmray.write_report(*sweeps, into=sweeps[0].parent / "report")


# ---- episode tables


def episode_tables(rng: Random, folder: Path, templates: Templates) -> Path:
    """A sweep in which a table of episodes is odd, or has an odd name."""
    sweep = templates.copy_sweep(folder)
    trial = rng.choice(templates.trials(sweep))
    path = rng.choice(sorted(trial.joinpath("evaluations").iterdir()))
    frame = read_episode_table(path).to_pandas()
    column = rng.choice(list(frame))
    match rng.randrange(10):
        case 0:
            frame = frame.drop(columns=column)
        case 1:
            frame = frame.rename(columns={column: odd_text(rng, column)})
        case 2:
            frame = frame.iloc[: rng.choice((0, 1))]
        case 3:
            frame = pd.concat([frame] * 3)
        case 4:
            frame[column] = rng.choice(("x", None, np.nan, 2**40, -1, 1e300, True, b"x"))
        case 5:
            frame[column] = [[1, 2]] * len(frame)
        case 6:
            frame = frame.set_index(column)
        case 7:
            path.write_bytes(mutate_bytes(rng, path.read_bytes()))
            return sweep
        case 8:
            name = rng.choice(("step_0x.parquet", "step_5 (copy).parquet", "step_²5.parquet", "step_5.parquet"))
            path.rename(path.with_name(name))
            return sweep
        case _:
            mutate_path(rng, path)
            return sweep
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pandas(frame), stream, compression=rng.choice(("snappy", "zstd", "none")))
    path.write_bytes(stream.getvalue())
    return sweep


def read_tables(sweep: Path) -> object:
    """`Results.episodes`, and each file alone."""
    results = dmray.load_results(sweep)
    episodes = results.episodes
    assert set(episodes.trial_id) <= set(results.trials.trial_id)
    for path in sorted(sweep.rglob("*.parquet")):
        read_episode_table(path)
    return episodes


# ---- checkpoints with a right checksum


def checkpoint_content(rng: Random, folder: Path, templates: Templates) -> Path:
    """A checkpoint whose content is odd and whose header fits it."""
    stored = rng.choice(templates.trials(templates.sweep)) / "checkpoints"
    path = folder / rng.choice(("final.pt", "last.pt", "best.pt"))
    content = torch.load(io.BytesIO((stored / path.name).read_bytes()[_header_size() :]), weights_only=True)
    spec = content["origin"]["spec"]
    if rng.random() < 0.35:
        content["origin"]["spec"] = json.dumps(mutate_near(rng, json.loads(spec)))
    elif rng.random() < 0.4:
        content = mutate_near(rng, content)
    else:
        odd = (*_ODD_TENSORS, lambda: None, lambda: 1.5, lambda: -1, lambda: 2**70, lambda: "x", list, dict)
        content = mutate_value(rng, content, odd=lambda r: r.choice(odd)())
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=rng.random() < 0.97)
    body = stream.getvalue()
    if rng.random() < 0.1:
        body = mutate_bytes(rng, body)
    write_atomic(path, packed(body))
    return path


def packed(body: bytes) -> bytes:
    """A checkpoint file of `body`, with the header that belongs to it."""
    header = checkpoints._HEADER.pack(
        checkpoints._MAGIC, checkpoints.FORMAT_VERSION, len(body), checkpoints._digest(body)
    )
    return header + body


def _header_size() -> int:
    return checkpoints._HEADER.size


def load_and_act(path: Path) -> object:
    """A policy that is accepted must also act."""
    policy = dmray.load_policy(path)
    rollout = policy.start(num_episodes=2)
    actions: Any = None
    for _ in range(2):
        actions = rollout.act(np.zeros((2, policy.task.observation_dim), dtype=np.float32))
    assert np.isfinite(actions).all(), "an accepted policy acts with numbers that are not finite"
    return actions
