"""Rows and restarts of the groups in a state whose rows are sorted by group (see `dmray.models.network`)."""

from __future__ import annotations

import torch
from torch import Tensor

Absent = tuple[slice, slice]  # rows and tokens (of (B, n)) that a call must skip; the state of these rows is empty


class GroupRows:
    """The rows of each of `num_groups` groups, and the tokens that a restarted group skips in the next call."""

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self._absent: Absent | None = None

    def restart(self, group: int, after: int, num_rows: int) -> slice:
        """Let `group` skip the first `after` tokens of the next call. Returns the group's rows among all `num_rows`."""
        assert self._absent is None, "one group is restarted per call"
        size = num_rows // self._num_groups
        rows = slice(group * size, (group + 1) * size)
        self._absent = (rows, slice(after)) if after else None
        return rows

    def all_rows(self, rows: Tensor, num_rows: int) -> Tensor:
        """The positions among all `num_rows` of the rows `rows` (B',) of each group."""
        starts = torch.arange(self._num_groups, device=rows.device) * (num_rows // self._num_groups)
        return (starts[:, None] + rows).flatten()

    def take_absent(self) -> Absent | None:
        """The restarted group's rows and the tokens that it skips in this call. Must be called once in each call."""
        absent, self._absent = self._absent, None
        return absent
