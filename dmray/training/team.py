"""Several processes that take one trial's steps together: data-parallel training.

Every worker draws the same batch from the same generator and differentiates rows of its own; the gradients are then
summed with the weights that the rows have in the loss. So a step is that of one process on the whole batch, up to the
order of sums (and to dropout: workers draw the same masks, each for its own rows). All hold the same weights at all
times, and only the leader needs to save them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
import torch.distributed
from torch import Tensor
from torch.nn import Parameter

from dmray.datasets.windows import Windows
from dmray.errors import TeamError, TeamShutdownError


class Team:
    """The processes of torch's default group; rank 0 leads. All must call the same, until the leader dismisses them.

    Calls that wait for the others raise a TeamError if one of them is gone, a TeamShutdownError once dismissed.
    """

    def __init__(self) -> None:
        self.rank, self.size = torch.distributed.get_rank(), torch.distributed.get_world_size()

    @property
    def leads(self) -> bool:
        """Whether this process records, evaluates and saves for all."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all are here."""
        self._agree(torch.zeros(()))

    def dismiss(self) -> None:
        """As the leader: no further step, wherever the others wait. What is gone already needs no dismissal."""
        with contextlib.suppress(TeamError):
            self._sum(torch.tensor(-math.inf))

    def rows(self, windows: Windows) -> Windows:
        """This worker's rows of a batch."""
        mine = slice(self.rank, None, self.size)
        tokens = {token: values[mine] for token, values in windows.tokens.items()}
        return Windows(tokens, windows.timesteps[mine], windows.valid[mine])

    def share(self, parameters: Sequence[Parameter], losses: Tensor, weight: Tensor) -> Tensor:
        """Replace gradients of means over this worker's rows by those over all rows; return all rows' losses.

        `weight` is a row count or what stands for it in the mean, ().
        """
        gradients = [parameter.grad for parameter in parameters]
        assert all(gradient is not None for gradient in gradients), "every parameter takes part in the loss"
        parts = [*(gradient for gradient in gradients if gradient is not None), losses.detach()]
        mine = weight / self._agree(weight)
        shared = self._sum(torch.cat([part.flatten() * mine for part in parts]))
        for part, value in zip(parts, torch.split(shared, [part.numel() for part in parts]), strict=True):
            part.copy_(value.view_as(part))
        return parts[-1]

    def _agree(self, number: Tensor) -> Tensor:
        total = self._sum(number.clone())
        if total == -math.inf:
            raise TeamShutdownError("the leader of this trial's workers has dismissed them")
        return total

    def _sum(self, numbers: Tensor) -> Tensor:
        try:
            torch.distributed.all_reduce(numbers)
        except RuntimeError as cause:
            raise TeamError(f"a worker of this trial is gone: {cause}") from cause
        return numbers
