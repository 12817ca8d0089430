"""dmray: distributed sweeps of offline-RL sequence models on Ray.

    import dmray

    results = dmray.run_sweep("sweeps/quickstart.yaml")
    results.scores                                                          # a pandas table
    policy = dmray.load_policy(results.trial_folder(results.trials.trial_id[0]))
    dmray.evaluate_policy(policy, episodes=100).normalized

docs/api.md has an example of each function. Importing dmray imports no other module of the package; the modules of a
function are imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmray.analysis.decay import DecayAnalysis
    from dmray.analysis.subgoals import SubgoalAnalysis
    from dmray.api import (
        SweepPlan,
        analyze_decay,
        analyze_subgoals,
        draw_episodes,
        evaluate_policy,
        evaluate_sweep,
        export_policy,
        load_policy,
        load_published_policy,
        load_results,
        load_sweep,
        plan_sweep,
        run_sweep,
        write_report,
    )
    from dmray.driver.sweep_evaluation import SweepEvaluation
    from dmray.errors import DmrayError
    from dmray.exports import Export
    from dmray.inference import Evaluation, Policy, Rollout
    from dmray.progress.summary import Summary
    from dmray.reporting.frames import Results, SweepRun
    from dmray.specs import SweepSpec, TrialSpec

__version__ = "0.1.0"

__all__ = [
    "DecayAnalysis",
    "DmrayError",
    "Evaluation",
    "Export",
    "Policy",
    "Results",
    "Rollout",
    "SubgoalAnalysis",
    "Summary",
    "SweepEvaluation",
    "SweepPlan",
    "SweepRun",
    "SweepSpec",
    "TrialSpec",
    "__version__",
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
]

_MODULES = {
    "DecayAnalysis": "dmray.analysis.decay",
    "DmrayError": "dmray.errors",
    "Evaluation": "dmray.inference",
    "Export": "dmray.exports",
    "Policy": "dmray.inference",
    "Results": "dmray.reporting.frames",
    "Rollout": "dmray.inference",
    "SubgoalAnalysis": "dmray.analysis.subgoals",
    "Summary": "dmray.progress.summary",
    "SweepEvaluation": "dmray.driver.sweep_evaluation",
    "SweepRun": "dmray.reporting.frames",
    "SweepSpec": "dmray.specs",
    "TrialSpec": "dmray.specs",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dmray' has no attribute '{name}'")
    value = getattr(import_module(_MODULES.get(name, "dmray.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
