"""What the figures show, read from matplotlib's objects before they are saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from dmray.methods import METHODS
from dmray.records import SweepFolder
from dmray.reporting import collect, figures
from dmray.reporting.across import results_by_protocol
from tests.reporting.examples import write

NAME = "hopper-medium-v2"


def drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledgers: dict[str, list[Any]], profiles: bool = False
) -> Figure:
    folder, found = SweepFolder(tmp_path, "example"), []
    write(folder, ledgers, datasets=[NAME, "hopper-expert-v2"] if profiles else [NAME])
    results = collect(folder)
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: found.append(figure))
    if profiles:
        (group,) = results_by_protocol(results.comparisons)
        assert figures.draw_profiles(group, tmp_path / "x.png")
    else:
        assert figures.draw_learning_curves(results.comparisons[0], tmp_path / "x.png")
    (figure,) = found
    figure.canvas.draw()
    return figure


def labels(figure: Figure) -> list[Annotation]:
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation)]


def test_the_axis_shows_the_data_and_little_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(tmp_path, monkeypatch, {"dm 0": [140, 145], "dt 0": [131, 144]})
    low, high = figure.axes[0].get_ylim()
    assert (low, high) == pytest.approx((129.9, 146.1), abs=0.1)
    assert [text.get_text() for text in labels(figure)] == [
        "\u2193 expert = 100\n(return 3,234.3)\n\u2193 random = 0\n(return -20.3)"
    ]


def test_each_reference_has_a_line_and_a_label_with_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(tmp_path, monkeypatch, {"dm 0": [-20, 60], "dt 0": [0, 120]})
    assert [text.get_text().split("\n")[0] for text in labels(figure)] == ["random = 0", "expert = 100"]
    dashed = [line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == "--"]  # type: ignore[index]
    assert dashed == [0, 100]


@pytest.mark.parametrize("scores", [[-20, 60], [-3000, 4000], [40, 41], [95, 103], [-2, 4]])
def test_no_label_lies_on_another_or_on_the_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: list[float]
) -> None:
    figure = drawn(tmp_path, monkeypatch, {"dm 0": scores, "dt 0": [scores[0], scores[0] + 1]})
    axes, (legend,) = figure.axes[0], figure.legends
    boxes = [text.get_window_extent() for text in labels(figure)] + [legend.get_window_extent()]
    assert len(boxes) >= 2
    for place, box in enumerate(boxes):
        assert box.x0 > axes.get_window_extent().x1
        assert box.x1 <= figure.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[place + 1 :])


def test_profiles_show_negative_scores_in_the_colours_and_marks_of_the_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers: dict[str, list[Any]] = {"dm 0": [1, -40], "dm 1": [1, 20], "dt 0": [1, -10], "dt 1": [1, 5]}
    figure = drawn(tmp_path, monkeypatch, ledgers, profiles=True)
    assert figure.axes[0].get_xlim()[0] < -40
    curves = {line.get_label(): line for line in figure.axes[0].lines if len(np.asarray(line.get_xdata())) > 2}
    for method in ("dm", "dt"):
        look, line = METHODS[method], curves[METHODS[method].label]
        assert (line.get_color(), line.get_marker()) == (look.colour, look.marker)
        assert np.asarray(line.get_ydata())[0] == 1.0, "all runs are above the lowest threshold"
