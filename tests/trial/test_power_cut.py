"""A power cut loses what was not forced to the disk. From whatever is left, a trial ends with the same numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR

import pytest

from dmray.records import AttemptStarted, StartedOver
from dmray.trial.checkpoints import load_checkpoint
from dmray.trial.evaluation import InlineEvaluation
from dmray.trial.run import run_trial
from tests.trial.jobs import job, records_of, science

ALL = os.environ.get("DMRAY_ALL_POWER_CUTS") == "1"  # some minutes
SAMPLE = 5


@dataclass
class Disk:
    """What a power cut leaves of a folder: files as they were forced to the disk, under the names that were.

    `eager` disks also have each name that was ever given, at once: a file system may write a folder's entries early,
    but never the content of a file before it is forced out.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    entries: dict[int, dict[str, int]] = field(default_factory=dict)
    cuts: list[tuple[dict[int, bytes], dict[int, dict[str, int]]]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)  # open, so that no inode is used again

    def forced(self, descriptor: int) -> None:
        path, status = Path(os.readlink(f"/proc/self/fd/{descriptor}")), os.fstat(descriptor)
        if not path.is_relative_to(self.root):
            return
        self.held.append(os.dup(descriptor))
        if S_ISDIR(status.st_mode):
            self.entries[status.st_ino] = {each.name: each.inode() for each in os.scandir(path)}
        else:
            self.contents[status.st_ino] = path.read_bytes()
        self.cut()

    def cut(self) -> None:
        eager = {
            os.stat(folder).st_ino: {name: os.lstat(Path(folder, name)).st_ino for name in (*folders, *files)}
            for folder, folders, files in os.walk(self.root)
        }
        for entries in (dict(self.entries), eager):
            self.cuts.append((dict(self.contents), entries))

    def restore(self, place: int, to: Path) -> None:
        contents, entries = self.cuts[place]
        kinds = {inode: True for each in self.cuts for inode in each[1]}

        def write(inode: int, path: Path) -> None:
            if inode in kinds:
                path.mkdir(exist_ok=True)
                for name, child in entries.get(inode, {}).items():
                    write(child, path / name)
            else:
                path.write_bytes(contents.get(inode, b""))

        write(os.stat(self.root).st_ino, to)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Disk, list[object], object]:
    """A whole trial, watched: the disk at each cut, its numbers, its best weights."""
    root = tmp_path_factory.mktemp("recorded")
    disk = Disk(root)
    replaced: Callable[[Path, Path], Path] = Path.replace

    def replace(part: Path, path: Path) -> Path:
        done = replaced(part, path)
        disk.cut()
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", disk.forced)  # only noted: a busy disk takes long for it
        patch.setattr(Path, "replace", replace)
        work = job(root, evaluation={"episodes": 2, "every_steps": 10, "cohort_size": 2})
        run_trial(work, InlineEvaluation())
    for descriptor in disk.held:
        os.close(descriptor)
    best = load_checkpoint(work.folder.best_checkpoint)
    return disk, list(science(work)), (best["step"], best["score"])


@pytest.mark.parametrize("part", range(SAMPLE))
def test_a_trial_ends_with_the_same_numbers_after_a_power_cut(
    tmp_path: Path, recorded: tuple[Disk, list[object], object], part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    disk, numbers, best = recorded
    assert len(disk.cuts) > 40, "the trial forces its files to the disk"
    every = len(disk.cuts) // SAMPLE
    places = range(part, len(disk.cuts), SAMPLE) if ALL else [part * every + every // 2 + part % 2]
    for place in places:
        storage = tmp_path / str(place)
        disk.restore(place, storage)
        work = job(storage, evaluation={"episodes": 2, "every_steps": 10, "cohort_size": 2})
        run_trial(work, InlineEvaluation())
        assert science(work) == numbers, f"cut {place} of {len(disk.cuts)}"
        again = load_checkpoint(work.folder.best_checkpoint)
        assert (again["step"], again["score"]) == best
        assert records_of(work, AttemptStarted)[-1].trial_id == work.trial.trial_id
        assert not records_of(work, StartedOver), "the order on the disk leaves no gap"
        assert not list(work.folder.path.rglob("*.part"))
