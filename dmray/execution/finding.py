"""From what a user names to the sweep's folder, and to a trial in it."""

from __future__ import annotations

import difflib
from pathlib import Path

from dmray.errors import StorageError
from dmray.specs import load_sweep
from dmray.tracking import SweepFolder, TrialFolder

_MOST_NAMES = 12


def find_sweep(source: Path, storage: Path | None = None) -> SweepFolder:
    """`source` is a sweep's folder, or its file (then in `storage`, else in the storage that the file names).

    Raises:
        SpecError: it is no folder, and no sweep file.
    """
    if source.expanduser().is_dir():
        place = source.expanduser().resolve()
        return SweepFolder(place.parent, place.name)
    sweep = load_sweep(source)
    return SweepFolder((storage or Path(sweep.storage)).expanduser().resolve(), sweep.name)


def find_trial(folder: SweepFolder, key: str) -> TrialFolder:
    """The trial of that id, or the only one whose id begins so, or ends so (its hash).

    Raises:
        StorageError: none was begun, or several were; the nearest are named.
    """
    trials = folder.path / "trials"
    names = sorted(path.name for path in trials.iterdir()) if trials.exists() else []
    found = [name for name in names if name == key] or [name for name in names if name.startswith(key)]
    found = found or [name for name in names if name.endswith(key)]
    if len(found) == 1:
        return folder.trial(found[0])
    if found:
        raise StorageError(f"'{key}' is the beginning or the end of {len(found)} trials:{_listed(found)}")
    near = difflib.get_close_matches(key, names, n=3, cutoff=0.3)
    cure = f"the nearest are:{_listed(near)}" if near else f"there are {len(names)}:{_listed(names)}"
    raise StorageError(f"{folder.path}: no trial '{key}' was begun; {cure}")


def _listed(names: list[str]) -> str:
    more = f"\n  and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return "".join(f"\n  {name}" for name in names[:_MOST_NAMES]) + more
