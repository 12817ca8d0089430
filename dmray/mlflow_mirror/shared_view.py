"""Views of an experiment that MLflow's UI opens by a link: its trials grouped by method, and by data set and method.

    <server>/#/experiments/<id>/runs?viewStateShareKey=methods&compareRunsMode=CHART      (or TABLE; or cells)

The UI keeps what its own Share button makes in tags of the experiment; these are such tags.
"""

from __future__ import annotations

import json

# The UI colours a group by a hash of its keys: with the method last, neighbours such as DM and DT never look alike.
_GROUPED_BY = {"methods": ("model",), "cells": ("dataset", "model")}


def _state(keys: tuple[str, ...]) -> str:
    return json.dumps(
        {
            "searchFilter": "tags.`dmray.level` = 'trial'",
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": name} for name in keys],
            },
            "groupsExpanded": {},
            "useGroupedValuesInCharts": True,
            "chartsSearchFilter": "eval/(norm|return_m)|final/norm|train/loss$",
            "hideEmptyCharts": True,
            "selectedColumns": [
                "attributes.`Source`",
                "metrics.`final/normalized_score`",
                "metrics.`best/normalized_score`",
                "metrics.`time/train_s`",
            ],
        }
    )


def tags(experiment: str) -> dict[str, str]:
    """Of the experiment with that id: the views, and a description that links to them."""
    curves, table = link("", experiment), link("", experiment, mode="TABLE")
    seed_groups = link("", experiment, "cells", "TABLE")
    note = f"Methods over all seeds: [curves]({curves}), [table]({table}); [by data set and method]({seed_groups})."
    views = {f"mlflow.sharedViewState.{name}": _state(keys) for name, keys in _GROUPED_BY.items()}
    return {**views, "mlflow.note.content": note}


def link(server: str, experiment: str, view: str = "methods", mode: str = "CHART") -> str:
    """The address of a view: methods or cells, as CHART or TABLE. `server` empty: relative to the UI's own page."""
    place = f"#/experiments/{experiment}/runs?viewStateShareKey={view}&compareRunsMode={mode}"
    return f"{server.rstrip('/')}/{place}" if server else place
