"""A decision's network as a CUDA graph: launching the kernels of a small network costs more than running them.

Shapes: R rows that the graph has, E of them in use, T timesteps, K tokens per timestep, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

_log = logging.getLogger(__name__)
_PLAIN_CALLS = 2  # before the recording: first calls of libraries choose kernels and allocate


class CapturedPrediction:
    """Calls `predict` on inputs (E, ...) of one shape but for E, which is at most `rows`.

    On a GPU it is recorded at the first call, for `rows` rows, and replayed: so a row's result does not depend on how
    many others there are. On a CPU `predict` is called as it is. `predict` reads nothing back from the GPU.
    """

    def __init__(self, predict: Callable[[Tensor], Tensor], rows: int) -> None:
        self._predict, self._rows = predict, rows
        self._graph: torch.cuda.CUDAGraph | None = None
        self._input, self._output = torch.empty(0), torch.empty(0)
        self._plain = False

    def __call__(self, inputs: Tensor) -> Tensor:
        if self._plain or inputs.device.type != "cuda":
            return self._predict(inputs)
        if self._graph is None and not self._record(inputs):
            return self._predict(inputs)
        assert self._graph is not None
        self._input[: len(inputs)].copy_(inputs)
        self._graph.replay()
        return self._output[: len(inputs)].clone()  # the next replay writes there again

    def _record(self, inputs: Tensor) -> bool:
        """Whether it could be recorded."""
        self._input = inputs.new_zeros(self._rows, *inputs.shape[1:])
        stream, current = torch.cuda.Stream(inputs.device), torch.cuda.current_stream(inputs.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(stream):
                for _ in range(_PLAIN_CALLS):
                    self._predict(self._input)
            # thread_local: other threads of the process may go on using the GPU
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._output = self._predict(self._input)
        except RuntimeError as cause:
            _log.warning("decisions are not recorded as a CUDA graph, which makes them slower: %s", cause)
            self._plain = True
            return False
        finally:
            current.wait_stream(stream)
        self._graph = graph
        return True
