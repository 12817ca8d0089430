"""Commands to a sweep in an object store: one object per command, named by its number; the highest number is current.

If all commands were written to the same object, two written at the same moment would overwrite each other unnoticed.
Creating an object under a new name fails if the name is taken, so the second of the two learns that it came second.
"""

from __future__ import annotations

from pydantic import ValidationError

from dmray.coordination.commands import SweepCommand, read_command, write_command
from dmray.errors import StorageError
from dmray.records import SweepFolder
from dmray.storage import Store

_PREFIX = "commands"


class StoreCommands:
    """The commands in `store`. Safe to use from several threads.

    Raises (all methods):
        StoreUnavailableError: the store does not answer.
        StorageError: the store refuses access, or holds a command that cannot be parsed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latest: tuple[str, str, SweepCommand] | None = None  # name, version, content: each object is read once

    def latest(self) -> SweepCommand | None:
        """The current command; None if no driver has started the sweep."""
        listed = self._store.list(_PREFIX)
        if not listed:
            return None
        name = max(listed)
        if self._latest is not None and self._latest[:2] == (name, listed[name]):
            return self._latest[2]
        content = self._store.read(name)
        if content is None:  # the sweep was removed after the listing
            return None
        try:
            command = SweepCommand.model_validate_json(content)
        except ValidationError:
            raise StorageError(
                f"{self._store.url}/{name}: not a command of this version of dmray; remove the object"
            ) from None
        self._latest = (name, listed[name], command)
        return command

    def add(self, command: SweepCommand) -> bool:
        """Write `command`. False, and nothing is written, if another command has its number."""
        content = command.model_dump_json(indent=2).encode()
        return self._store.create(f"{_PREFIX}/{command.number:06d}.json", content)

    def sync(self, folder: SweepFolder) -> None:
        """For the driver: make its folder and the store hold the same command.

        The higher number wins; of two commands with one number, the one in the store.
        """
        stored, local = self.latest(), read_command(folder)
        if local is not None and (stored is None or local.number > stored.number):
            if self.add(local):
                return
            stored = self.latest()
        if stored is not None and stored != local:
            write_command(folder, stored)

    def download(self, folder: SweepFolder) -> None:
        """For workers and readers: write the store's current command into `folder`."""
        stored = self.latest()
        if stored is not None and stored != read_command(folder):
            write_command(folder, stored)
