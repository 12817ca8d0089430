"""What is in the files of W&B and TensorBoard, read with their own readers."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmray.records import SweepFolder
from dmray.testing.tracker_contract import Shown
from dmray.trackers.tensorboard_runs import EVENTS, FACTS, tensorboard_folder
from dmray.trackers.wandb_runs import STEP, read_wandb_file

_CELL = re.compile(r"^\| (.+?) \| (.*) \|$", re.MULTILINE)


def wandb_shown(folder: SweepFolder) -> dict[str, Shown]:
    """By trial id; each trial has one file."""
    files = sorted((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))
    read = [_wandb_run(path) for path in files]
    shown = dict(read)
    assert len(shown) == len(read), "a trial has two files"
    return shown


def _wandb_run(path: Path) -> tuple[str, Shown]:
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    points: list[tuple[str, int, float]] = []
    for record in read_wandb_file(path):
        if record["type"] == "run":
            config |= record["run"]["config"]["update"]
        elif record["type"] == "config":
            config |= record["config"]["update"]
        elif record["type"] == "summary":
            summary |= record["summary"].get("update", {})
        elif record["type"] == "history":
            row = record["history"]["item"]
            names = [name for name in row if not name.startswith("_") and name != STEP]
            points += [(name, row[STEP], float(row[name])) for name in names]
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in config.items()}
    return config["trial_id"], Shown(points, texts, texts, summary["dmray.status"])


def tensorboard_shown(folder: SweepFolder) -> dict[str, Shown]:
    """By trial id, as the name of each folder says."""
    folders = sorted(path.parent for path in tensorboard_folder(folder).glob(f"*/{EVENTS}"))
    return {path.name: _events(path) for path in folders}


def _events(path: Path) -> Shown:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    found = EventAccumulator(str(path), {"scalars": 0, "tensors": 0}).Reload()
    points = [(tag, each.step, each.value) for tag in found.Tags()["scalars"] for each in found.Scalars(tag)]
    start = found.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    params = metadata.parse_session_start_info_plugin_data(start).hparams
    facts: dict[str, str] = {}
    for text in _texts(found, FACTS) if FACTS in found.Tags()["tensors"] else ():
        facts |= {_unescaped(name): _unescaped(value) for name, value in _CELL.findall(text)}
    return Shown(points, {name: _plain(params[name]) for name in params}, facts, _texts(found, "dmray.status")[-1])


def _texts(found: Any, tag: str) -> list[str]:
    return [each.tensor_proto.string_val[0].decode() for each in found.Tensors(tag)]


def _unescaped(text: str) -> str:
    return html.unescape(re.sub(r"\\(.)", r"\1", text)).replace("\u200b", "")


def _plain(value: Any) -> str:
    kind = value.WhichOneof("kind")
    return f"{value.number_value:g}" if kind == "number_value" else str(getattr(value, kind))


def hparams_status(folder: Path) -> str | None:
    """The status in TensorBoard's table HPARAMS; None while it has none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import api_pb2, metadata

    found = EventAccumulator(str(folder)).Reload()
    if metadata.SESSION_END_INFO_TAG not in found.Tags()["tensors"]:
        return None
    end = found.SummaryMetadata(metadata.SESSION_END_INFO_TAG).plugin_data.content
    name: str = api_pb2.Status.Name(metadata.parse_session_end_info_plugin_data(end).status)
    return name


def shown_files(folder: SweepFolder) -> Mapping[str, Mapping[str, Shown]]:
    """Of both trackers."""
    return {"W&B": wandb_shown(folder), "TensorBoard": tensorboard_shown(folder)}
