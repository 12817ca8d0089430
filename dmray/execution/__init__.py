"""From a plan to finished trials. Light to import: torch and Ray come with the runners."""

from dmray.execution.choice import Choice, chosen
from dmray.execution.cost import Cost, total_cost, trial_cost
from dmray.execution.plan import Plan, load_plan, plan
from dmray.execution.survey import TrialState, failures, survey, to_run

__all__ = [
    "Choice",
    "Cost",
    "Plan",
    "TrialState",
    "chosen",
    "failures",
    "load_plan",
    "plan",
    "survey",
    "to_run",
    "total_cost",
    "trial_cost",
]
