"""The functions of `import dmray`: plan, run and read sweeps; load, evaluate, draw and analyse policies.

The command lines call these functions. torch, Ray, MLflow and pandas are imported only when a function needs them.
"""

from dmray.api.analyses import analyze_decay, analyze_subgoals
from dmray.api.policies import draw_episodes, evaluate_policy, export_policy, load_policy, load_published_policy
from dmray.api.results import load_results, write_report, write_report_of
from dmray.api.sweeps import SweepPlan, evaluate_sweep, load_sweep, plan_sweep, run_sweep

__all__ = [
    "SweepPlan",
    "analyze_decay",
    "analyze_subgoals",
    "draw_episodes",
    "evaluate_policy",
    "evaluate_sweep",
    "export_policy",
    "load_policy",
    "load_published_policy",
    "load_results",
    "load_sweep",
    "plan_sweep",
    "run_sweep",
    "write_report",
    "write_report_of",
]
