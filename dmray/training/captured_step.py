"""One CUDA graph in place of a training step's launches, which cost more than the kernels of small networks.

Never run on a GPU: none was at hand. What a graph asks of the step is tested on the CPU (nothing is read back, what
lasts stays at its address); where there is a GPU the same file of tests holds the graph against the plain step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmray.errors import CaptureError

_PLAIN_CALLS = 3  # before the recording, as PyTorch asks: libraries choose kernels and allocate at their first ones


class CapturedStep:
    """Calls `step` plainly at first, on a stream of its own, then records its kernels once and replays them.

    Every call is a step, and plain and replayed ones do the same. `step` reads nothing back from the GPU and changes
    tensors only in place; it draws from `generator` and the device's default one, which move on as in plain calls. The
    graph remembers addresses: once a tensor that it uses is replaced, begin with a new `CapturedStep`.
    """

    def __init__(self, step: Callable[[], Tensor], generator: torch.Generator) -> None:
        self._step, self._generator = step, generator
        self._stream = torch.cuda.Stream(generator.device)  # type: ignore[no-untyped-call]
        self._plain_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result = torch.empty(0)

    def __call__(self) -> Tensor:
        """What `step` returns, the caller's own.

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
        graph.register_generator_state(self._generator)
        try:
            # thread_local: other threads of the process may go on using the GPU
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._result = self._step()
        except RuntimeError as cause:
            raise CaptureError(
                f"the training step cannot be recorded as a CUDA graph ({cause}); train with resources.capture: off"
            ) from cause
        return graph
