"""A view of an experiment that MLflow's UI opens by a link: its trials grouped by method and data set.

    <server>/#/experiments/<id>/runs?viewStateShareKey=methods&compareRunsMode=CHART      (or TABLE)

The UI keeps what its own Share button makes in tags of the experiment; this is one of them.
"""

from __future__ import annotations

import json

KEY = "methods"
TAG = f"mlflow.sharedViewState.{KEY}"
STATE = json.dumps(
    {
        "searchFilter": "tags.`dmray.level` = 'trial'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "groupBy": {
            "aggregateFunction": "average",
            "groupByKeys": [{"mode": "tag", "groupByData": name} for name in ("model", "dataset")],
        },
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "chartsSearchFilter": "eval/|final/|train/loss",
        "hideEmptyCharts": True,
        "selectedColumns": [
            "attributes.`Source`",
            "tags.`dataset`",
            "metrics.`final/normalized_score`",
            "metrics.`best/normalized_score`",
            "metrics.`time/train_s`",
        ],
    }
)


def link(server: str, experiment: str, mode: str = "CHART") -> str:
    """The view's address; `mode` is CHART or TABLE."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?viewStateShareKey={KEY}&compareRunsMode={mode}"
