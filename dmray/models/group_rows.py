"""The bookkeeping of groups in a state whose rows lie group by group (see `dmray.models.network`)."""

from __future__ import annotations

import torch
from torch import Tensor

Absent = tuple[slice, slice]  # rows and tokens (B, n) of a call that do not exist; the state of the rows is empty


class GroupRows:
    """Which rows belong to which of `num_groups` groups, and which tokens of the next call a restarted group skips."""

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self._absent: Absent | None = None

    def restart(self, group: int, after: int, num_rows: int) -> slice:
        """Note that `group` skips the first `after` tokens of the next call; its rows among all `num_rows`."""
        assert self._absent is None, "one group is restarted per call"
        size = num_rows // self._num_groups
        rows = slice(group * size, (group + 1) * size)
        self._absent = (rows, slice(after)) if after else None
        return rows

    def all_rows(self, rows: Tensor, num_rows: int) -> Tensor:
        """The positions, among all `num_rows`, of `rows` (B',) of every group."""
        starts = torch.arange(self._num_groups, device=rows.device) * (num_rows // self._num_groups)
        return (starts[:, None] + rows).flatten()

    def take_absent(self) -> Absent | None:
        """The restarted group's rows, and the tokens that it skips in the call that begins; asked once per call."""
        absent, self._absent = self._absent, None
        return absent
