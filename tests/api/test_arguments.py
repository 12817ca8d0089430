"""Arguments of a wrong type or value are a sentence that names them; nothing is loaded or written for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import dmray
from dmray.arguments import finite_number, flag, whole_number
from dmray.errors import DmrayError, SpecError, StorageError

SWEEP: dict[str, Any] = {"name": "a", "datasets": ["hopper-medium-v2"], "grid": [{"methods": ["dm"]}], "seeds": [0]}


def act(observations: np.ndarray) -> np.ndarray:
    return observations[:, :2]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: dmray.load_sweep(5), "sweep"),  # type: ignore[arg-type]
        (lambda: dmray.load_sweep(None), "sweep"),  # type: ignore[arg-type]
        (lambda: dmray.load_sweep(""), "sweep"),
        (lambda: dmray.load_sweep("a\0b"), "sweep"),
        (lambda: dmray.load_sweep(SWEEP, 5), "overrides"),  # type: ignore[arg-type]
        (lambda: dmray.load_sweep(SWEEP, [5]), "override"),  # type: ignore[list-item]
        (lambda: dmray.load_sweep(SWEEP, {"seeds": "[1]"}), "overrides"),
        (lambda: dmray.plan_sweep({1: 2}), "sweep: the key 1"),  # type: ignore[dict-item]
        (lambda: dmray.run_sweep(SWEEP, local="yes"), "local"),  # type: ignore[arg-type]
        (lambda: dmray.run_sweep(SWEEP, only=5), "only"),  # type: ignore[arg-type]
        (lambda: dmray.run_sweep(SWEEP, storage=5), "storage"),  # type: ignore[arg-type]
        (lambda: dmray.run_sweep(SWEEP, storage=""), "storage"),
        (lambda: dmray.run_sweep(SWEEP, progress=5), "progress"),  # type: ignore[arg-type]
        (lambda: dmray.run_sweep(SWEEP, progress=False, console=Console()), "console: only progress=True"),
        (lambda: dmray.load_results(5), "sweep"),  # type: ignore[arg-type]
        (lambda: dmray.load_results("runs", protocol=5), "protocol"),  # type: ignore[arg-type]
        (lambda: dmray.load_policy(None), "source"),  # type: ignore[arg-type]
        (lambda: dmray.load_policy("a.pt", checkpoint="third"), "checkpoint 'third': give one of"),
        (lambda: dmray.evaluate_policy(act, "hopper", "2"), "episodes"),  # type: ignore[arg-type]
        (lambda: dmray.evaluate_policy(act, "hopper", True), "episodes"),
        (lambda: dmray.evaluate_policy(act, "hopper", 1.5), "episodes"),  # type: ignore[arg-type]
        (lambda: dmray.evaluate_policy(act, "hopper", 10**400), "episodes"),
        (lambda: dmray.evaluate_policy(act, "hopper", seed=-1), "seed"),
        (lambda: dmray.evaluate_policy(act, 5), "task"),  # type: ignore[arg-type]
        (lambda: dmray.evaluate_policy(5, "hopper"), "policy"),  # type: ignore[arg-type]
        (lambda: dmray.evaluate_policy(act, "hopper", workers="2"), "workers"),  # type: ignore[arg-type]
        (lambda: dmray.evaluate_policy(act, "hopper", target_returns="12"), "target_returns"),  # type: ignore[arg-type]
        (lambda: dmray.draw_episodes("a.pt", "3"), "pictures"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_is_a_sentence_that_names_it(call: Callable[[], object], name: str) -> None:
    with pytest.raises(DmrayError) as error:
        call()
    assert str(error.value).startswith(name)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_file_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StorageError, match=rf"into {file}: is a file; give a folder"):
        dmray.draw_episodes("a.pt", into=file)


def test_numpy_numbers_are_numbers_and_truth_values_are_not() -> None:
    assert whole_number("n", np.int64(3), 1) == whole_number("n", 3.0, 1) == whole_number("n", np.float32(3), 1) == 3
    assert finite_number("x", np.float32(0.5)) == 0.5
    assert flag("f", np.True_) is True
    wrong: list[tuple[Callable[..., object], Any]] = [
        (whole_number, np.True_),
        (whole_number, "3"),
        (whole_number, float("nan")),
        (whole_number, np.arange(2)),
        (finite_number, True),
        (finite_number, "1"),
        (finite_number, float("inf")),
        (finite_number, 10**400),
        (flag, 1),
        (flag, "no"),
    ]
    for check, value in wrong:
        with pytest.raises(SpecError, match="n "):
            check("n", value, *([1] if check is whole_number else []))
