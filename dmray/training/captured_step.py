"""A training step recorded as a CUDA graph: launching the kernels of a small network costs more than running them.

On an H200 a captured step has the bits of the plain one, for five methods over 200 steps (benchmarks/gpu). The tests
check on the CPU what a graph requires of the step (it reads nothing back and keeps tensors at their addresses); on a
machine with a GPU they also compare the graph with the plain step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmray.errors import CaptureError

_PLAIN_CALLS = 3  # before the recording, as PyTorch requires: first calls of libraries choose kernels and allocate


class CapturedStep:
    """Calls `step` a few times on a stream of its own, then records its kernels once and replays them.

    Every call is one step, replayed or not. `step` must not read anything back from the GPU and must change tensors in
    place only. It draws random numbers from `generators` and from the device's default one; all advance as without a
    graph. The graph holds addresses: after a tensor that it uses was replaced, make a new `CapturedStep`.
    """

    def __init__(self, step: Callable[[], Tensor], *generators: torch.Generator) -> None:
        self._step, self._generators = step, generators
        self._stream = torch.cuda.Stream(generators[0].device)  # type: ignore[no-untyped-call]
        self._plain_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result = torch.empty(0)

    @property
    def recorded(self) -> bool:
        """Whether the graph exists, so that further calls replay it."""
        return self._graph is not None

    def __call__(self) -> Tensor:
        """A copy of what `step` returns.

        Raises:
            CaptureError: the step cannot be recorded.
        """
        if self._plain_calls < _PLAIN_CALLS:
            self._plain_calls += 1
            return self._plain()
        if self._graph is None:
            self._graph = self._record()
        self._graph.replay()
        return self._result.clone()  # the next replay writes there again

    def _plain(self) -> Tensor:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = self._step()
        current.wait_stream(self._stream)
        return result

    def _record(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        try:
            # thread_local: other threads of the process may go on using the GPU
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._result = self._step()
        except RuntimeError as cause:
            raise CaptureError(
                f"the training step cannot be recorded as a CUDA graph ({cause}); train with resources.capture: off"
            ) from cause
        return graph
