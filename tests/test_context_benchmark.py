"""The parts of benchmarks/context_length.py that its conclusions rest on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("context_length", FOLDER / "context_length.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["context_length"] = module
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([4, 4, 4], [1, 10, 100], 10**1.60206),  # 1, 10, 100 is a straight line that crosses 4
        ([1, 1, 1], [2, 2, 2], None),
        ([2, 2, 2], [1, 1, 1], None),
        ([1, 3, 1], [2, 2, 2], 10 ** (2 + 0.36907)),  # cheaper at first, then not: from the last crossing on
        ([4, 4, 1], [2, 5, 0.5], None),
    ],
)
def test_the_crossing_is_where_ours_stays_cheaper(
    benchmark: object, ours: list[float], theirs: list[float], expected: float | None
) -> None:
    found = benchmark.crossing([10, 100, 1000], ours, theirs)  # type: ignore[attr-defined]
    assert found == (expected if expected is None else pytest.approx(expected, rel=1e-4))


def test_equal_sizes_are_equal_and_states_are_counted(benchmark: object) -> None:
    by_size = benchmark.sizes("equal size")  # type: ignore[attr-defined]
    assert by_size[0].d_model == 128
    assert max(size.parameters for size in by_size) < 1.2 * min(size.parameters for size in by_size)
    state = [torch.zeros(2, 3), {"a": 1}, torch.zeros(4, dtype=torch.float64)[:1]]
    assert benchmark.held_bytes(state) == 24 + 32  # type: ignore[attr-defined]
