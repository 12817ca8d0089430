"""Orders to a sweep in an object store: one object an order, named by its number; the highest one holds.

An object that two write at once is the last writer's, and the other's order would be lost unseen. But an object can be
put under a name that nobody has taken yet, so here each number is one order's, whoever gives it and from where: of
two at the same moment one is told that it came second.
"""

from __future__ import annotations

from pydantic import ValidationError

from dmray.coordination.commands import SweepCommand, read_command, write_command
from dmray.errors import StorageError
from dmray.records import SweepFolder
from dmray.storage import Store

_PLACE = "orders"


class StoreCommands:
    """The orders in `store`. Safe for threads.

    Raises (all methods):
        StorageError, StoreUnavailableError: as their names say.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._newest: tuple[str, str, SweepCommand] | None = None  # name, version and content: read once

    def latest(self) -> SweepCommand | None:
        """The order that holds; None where no driver ever began."""
        listed = self._store.list(_PLACE)
        if not listed:
            return None
        name = max(listed)
        if self._newest is not None and self._newest[:2] == (name, listed[name]):
            return self._newest[2]
        content = self._store.read(name)
        if content is None:  # removed since, with the sweep
            return None
        try:
            order = SweepCommand.model_validate_json(content)
        except ValidationError:
            raise StorageError(f"{self._store.url}/{name}: no order of this version of dmray; remove it") from None
        self._newest = (name, listed[name], order)
        return order

    def add(self, order: SweepCommand) -> bool:
        """Put `order` there; False if another one has its number."""
        return self._store.create(f"{_PLACE}/{order.number:06d}.json", order.model_dump_json(indent=2).encode())

    def exchange(self, folder: SweepFolder) -> None:
        """Make the order here and in a driver's folder the same: the higher one, and of one number this one."""
        theirs, mine = self.latest(), read_command(folder)
        if mine is not None and (theirs is None or mine.number > theirs.number):
            if self.add(mine):
                return
            theirs = self.latest()
        if theirs is not None and theirs != mine:
            write_command(folder, theirs)

    def take(self, folder: SweepFolder) -> None:
        """Make the order in a worker's folder the one that holds."""
        order = self.latest()
        if order is not None and order != read_command(folder):
            write_command(folder, order)
